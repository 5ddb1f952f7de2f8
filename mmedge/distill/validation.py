"""Validations: what a student scored on validation data, as it is measured and as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mmedge.storage import Json

SELECTABLE = 20  # the fewest validation items to choose by: below it, 95 % intervals are wider than ±20 points


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


class Validated(BaseModel):
    """A validation, as it is written: beside these, everything measured by its name.

    Attributes:
        step: After how many steps.
        score: What checkpoints are selected by.
        items: How many questions or chains of thought the score rests on.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    score: float
    items: int = SELECTABLE

    @property
    def details(self) -> Json:
        """Everything measured."""
        return self.model_extra or {}


def selectable(validations: Sequence[Validated]) -> bool:
    """Whether a stage's validations had enough items to choose a checkpoint by; if not, the last one is taken."""
    return all(one.items >= SELECTABLE for one in validations)
