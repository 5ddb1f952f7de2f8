"""What an answer form is. A new form derives from `AnswerForm` and says what differs.

Knows no task, teacher or student. The text that a form is given is untrusted: nothing in it is ever executed.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.reading import runs_on

if TYPE_CHECKING:
    from mmedge.tasks.encoding import PromptEncoder
    from mmedge.tasks.forms.constraints import Constrainer
    from mmedge.tasks.forms.settings import FormSettings


class AnswerForm(ABC):
    """What an answer looks like, and all that follows from it. A form has no state beyond its settings.

    Attributes:
        name: What recipes and bundles call it.
        labels: The labels to choose from where the form has a fixed list of them.
        templates: The built-in teacher prompts for tasks of this form, by the name of their files.
        takes_choices: Whether every question has texts to choose from.
        calculates: Whether answers have a value beyond their text (`84 / 2` is `42`).
        takes_json: Whether a label in a data file may be a JSON value instead of text.
    """

    name: ClassVar[str]
    templates: ClassVar[str] = "exact"
    takes_choices: ClassVar[bool] = False
    calculates: ClassVar[bool] = False
    takes_json: ClassVar[bool] = False
    labels: tuple[str, ...] = ()

    @property
    def respells(self) -> bool:
        """Whether the student spells answers in its own way, so that people read their values instead."""
        return False

    def expected(self) -> str:
        """Return what a label in a data file must be, for error messages."""
        return "text"

    @classmethod
    @abstractmethod
    def settings_type(cls) -> type[FormSettings]:
        """Return the section that its settings in a recipe must be; imported here, since a device has no use for it."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> Self:
        """Return the form with these settings.

        Args:
            settings: Those of a recipe, validated, or as `settings` returned them.
            folder: The folder with the files of `files`; None if the settings are a recipe's own and name files themselves.

        Raises:
            KeyError, TypeError, ValueError: A setting is missing or wrong.
            MmedgeError: A file is missing or is not what the form needs.
        """

    @abstractmethod
    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return an answer in the form that the student learns to write, or None where the text is not an answer."""

    def problem(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        """Return what is wrong with a text that is not an answer, in one line; None where `expected` says it all."""
        return None

    @abstractmethod
    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        """Return whether two answers mean the same; text that is not an answer agrees with nothing."""

    @abstractmethod
    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        """Read a teacher's raw text; anything but a complete rationale with an answer is an `Unparsed`."""

    def lacks_answer(self, text: str, example: Example) -> Unparsed | None:
        """Return why a teacher's text cannot be read, or None if it can; fast, for texts that arrive by the thousand."""
        found = self.read(text, example)
        return found if isinstance(found, Unparsed) else None

    def goes_on(self, text: str) -> bool:
        """Whether a teacher's text goes on to another question after this one: one that is cut off there is whole."""
        return runs_on(text)

    def conclusion(self, rationale: str, example: Example) -> str | None:
        """Return the answer that a rationale comes to, or None where it states none."""
        found = self.read(rationale, example)
        return None if isinstance(found, Unparsed) else found.pseudo_label

    def value_of(self, answer: str) -> str | None:
        """Return the value of an answer, as text; None if the form has no values, or the answer has none."""
        return None

    def readable(self, answer: str) -> str:
        """Return an answer as people read and write it."""
        return (self.value_of(answer) if self.respells else None) or answer

    def scores(self, answers: Sequence[str], references: Sequence[str]) -> dict[str, Any] | None:
        """Return what answers are worth beyond being right, as JSON; None for forms whose answers have no parts."""
        return None

    def field_names(self) -> tuple[str, ...]:
        """Return the dotted paths of the fields that answers may have, and of what they lie within; empty where none is named."""
        return ()

    def field_spans(self, answer: str) -> Mapping[str, tuple[int, int]]:
        """Return where in an answer, from and to which character, each of its fields stands, by path; empty where it has none."""
        return {}

    def fields_right(self, answer: str, reference: str) -> Mapping[str, bool]:
        """Return whether each field of an answer is as in another, by path; empty for forms without fields."""
        return {}

    @abstractmethod
    def instruction(self) -> str:
        """Return what an answer must be, in the words for a bigger model: `one of the choices, word for word`."""

    def kinds(self) -> tuple[str, ...]:
        """Return what new questions are balanced over, such as labels; empty where answers are of one kind."""
        return self.labels

    def kind_of(self, answer: str) -> str:
        """Return which of `kinds` an answer is; empty where it is none of them."""
        return answer if answer in self.kinds() else ""

    def wish(self, kind: str, seeds: Sequence[Example], draw: random.Random) -> str:
        """Return what the answer to a new question must be, in the words for a teacher; empty where it is open.

        Args:
            kind: One of `kinds`, or empty where there are none.
            seeds: Questions whose answers are of this kind.
            draw: Chooses what is left open.
        """
        return f"Of the labels {', '.join(self.labels)}, the right one for it is: {kind}." if kind else ""

    def wish_met(self, example: Example) -> str:
        """Return what a question with a label asks for, in the words of `wish`; empty where answers are open or it has none."""
        kind = self.kind_of(example.label) if self.labels and example.label is not None else ""
        return f"The right label for it is: {kind}." if kind else ""

    def demonstration(self, example: Example) -> str | None:
        """Return a short chain of thought that comes to a question's label, for a prompt to show; None for forms without such."""
        return None

    def unspoken(self) -> tuple[str, ...]:
        """Return names of a schema that nobody who asks something would write, such as `GetWeather` and `time_range`."""
        return ()

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        """Return the constrainer of answers and rationales for one student; by default anything may be written."""
        from mmedge.tasks.forms.constraints import Constrainer

        return Constrainer()

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON, without `kind`; files are named as `files` names them."""
        return {}

    def files(self) -> Mapping[str, bytes]:
        """Return the files that the form needs, by name; they are written wherever the form is stated, bundles included."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return what `open_form` reads."""
        return {"form": self.name, "settings": self.settings()}
