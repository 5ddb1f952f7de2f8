"""An answer form: JSON over several lines, whose keys are listed in a file that the bundle carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mmedge.errors import MmedgeError
from mmedge.sections import PathText
from mmedge.storage import read_json
from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.forms.settings import FormSettings
from mmedge.tasks.reading import answer_sections, one_paragraph, trim

KEYS = "keys.json"


class RecordSettings(FormSettings):
    """An answer is a JSON object with known keys."""

    kind: Literal["record"] = Field("record", description="A JSON object, written over several lines.")
    keys: PathText = Field(KEYS, description="A JSON file that lists the keys.")


@dataclass(frozen=True)
class RecordForm(AnswerForm):
    """An answer is a JSON object; right when it has the label's values, in whatever order and spacing."""

    keys: tuple[str, ...]

    name: ClassVar[str] = "record"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        return RecordSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> RecordForm:
        path = Path(settings["keys"]) if folder is None else folder / KEYS
        found = read_json(path)
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise MmedgeError(f"{path} must be a list of keys")
        return cls(tuple(found))

    def _record(self, text: str) -> dict[str, object] | None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and set(found) <= set(self.keys) else None

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        found = self._record(answer)
        return None if found is None else json.dumps(found, indent=1, sort_keys=True)

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        left = self._record(answer)
        return left is not None and left == self._record(reference)

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        body = trim(text)
        for before, after in answer_sections(body):
            answer = self.canonical(after.strip())
            if answer is not None:
                return ChainOfThought(one_paragraph(before), answer)
        return Unparsed.NO_ANSWER if body else Unparsed.EMPTY

    def instruction(self) -> str:
        return f"a JSON object with some of the keys {', '.join(self.keys)}"

    def expected(self) -> str:
        return self.instruction()

    def settings(self) -> dict[str, str]:
        return {"keys": KEYS}

    def files(self) -> Mapping[str, bytes]:
        return {KEYS: json.dumps(list(self.keys)).encode()}
