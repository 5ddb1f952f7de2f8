"""Timing: intervals that hold on a machine that drifts, stalls and remembers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mmedge.bench.timing import MOST_PASSES, differs, half_width, mean_rate, memory, precise, quantile, ratio, settled

Tables = tuple[list[list[float]], list[list[float]]]


def _noise(rng: np.random.Generator, count: int, memory_of: float) -> NDArray[np.float64]:
    """Autocorrelated noise of variance 1: each value keeps a share of the one before."""
    fresh = rng.normal(size=count) * math.sqrt(1 - memory_of**2)
    found = np.empty(count)
    found[0] = rng.normal()
    for place in range(1, count):
        found[place] = memory_of * found[place - 1] + fresh[place]
    return found


def machine_of(
    seed: int, slower: float = 1.0, rounds: int = 5, questions: int = 60, drifts: float = 0.2, launch: float = 0.0
) -> Tables:
    """Two variants taking turns on a machine whose speed drifts, by a fifth, remembers, and stalls now and then.

    Each round is a process of its own, and processes differ by `launch`.
    """
    rng = np.random.default_rng(seed)
    turns = rounds * questions
    cost = np.tile(rng.lognormal(math.log(0.005), 0.4, size=questions), rounds)
    drift = 1 + drifts * np.linspace(0, rng.choice([-1, 1]), turns)
    both = drift * np.exp(0.05 * _noise(rng, turns, 0.95))  # what slows the machine slows both
    found = []
    for factor in (1.0, slower):
        own = np.exp(0.03 * _noise(rng, turns, 0.6))
        stalls = 1 + rng.exponential(3, size=turns) * (rng.random(turns) < 0.02)
        process = np.repeat(np.exp(launch * rng.normal(size=rounds)), questions)
        found.append((cost * both * own * stalls * process * factor).reshape(rounds, questions).tolist())
    return found[0], found[1]


def test_equals_raise_no_alarm_in_twenty_runs() -> None:
    assert [seed for seed in range(20) if differs(*machine_of(seed))] == []


def test_a_tenth_slower_is_found_every_time() -> None:
    for seed in range(20):
        base, new = machine_of(seed, slower=1.1)
        found = ratio(new, base)
        assert differs(new, base) and found.low < 1.1 * 1.02 and found.high > 1.1 * 0.98


def test_what_processes_differ_by_is_no_difference_of_variants() -> None:
    """Two processes of the same program differ by some per cent, however long each is measured."""
    launched = partial(machine_of, rounds=12, questions=30, launch=0.02)
    assert [seed for seed in range(20) if differs(*launched(seed))] == []
    assert all(differs(*launched(seed, slower=1.1)) for seed in range(20))
    few = [machine_of(seed, rounds=1, questions=400, launch=0.03) for seed in range(20)]
    assert not any(differs(*pair) for pair in few)
    inside = 0
    for seed in range(200, 300):
        base, new = launched(seed, slower=1.3)
        found = ratio(new, base)
        inside += found.low <= 1.3 <= found.high
    assert inside >= 90


def test_ratios_lie_within_their_intervals_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(100, 200):
        base, new = machine_of(seed, slower=1.3, rounds=4, questions=40)
        found = ratio(new, base)
        inside += found.low <= 1.3 <= found.high
    assert inside >= 90


def test_medians_of_the_same_questions_lie_within_their_intervals() -> None:
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cost = np.random.default_rng(7).lognormal(math.log(0.005), 0.4, size=40)
        table = [cost * np.exp(0.05 * _noise(rng, 40, 0.7)) for _ in range(5)]
        inside += (found := quantile([list(row) for row in table], 50)).low <= TRUE_MEDIAN <= found.high
    assert inside >= 90


def _true_median() -> float:
    cost = np.random.default_rng(7).lognormal(math.log(0.005), 0.4, size=40)
    return float(np.median(cost * np.exp(0.05 * np.random.default_rng(0).normal(size=(20_000, 40)))))


TRUE_MEDIAN = _true_median()


def test_times_that_remember_are_worth_less() -> None:
    rng = np.random.default_rng(0)
    fresh, remembering = rng.normal(size=2000), _noise(rng, 2000, 0.95)
    assert memory(list(fresh)) <= 40 < memory(list(remembering)) <= 400
    wide, narrow = (half_width(quantile([list(np.exp(0.1 * x))], 50)) for x in (remembering, fresh))
    assert wide > 3 * narrow
    assert memory([1.0] * 50) == 8 and memory([1.0]) == 1


def test_more_rounds_until_it_is_precise() -> None:
    base, new = machine_of(3, slower=1.2, rounds=12, drifts=0.02)
    found = [precise([base[:count], new[:count]], 0.04) for count in range(1, 13)]
    assert not any(found[:2]) and found[-1]
    assert not precise([base[:3], new[:3]], 0.0001)
    assert precise([], 0.01)


def test_warm_up_ends_when_it_gets_no_faster() -> None:
    assert not settled([]) and not settled([1.0]) and not settled([1.0, 0.5])
    assert settled([1.0, 0.5, 0.49]) and settled([1.0, 1.2])
    assert settled([0.9**n for n in range(MOST_PASSES)])


def test_one_time_and_few_blocks_have_estimates_too() -> None:
    assert quantile([[0.5]], 99).value == pytest.approx(0.5)
    assert ratio([[0.5]], [[0.25]]).value == pytest.approx(2)
    assert (mean_rate([1.0, 4.0]).low, mean_rate([1.0, 4.0]).value, mean_rate([1.0, 4.0]).high) == pytest.approx((1, 2, 4))


def test_students_t_is_scipys() -> None:
    from mmedge.bench.timing import _student_t

    for level in (0.5, 0.95, 0.99, 0.999):
        for freedom in (1, 2, 3, 9, 40, 400, math.inf):
            assert _student_t(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-4)


def test_a_rate_has_students_interval_over_blocks() -> None:
    rates = [10.0, 10.1, 9.9, 10.0, 10.2]
    found, logs = mean_rate(rates), np.log(rates)
    low, high = stats.t.interval(0.95, len(rates) - 1, loc=logs.mean(), scale=stats.sem(logs))
    assert (found.value, found.low, found.high) == pytest.approx((stats.gmean(rates), math.exp(low), math.exp(high)), rel=1e-6)


def test_many_rounds_have_students_interval_over_rounds() -> None:
    new, base = machine_of(4, slower=1.2, rounds=6)[::-1]
    found = ratio(new, base)
    medians = np.median(np.log(new) - np.log(base), axis=1)
    half = stats.t.ppf(0.975, 5) * stats.sem(medians)
    assert math.log(found.high / found.low) == pytest.approx(2 * half, rel=1e-6)
