"""Judging answers by value, by choice and by label."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.tasks.forms import open_form
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.exact import ExactForm
from mmedge.tasks.forms.expression import ExpressionForm

CHOICES = ("park", "coloring book", "garden center", "math problem", "gravity")


@pytest.mark.parametrize("answer", ["42", "84 / 2", "(84/2)", "42.0", "40 + 2"])
def test_an_expression_is_right_by_value(answer: str) -> None:
    assert ExpressionForm().agrees(answer, "( 84.0 / 2.0 )")


@pytest.mark.parametrize("answer", ["84 * 2", "84 / 0", "", "forty-two", "42 apples", "41.99"])
def test_a_wrong_or_unreadable_expression_is_wrong(answer: str) -> None:
    assert not ExpressionForm().agrees(answer, "42")


def test_two_undefined_values_are_not_equal() -> None:
    assert not ExpressionForm().agrees("84 / 0", "84 / 0")


@pytest.mark.parametrize("answer", ["math problem", "Math problem.", "(d)", "d", "D)", "(d) math problem", " d. "])
def test_a_choice_is_named_by_letter_or_text(answer: str) -> None:
    assert ChoiceForm().agrees(answer, "math problem", CHOICES)


@pytest.mark.parametrize("answer", ["(e)", "gravity", "z", "(d) gravity", "", "some math problem or other"])
def test_another_choice_or_none_is_wrong(answer: str) -> None:
    assert not ChoiceForm().agrees(answer, "math problem", CHOICES)


def test_two_choices_of_the_same_text_are_the_same_answer() -> None:
    choices = ("bus depot", "beach", "train station", "bridge", "bridge")
    assert ChoiceForm().agrees("(e)", "bridge", choices)
    assert ChoiceForm().agrees("(d)", "bridge", choices)


def test_labels_and_exact_text() -> None:
    judge = LabelForm(("entailment", "neutral", "contradiction"))
    assert judge.agrees("Entailment.", "entailment")
    assert not judge.agrees("neutral", "entailment")
    assert not judge.agrees("maybe", "maybe")
    assert ExactForm().agrees(" The  Answer. ", "the answer")
    assert not ExactForm().agrees("", "")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(MmedgeError, match="unknown name 'guess'"):
        open_form({"form": "guess"}, Path())
    with pytest.raises(MmedgeError, match="labels"):
        open_form({"form": "label"}, Path())
