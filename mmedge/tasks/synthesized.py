"""Questions that a teacher wrote, beside those of a task: the file that they are in, and the task that has both.

    {"id": "synthesized-music-0", "question": "put some fado on", "kind": "music", "teacher": "gpt-4o-mini"}

They have no label: `kind` is what the teacher was asked for, and what the right answer is, its annotations and people say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedge.errors import MmedgeError, is_broken, nearest
from mmedge.storage import in_json, iterate_jsonl, text_field, write_text
from mmedge.tasks.base import Example
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.reading import one_paragraph, plain
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
            raise MmedgeError(f"{path}:{number}: id {id_!r:.60} occurs twice", "give each question an id of its own")
        if record.get("label") is not None:
            raise MmedgeError(f"{path}:{number}: a new question has no label", "put labelled questions into task.train_file")
        if is_broken(question):
            raise MmedgeError(f"{path}:{number}: the question has broken or control characters", "mend it, or leave it out")
        if not isinstance(record.get("kind") or "", str):
            raise MmedgeError(f"{path}:{number}: field 'kind' must be text, found {in_json(record['kind'], 40)}")
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
            MmedgeError: See `Task.load` and `read_questions`; or a question has no choices although the form needs them, was
                written for a label or function that the task does not have, is a test question, or has another question's id.
        """
        splits = self.task.load()
        new = read_questions(self.path)
        self._check(new, splits)
        if self.form.takes_choices and (bare := next((each for each in new if len(each.choices) < 2), None)):
            raise MmedgeError(f"{self.path}: the question {bare.id!r:.60} has no choices", "each needs at least two")
        return Splits((*splits.train, *(each.example() for each in new)), splits.tests, splits.validation)

    def _check(self, new: Sequence[NewQuestion], splits: Splits) -> None:
        kinds = self.form.kinds()
        own = {example.id for example in splits.train}
        measured = {
            (plain(example.question), example.choices): example.id
            for examples in (*splits.tests.values(), splits.validation)
            for example in examples
            if not example.turns
        }
        for each in new:
            where = f"{self.path}: the question {each.id!r:.60}"
            if kinds and each.kind and each.kind not in kinds:
                said = f"{where} is for {each.kind!r:.60}, which is no label or function of this task"
                raise MmedgeError(said, f"{nearest(each.kind, kinds)}leave it out, or use the questions of this task")
            if each.id in own:
                raise MmedgeError(f"{where} has the id of a training question", "give one of them another id")
            if same := measured.get((plain(each.question), each.choices)):
                raise MmedgeError(f"{where} is also the test question {same!r:.60}", "leave it out: it would be learned")
