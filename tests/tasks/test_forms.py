"""Judging answers by value, by choice and by label."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mmedge.errors import MmedgeError
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.forms import open_form
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.exact import ExactForm
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.forms.settings import LabelSettings

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


def test_labels_in_two_letters_mean_the_labels() -> None:
    labels = ("turn the light on", "turn the light off", "Ss", *(f"intent {number}" for number in range(700)), "intent 0")
    short = LabelForm(labels, "short")
    codes = [short.canonical(label) for label in labels]
    assert len(set(codes)) == len(labels) - 1 and codes[3] == codes[-1]  # one of them is there twice
    assert {len(code or "") for code in codes} == {2, 3} and not {"SS", "ss"} & set(codes)
    for label, code in zip(labels, codes, strict=True):
        assert code is not None and short.canonical(code) == code and short.value_of(code) == short.readable(code) == label
        assert short.agrees(code, label) and short.kind_of(code) == label
    assert short.agrees("Ss", "SS") and not short.agrees("zzzz", "zzzz") and short.readable("something else") == "something else"
    question = Example("q", "it is dark in here")
    found = short.read("A lamp would help.\nAnswer: turn the light on.", question)
    assert isinstance(found, ChainOfThought) and found == ChainOfThought("A lamp would help.", codes[0] or "")
    assert short.read("Perhaps SC. I do not know.", question) == LabelForm(labels).read("Perhaps SC. I do not know.", question)
    again = open_form(short.to_json(), Path())
    assert again == short and "spelling" not in LabelForm(labels).settings()
    letters = LabelForm(("A", "B", *(f"intent {number}" for number in range(300))), "short")
    assert letters.read("Because. The answer is: A", question) == ChainOfThought("Because.", letters.canonical("A") or "")
    assert letters.canonical("AS") is not None and letters.canonical("as") is None and letters.canonical("As.") is None
    with pytest.raises(MmedgeError, match="spelling must be one of whole, short"):
        open_form({"form": "label", "settings": {"labels": ["a"], "spelling": "tiny"}}, Path())


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(MmedgeError, match="unknown name 'guess'"):
        open_form({"form": "guess"}, Path())
    with pytest.raises(MmedgeError, match="labels"):
        open_form({"form": "label"}, Path())


NOT_APART = [["on", "off", "Off"], ["a", "a"], ["a ", "a"], ["play", "play."], ["two\nlines", "b"], ["...", "b"]]


@pytest.mark.parametrize("labels", NOT_APART)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"differ in case|must be one line"):
        LabelSettings(kind="label", labels=tuple(labels))
