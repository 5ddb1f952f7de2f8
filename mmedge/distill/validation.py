"""Validations: what a student scored on validation data, as it is measured and as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmedge.storage import Json

SELECTABLE = 20  # validation items below which a checkpoint's score says nothing: 95 % intervals are wider than ±20 points


@dataclass(frozen=True)
class Validation:
    """What a student scored on validation data.

    Attributes:
        score: What checkpoints are selected by; larger is better.
        details: Everything measured, by its name.
        text: One line for the reader.
        items: How many questions or chains of thought the score rests on.
    """

    score: float
    details: Json
    text: str
    items: int


@dataclass(frozen=True)
class Validated:
    """A validation, as it is written.

    Attributes:
        step: After how many steps.
        score: What checkpoints are selected by.
        items: How many questions or chains of thought the score rests on.
        details: Everything measured, by its name.
    """

    step: int
    score: float
    items: int
    details: Json

    def to_json(self) -> Json:
        return {"step": self.step, "score": self.score, "items": self.items, **self.details}

    @classmethod
    def from_json(cls, found: Json) -> Validated:
        rest = {name: value for name, value in found.items() if name not in ("step", "score", "items")}
        return cls(found["step"], found["score"], found.get("items", SELECTABLE), rest)


def selectable(validations: Sequence[Validated]) -> bool:
    """Whether a stage's validations had items enough for a checkpoint to be chosen by them; if not, the last one is taken."""
    return all(one.items >= SELECTABLE for one in validations)
