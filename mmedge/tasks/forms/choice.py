"""Answers that are one of several texts: a question's own choices, or a task's labels.

ChoiceForm().agrees("(d)", "math problem", choices)       True: the letter names the text
LabelForm(("entailment", …)).canonical("Entailment.")     "entailment"
LabelForm(("entailment", …), "short").canonical("Entailment.")     "SS", whose value is "entailment"
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.encoding import CHARACTERS, PromptEncoder
from mmedge.tasks.forms.constraints import Constrainer, Constraint, OneOf
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.latex import unboxed
from mmedge.tasks.reading import answer_sections, ends_whole, first_line, one_paragraph, plain, trim

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings

LABEL_SPELLINGS = ("whole", "short")
_LETTER = re.compile(r"^\(?\s*([A-Za-z])\s*\)?\s*[.:)]?(?:\s+(.*))?$", re.DOTALL)
_LETTERS = re.compile(r"\(([A-Za-z])\)")
_LETTERS_BY_USE = "SCAPMTDRBEIFLNGHOUVWKJYXQZ"  # tokenizers have nearly all pairs of the first as one token each
_SEVERAL = re.compile(r"\([A-Za-z]\)[^()]{0,40}?(?:\b(?:or|and)\b|,)\s*\([A-Za-z]\)")


class _OneOfSeveral(AnswerForm):
    """What choices and labels have in common: a text names one of them, and a constrained student writes nothing else."""

    @abstractmethod
    def among(self, example: Example) -> Sequence[str]:
        """Return what an answer to a question is one of."""

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        choices = self.among(example)
        body = unboxed(trim(text))
        if not body:
            return Unparsed.EMPTY
        for before, after in answer_sections(body):
            named = self._named(after, choices)
            if named is None and _SEVERAL.search(first_line(after)):
                return Unparsed.AMBIGUOUS
            if named is None:
                mentioned = _mentioned(first_line(after).split(".")[0], choices)
                named = mentioned[0] if len(mentioned) == 1 else None
            if named is not None:
                return ChainOfThought(one_paragraph(before) or one_paragraph(after), named)
        first = self._named(body, choices) if not re.match(r"\s*[A-Za-z][ \t]", body) else None
        if first is not None:
            return ChainOfThought(one_paragraph(body), first)
        mentioned = _mentioned(body, choices)
        if len(mentioned) == 1:
            return ChainOfThought(one_paragraph(body), mentioned[0])
        if len(mentioned) > 1:
            return Unparsed.AMBIGUOUS
        return Unparsed.NO_ANSWER if ends_whole(body) else Unparsed.TRUNCATED

    def _named(self, text: str, choices: Sequence[str]) -> str | None:
        """Return the choice that a text names first: by letter in parentheses, by letter alone, or by its words."""
        line = first_line(text)
        if len(set(_LETTERS.findall(line.split(". ")[0]))) > 1 and _SEVERAL.search(line):
            return None  # "(b) jail time or (e) going to prison"
        if match := re.match(r"\s*\(?([A-Za-z])\)", line) or re.match(r"\s*\(?([A-Za-z])\s*(?:[.,:;]|$)", line):
            return self.canonical(match[1], choices)
        low = plain(line)
        there = {choice: words for choice in choices if (words := plain(choice)) in low}  # a pattern of a long one takes long
        named = [choice for choice, words in there.items() if re.match(rf"(?:the |an? |to )?{re.escape(words)}\b", low)]
        return max(named, key=len, default=None)


def _of_choices(count: int, right: int) -> str:
    return f"It has {count} choices, of which exactly one is right: ({chr(ord('a') + right)})."


def _mentioned(text: str, choices: Sequence[str]) -> list[str]:
    """Return the choices whose words occur in a text; one inside a longer one that occurs there does not count."""
    low = f" {plain(text)} "
    found: list[str] = []
    for choice in sorted(dict.fromkeys(choices), key=len, reverse=True):
        words = plain(choice)
        pattern = rf"(?<!\w){re.escape(words)}(?!\w)" if words in low else ""
        if pattern and re.search(pattern, low):
            found.append(choice)
            low = re.sub(pattern, " ", low)
    return found


# ------------------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class ChoiceForm(_OneOfSeveral):
    """An answer is one of the example's choices, named by letter, by text, or by both."""

    name: ClassVar[str] = "choice"
    templates: ClassVar[str] = "commonsenseqa"
    takes_choices: ClassVar[bool] = True

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import ChoiceSettings

        return ChoiceSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> ChoiceForm:
        return cls()

    def wish(self, kind: str, seeds: Sequence[Example], draw: random.Random) -> str:
        count = max((len(example.choices) for example in seeds), default=4)
        return _of_choices(count, draw.randrange(count))

    def wish_met(self, example: Example) -> str:
        return _of_choices(len(example.choices), example.choices.index(example.label)) if example.label in example.choices else ""

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        wanted = plain(answer)
        for choice in choices:
            if plain(choice) == wanted:
                return choice
        if match := _LETTER.match(answer.strip()):
            index = ord(match[1].lower()) - ord("a")
            if index < len(choices) and (not match[2] or plain(match[2]) == plain(choices[index])):
                return choices[index]
        return None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        left, right = self.canonical(answer, choices), self.canonical(reference, choices)
        return left is not None and right is not None and plain(left) == plain(right)

    def among(self, example: Example) -> Sequence[str]:
        return example.choices

    def expected(self) -> str:
        return "one of the question's choices, or its letter"

    def instruction(self) -> str:
        return "one of the choices, word for word"

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        return _ChoiceConstrainer(encoder)


class _ChoiceConstrainer(Constrainer):
    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    def answer(self, example: Example, limit: int) -> Constraint | None:
        most = CHARACTERS * limit  # of a longer one no more is written, and to encode it all would take long
        return OneOf([self._encoder.target(choice[:most], limit) for choice in example.choices]) if example.choices else None


# -------------------------------------------------------------------------------------------------- labels


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(label, str) and label for label in value):
        raise ValueError("labels must be a list of at least one text")
    return tuple(value)


def _codes() -> Iterator[str]:
    """Yield pairs of capital letters, then triples and so on, the likeliest single tokens first."""
    letters = range(len(_LETTERS_BY_USE))
    for length in count(2):
        for places in sorted(product(letters, repeat=length), key=lambda found: (sum(found), found)):
            yield "".join(_LETTERS_BY_USE[place] for place in places)


@dataclass(frozen=True)
class LabelForm(_OneOfSeveral):
    """An answer is one of a fixed set of labels.

    Attributes:
        labels: The labels.
        spelling: How the student writes them: `whole`, or `short`: two or three letters each, whose value is the label.
    """

    labels: tuple[str, ...] = field()
    spelling: str = "whole"

    name: ClassVar[str] = "label"
    templates: ClassVar[str] = "label"

    def expected(self) -> str:
        return f"one of {', '.join(self.labels)}"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import LabelSettings

        return LabelSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> LabelForm:
        spelling = settings.get("spelling", "whole")
        if spelling not in LABEL_SPELLINGS:
            raise ValueError(f"spelling must be one of {', '.join(LABEL_SPELLINGS)}")
        return cls(_labels(settings["labels"]), spelling)

    @property
    def respells(self) -> bool:
        return self.spelling == "short"

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        return self._by_text.get(plain(answer)) or (answer.strip() if answer.strip() in self._by_code else None)

    @cached_property
    def written(self) -> dict[str, str]:
        """How the student writes each label."""
        if not self.respells:
            return {label: label for label in self.labels}
        taken = {plain(label) for label in self.labels}
        codes = (code for code in _codes() if plain(code) not in taken)
        by_text: dict[str, str] = {}  # labels that differ in case alone are one
        return {label: by_text.setdefault(plain(label), code) for label, code in zip(self.labels, codes, strict=False)}

    @cached_property
    def _by_text(self) -> dict[str, str]:
        return {plain(label): text for label, text in reversed(self.written.items())}

    @cached_property
    def _by_code(self) -> dict[str, str]:
        return {code: label for label, code in reversed(self.written.items())} if self.respells else {}

    def value_of(self, answer: str) -> str | None:
        code = self.canonical(answer) if self.respells else None
        return self._by_code[code] if code is not None else None

    def kind_of(self, answer: str) -> str:
        return super().kind_of(self.readable(answer))

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        found = super().read(text, example)
        if isinstance(found, Unparsed) or not self.respells:
            return found
        return replace(found, pseudo_label=self.canonical(found.pseudo_label) or found.pseudo_label)

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        left = self.canonical(answer)
        return left is not None and left == self.canonical(reference)

    def among(self, example: Example) -> Sequence[str]:
        return self.labels

    def instruction(self) -> str:
        return f"one of: {', '.join(self.labels)}"

    def settings(self) -> dict[str, Any]:
        return {"labels": list(self.labels)} | ({"spelling": self.spelling} if self.respells else {})

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        return _LabelConstrainer(encoder, list(self.written.values()))


class _LabelConstrainer(Constrainer):
    def __init__(self, encoder: PromptEncoder, labels: Sequence[str]) -> None:
        self._encoder, self._labels = encoder, labels
        self._made: dict[int, Constraint] = {}

    def answer(self, example: Example, limit: int) -> Constraint | None:
        if limit not in self._made:
            self._made[limit] = OneOf([self._encoder.target(label, limit) for label in self._labels])
        return self._made[limit]
