"""Answers that are free text, right when they equal the label up to case, spaces and final punctuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.latex import unboxed
from mmedge.tasks.reading import answer_sections, first_line, one_paragraph, plain, trim

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings


@dataclass(frozen=True)
class ExactForm(AnswerForm):
    """An answer is free text; right when it equals the label up to case, spaces and final punctuation."""

    name: ClassVar[str] = "exact"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import ExactSettings

        return ExactSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> ExactForm:
        return cls()

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        return one_paragraph(answer) or None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        return bool(plain(answer)) and plain(answer) == plain(reference)

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        """Read a text whose answer is stated; only what follows a statement of the answer counts."""
        body = unboxed(trim(text))
        if not body:
            return Unparsed.EMPTY
        for before, after in answer_sections(body):
            answer = self.canonical(first_line(after).rstrip("."))
            if answer:
                return ChainOfThought(one_paragraph(before) or answer, answer)
        return Unparsed.NO_ANSWER

    def instruction(self) -> str:
        return "a short phrase"
