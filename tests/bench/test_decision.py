"""Which variant a bench says to ship: by accuracy first, then by time, then by size, and with its doubts."""

from __future__ import annotations

from typing import Any

import pytest

from mmedge.bench.decision import decide
from mmedge.bench.report import markdown, page
from mmedge.bench.results import BenchReport, ShippingDecision
from tests.bench.test_compare import QUESTIONS, Report, failed, report, variant


def _decided(*variants: Report, **changes: Any) -> ShippingDecision:
    return decide(BenchReport.from_json({**report(0), "variants": list(variants), **changes}, "test"))


def _with(base: Report, wrong: int = 0, **changes: Any) -> Report:
    """Return a variant that answers this many of the questions wrong that it answered right."""
    right = [True] * (QUESTIONS - wrong) + [False] * wrong
    share = {"value": 1 - wrong / QUESTIONS, "interval_95": [0, 1], "successes": QUESTIONS - wrong, "total": QUESTIONS}
    samples = {**base["samples"], "correct": {"test": right}}
    return {**base, "samples": samples, "answer_accuracy": {"test": share}, **changes}


def _unlabelled(base: Report) -> Report:
    return {**base, "answer_accuracy": {}}


def test_of_equally_accurate_variants_the_fastest_is_shipped() -> None:
    found = _decided(_with(variant("slow", 1)), _with(variant("quick", 2, speed=0.5), wrong=1))
    assert found.ship == "quick"
    assert "-2.0" in found.sentence and "not more than chance" in found.sentence and "fastest of the 2" in found.sentence


def test_a_faster_one_that_is_less_accurate_beyond_chance_is_not_shipped_and_named() -> None:
    found = _decided(_with(variant("slow", 1)), _with(variant("quick", 2, speed=0.5), wrong=20))
    assert found.ship == "slow" and "quick is faster, but less accurate" in found.sentence


def test_of_equally_fast_variants_the_smallest_is_shipped() -> None:
    found = _decided(_with(variant("big", 1)), _with(variant("small", 2), bytes_on_disk=1_000))
    assert found.ship == "small" and "smallest of the 2 fastest" in found.sentence


def test_few_questions_noise_and_failures_are_doubts() -> None:
    broken = failed("onnxruntime int2", "int2", "cannot be opened")
    slow, quick = _with(variant("slow", 1)), _with(variant("quick", 2, speed=0.5), wrong=4)
    found = _decided(slow, quick, broken, noisy=["other processes used 1.00 cores"])
    assert found.ship == "quick"
    noisy, missing, few = found.caveats
    assert "other processes used 1.00 cores" in noisy and "onnxruntime int2" in missing
    assert f"{QUESTIONS} questions could hide a loss" in few


@pytest.mark.parametrize(
    ("variants", "ship", "words"),
    [
        ([], None, "No variant could be measured"),
        ([variant("only", 1)], "only", "Measure others beside it"),
        (
            [{**variant("a", 1), "answer_accuracy": {}}, {**variant("b", 2, 0.5), "answer_accuracy": {}}],
            "b",
            "the fastest of the 2 variants",
        ),
    ],
)
def test_there_may_be_nothing_to_choose_from(variants: list[Report], ship: str | None, words: str) -> None:
    found = _decided(*variants)
    assert found.ship == ship and words in found.sentence


def test_page_and_markdown_begin_with_the_decision() -> None:
    whole = BenchReport.from_json(report(0), "test")
    whole = whole.model_copy(update={"decision": decide(whole)})
    assert whole.decision is not None
    assert markdown(whole).startswith(whole.decision.sentence)
    body = page(whole).text().split("<h1>", 1)[1]
    assert body.index('class="lead"') < body.index("<table") < body.index("How it was measured")
