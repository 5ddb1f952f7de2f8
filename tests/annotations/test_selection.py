"""Choosing chains of thought: what each choice keeps, and that human labels play no part in it."""

from __future__ import annotations

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.annotations.selection import Selection, select
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.forms.expression import ExpressionForm

RIGHT, WRONG, UNSURE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNCERTAIN


def _cot(sample: int, answer: str, *verdicts: Verdict) -> EvaluatedCot:
    evaluations = tuple(SelfEvaluation("Because.", verdict) for verdict in verdicts)
    return EvaluatedCot(sample, ChainOfThought("way", answer), evaluations)


ANNOTATED = AnnotatedExample(
    Example("q", "What is 84 / 2?", "7"),  # a human label that nobody agrees with
    (
        _cot(0, "84 / 2", RIGHT),
        _cot(1, "42", WRONG),
        _cot(2, "84 * 2", RIGHT, WRONG, RIGHT),
        _cot(3, "84 - 2", UNSURE),
        _cot(4, "86 - 44"),
    ),
)


@pytest.mark.parametrize(("how", "kept"), [("all", [0, 1, 2, 3, 4]), ("self_consistent", [0, 1, 4]), ("judged_correct", [0, 2])])
def test_each_choice_keeps_what_it_says(how: Selection, kept: list[int]) -> None:
    (found,) = select([ANNOTATED], how, ExpressionForm())
    assert [evaluated.sample for evaluated in found.cots] == kept
    assert found.example == ANNOTATED.example


def test_a_tie_keeps_all_of_the_largest_groups_and_nothing_stays_nothing() -> None:
    tied = AnnotatedExample(Example("t", "?"), (_cot(0, "1"), _cot(1, "2"), _cot(2, "3 - 1"), _cot(3, "2 - 1")))
    (found, empty) = select([tied, AnnotatedExample(Example("e", "?"), ())], "self_consistent", ExpressionForm())
    assert [evaluated.sample for evaluated in found.cots] == [0, 1, 2, 3]
    assert empty.cots == ()
