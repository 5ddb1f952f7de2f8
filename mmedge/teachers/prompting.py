"""Prompts: readable template files, and the chat messages made from them.

    === system
    You solve word problems …
    === user
    Question: Luke scored 84 points …
    === assistant
    Luke scored 84 points in 2 rounds. … The answer is (84 / 2).
    === user
    Question: {question}

A line `=== ROLE` begins a message; `{question}`, `{choices}`, `{labels}`, `{form}` and `{cot}` are filled in. The files of
the built-in tasks lie in `templates/`; a user copies one (`mmedge annotate RECIPE --copy-prompts FOLDER`), edits it and names it in
the recipe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Protocol

from mmedge.errors import MmedgeError
from mmedge.openai import Message
from mmedge.storage import read_text, require_file, write_text
from mmedge.tasks import Example, Task
from mmedge.tasks.dialogue import asked_dialogue
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.reading import trim

TEMPLATES = Path(__file__).parent / "templates"
ROLES = ("system", "user", "assistant")
PLACES = ("question", "choices", "labels", "form", "cot")
_HEADING = re.compile(r"^=== *(\w+)( for each seed)?[ \t]*$", re.MULTILINE)
_LIKE_HEADING = re.compile(rf"^=== *(?:{'|'.join(ROLES)})\b.*$", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A prompt with placeholders.

    Attributes:
        source: Where it was read from, for errors.
        messages: Role and text of each message; the last one is the user's.
        each: The places of the messages that are repeated for each seed, where new questions are asked for.
    """

    source: str
    messages: tuple[Message, ...]
    each: frozenset[int] = frozenset()

    def fill(self, example: Example, form: AnswerForm, cot: str = "") -> tuple[Message, ...]:
        """Return the messages about a question; a dialogue takes the question's place as a whole.

        Args:
            example: The question.
            form: What answers look like.
            cot: The chain of thought that is to be judged.
        """
        values = {
            "question": asked_dialogue(example, form, example.question),
            "choices": " ".join(f"({chr(ord('a') + index)}) {choice}" for index, choice in enumerate(example.choices)),
            "labels": ", ".join(form.labels),
            "form": form.instruction(),
            "cot": cot,
        }
        return self.filled(values)

    def filled(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """Return the messages with the placeholders filled by name."""
        fixed = self.fixed
        return (*fixed, *(_filled(message, values) for message in self.messages[len(fixed) :]))

    def filled_with(self, values: Mapping[str, str], seeds: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
        """Return the messages, those for each seed once for each.

        Args:
            values: What the placeholders stand for elsewhere.
            seeds: What they stand for in the messages about each seed.
        """
        found: list[Message] = []
        for repeated, group in groupby(range(len(self.messages)), self.each.__contains__):
            messages = [self.messages[place] for place in group]
            found += [_filled(message, given) for given in (seeds if repeated else (values,)) for message in messages]
        return tuple(found)

    @cached_property
    def fixed(self) -> tuple[Message, ...]:
        """The messages before the first one with a placeholder: always the same."""
        places = (index for index, (_, text) in enumerate(self.messages) if _PLACE.search(text))
        return self.messages[: next(places, len(self.messages))]


def _filled(message: Message, values: Mapping[str, str]) -> Message:
    role, text = message
    return role, _PLACE.sub(lambda match: values[match[1]], text)  # one pass, so that no text that is filled in has placeholders


class Asking(Protocol):
    """How a teacher is asked: for a text about a question, and for a text about that text."""

    def about_question(self, example: Example) -> tuple[Message, ...]:
        """Return what asks for the first."""
        ...

    def about_cot(self, example: Example, text: str) -> tuple[Message, ...]:
        """Return what asks for the second."""
        ...

    def typical_lengths(self) -> tuple[float, float]:
        """Return how long both are, in characters, before any was seen."""
        ...

    def to_json(self) -> dict[str, object]:
        """Return what decides what is asked, whatever it is about."""
        ...


TYPICAL_COT, TYPICAL_EVALUATION = 300.0, 200.0  # characters, where the prompt shows no examples


@dataclass(frozen=True)
class Prompts:
    """The two prompts of a teacher.

    Attributes:
        cot: That for a chain of thought.
        evaluation: That for an evaluation of one.
        form: What answers look like.
        examples: Questions that the first one shows, each with a text that comes to its label.
    """

    cot: Template
    evaluation: Template
    form: AnswerForm
    examples: tuple[Example, ...] = ()

    def about_question(self, example: Example) -> tuple[Message, ...]:
        """Return what asks for a chain of thought; a question is no example for itself."""
        *before, last = self.cot.fill(example, self.form)
        return (*before, *chain.from_iterable(pair for id_, pair in self._pairs if id_ != example.id), last)

    @cached_property
    def _pairs(self) -> list[tuple[str, tuple[Message, Message]]]:
        """What is said of each example, by its id."""
        asked = [self.cot.fill(one, self.form)[-1] for one in self.examples]
        said = [("assistant", self.form.demonstration(one) or "") for one in self.examples]
        return [(one.id, (question, text)) for one, question, text in zip(self.examples, asked, said, strict=True)]

    def about_cot(self, example: Example, text: str) -> tuple[Message, ...]:
        """Return what asks for an evaluation of a chain of thought, given its raw text."""
        return self.evaluation.fill(example, self.form, trim(text))

    def typical_lengths(self) -> tuple[float, float]:
        """Return the mean lengths of the answers that the prompts show as examples, in characters."""
        texts = [*_answers(self.cot), *(self.form.demonstration(one) or "" for one in self.examples)]
        return _mean_length(texts) or TYPICAL_COT, _mean_length(_answers(self.evaluation)) or TYPICAL_EVALUATION

    def to_json(self) -> dict[str, object]:
        """Return the templates, the labels, and the examples where there are any."""
        found = {"cot": self.cot.messages, "evaluation": self.evaluation.messages, "labels": tuple(self.form.labels)}
        shown_ = [[one.question, self.form.demonstration(one)] for one in self.examples]
        return found | ({"examples": shown_} if shown_ else {})


def read_template(path: Path, needs: Sequence[str], places: Sequence[str] = PLACES) -> Template:
    """Read a template file.

    Args:
        path: The file.
        needs: The placeholders that it must have.
        places: Those that it may have.

    Raises:
        MmedgeError: It is missing, empty, or has an unknown role or placeholder; the message names file and line.
    """
    text = read_text(path)
    for like in _LIKE_HEADING.finditer(text):
        if not _HEADING.fullmatch(like[0]):
            raise MmedgeError(
                f"{path}:{text.count(chr(10), 0, like.start()) + 1}: {like[0]!r:.60} is no heading",
                "write '=== user', or in prompts for new questions '=== user for each seed'",
            )
    headings = list(_HEADING.finditer(text))
    if not headings or text[: headings[0].start()].strip():
        raise MmedgeError(f"{path}:1: a prompt must begin with a line such as '=== user'", f"see the files in {TEMPLATES}")
    messages, each = list[Message](), set[int]()
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        line = text.count("\n", 0, heading.start()) + 1
        role, content = heading[1], text[heading.end() : following.start() if following else len(text)].strip()
        if role not in ROLES:
            raise MmedgeError(f"{path}:{line}: unknown role {role!r}", f"it must be one of {', '.join(ROLES)}")
        if not content:
            raise MmedgeError(f"{path}:{line}: this message is empty")
        for place in _PLACE.finditer(content):
            if place[1] not in places:
                inside = text.index(place[0], heading.end())
                known = ", ".join(f"{{{name}}}" for name in places)
                raise MmedgeError(f"{path}:{text.count(chr(10), 0, inside) + 1}: unknown placeholder {place[0]}", f"known: {known}")
        if heading[2]:
            if "seed" not in places:
                raise MmedgeError(f"{path}:{line}: only prompts for new questions have messages 'for each seed'")
            if role == "system":
                raise MmedgeError(
                    f"{path}:{line}: the system message is one, and not for each seed", "write '=== user for each seed'"
                )
            each.add(len(messages))
        messages.append((role, content))
    if messages[-1][0] != "user" or len(messages) - 1 in each:
        raise MmedgeError(f"{path}: the last message must be the user's", "add '=== user' and what is asked")
    found = {place[1] for _, content in messages for place in _PLACE.finditer(content)}
    for need in needs:
        if need not in found:
            raise MmedgeError(
                f"{path}: the placeholder {{{need}}} is missing", "without it, every question would get the same prompt"
            )
    return Template(str(path), tuple(messages), frozenset(each))


def template_files(task: Task) -> dict[str, Path]:
    """Return the built-in files for a task: by its name, or else by the form of its answers."""
    for name in (task.name, task.form.templates):
        files = {kind: TEMPLATES / f"{name}.{kind}.txt" for kind in ("cot", "evaluation")}
        if all(path.is_file() for path in files.values()):
            return files
    raise MmedgeError(f"no built-in prompts for the task {task.name!r}", "name prompt files of your own in teacher.prompts")


def copy_templates(task: Task, folder: Path) -> dict[str, Path]:
    """Copy the built-in files for a task into a folder, to be edited; return the copies by kind.

    Raises:
        MmedgeError: A file of that name is there already.
    """
    copies = {}
    for kind, source in template_files(task).items():
        copies[kind] = folder / source.name
        if copies[kind].exists():
            raise MmedgeError(f"{copies[kind]} already exists", "move it away, or name another folder")
        write_text(copies[kind], read_text(source))
    return copies


def load_prompts(task: Task, cot: Path | None, evaluation: Path | None, examples: tuple[Example, ...] = ()) -> Prompts:
    """Return the prompts of a task, the built-in ones where no file is named.

    Args:
        task: The task.
        cot: The file of the prompt for chains of thought, or None.
        evaluation: That of the prompt for evaluations, or None.
        examples: Labelled questions that the first prompt shows.

    Raises:
        MmedgeError: See `read_template`; or a prompt that is to show examples does not end with the question.
    """
    built_in = template_files(task) if cot is None or evaluation is None else {}
    for kind, path in (("cot", cot), ("evaluation", evaluation)):
        if path is not None:
            require_file(path, f"teacher.prompts.{kind}")
    asking = read_template(cot or built_in["cot"], ("question",))
    if examples and "{question}" not in asking.messages[-1][1]:
        raise MmedgeError(
            f"{asking.source}: teacher.examples needs {{question}} in the last message, which is repeated for each of them",
            "put it there, or write the examples into the prompt and leave teacher.examples out",
        )
    return Prompts(
        asking,
        read_template(evaluation or built_in["evaluation"], ("question", "cot")),
        task.form,
        examples,
    )


def demonstrations(task: Task, count: int) -> tuple[Example, ...]:
    """Return training questions with labels for a prompt to show: the first of each label or function, then the second of each.

    Args:
        task: Has the questions, as the recipe's files have them, whatever people have decided about them since.
        count: How many; fewer where there are no more.

    Raises:
        MmedgeError: The form has no texts to show for labels, or no training question that stands alone has a label.
    """
    form, by_kind = task.form, dict[str, list[Example]]()
    labelled = [example for example in task.load().train if example.label is not None] if count else []
    if any(form.demonstration(one) is None for one in labelled[:1]):
        raise MmedgeError(
            f"teacher.examples: not for the answer form {form.name!r}",
            "write examples into a prompt of your own: mmedge annotate RECIPE --copy-prompts FOLDER",
        )
    for example in labelled:
        if not example.turns:
            by_kind.setdefault(form.kind_of(example.label or ""), []).append(example)
    if count and not by_kind:
        raise MmedgeError(
            "teacher.examples: no training question that stands alone has a label to show", "leave it out, or give such questions"
        )
    return tuple([one for row in zip_longest(*by_kind.values()) for one in row if one is not None][:count])


def _answers(template: Template) -> list[str]:
    """Return the answers that a prompt shows."""
    return [content for role, content in template.messages if role == "assistant"]


def _mean_length(texts: Sequence[str]) -> float:
    """Return the mean length of texts, in characters; 0 where there are none."""
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def sha256_messages(messages: Sequence[Message]) -> str:
    """Return the hash of what is sent."""
    text = "".join(f"{role}\0{content}\0" for role, content in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shown(messages: Sequence[Message]) -> str:
    """Return messages in the form of a template file, for people to read."""
    return "\n".join(f"=== {role}\n{content}" for role, content in messages)
