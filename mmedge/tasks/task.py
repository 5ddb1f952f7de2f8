"""What a task is: where its questions come from, and what their answers look like. It knows neither student nor teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from mmedge.tasks.base import Example
from mmedge.tasks.forms.form import AnswerForm


@dataclass(frozen=True)
class Splits:
    """The examples of a task.

    Attributes:
        train: What the teacher annotates; validation is cut from it.
        tests: Named test sets, for final figures only.
        validation: Questions beside those cut from `train`, unlike them, for choosing and for calibrating confidence.
    """

    train: tuple[Example, ...]
    tests: dict[str, tuple[Example, ...]] = field(default_factory=dict)
    validation: tuple[Example, ...] = ()


class Task(Protocol):
    """A task: where its examples come from, and what its answers look like."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def form(self) -> AnswerForm:
        """What its answers look like."""
        ...

    def load(self) -> Splits:
        """Read or generate the examples.

        Raises:
            MmedgeError: A file is missing or a record is broken; the message names file and line.
        """
        ...
