"""What constrained answers may be: whole expressions before the limit, one of the choices, one of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mmedge.bundle import open_bundle
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import PromptEncoder, load_tokenizer
from mmedge.tasks.expressions import parse
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.constraints import Constraint, OneOf
from mmedge.tasks.forms.exact import ExactForm
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.forms.expression_constraints import Calculator, ExpressionConstraint, ExpressionGrammar


class Opened:
    def __init__(self, run: Path) -> None:
        bundle = open_bundle(run / "bundle-int8")
        self.tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")
        self.encoder = PromptEncoder(
            self.tokenizer, bundle.manifest.family, bundle.manifest.prompts, bundle.manifest.special_tokens, 100
        )
        self.eos = bundle.manifest.special_tokens.eos

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(params=["tiny_run", "llama_run"])
def opened(request: pytest.FixtureRequest) -> Opened:
    return Opened(request.getfixturevalue(request.param))


def test_whatever_is_drawn_is_a_whole_expression_before_the_limit(opened: Opened) -> None:
    grammar = ExpressionGrammar(opened.tokenizer, opened.eos)
    rng = np.random.default_rng(0)
    operators = set()
    for trial in range(300):
        limit = int(rng.integers(2, 30))
        constraint = ExpressionConstraint(grammar, limit)
        written: list[int] = []
        while len(written) < limit:
            ids = constraint.allowed(written)
            assert len(ids), opened.text(written)
            token = int(rng.choice(ids))
            if token == opened.eos:
                break
            written.append(token)
        text = opened.text(written)
        expression = parse(text)  # raises where it is none
        operators.add(expression.operator)
        if trial % 10 == 0:  # asked out of turn, it finds its place again
            assert set(ExpressionConstraint(grammar, limit).allowed(written[:3])) == set(
                _asked_in_turn(ExpressionConstraint(grammar, limit), written[:3])
            )
    assert operators >= {None, "+", "-", "*", "/"}


def _asked_in_turn(constraint: ExpressionConstraint, written: list[int]) -> np.ndarray:
    for count in range(len(written)):
        constraint.allowed(written[:count])
    return constraint.allowed(written)


def test_every_answer_that_a_student_learns_is_allowed(opened: Opened) -> None:
    grammar = ExpressionGrammar(opened.tokenizer, opened.eos)
    for text in ("84 / 2", "( 17 + 15 ) + 2", "3", "-4 * 2.5", "( ( 1 + 2 ) * 3 ) - ( 4 / 5 )"):
        target = opened.encoder.target(text, 64)
        constraint = ExpressionConstraint(grammar, 64)
        for place, token in enumerate(target):
            assert token in constraint.allowed(target[:place]), (text, place)


def test_one_of_several_texts() -> None:
    one_of = OneOf([[5, 6, 1], [5, 7, 8, 1], [9, 1]])
    assert set(one_of.allowed([])) == {5, 9}
    assert set(one_of.allowed([5])) == {6, 7}
    assert list(one_of.allowed([5, 7, 8])) == [1]
    assert one_of.forced([]) == [] and one_of.forced([5, 7]) == [8] and one_of.forced([9]) == [] and one_of.forced([5, 6]) == []
    assert OneOf([[4, 5, 6, 1], [4, 5, 7, 1]]).forced([]) == [4, 5]
    with pytest.raises(ValueError, match="nothing to choose"):
        OneOf([])


def test_each_kind_of_task_has_its_form(opened: Opened) -> None:
    example = Example("q", "Which?", None, ("a math problem", "a river"))

    assert isinstance(ExpressionForm().constrainer(opened.encoder).answer(example, 20), ExpressionConstraint)
    assert isinstance(ChoiceForm().constrainer(opened.encoder).answer(example, 20), OneOf)
    assert isinstance(LabelForm(("yes", "no")).constrainer(opened.encoder).answer(example, 20), OneOf)
    assert ExactForm().constrainer(opened.encoder).answer(example, 20) is None
    assert ChoiceForm().constrainer(opened.encoder).answer(Example("q", "Which?"), 20) is None


def _calculated(opened: Opened, text: str) -> str:
    """Return what the calculator makes a student write behind a text, until anything may follow."""
    row: Constraint = Calculator(opened.tokenizer).of_row()
    written: list[int] = []
    for token in opened.tokenizer.encode(text, add_special_tokens=False).ids:
        row.allowed(written)
        written.append(token)
    begun = len(written)
    while (ids := row.allowed(written)) is not None and len(ids) == 1:
        written.append(int(ids[0]))
    after = row.allowed(written)
    if len(written) > begun:
        row_after = ids if ids is not None else after
        assert row_after is not None  # the number ends: no digit may follow
        pieces = [opened.tokenizer.id_to_token(int(token)) for token in row_after]
        assert not any(piece is None or piece[:1].isdigit() for piece in pieces)
    return opened.text(written[begun:]).strip()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("We add: 76 + 4 =", "80"),
        ("so 9 * 6 = 54. Then 12. 54 / 4 =", "13.5"),
        ("( 17 + 15 ) / 2 =", "16"),
        ("84 points / 2 rounds =", "42"),
        ("x =", ""),
        ("7 =", ""),
        ("3 - 9 =", ""),  # negative amounts are not written that way
        ("1 / 3 =", ""),
        ("1 / 0 =", ""),
        ("9 + 1 = 10", ""),
    ],
)
def test_results_are_worked_out_where_a_student_calculates(opened: Opened, text: str, result: str) -> None:
    assert _calculated(opened, text) == result
