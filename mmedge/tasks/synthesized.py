"""Questions that a teacher wrote, beside those of a task: the file that they are in, and the task that has both.

    {"id": "synthesized-music-0", "question": "put some fado on", "kind": "music", "teacher": "gpt-4o-mini"}

They have no label: `kind` is what the teacher was asked for, and what the right answer is, its annotations and people say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.storage import iterate_jsonl, text_field, write_text
from mmedge.tasks.base import Example
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.reading import one_paragraph
from mmedge.tasks.task import Splits, Task

PREFIX = "synthesized-"  # of their ids


@dataclass(frozen=True)
class NewQuestion:
    """A question that a teacher wrote.

    Attributes:
        id: Begins with `PREFIX`.
        question: Its text.
        choices: The texts to choose from, where the form has choices.
        kind: The label or function that was asked for; empty where none was.
        teacher: Who wrote it.
    """

    id: str
    question: str
    choices: tuple[str, ...] = ()
    kind: str = ""
    teacher: str = ""

    def example(self) -> Example:
        """Return it as a question without a label."""
        return Example(self.id, self.question, None, self.choices)


def is_synthesized(example_id: str) -> bool:
    """Whether a question's id is that of a synthesized one."""
    return example_id.startswith(PREFIX)


def write_questions(path: Path, questions: Sequence[NewQuestion]) -> None:
    """Write a file of new questions, atomically."""
    lines = []
    for each in questions:
        record = {"id": each.id, "question": each.question} | ({"choices": list(each.choices)} if each.choices else {})
        lines.append(json.dumps(record | {"kind": each.kind, "teacher": each.teacher}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_questions(path: Path) -> tuple[NewQuestion, ...]:
    """Read a file of new questions.

    Raises:
        MmedgeError: It is missing, or a record is broken; the message names file and line.
    """
    found: dict[str, NewQuestion] = {}
    for number, record in iterate_jsonl(path):
        id_, question = (text_field(record, name, path, number) for name in ("id", "question"))
        if not is_synthesized(id_):
            raise MmedgeError(f"{path}:{number}: the id {id_!r:.60} does not begin with {PREFIX!r}", "these ids say who wrote them")
        if id_ in found:
            raise MmedgeError(f"{path}:{number}: id {id_!r:.60} occurs twice")
        choices = record.get("choices", [])
        if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise MmedgeError(f"{path}:{number}: field 'choices' must be a list of texts, found {choices!r:.60}")
        kind, teacher = (str(record.get(name) or "") for name in ("kind", "teacher"))
        found[id_] = NewQuestion(id_, one_paragraph(question), tuple(map(one_paragraph, choices)), kind, teacher)
    return tuple(found.values())


@dataclass(frozen=True)
class WithSynthesized:
    """A task whose training questions are joined by those of a file.

    Attributes:
        task: The task.
        path: The file.
    """

    task: Task
    path: Path

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def form(self) -> AnswerForm:
        return self.task.form

    def load(self) -> Splits:
        """Read the task's examples and the file.

        Raises:
            MmedgeError: See `Task.load` and `read_questions`; or a question has no choices although the form needs them.
        """
        splits = self.task.load()
        new = read_questions(self.path)
        if self.form.takes_choices and (bare := next((each for each in new if len(each.choices) < 2), None)):
            raise MmedgeError(f"{self.path}: the question {bare.id!r:.60} has no choices", "each needs at least two")
        return Splits((*splits.train, *(each.example() for each in new)), splits.tests, splits.validation)
