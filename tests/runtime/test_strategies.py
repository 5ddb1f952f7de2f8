"""Votes of several chains of thought."""

from __future__ import annotations

import pytest

from mmedge.errors import MmedgeError
from mmedge.runtime.strategies import Sample, Strategy, vote
from mmedge.tasks.forms.exact import ExactForm
from mmedge.tasks.forms.expression import ExpressionForm

JUDGE = ExpressionForm()


def _samples(*pairs: tuple[str, float]) -> list[Sample]:
    return [Sample(text, f"because {text}", p) for text, p in pairs]


def test_answers_that_mean_the_same_are_one_candidate() -> None:
    samples = _samples(("6 / 2", 0.2), ("3", 0.4), ("4", 0.9))
    assert vote(samples, JUDGE, (), "majority") == pytest.approx((1, 2 / 3))
    assert vote(samples, JUDGE, (), "self_evaluation")[0] == 2
    place, share = vote(samples, JUDGE, (), "both")
    assert place == 2 and share == pytest.approx(0.9 / 1.5)


def test_what_is_no_answer_wins_only_where_there_is_nothing_else() -> None:
    assert vote(_samples(("apples", 0.9), ("3", 0.1)), JUDGE, (), "both")[0] == 1
    assert vote(_samples(("apples", 0.9), ("pears", 0.1)), JUDGE, (), "both") == (0, 0.0)


def test_ties_go_to_what_was_drawn_first() -> None:
    assert vote(_samples(("4", 0.5), ("3", 0.5)), JUDGE, (), "majority")[0] == 0
    assert vote(_samples(("a cat", 0.0), ("A CAT", 0.0), ("dog", 0.0)), ExactForm(), (), "both")[0] == 0


WRONG = [
    {"kind": "guess"},
    {"choose_by": "luck"},
    {"samples": 0},
    {"samples": 65},
    {"samples": 2.5},
    {"seed": -1},
    {"temperature": 0.0},
    {"retry_below": 7},
]


@pytest.mark.parametrize("values", WRONG)
def test_wrong_strategies_are_named(values: dict[str, object]) -> None:
    with pytest.raises(MmedgeError, match="strategy: "):
        Strategy(**values)  # type: ignore[arg-type]
