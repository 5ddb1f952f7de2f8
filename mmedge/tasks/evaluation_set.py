"""The evaluation set of a run: what export verifies against and bench measures with, in one JSON-lines file.

    {"kind": "task", "name": "svamp", "form": "expression", "settings": {}}
    {"kind": "question", "split": "test", "id": "svamp-test-0000", "question": "…", "choices": [], "label": "84 / 2"}
    {"kind": "cot", "split": "verdict_test", "id": "svamp-train-0007", "sample": 2, "rationale": "…", "pseudo_label": "…",
     "correct": false, "teacher_verdict": "wrong", …}

It is stored beside the student, so a bundle can be measured on a device that has neither the recipe's data nor the teacher.
`calibration` and `recovery` are training questions; `validation` is for choices, every other split for final figures only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.storage import Json, iterate_jsonl, text_field, write_bytes, write_text
from mmedge.tasks.base import ChainOfThought, Example, Turn
from mmedge.tasks.dialogue import WrongMessage, messages_of, read_messages
from mmedge.tasks.forms import AnswerForm, open_form
from mmedge.tasks.forms.choice import LabelForm

FILE_NAME = "evaluation.jsonl"
VALIDATION = "validation"
CALIBRATION = "calibration"  # training questions from which export learns the student's activations
RECOVERY = "recovery"  # more of them, from which a quantized student learns what the student answers


@dataclass(frozen=True)
class HeldOutCot:
    """A chain of thought whose truth is known: its pseudo-label agrees with the human label or does not."""

    example: Example
    sample: int
    cot: ChainOfThought
    correct: bool
    teacher_verdict: str | None


@dataclass(frozen=True)
class EvaluationSet:
    """Questions by split, chains of thought by split, and what answers look like."""

    task: str
    form: AnswerForm
    questions: dict[str, tuple[Example, ...]]
    cots: dict[str, tuple[HeldOutCot, ...]]

    def tests(self) -> dict[str, tuple[Example, ...]]:
        """Return the test splits: all but those of validation, calibration and recovery."""
        return {split: examples for split, examples in self.questions.items() if split not in (VALIDATION, CALIBRATION, RECOVERY)}

    def check(self, form: AnswerForm, source: Path) -> None:
        """Refuse to judge answers of another form, or other labels.

        Args:
            form: That of a bundle.
            source: Where the set was read, for the message.

        Raises:
            MmedgeError: The bundle's answers cannot be judged by this set's labels.
        """
        said = ""
        if self.form.name != form.name:
            said = f"its answers are of the form {self.form.name}, the bundle's of {form.name}"
        elif isinstance(self.form, LabelForm) and isinstance(form, LabelForm) and self.form.written != form.written:
            said = "its labels are not the bundle's, or are spelled otherwise"
        if said:
            hint = "name the evaluation set that was written beside the student: --evaluation FILE"
            raise MmedgeError(f"{source} is for another task: {said}", hint)


def example_record(example: Example) -> Json:
    """Return a question as `read_example` reads it."""
    asked: Json = {"messages": messages_of(example)} if example.turns else {"question": example.question}
    outside: Json = {"out_of_scope": True} if example.out_of_scope else {}
    return {"id": example.id, **asked, "choices": list(example.choices), "label": example.label, **outside}


def out_of_scope_field(record: Json, path: Path | str, number: int) -> bool:
    """Return whether a record says that no answer of the task is right.

    Raises:
        MmedgeError: The field is neither true nor false, or there is a label too; the message names file and line.
    """
    said = record.get("out_of_scope")
    if said is not None and not isinstance(said, bool):
        raise MmedgeError(f"{path}:{number}: field 'out_of_scope' must be true or false, found {said!r:.40}")
    if said and record.get("label") is not None:
        raise MmedgeError(f"{path}:{number}: a question out of scope has no label", "leave out 'label' or 'out_of_scope'")
    return bool(said)


def write_evaluation_set(path: Path, evaluation: EvaluationSet) -> None:
    """Write an evaluation set, atomically."""
    lines: list[Json] = [{"kind": "task", "name": evaluation.task, **evaluation.form.to_json()}]
    for split, examples in evaluation.questions.items():
        lines += [{"kind": "question", "split": split, **example_record(example)} for example in examples]
    for split, cots in evaluation.cots.items():
        lines += [
            {
                "kind": "cot",
                "split": split,
                **example_record(held.example),
                "sample": held.sample,
                "rationale": held.cot.rationale,
                "pseudo_label": held.cot.pseudo_label,
                "correct": held.correct,
                "teacher_verdict": held.teacher_verdict,
            }
            for held in cots
        ]
    for name, content in evaluation.form.files().items():
        write_bytes(path.parent / name, content)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_evaluation_set(path: Path) -> EvaluationSet:
    """Read an evaluation set.

    Raises:
        MmedgeError: The file is missing or a record is broken; the message names file and line.
    """
    if not path.is_file():
        raise MmedgeError(
            f"no evaluation set: {path}", "`mmedge distill` writes it beside the student; name it with --evaluation FILE"
        )
    task, form = "", None
    questions: dict[str, list[Example]] = {}
    cots: dict[str, list[HeldOutCot]] = {}
    for number, record in iterate_jsonl(path):
        kind = record.get("kind")
        if kind == "task":
            task = text_field(record, "name", path, number)
            form = open_form(record, path.parent, f"{path}:{number}")
            continue
        split = text_field(record, "split", path, number)
        example = read_example(record, path, number, form)
        if kind == "question":
            questions.setdefault(split, []).append(example)
        elif kind == "cot":
            cot = ChainOfThought(str(record.get("rationale", "")), text_field(record, "pseudo_label", path, number))
            correct, verdict = record.get("correct"), record.get("teacher_verdict")
            if not isinstance(correct, bool):
                raise MmedgeError(f"{path}:{number}: field 'correct' must be true or false")
            held = HeldOutCot(example, int(record.get("sample") or 0), cot, correct, str(verdict) if verdict else None)
            cots.setdefault(split, []).append(held)
        else:
            raise MmedgeError(f"{path}:{number}: field 'kind' must be task, question or cot, found {kind!r:.40}")
    if form is None:
        raise MmedgeError(f"{path}: the first line must name the task and the form of its answers")
    return EvaluationSet(
        task,
        form,
        {split: tuple(examples) for split, examples in questions.items()},
        {split: tuple(held) for split, held in cots.items()},
    )


def _first_record(student: Path) -> Json:
    """Return what the evaluation set beside a student or bundle says of its task; nothing where there is none."""
    try:
        with open(student.resolve().parent / FILE_NAME, encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return first if isinstance(first, dict) and first.get("kind") == "task" else {}


def task_beside(student: Path) -> str | None:
    """Return the task that a student was made for, by the evaluation set beside it; None where that is not known."""
    name = _first_record(student).get("name")
    return None if name is None else str(name)


def form_beside(student: Path) -> AnswerForm | None:
    """Return what the answers of a student's task look like, by the evaluation set beside it; None where that is not known."""
    first = _first_record(student)
    return open_form(first, student.resolve().parent) if first else None


def messages_field(record: Json, form: AnswerForm | None, path: Path | str, number: int) -> tuple[tuple[Turn, ...], str]:
    """Return the earlier turns and the question of a record with `messages`.

    Raises:
        MmedgeError: It has a `question` too, or the messages are broken; the message names file and line.
    """
    if record.get("question") is not None:
        raise MmedgeError(f"{path}:{number}: a record has either 'question' or 'messages', not both", "leave one out")
    try:
        return read_messages(record["messages"], form)
    except WrongMessage as error:
        raise MmedgeError(f"{path}:{number}: {error}", "docs/data.md shows a record with messages") from None


def read_example(record: Json, path: Path | str, number: int, form: AnswerForm | None = None) -> Example:
    """Read a question from a JSON-lines record: `question` or `messages`, and optional `id`, `choices`, `label`, `out_of_scope`.

    Args:
        record: The record.
        path: The file, for errors.
        number: The line, for errors.
        form: What answers look like; earlier ones among messages are spelled as the student writes them.

    Raises:
        MmedgeError: The record is broken; the message names file and line.
    """
    choices = record.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise MmedgeError(f"{path}:{number}: field 'choices' must be a list of texts")
    label = record.get("label")
    turns: tuple[Turn, ...] = ()
    if record.get("messages") is not None:
        turns, question = messages_field(record, form, path, number)
    elif record.get("premise") is not None:
        premise, hypothesis = (text_field(record, name, path, number) for name in ("premise", "hypothesis"))
        question = f"Premise: {premise} Hypothesis: {hypothesis}"
    else:
        question = text_field(record, "question", path, number)
    if isinstance(label, (dict, list)):
        label = json.dumps(label, ensure_ascii=False)
    outside = out_of_scope_field(record, path, number)
    id_, canonical = str(record.get("id", number)), None if label is None else str(label)
    return Example(id_, question, canonical, tuple(choices), turns, out_of_scope=outside)


def evaluation_set_of(
    task: str,
    form: AnswerForm,
    validation: Sequence[Example],
    calibration: Sequence[Example],
    recovery: Sequence[Example],
    tests: dict[str, tuple[Example, ...]],
    cots: dict[str, Sequence[HeldOutCot]],
) -> EvaluationSet:
    """Put an evaluation set together."""
    chosen = {VALIDATION: tuple(validation), CALIBRATION: tuple(calibration), RECOVERY: tuple(recovery), **tests}
    return EvaluationSet(task, form, chosen, {name: tuple(held) for name, held in cots.items()})
