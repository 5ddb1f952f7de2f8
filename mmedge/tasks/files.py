"""Tasks that are read from JSON-lines files: SVAMP, CommonsenseQA, NLI, and a user's own.

    {"id": "svamp-train-0000", "question": "Luke scored 84 points …", "label": "( 84.0 / 2.0 )"}
    {"id": "cqa-train-0001", "question": "…", "choices": ["bus depot", …], "label": "bridge"}
    {"id": "anli-7", "premise": "…", "hypothesis": "…", "label": "entailment"}
    {"id": "snips-2", "question": "play Hardcore music", "label": {"name": "PlayMusic", "arguments": {"genre": "Hardcore"}}}
    {"id": "7", "messages": [{"role": "user", "content": "lights on in the hall"}, …], "label": "lights on"}
    {"id": "8", "question": "why is the sky blue?", "out_of_scope": true}

The task's answer form reads every label when the file is loaded; a label that it cannot read is an error with file and line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.storage import Json, iterate_jsonl, read_text, require_file, text_field
from mmedge.tasks.base import Example, Turn
from mmedge.tasks.evaluation_set import messages_field, out_of_scope_field
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.forms.structured.values import parse
from mmedge.tasks.reading import one_paragraph, plain
from mmedge.tasks.task import Splits

NLI_LABELS = ("entailment", "neutral", "contradiction")
_NLI_NUMBERS = dict(zip(("0", "1", "2"), NLI_LABELS, strict=True))  # the order in which ANLI and SNLI number the labels
FIELDS = ("id", "uid", "question", "messages", "premise", "hypothesis", "choices", "label", "dialogue", "out_of_scope")
SILENT = ("label", "choices", "out_of_scope")  # without one of them a question is another one, and nobody would know
_NLI_LETTERS = dict(zip(("e", "n", "c"), NLI_LABELS, strict=True))  # ANLI's own files


@dataclass(frozen=True)
class FileTask:
    """A task whose examples are records of JSON-lines files.

    Attributes:
        name: The task's name.
        form: What answers look like.
        train: The file of training questions.
        tests: Named test files.
        has_choices: Whether every record must carry `choices`.
        has_premise: Whether a question is a `premise` and a `hypothesis`.
        limit: The largest number of training questions that is used, from the file's start; None for all.
        folder_field: What a recipe calls the folder of these files; empty where it names each of them.
    """

    name: str
    form: AnswerForm
    train: Path
    tests: dict[str, Path] = field(default_factory=dict)
    has_choices: bool = False
    has_premise: bool = False
    limit: int | None = None
    folder_field: str = ""

    def load(self) -> Splits:
        """Read all files.

        Raises:
            MmedgeError: A file is missing or empty, a record is broken, an id occurs twice, a label is not an answer, or a dialogue
                is among both training and test questions.
        """
        seen: dict[str, str] = {}
        train = self._read(require_file(self.train, self.folder_field or "task.train_file"), seen)
        tests = {
            name: self._read(require_file(path, self.folder_field or f"task.test_files.{name}"), seen)
            for name, path in self.tests.items()
        }
        _check_dialogues(train, tests)
        learned = tuple(example for example in train if not example.out_of_scope)
        if not learned:
            raise MmedgeError(f"{self.train} has nothing but questions out of scope", "add questions with an answer")
        return Splits(learned[: self.limit], tests, tuple(example for example in train if example.out_of_scope))

    def _read(self, path: Path, seen: dict[str, str]) -> tuple[Example, ...]:
        examples = []
        lines = read_text(path).split("\n") if self.form.takes_json else []
        for number, record in iterate_jsonl(path):
            if lines and isinstance(record.get("label"), (dict, list)):
                _read_strictly(lines[number - 1], path, number)
            example = self._example(record, path, number)
            if example.id in seen:
                raise MmedgeError(
                    f"{path}:{number}: id {example.id!r} was already used at {seen[example.id]}",
                    "give each question an id of its own, or none",
                )
            seen[example.id] = f"{path}:{number}"
            examples.append(example)
        if not examples:
            raise MmedgeError(f"{path} holds no examples", "each line must be a JSON object with a question or messages")
        return tuple(examples)

    def _example(self, record: Json, path: Path, number: int) -> Example:
        if record.keys() - FIELDS:
            _check_names(record, path, number)
        turns: tuple[Turn, ...] = ()
        if "messages" in record:
            turns, question = messages_field(record, self.form, path, number)
        elif self.has_premise:
            premise, hypothesis = (text_field(record, name, path, number) for name in ("premise", "hypothesis"))
            question = f"Premise: {one_paragraph(premise)} Hypothesis: {one_paragraph(hypothesis)}"
        else:
            question = one_paragraph(text_field(record, "question", path, number))
        choices = self._choices(record, path, number)
        outside = out_of_scope_field(record, path, number)
        id_ = record.get("id", record.get("uid"))
        return Example(
            id=str(id_) if id_ is not None else f"{path.stem}-{number:06d}",
            question=question,
            label=self._label(record.get("label"), choices, path, number),
            choices=choices,
            turns=turns,
            dialogue="" if record.get("dialogue") is None else str(record["dialogue"]),
            out_of_scope=outside,
        )

    def _choices(self, record: Json, path: Path, number: int) -> tuple[str, ...]:
        choices = record.get("choices", [])
        wrong = not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices)
        if wrong or len(choices) == 1 or len(choices) > 26 or (self.has_choices and not choices):
            raise MmedgeError(f"{path}:{number}: field 'choices' must be a list of 2 to 26 texts, found {choices!r:.60}")
        return tuple(one_paragraph(choice) for choice in choices)

    def _label(self, label: object, choices: Sequence[str], path: Path, number: int) -> str | None:
        if label is None:
            return None
        if self.form.takes_json and not isinstance(label, str):
            label = json.dumps(label, ensure_ascii=False)
        if isinstance(label, bool) or not isinstance(label, (str, int, float)):
            raise MmedgeError(f"{path}:{number}: field 'label' must be text or a number, found {label!r:.60}")
        text = str(label)
        if self.has_premise:
            text = _NLI_NUMBERS.get(text, _NLI_LETTERS.get(text, text))
        canonical = self.form.canonical(text, choices)
        if canonical is None:
            problem = self.form.problem(text, choices)
            raise MmedgeError(
                f"{path}:{number}: the label {text!r:.60} is not an answer of the form {self.form.name!r}"
                + (f": {problem}" if problem else ""),
                f"it must be {self.form.expected()}",
            )
        return canonical


def _check_dialogues(train: Sequence[Example], tests: Mapping[str, Sequence[Example]]) -> None:
    """Refuse test questions of dialogues that the student is trained on.

    Raises:
        MmedgeError: There is one; the message names both.
    """
    known = {key: example.id for example in train if (key := _dialogue_key(example))}
    for name, examples in tests.items():
        for example in examples:
            if same := known.get(_dialogue_key(example)):
                raise MmedgeError(
                    f"the training question {same!r:.60} and the question {example.id!r:.60} of {name!r} are of one dialogue",
                    "leave it out of one; where they are different dialogues, say so: give each record a 'dialogue' of its own",
                )


def _dialogue_key(example: Example) -> tuple[str, ...]:
    """Return what tells an example's dialogue: the name of it, or else its first two messages of the user."""
    if example.dialogue:
        return (example.dialogue,)
    said = [*(turn.text for turn in example.turns if turn.role == "user"), example.question]
    return tuple(map(plain, said[:2])) if len(said) > 1 else ()


def _check_names(record: Json, path: Path, number: int) -> None:
    """Refuse a field that looks like one of ours misspelt: without it, its question would go unlabelled, say. Others are yours.

    Raises:
        MmedgeError: A name is like that of a field that the record lacks.
    """
    asks = {"question", "messages", "premise"} & record.keys()
    lacking = [name for name in (*SILENT, *(() if asks else ("question",))) if name not in record]
    for name in sorted(record.keys() - FIELDS):
        if found := difflib.get_close_matches(name.lower(), lacking, n=1, cutoff=0.8):
            raise MmedgeError(f"{path}:{number}: unknown field {name!r:.60}", f"did you mean {found[0]!r}?")


def _read_strictly(line: str, path: Path, number: int) -> None:
    """Refuse what one JSON reader reads differently from another, such as a key that occurs twice."""
    try:
        parse(line)
    except ValueError as error:
        raise MmedgeError(f"{path}:{number}: {error}") from None


_FOLDER = "task.data"


def _only_file(data: Path, name: str) -> Path:
    if not data.is_dir():
        raise MmedgeError(
            f"{_FOLDER}: no such folder: {data}",
            "name the folder of the data in task.data, or in the environment variable MMEDGE_DATA if the recipe uses it",
        )
    return data / name


def svamp(data: Path, limit: int | None = None) -> FileTask:
    """SVAMP (Patel et al. 2021): math word problems; the answer is a number or an arithmetic expression."""
    files = (_only_file(data, "train.jsonl"), {"test": _only_file(data, "test.jsonl")})
    return FileTask("svamp", ExpressionForm(), *files, limit=limit, folder_field=_FOLDER)


def commonsenseqa(data: Path, limit: int | None = None) -> FileTask:
    """CommonsenseQA (Talmor et al. 2019): five choices, answered by letter or by text."""
    files = (_only_file(data, "train.jsonl"), {"test": _only_file(data, "test.jsonl")})
    return FileTask("commonsenseqa", ChoiceForm(), *files, has_choices=True, limit=limit, folder_field=_FOLDER)


def nli(data: Path, limit: int | None = None) -> FileTask:
    """Natural language inference in the form of ANLI (Nie et al. 2020): premise, hypothesis, three labels."""
    train = _only_file(data, "train.jsonl")
    tests = {path.stem: path for path in sorted(data.glob("test*.jsonl"))}
    return FileTask("nli", LabelForm(NLI_LABELS), train, tests, has_premise=True, limit=limit, folder_field=_FOLDER)
