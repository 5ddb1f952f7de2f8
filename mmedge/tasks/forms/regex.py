"""Answers that match a regular expression: an order number, a time, a product's code.

form: {kind: regex, pattern: '[A-Z]{2}-[0-9]{1,6}'}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.constraints import Constrainer
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.forms.structured.regex import Regex, parse
from mmedge.tasks.reading import answer_sections, ends_whole, first_line, one_paragraph, trim

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings


@dataclass(frozen=True)
class RegexForm(AnswerForm):
    """An answer is a text that matches a regular expression as a whole; right when it equals the label."""

    pattern: str

    name: ClassVar[str] = "regex"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import RegexSettings

        return RegexSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> RegexForm:
        form = cls(settings["pattern"])
        try:
            _ = form.regex
        except ValueError as error:
            raise ValueError(f"pattern {form.pattern!r:.60}: {error}") from None
        return form

    @cached_property
    def regex(self) -> Regex:
        """The expression, read."""
        return parse(self.pattern, whole=True)

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        found = answer.strip()
        return found if found and self.regex.matches(found) else None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        found = self.canonical(answer)
        return found is not None and found == self.canonical(reference)

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        """Read a text whose answer is stated: the line, or its longest beginning of whole words that matches."""
        body = trim(text)
        if not body:
            return Unparsed.EMPTY
        sections = answer_sections(body)
        for before, after in sections:
            words = first_line(after).split()
            for count in range(len(words), 0, -1):
                said = " ".join(words[:count]).strip("`*\"'")
                answer = self.canonical(said) or self.canonical(said.rstrip(".,;:"))
                if answer is not None:
                    return ChainOfThought(one_paragraph(before) or answer, answer)
        if sections:
            return Unparsed.INVALID
        return Unparsed.NO_ANSWER if ends_whole(body) else Unparsed.TRUNCATED

    def expected(self) -> str:
        return f"a text that matches {self.pattern}"

    def instruction(self) -> str:
        return f"a text that matches the regular expression {self.pattern}"

    def settings(self) -> dict[str, str]:
        return {"pattern": self.pattern}

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        from mmedge.tasks.forms.structured.guided import GuidedConstrainer

        return GuidedConstrainer(encoder, lambda: self.regex)
