"""Statistics: against scipy, against values worked out by hand or by simulation, and at the edges."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmedge.statistics import (
    Proportion,
    accuracy_at,
    auroc,
    auroc_over_seeds,
    bootstrap,
    calibration_by_chance,
    calibration_error,
    confidence_bins,
    holm,
    mcnemar,
    mean_over_seeds,
    paired_difference,
    percentile,
    risk_coverage,
    said_at_best_level,
)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc([0.9, 0.8, 0.3, 0.1], [True, True, False, False]) == 1.0
    assert auroc([0.1, 0.9], [True, False]) == 0.0
    assert auroc([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert auroc([0.9, 0.2, 0.5, 0.5], [True, True, False, False]) == 0.5
    assert auroc([0.1, 0.2], [True, True]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_mann_and_whitneys_u(items: list[tuple[int, bool]]) -> None:
    good, bad = ([score for score, positive in items if positive is wanted] for wanted in (True, False))
    found = auroc([score for score, _ in items], [positive for _, positive in items])
    if good and bad:
        assert found == pytest.approx(stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_agrees_with_counting(items: list[tuple[int, bool]]) -> None:
    good = [score for score, positive in items if positive]
    bad = [score for score, positive in items if not positive]
    found = auroc([score for score, _ in items], [positive for _, positive in items])
    if not good or not bad:
        assert found is None
    else:
        wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
        assert found == pytest.approx(wins / (len(good) * len(bad)))


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(0, 5) == mcnemar(5, 0)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(4, 4) == 1.0


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipys_binomial_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_proportion_has_the_interval_of_scipys_wilson(successes: int, total: int) -> None:
    found = Proportion(min(successes, total), total)
    expected = stats.binomtest(found.successes, total).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(samples: list[float], percent: float) -> None:
    assert percentile(samples, percent) == pytest.approx(np.percentile(samples, percent), rel=1e-9, abs=1e-6)


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_proportion_lies_in_its_interval(successes: int, total: int) -> None:
    found = Proportion(min(successes, total), total)
    low, high = found.interval
    assert 0 <= low <= found.value <= high <= 1


def test_intervals_over_questions_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(1)
    covered = 0
    for trial in range(120):
        outcomes = [[rng.random() < 0.7 for _ in range(150)]]
        found = mean_over_seeds(outcomes, seed=trial, resamples=1000)
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 120 <= 1.0


def test_differences_between_seeds_widen_the_interval() -> None:
    rng = random.Random(2)
    alike = [[rng.random() < 0.6 for _ in range(200)] for _ in range(4)]
    unlike = [[rng.random() < p for _ in range(200)] for p in (0.3, 0.5, 0.7, 0.9)]
    narrow, wide = mean_over_seeds(alike), mean_over_seeds(unlike)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_questions_with_several_trials_are_weighed_by_them() -> None:
    found = mean_over_seeds([[3, 0, 1]], [[3, 3, 2]])
    assert found.value == pytest.approx(4 / 8)
    assert 0 <= found.low < found.value < found.high <= 1


def test_what_is_all_right_has_an_interval_too() -> None:
    found = mean_over_seeds([[1] * 20])
    assert found.value == 1 and found.low == pytest.approx(Proportion(20, 20).interval[0]) and found.high == 1


def test_a_real_difference_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(3)
    base = (rng.random((3, 300)) < 0.5).astype(float)
    better = np.maximum(base, rng.random((3, 300)) < 0.2)
    found = paired_difference(better.tolist(), base.tolist())
    assert found.p is not None and found.p < 0.01 and found.low > 0
    same = paired_difference(base.tolist(), base.tolist())
    assert same.value == 0 and same.p == 1.0
    assert paired_difference([[1, 1, 0, 1]], [[0, 1, 0, 0]]).p == mcnemar(2, 0)


def test_intervals_of_differences_are_scipys_bootstrap() -> None:
    rng = np.random.default_rng(8)
    new, base = ((rng.random(200) < share).astype(float) for share in (0.65, 0.6))
    found = paired_difference([new.tolist()], [base.tolist()])
    expected = stats.bootstrap((new - base,), np.mean, n_resamples=10_000, method="percentile", rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)  # a question is 0.005
    assert found.p == pytest.approx(stats.binomtest(int((new > base).sum()), int((new != base).sum())).pvalue)


def test_any_statistic_has_the_interval_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(9).normal(2.0, 1.0, 80)
    found = bootstrap(lambda drawn: float(np.median(values[drawn])), 80, resamples=4000)
    expected = stats.bootstrap((values,), np.median, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found is not None and (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)


def test_false_alarms_are_as_rare_as_the_p_says() -> None:
    rng = np.random.default_rng(4)
    alarms = 0
    for trial in range(60):
        one, other = (rng.random((1, 120)) < 0.6).tolist(), (rng.random((1, 120)) < 0.6).tolist()
        alarms += (paired_difference(one, other, seed=trial, resamples=1000).p or 0) < 0.05
    assert alarms <= 9


def test_auroc_over_seeds_draws_whole_questions() -> None:
    truth = [True, False] * 20
    groups = [f"q{number // 2}" for number in range(40)]
    rng = random.Random(5)
    scores = [[(0.7 if true else 0.3) + rng.gauss(0, 0.3) for true in truth] for _ in range(3)]
    found = auroc_over_seeds(scores, [truth] * 3, [groups] * 3)
    assert found is not None and 0.5 < found.low < found.value < found.high < 1
    assert auroc_over_seeds([[0.1, 0.2]], [[True, True]], [["a", "b"]]) is None


def test_risk_coverage_by_hand() -> None:
    confidences, right = [0.9, 0.8, 0.7, 0.1], [True, True, False, False]
    coverage, risk = risk_coverage(confidences, right)
    assert coverage == [0.25, 0.5, 0.75, 1.0] and risk == pytest.approx([0, 0, 1 / 3, 0.5])
    assert np.mean(risk_coverage(confidences, right)[1]) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert accuracy_at(confidences, right, 0.5) == 1.0 and accuracy_at(confidences, right, 1.0) == 0.5
    assert accuracy_at(confidences, right, 0.51) == pytest.approx(2 / 3)


def test_equally_confident_answers_count_in_proportion_whatever_their_order() -> None:
    assert risk_coverage([0.5, 0.5], [True, False])[1] == [0.5, 0.5] == risk_coverage([0.5, 0.5], [False, True])[1]


def test_calibration_error_of_the_honest_is_small_and_of_the_boastful_large() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    honest = calibration_error(p.tolist(), (rng.random(5000) < p).tolist())
    assert honest < 0.03
    assert calibration_error([0.9] * 1000, (rng.random(1000) < 0.5).tolist()) == pytest.approx(0.4, abs=0.05)
    assert calibration_error([0.3], [True]) == pytest.approx(0.7)


def test_what_honest_confidences_err_by_chance() -> None:
    rng = np.random.default_rng(5)
    below = 0
    for trial in range(60):
        p = rng.random(200)
        found = calibration_error(p.tolist(), (rng.random(200) < p).tolist())
        below += found <= calibration_by_chance(p.tolist(), draws=200, seed=trial)
    assert 52 <= below <= 60
    assert calibration_by_chance([0.5] * 20) > calibration_by_chance([0.5] * 2000)


def test_bins_hold_about_as_many_each_and_never_split_what_is_equal() -> None:
    parts = confidence_bins([float(value) for value in range(100)])
    assert [len(part) for part in parts] == [10] * 10 or all(8 <= len(part) <= 12 for part in parts)
    values = [0.2] * 7 + [1.0] * 50 + [0.4, 0.6, 0.6]
    parts = confidence_bins(values)
    assert sorted(place for part in parts for place in part) == list(range(60))
    for value in set(values):
        assert sum(any(values[place] == value for place in part) for part in parts) == 1
    shuffled = list(range(60))
    random.Random(0).shuffle(shuffled)
    right = [place % 3 == 0 for place in range(60)]
    same = calibration_error([values[place] for place in shuffled], [right[place] for place in shuffled])
    assert same == pytest.approx(calibration_error(values, right))


def test_bootstrap_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        values = rng.normal(2.0, 1.0, 60)
        found = bootstrap(lambda drawn, values=values: float(values[drawn].mean()), 60, resamples=300, seed=trial)  # type: ignore[misc]
        assert found is not None
        inside += found.low <= 2.0 <= found.high
    assert 180 <= inside <= 199  # 95 % of 200, within chance
    assert bootstrap(lambda _: None, 5) is None


def test_a_level_is_chosen_on_other_groups() -> None:
    rng = random.Random(5)
    groups = [str(number // 3) for number in range(600)]
    truth = [rng.random() < 0.75 for _ in groups]
    shifted = [(0.3 if true else 0.1) + rng.gauss(0, 0.1) for true in truth]  # nearly all are below one half
    said = said_at_best_level(shifted, truth, groups)
    assert sum(one == true for one, true in zip(said, truth, strict=True)) / 600 > 0.84
    assert sum((score >= 0.5) == true for score, true in zip(shifted, truth, strict=True)) / 600 < 0.4
    # what tells nothing is no better than always saying the more frequent
    noise = [rng.random() for _ in groups]
    blind = said_at_best_level(noise, truth, groups)
    assert abs(sum(one == true for one, true in zip(blind, truth, strict=True)) / 600 - sum(truth) / 600) < 0.02
    # one half's level comes from the other half: turned around there, it fails here
    half = {group: place % 2 for place, group in enumerate(sorted(set(groups)))}
    turned = [score if half[group] else -score for score, group in zip(shifted, groups, strict=True)]
    assert sum(one == true for one, true in zip(said_at_best_level(turned, truth, groups), truth, strict=True)) / 600 < 0.8


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979 by hand
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
