"""How likely each label is: what the tokens' probabilities come to, of those that may follow alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmedge.engines import speaker as speakers
from mmedge.errors import MmedgeError
from mmedge.runtime.options import AnswerOptions
from mmedge.runtime.student import Student
from mmedge.tasks.base import Example
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.constraints import OneOf
from tests.conftest import is_one_line_error, mmedge

QUESTION = Example("q", "Tom has 3 apples and buys 4. How many?")
LABELS = ("apples", "apple", "apples bought", "12", "1", "2 + 3", "2 + 4", "2", "many of them", "none")


@pytest.fixture(params=["tiny_run", "llama_run"])
def student(request: pytest.FixtureRequest) -> Student:
    return Student.load(request.getfixturevalue(request.param) / "bundle-int8")


def _by_hand(speaker: speakers.Speaker, labels: tuple[str, ...]) -> dict[str, float]:
    """Return the same from whole targets, one label at a time."""
    targets = {label: speaker.encoder.target(label, speaker.max_answer_tokens) for label in labels}
    tree, prompt = OneOf(list(targets.values())), speaker.prompt("predict", speaker.reasoning_context(QUESTION))
    found = {}
    for label, target in targets.items():
        p = 1.0
        for place, logits in enumerate(speaker.engine.forced_logits(prompt, target).astype(np.float64)):
            allowed = tree.allowed(target[:place])
            p *= float(np.exp(logits[target[place]]) / np.exp(logits[allowed]).sum())
        found[label] = p
    return found


def test_they_are_those_of_the_tokens_that_may_follow(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = replace(student.speaker, form=LabelForm(LABELS))
    wanted, found = _by_hand(speaker, LABELS), speaker.probabilities(QUESTION)
    assert sum(found.values()) == pytest.approx(1) and list(found.values()) == sorted(found.values(), reverse=True)
    assert found == pytest.approx(wanted, abs=2 * speakers.UNLIKELY)
    monkeypatch.setattr(speakers, "UNLIKELY", 0.0)
    assert speaker.probabilities(QUESTION) == pytest.approx(wanted, rel=1e-3, abs=1e-9)
    chosen = replace(student.speaker, form=ChoiceForm()).probabilities(replace(QUESTION, choices=LABELS))
    assert set(chosen) == set(LABELS) and sum(chosen.values()) == pytest.approx(1)
    assert student.speaker.probabilities(QUESTION) == {}  # an expression may be anything


def test_unlikely_beginnings_are_not_told_apart(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speakers, "UNLIKELY", 1.0)
    speaker = replace(student.speaker, form=LabelForm(LABELS))
    found = speaker.probabilities(QUESTION)
    assert sum(found.values()) == pytest.approx(1)
    assert len({round(p, 9) for p in found.values()}) < len(LABELS)  # some share a beginning


def test_answers_have_them_where_asked_for(student: Student) -> None:
    labelled = replace(student.bundle, form=LabelForm(LABELS))
    asked = Student(labelled, replace(student.speaker, form=LabelForm(LABELS)))
    plain, answer = (asked.answer(QUESTION, constrained=True, probabilities=wanted) for wanted in (False, True))
    assert plain.probabilities is None and "probabilities" not in plain.to_json()
    assert replace(answer, probabilities=None) == plain
    assert answer.probabilities is not None and set(answer.probabilities) == set(LABELS)
    assert answer.to_json()["probabilities"] == {text: round(p, 4) for text, p in answer.probabilities.items()}
    with pytest.raises(MmedgeError, match="not one of several texts"):
        student.settled(AnswerOptions(probabilities=True))


def test_labels_in_two_letters_are_told_by_name(student: Student) -> None:
    form = LabelForm(LABELS, "short")
    asked = Student(replace(student.bundle, form=form), replace(student.speaker, form=form))
    answer = asked.answer(QUESTION, constrained=True, probabilities=True)
    assert answer.text in form.written.values() and answer.value in LABELS and answer.value == form.readable(answer.text)
    assert answer.probabilities is not None and set(answer.probabilities) == set(LABELS)


def test_open_answers_have_none(tiny_run: Path) -> None:
    found = mmedge("run", tiny_run / "bundle-int8", "How many?", "--probabilities")
    assert is_one_line_error(found) and "not one of several texts" in found.err
