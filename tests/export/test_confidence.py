"""Calibration: maps that recover what was put in, judged on questions that they were not fitted on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError
from mmedge.export.confidence import fitted, isotonic, logistic, platt, temperature
from mmedge.runtime.confidence import Confidence, LinearMap, choose_threshold, features_of, map_from_json, sigmoid
from mmedge.statistics import calibration_error

RNG = np.random.default_rng(3)


def test_maps_recover_what_was_put_in() -> None:
    score = RNG.normal(0, 3, (4000, 1))
    truth = (RNG.random(4000) < sigmoid(0.5 * score[:, 0])).astype(float)
    assert temperature(score, truth).weights[0] == pytest.approx(0.5, abs=0.06)
    shifted = (RNG.random(4000) < sigmoid(0.5 * score[:, 0] - 1)).astype(float)
    found = platt(score, shifted)
    assert found.weights[0] == pytest.approx(0.5, abs=0.06) and found.bias == pytest.approx(-1, abs=0.15)
    features = RNG.normal(0, 1, (4000, 3))
    truth = (RNG.random(4000) < sigmoid(features @ np.array([1.0, -2.0, 0.0]) + 0.5)).astype(float)
    found = logistic(features, truth)
    assert np.allclose(found.weights, [1, -2, 0], atol=0.25) and found.bias == pytest.approx(0.5, abs=0.2)


def test_isotonic_never_falls_and_follows_steps() -> None:
    score = RNG.normal(0, 1, (3000, 1))
    p = np.where(score[:, 0] > 0.5, 0.9, 0.2)
    truth = (RNG.random(3000) < p).astype(float)
    found = isotonic(score, truth)
    assert all(a <= b for a, b in zip(found.probabilities, found.probabilities[1:], strict=False))
    assert found(np.array([[-1.0], [1.5]])) == pytest.approx([0.2, 0.9], abs=0.06)
    assert all(0 < value < 1 for value in isotonic(np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1.0])).probabilities)


def test_isotonic_does_not_depend_on_the_order_of_equal_scores() -> None:
    score = np.array([[1.0], [2.0], [2.0], [2.0], [2.0], [3.0]])
    found = [isotonic(score, np.array(truth)) for truth in ([0.0, 0, 0, 1, 1, 1], [0.0, 1, 1, 0, 0, 1])]
    assert found[0] == found[1] and found[0].scores == (1.0, 2.0, 3.0)
    assert found[0](np.array([[2.0]])) == pytest.approx([0.5])


def _evidence(count: int, informative: str) -> tuple[list[Evidence], list[bool]]:
    """Evidence of which only one part tells right answers from wrong ones."""
    truth = RNG.random(count) < 0.6
    noise = RNG.normal(0, 1, (count, 3))
    found = []
    for right, (a, b, c) in zip(truth, noise, strict=True):
        sign = 1.0 if right else -1.0
        answer = -float(np.log1p(np.exp(-(a + (2 * sign if informative == "answer" else 0)))))
        evaluation = float(b + (2 * sign if informative == "evaluation" else 0))
        agreement = float(np.sign(c + (2 * sign if informative == "agreement" else 0)))
        found.append(Evidence(answer, evaluation, agreement, -0.3))
    return found, truth.tolist()


@pytest.mark.parametrize(("informative", "chosen"), [("answer", "answer"), ("evaluation", "evaluation"), ("agreement", "combined")])
def test_the_signal_that_tells_is_chosen_the_cheapest_of_equals(informative: str, chosen: str) -> None:
    evidence, right = _evidence(400, informative)
    found = json.loads(json.dumps(fitted(evidence, right)))
    assert found["chosen"] == chosen
    confidence = Confidence.from_manifest(found)
    assert confidence is not None and confidence.chosen == chosen
    fresh, truth = _evidence(2000, informative)
    assert calibration_error(confidence.of(fresh), truth) < 0.08
    threshold = confidence.threshold(target_accuracy=0.9)
    given = np.array(confidence.of(fresh)) >= threshold.value
    assert np.array(truth)[given].mean() > 0.82 and given.mean() > 0.3


def test_too_few_of_one_kind_are_not_learned_from() -> None:
    found = fitted([Evidence(-0.1, 1.0)] * 40, [True] * 37 + [False] * 3)
    assert found["signals"] == {} and "fewer than 8 wrong answers" in found["why"]
    assert Confidence.from_manifest(found) is None


def test_thresholds_hand_on_no_more_than_allowed_and_reach_their_aim() -> None:
    confidences, right = [0.1, 0.2, 0.2, 0.5, 0.9, 0.9], [False, False, True, True, True, True]
    assert choose_threshold(confidences, right, max_withheld=0.0).value == 0.0
    some = choose_threshold(confidences, right, max_withheld=0.4)
    assert some.value == 0.2 and some.withheld == pytest.approx(1 / 6)
    assert choose_threshold(confidences, right, max_withheld=0.5).value == 0.5
    assert choose_threshold(confidences, right, target_accuracy=0.6).value == 0.2
    strict = choose_threshold(confidences, right, target_accuracy=0.8)
    assert strict.value == 0.5 and strict.interval[0] < 0.6 and strict.interval[1] == 1.0
    with pytest.raises(MmedgeError, match="no threshold reaches"):
        choose_threshold(confidences, [False] * 6, target_accuracy=0.5)
    with pytest.raises(MmedgeError, match="one aim"):
        choose_threshold(confidences, right)


def test_a_threshold_rests_on_more_than_a_lucky_handful() -> None:
    confidences = np.linspace(0, 1, 300).tolist()
    lucky = [place >= 297 or (place % 2 == 0 and place < 297) for place in range(300)]  # the three most confident ones are right
    with pytest.raises(MmedgeError, match="no threshold reaches"):
        choose_threshold(confidences, lucky, target_accuracy=0.9)


def test_what_a_threshold_promises_is_about_kept() -> None:
    rng, kept = np.random.default_rng(2), []
    for _ in range(60):
        p = rng.beta(2, 1, 200)
        found = choose_threshold(p.tolist(), (rng.random(200) < p).tolist(), target_accuracy=0.85)
        fresh = rng.beta(2, 1, 4000)
        given = fresh >= found.value
        kept.append(float((rng.random(4000) < fresh)[given].mean()))
    assert 0.84 < float(np.mean(kept)) < 0.90


def test_a_threshold_is_stated_on_the_scale_of_the_maps() -> None:
    """Of validation questions one knows what maps said that were fitted without them; a saturated map says other numbers."""
    known = ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95], [False] * 3 + [True] * 7)
    maps = {"answer": LinearMap("temperature", (1.0,))}
    given = [0.2, 0.2, 0.2, 0.9, 0.9, 0.9, 0.99, 0.99, 0.99, 0.99]
    confidence = Confidence(maps, "answer", {"answer": known}, {"answer": given})  # type: ignore[arg-type]
    found = confidence.threshold(max_withheld=0.3)
    assert found.value == 0.9 and found.withheld == pytest.approx(0.3)
    assert sum(value < found.value for value in given) == 3
    assert confidence.threshold(max_withheld=0.45).value == 0.9  # ties: no more than asked for
    assert confidence.threshold(max_withheld=0.0).value == 0.0


def test_a_spoiled_manifest_is_one_line() -> None:
    evidence, right = _evidence(200, "answer")
    good = json.loads(json.dumps(fitted(evidence, right)))
    for spoil in (
        {"chosen": "luck"},
        {"right": good["right"][:5]},
        {"signals": {"answer": {**good["signals"]["answer"], "map": {"kind": "temperature"}}}},
        {"signals": {"answer": {**good["signals"]["answer"], "map": {"kind": "platt", "weights": [float("nan")], "bias": 0.0}}}},
        {"signals": {"answer": 7}},
    ):
        with pytest.raises(MmedgeError, match="confidence is invalid"):
            Confidence.from_manifest({**good, **spoil})


def test_maps_survive_the_manifest() -> None:
    score, truth = RNG.normal(0, 1, (50, 1)), (RNG.random(50) < 0.5).astype(float)
    for fit in (temperature, platt, isotonic):
        found = fit(score, truth)
        assert np.array_equal(map_from_json(json.loads(json.dumps(found.to_json())))(score), found(score))


def test_evidence_at_the_ends_is_finite() -> None:
    for answer in (0.0, -1e-30, -1e9):
        assert np.isfinite(features_of(Evidence(answer, 1e9, 1.0, -1e3), "combined")).all()
    with pytest.raises(ValueError, match="needs the verdict"):
        features_of(Evidence(-1.0), "evaluation")


def test_a_verdict_on_the_bare_answer_is_a_signal_of_a_student_that_learned_it() -> None:
    evidence, right = _evidence(400, "answer")
    assert set(fitted(evidence, right)["signals"]) == {"answer", "evaluation", "combined"}
    rng = np.random.default_rng(1)
    told = [
        replace(one, answer=-0.5, answer_verdict=float(rng.normal(2.0 if truth else -2.0, 1.0)))
        for one, truth in zip(evidence, right, strict=True)
    ]
    found = fitted(told, right)
    assert found["chosen"] == "answer_verdict" and found["signals"]["answer_verdict"]["auroc"] > 0.9
    confidence = Confidence.from_manifest(found)
    assert confidence is not None
    sure, unsure = confidence.of([replace(told[0], answer_verdict=3.0), replace(told[0], answer_verdict=-3.0)])
    assert sure > 0.9 and unsure < 0.1
    assert found["default"] == "answer"  # what a verdict costs is not known here
    costs = {"answer": 1.0, "answer_verdict": 1.1, "evaluation": 4.0, "combined": 4.0}
    assert fitted(told, right, costs)["default"] == "answer_verdict"
    assert fitted(told, right, {**costs, "answer_verdict": 1.4})["default"] == "answer"


def test_what_costs_a_rationale_is_not_computed_unasked() -> None:
    evidence, right = _evidence(400, "evaluation")
    found = fitted(evidence, right, {"answer": 1.0, "evaluation": 4.0, "combined": 4.0})
    assert found["chosen"] == "evaluation" and found["default"] == "answer"
    assert Confidence.from_manifest(found) is not None
    with pytest.raises(MmedgeError, match="confidence is invalid"):
        Confidence.from_manifest({**found, "default": "evaluation"})
    older = {name: value for name, value in found.items() if name not in ("default", "prices")}
    read = Confidence.from_manifest(older)
    assert read is not None and read.default == "answer"
