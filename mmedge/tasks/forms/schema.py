"""Answers that are JSON values of a schema: `{"title": "Dune", "year": 1965}` for a JSON Schema in a file that the recipe names.

form: {kind: schema, file: book.schema.json, compare: {title: casefold}}
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.errors import MmedgeError
from mmedge.storage import require_file
from mmedge.tasks.base import Example
from mmedge.tasks.forms.structured import compact, schemas, values
from mmedge.tasks.forms.structured.compact import Place
from mmedge.tasks.forms.structured.comparing import Rules, fields_of
from mmedge.tasks.forms.structured.form import StructuredForm, read_document, read_settings, refuse_contradiction
from mmedge.tasks.forms.structured.grammar import Grammar
from mmedge.tasks.forms.structured.regex import Regex
from mmedge.tasks.forms.structured.schemas import Node
from mmedge.tasks.forms.structured.spans import Pieces, compact_pieces, json_pieces
from mmedge.tasks.forms.structured.values import Value
from mmedge.tasks.forms.structured.wishes import given, members

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings

FILE_NAME = "schema.json"


@dataclass(frozen=True)
class SchemaForm(StructuredForm):
    """An answer is a JSON value that fits a schema.

    Attributes:
        document: The schema.
        spelling: How the student writes values.
        rules: How fields are compared.
    """

    document: Value
    spelling: str = "compact"
    rules: Rules = field(default_factory=Rules)

    name: ClassVar[str] = "schema"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import SchemaSettings

        return SchemaSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> SchemaForm:
        path = require_file(Path(settings["file"]), "task.form.file") if folder is None else folder / FILE_NAME
        form = cls(read_document(path), *read_settings(settings))
        try:
            _ = form.node
        except ValueError as error:
            raise MmedgeError(f"{path}: {error}", "docs/structured-answers.md lists what is supported") from None
        if folder is None:  # a recipe's
            refuse_contradiction(form.language, path)
        unknown = form.rules.unknown(Place((form.node,)).paths())
        if unknown is not None:
            raise MmedgeError(f"compare.{unknown}: {path} has no field of this name")
        return form

    @cached_property
    def node(self) -> Node:
        """The schema, read."""
        return schemas.read(self.document)

    @cached_property
    def _place(self) -> Place:
        return Place((self.node,))

    def field_names(self) -> tuple[str, ...]:
        found = tuple(self._place.paths(elements=False))
        return found if not found or self._place.only_objects else ("value", *found)

    def canonical_document(self, document: Value, most: int) -> Value:
        return schemas.canonical(schemas.read(document, most))

    def problem_of(self, value: Value) -> str | None:
        return schemas.problem(self.node, value)

    def in_order(self, value: Value) -> Value:
        return compact.ordered(self._place, value)

    def spelled(self, value: Value) -> str:
        value = self.in_order(value)
        return values.to_json(value) if self.spelling == "json" else compact.write(self._place, value)

    def pieces(self, value: Value) -> Pieces:
        return json_pieces(value) if self.spelling == "json" else compact_pieces(self._place, value)

    def compact_value(self, text: str) -> Value:
        return compact.read(self._place, text)

    def fields(self, value: Value) -> dict[str, Value]:
        return fields_of(value)

    def language(self) -> Regex:
        return Grammar(self.spelling == "compact").whole(self.node)

    def expected(self) -> str:
        return "JSON that fits the schema, or its compact spelling"

    def instruction(self) -> str:
        return f"one line of JSON that fits this JSON Schema: {values.to_json(self.document)}"

    def wish(self, kind: str, seeds: Sequence[Example], draw: random.Random) -> str:
        if not isinstance(self.document, dict) or not isinstance(self.document.get("properties"), dict):
            return f"Its answer is {self.instruction()}."
        answers = [self.value(seed.label) for seed in seeds if seed.label is not None]
        known = [set(answer) for answer in answers if isinstance(answer, dict)]
        about = f" ({self.document['description']})" if self.document.get("description") else ""
        return f"What can be read from it{about}: a record {members(self.document, known, draw)}".rstrip() + "."

    def wish_met(self, example: Example) -> str:
        record = self.value(example.label) if example.label is not None else None
        return f"What can be read from it: a record {given(record)}." if isinstance(record, dict) else ""

    def demonstration(self, example: Example) -> str | None:
        if example.label is None:
            return None
        value = self.value(example.label)
        told = f"a record {given(value, '')}" if isinstance(value, dict) else values.to_json(value)
        return f"It gives {told}.\nAnswer: {values.to_json(value)}"

    def settings(self) -> dict[str, Any]:
        return {"file": FILE_NAME, "spelling": self.spelling, "compare": dict(self.rules.by_name)}

    def files(self) -> Mapping[str, bytes]:
        return {FILE_NAME: values.to_json(self.document).encode()}
