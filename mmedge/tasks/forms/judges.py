"""Judges of answers: by value, by choice, by label, or by exact text.

EXPRESSION.agrees("84 / 2", "42")                       True: judged by value
CHOICE.agrees("(d)", "math problem", choices)           True: the letter names the text
LabelJudge(("entailment", …)).canonical("Entailment.")  "entailment"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmedge.tasks.expressions import ExpressionError, parse, same_value

_LETTER = re.compile(r"^\(?\s*([A-Za-z])\s*\)?\s*[.:)]?(?:\s+(.*))?$", re.DOTALL)


def plain(text: str) -> str:
    """Return text for comparison: lower case, single spaces, no quotes or final punctuation."""
    return re.sub(r"\s+", " ", text).strip().strip("\"'`“”‘’").rstrip(".,;:!").strip().lower()


@dataclass(frozen=True)
class ExpressionJudge:
    """An answer is a number or an arithmetic expression; right when its value is the label's."""

    name: str = "expression"

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        try:
            return parse(answer).text()
        except ExpressionError:
            return None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        try:
            return same_value(parse(answer).value, parse(reference).value)
        except ExpressionError:
            return False


@dataclass(frozen=True)
class ChoiceJudge:
    """An answer is one of the example's choices, named by letter, by text, or by both."""

    name: str = "choice"

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


@dataclass(frozen=True)
class LabelJudge:
    """An answer is one of a fixed set of labels."""

    labels: tuple[str, ...]
    name: str = "label"

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        wanted = plain(answer)
        return next((label for label in self.labels if plain(label) == wanted), None)

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        left = self.canonical(answer)
        return left is not None and left == self.canonical(reference)


@dataclass(frozen=True)
class ExactJudge:
    """An answer is free text; right when it equals the label up to case, spaces and final punctuation."""

    name: str = "exact"

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        return re.sub(r"\s+", " ", answer).strip() or None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        return bool(plain(answer)) and plain(answer) == plain(reference)


AnyJudge = ExpressionJudge | ChoiceJudge | LabelJudge | ExactJudge


def judge_by_name(name: str, labels: Sequence[str] = ()) -> AnyJudge:
    """Return the judge that a recipe or a bundle names.

    Raises:
        ValueError: There is none of that name, or `label` comes without labels.
    """
    if name == "expression":
        return ExpressionJudge()
    if name == "choice":
        return ChoiceJudge()
    if name == "exact":
        return ExactJudge()
    if name == "label" and labels:
        return LabelJudge(tuple(labels))
    raise ValueError(f"unknown judge {name!r}; known: expression, choice, label (with labels), exact")
