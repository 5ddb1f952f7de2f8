"""Answers that are calls of functions: `{"name": "GetWeather", "arguments": {"city": "Oslo"}}`, for OpenAI-style definitions.

form: {kind: tools, file: tools.json}

[{"type": "function", "function": {"name": "GetWeather", "description": "Tell the weather at a place and time.",
  "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "the city"}, …}}}}, …]
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.errors import MmedgeError, is_broken
from mmedge.storage import require_file
from mmedge.tasks.base import Example
from mmedge.tasks.forms.structured import compact, schemas, values
from mmedge.tasks.forms.structured.compact import Place, short_names
from mmedge.tasks.forms.structured.comparing import Rules, fields_of
from mmedge.tasks.forms.structured.form import StructuredForm, read_document, read_settings, refuse_contradiction
from mmedge.tasks.forms.structured.grammar import Grammar, NothingFits
from mmedge.tasks.forms.structured.regex import NOTHING, Regex, either, literal, sequence
from mmedge.tasks.forms.structured.schemas import Node
from mmedge.tasks.forms.structured.spans import Pieces, json_pieces, member_pieces
from mmedge.tasks.forms.structured.values import Value
from mmedge.tasks.forms.structured.wishes import given, members

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings

FILE_NAME = "tools.json"
_NO_ARGUMENTS: Value = {"type": "object", "properties": {}, "additionalProperties": False}

LONGEST_NAME = 200  # characters


def read_functions(document: Value, most: int = schemas.MOST_NODES) -> dict[str, Node]:
    """Return the schemas of the arguments by the function's name.

    Args:
        document: The definitions.
        most: The most schemas that one of them may hold.

    Raises:
        ValueError: It is not a list of definitions; the message names the place, in one line.
    """
    if not isinstance(document, list) or not document:
        raise ValueError("must be a list of at least one function definition")
    found: dict[str, Node] = {}
    for number, entry in enumerate(document):
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"[{number}]: must be an object with a function's name and parameters")
        name, parameters = function["name"], function.get("parameters") or _NO_ARGUMENTS
        if len(name) > LONGEST_NAME or is_broken(name) or "\n" in name:
            raise ValueError(
                f"[{number}]: a function's name has at most {LONGEST_NAME} characters, and no line breaks or control characters"
            )
        if name in found:
            raise ValueError(f"[{number}]: there are two functions {name!r:.60}")
        try:
            found[name] = schemas.read(parameters, most)
        except ValueError as error:
            raise ValueError(f"function {name!r:.60}: {error}") from None
        if not Place((found[name],)).only_objects:
            raise ValueError(f"function {name!r:.60}: the type of its parameters must be object")
    return found


@dataclass(frozen=True)
class ToolsForm(StructuredForm):
    """An answer is a call of one of several functions.

    Attributes:
        document: The definitions.
        spelling: How the student writes calls.
        rules: How arguments are compared; a rule's name may have the function's in front: `GetWeather.city`.
    """

    document: Value
    spelling: str = "compact"
    rules: Rules = field(default_factory=Rules)

    name: ClassVar[str] = "tools"

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import ToolsSettings

        return ToolsSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> ToolsForm:
        path = require_file(Path(settings["file"]), "task.form.file") if folder is None else folder / FILE_NAME
        form = cls(read_document(path), *read_settings(settings))
        try:
            _ = form.functions
        except ValueError as error:
            raise MmedgeError(f"{path}: {error}", "docs/structured-answers.md lists what is supported") from None
        if folder is None:  # a recipe's
            refuse_contradiction(form.language, path)
        paths = [f"{name}.{path}" for name, place in form._places.items() for path in place.paths()]
        unknown = form.rules.unknown(["name", *paths])
        if unknown is not None:
            raise MmedgeError(f"compare.{unknown}: no function in {path} has an argument of this name")
        return form

    @cached_property
    def functions(self) -> dict[str, Node]:
        """The schemas of the arguments by the function's name."""
        return read_functions(self.document)

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {name: Place((node,)) for name, node in self.functions.items()}

    @cached_property
    def _short(self) -> dict[str, str]:
        return short_names(self.functions)

    @cached_property
    def _by_short(self) -> dict[str, tuple[str, Place]]:
        return {short: (name, self._places[name]) for name, short in self._short.items()}

    def field_names(self) -> tuple[str, ...]:
        inside = (f"{name}.{path}" for name, place in self._places.items() for path in place.paths(elements=False))
        return ("name", *self._places, *inside)

    def canonical_document(self, document: Value, most: int) -> Value:
        return {name: schemas.canonical(node) for name, node in sorted(read_functions(document, most).items())}

    def problem_of(self, value: Value) -> str | None:
        if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
            return f"must be a call with 'name' and 'arguments' alone, found {values.to_json(value):.60}"
        if not isinstance(value["name"], str) or value["name"] not in self.functions:
            return f"name: there is no function {values.to_json(value['name']):.40}"
        return schemas.problem(self.functions[value["name"]], value["arguments"], value["name"])

    def in_order(self, value: Value) -> Value:
        return {"name": value["name"], "arguments": compact.ordered(self._places[value["name"]], value["arguments"])}

    def spelled(self, value: Value) -> str:
        value = self.in_order(value)
        if self.spelling == "json":
            return values.to_json(value)
        return compact.call(self._places[value["name"]], self._short[value["name"]], value["arguments"])

    def pieces(self, value: Value) -> Pieces:
        name, arguments = value["name"], value["arguments"]
        if self.spelling == "json":
            yield "", "{"
            yield "name", f'"name":{values.to_json(name)}'
            yield "", ',"arguments":'
            yield from json_pieces(arguments, name) if arguments else iter([("", "{}")])
            yield "", "}"
            return
        yield "name", self._short[name]
        if arguments:
            yield "", "; "
            yield from member_pieces(self._places[name], arguments, name)

    def compact_value(self, text: str) -> Value:
        name, arguments = compact.read_call(text, self._by_short)
        return {"name": name, "arguments": arguments}

    def same(self, left: Value, right: Value) -> bool:
        return left["name"] == right["name"] and self.rules.agree(left["arguments"], right["arguments"], left["name"])

    def fields(self, value: Value) -> dict[str, Value]:
        inside = fields_of(value["arguments"], value["name"]) if value["arguments"] else {}
        return {"name": value["name"], **inside}

    def language(self) -> Regex:
        grammar = Grammar(self.spelling == "compact")
        arguments = {name: grammar.arguments(node) for name, node in self.functions.items()}
        if nothing := next((name for name, found in arguments.items() if found == NOTHING), None):
            raise NothingFits(f"function {nothing!r:.60}: no arguments fit its schema")
        if grammar.compact:
            return either(sequence(literal(self._short[name]), found) for name, found in arguments.items())
        return either(
            sequence(literal(f'{{"name":{values.to_json(name)},"arguments":'), found, literal("}"))
            for name, found in arguments.items()
        )

    def expected(self) -> str:
        return 'a call such as {"name": "GetWeather", "arguments": {"city": "Oslo"}}'

    def instruction(self) -> str:
        return (
            'one line of JSON, {"name": …, "arguments": {…}}, that calls one of these functions, with those arguments alone that '
            f"the question gives: {values.to_json(self.document)}"
        )

    def kinds(self) -> tuple[str, ...]:
        return tuple(self.functions)

    def kind_of(self, answer: str) -> str:
        try:
            return str(self.value(answer)["name"])
        except ValueError:
            return ""

    def wish(self, kind: str, seeds: Sequence[Example], draw: random.Random) -> str:
        definition = next(entry.get("function", entry) for entry in self.document if entry.get("function", entry)["name"] == kind)
        known = [set(self.value(seed.label)["arguments"]) for seed in seeds if seed.label is not None]
        about = f" ({definition['description']})" if definition.get("description") else ""
        told = members(definition.get("parameters") or {}, known, draw)
        return f"What it asks for is a call of {kind}{about} {told}".rstrip() + "."

    def wish_met(self, example: Example) -> str:
        if example.label is None:
            return ""
        call = self.value(example.label)
        return f"What it asks for is a call of {call['name']} {given(call['arguments'])}."

    def demonstration(self, example: Example) -> str | None:
        if example.label is None:
            return None
        call = self.value(example.label)
        return f"It asks for {call['name']} {given(call['arguments'], '')}.\nAnswer: {values.to_json(call)}"

    def settings(self) -> dict[str, Any]:
        return {"file": FILE_NAME, "spelling": self.spelling, "compare": dict(self.rules.by_name)}

    def files(self) -> Mapping[str, bytes]:
        return {FILE_NAME: values.to_json(self.document).encode()}
