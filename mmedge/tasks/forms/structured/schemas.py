"""JSON Schemas: reading one, naming what is not supported, and validating values.

    schema = read({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    problem(schema, {"city": 4})          "city: must be string, found 4"

Draft 2020-12, the keywords below; `format` is asserted. A schema that leads into itself is refused: its values have no longest one.
A validator of our own, since devices judge answers too, and since `pattern` must take linear time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from mmedge.tasks.forms.structured.formats import FORMATS
from mmedge.tasks.forms.structured.regex import Regex, parse
from mmedge.tasks.forms.structured.values import Value, same, to_json

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_SAID_ONLY = frozenset(
    ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$defs", "definitions")
)
_SIZES = {
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_items",
    "maxItems": "max_items",
}
_BOUNDS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
}
_DRAFTS = ("/draft/2020-12/schema", "/draft/2019-09/schema", "/draft-07/schema", "/draft-06/schema")
_OTHERS = (
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "prefixItems",
    "pattern",
    "format",
    "anyOf",
    "allOf",
    "$ref",
)
KEYWORDS = (*_OTHERS, *_SIZES, *_BOUNDS)
MOST_NODES = 20_000  # after references are followed


def _anything() -> Node:
    return ANYTHING


@dataclass(frozen=True)
class Node:
    """A schema, references followed.

    Attributes:
        types: What a value may be.
        enum: What a value is one of; None where that is open.
        properties: Schemas of members by key, in order.
        required: Keys that must be there.
        additional: Schema of members that are not among `properties`; None where there must be none.
        prefix: Schemas of an array's first elements.
        items: Schema of the others; None where there must be none.
        pattern: What a text must match, and how it is written in the schema.
        format: The format that a text must have.
        any_of: Groups of schemas; a value fits at least one of each group.
        all_of: Schemas that a value fits as well.
    """

    types: frozenset[str] = frozenset(TYPES)
    enum: tuple[Value, ...] | None = None
    properties: Mapping[str, Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    additional: Node | None = field(default_factory=_anything)
    prefix: tuple[Node, ...] = ()
    items: Node | None = field(default_factory=_anything)
    pattern: tuple[Regex, str] | None = None
    format: str | None = None
    min_length: int = 0
    max_length: int | None = None
    min_items: int = 0
    max_items: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    any_of: tuple[tuple[Node, ...], ...] = ()
    all_of: tuple[Node, ...] = ()


ANYTHING: Node = Node(additional=None, items=None)  # known by its identity: `problem` looks at no member of it
NEVER = Node(types=frozenset(), additional=None, items=None)


def read(document: Value, most: int = MOST_NODES) -> Node:
    """Return the schema that a JSON document describes.

    Args:
        document: The document.
        most: The most schemas that it may hold, once references are followed.

    Raises:
        ValueError: It is invalid, recursive, too large, or uses what is not supported; the message names the place, in one line.
    """
    return _Reader(document, most).node(document, "#", ())


class _Reader:
    def __init__(self, document: Value, most: int) -> None:
        self._document, self._most = document, most
        self._count = 0

    def node(self, value: Value, place: str, followed: tuple[str, ...]) -> Node:
        """Read the schema at a place; `followed` are the references that led there."""
        self._count += 1
        if self._count > self._most:
            raise ValueError(f"more than {self._most} schemas once references are followed")
        if isinstance(value, bool):
            return ANYTHING if value else NEVER
        if not isinstance(value, dict):
            raise ValueError(f"{place}: a schema must be an object, true or false, found {to_json(value):.40}")
        if place == "#" and "$schema" in value and not str(value["$schema"]).rstrip("#").endswith(_DRAFTS):
            raise ValueError(f"#/$schema: {value['$schema']!r:.80} is not supported; it must be of draft 2020-12")
        known = {*KEYWORDS, *_SAID_ONLY} | ({"$schema", "$id"} if place == "#" else set())
        for keyword in value:
            if keyword not in known:
                raise ValueError(f"{place}: the keyword {keyword!r} is not supported")
        parts: dict[str, Any] = {}
        self._plain(value, place, parts)
        self._members(value, place, followed, parts)
        if "anyOf" in value:
            parts["any_of"] = (self._list(value["anyOf"], f"{place}/anyOf", followed),)
        all_of = self._list(value["allOf"], f"{place}/allOf", followed) if "allOf" in value else ()
        if "$ref" in value:
            all_of = (self._referred(value["$ref"], place, followed), *all_of)
        if all_of and not any(key for key in value if key != "$ref" and key not in _SAID_ONLY | {"$schema", "$id"}):
            return all_of[0]
        return Node(**parts, all_of=all_of)

    def _plain(self, value: dict[str, Value], place: str, parts: dict[str, Any]) -> None:
        """Read the keywords that hold no schemas."""
        if "type" in value:
            names = value["type"] if isinstance(value["type"], list) else [value["type"]]
            if not names or not all(isinstance(name, str) and name in TYPES for name in names):
                raise ValueError(f"{place}/type: must be of {', '.join(TYPES)}, found {to_json(value['type']):.40}")
            parts["types"] = frozenset(names)
        if "enum" in value:
            if not isinstance(value["enum"], list) or not value["enum"]:
                raise ValueError(f"{place}/enum: must be a list of at least one value")
            parts["enum"] = tuple(value["enum"])
        if "const" in value:
            same_too = [one for one in parts.get("enum", (value["const"],)) if same(one, value["const"])]
            parts["enum"] = tuple(same_too[:1])
        for keyword, name in _SIZES.items():
            if keyword in value:
                if type(value[keyword]) is not int or value[keyword] < 0:
                    raise ValueError(f"{place}/{keyword}: must be a whole number from 0, found {to_json(value[keyword]):.40}")
                parts[name] = value[keyword]
        for keyword, name in _BOUNDS.items():
            if keyword in value:
                if type(value[keyword]) not in (int, float):
                    raise ValueError(f"{place}/{keyword}: must be a number, found {to_json(value[keyword]):.40}")
                parts[name] = value[keyword]
        for least, most in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum")):
            if least in value and most in value and value[least] > value[most]:
                raise ValueError(f"{place}: {least} {value[least]} is above {most} {value[most]}")
        if "pattern" in value:
            parts["pattern"] = self._pattern(value["pattern"], f"{place}/pattern"), value["pattern"]
        if "format" in value:
            if not isinstance(value["format"], str) or value["format"] not in FORMATS:
                raise ValueError(f"{place}/format: {value['format']!r:.40} is not supported; known: {', '.join(FORMATS)}")
            parts["format"] = value["format"]

    def _pattern(self, text: Value, place: str) -> Regex:
        if not isinstance(text, str):
            raise ValueError(f"{place}: must be a string")
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{place}: {text!r:.60}: {error}") from None

    def _members(self, value: dict[str, Value], place: str, followed: tuple[str, ...], parts: dict[str, Any]) -> None:
        """Read the keywords about members and elements."""
        if "properties" in value:
            if not isinstance(value["properties"], dict):
                raise ValueError(f"{place}/properties: must be an object")
            parts["properties"] = {
                key: self.node(one, f"{place}/properties/{key}", followed) for key, one in value["properties"].items()
            }
        if "required" in value:
            names = value["required"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{place}/required: must be a list of keys")
            parts["required"] = tuple(dict.fromkeys(names))
        for keyword, name in (("additionalProperties", "additional"), ("items", "items")):
            if keyword in value:
                found = self.node(value[keyword], f"{place}/{keyword}", followed)
                parts[name] = None if found is NEVER else found
        if "prefixItems" in value:
            parts["prefix"] = self._list(value["prefixItems"], f"{place}/prefixItems", followed)

    def _list(self, values: Value, place: str, followed: tuple[str, ...]) -> tuple[Node, ...]:
        if not isinstance(values, list) or not values:
            raise ValueError(f"{place}: must be a list of at least one schema")
        return tuple(self.node(one, f"{place}/{number}", followed) for number, one in enumerate(values))

    def _referred(self, reference: Value, place: str, followed: tuple[str, ...]) -> Node:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ValueError(f"{place}/$ref: {reference!r:.60} is not supported; references must begin with '#/'")
        if reference in followed or f"{place}/".startswith(f"{unquote(reference)}/"):
            raise ValueError(f"{place}/$ref: {reference!r:.60} leads into itself; recursive schemas are not supported")
        found = self._document
        for part in unquote(reference).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise ValueError(f"{place}/$ref: there is no {reference!r:.60}")
        return self.node(found, reference if reference != "#" else "#/", (*followed, reference))


# ------------------------------------------------------------------------------------------------------ comparing


def canonical(node: Node) -> Value:
    """Return a schema as JSON in which neither order nor words that only describe matter: equal for schemas that say the same."""
    if node is ANYTHING or node == Node():
        return True
    enum = None if node.enum is None else [one for one in node.enum if _has_type(one, node.types)]
    found: dict[str, Value] = {
        "types": sorted(node.types if enum is None else {type_of(one) for one in enum}),
        "enum": None if enum is None else sorted(to_json(_by_key(one)) for one in enum),
        "properties": {key: canonical(one) for key, one in sorted(node.properties.items())},
        "required": sorted(node.required),
        "additional": node.additional and canonical(node.additional),
        "prefix": [canonical(one) for one in node.prefix],
        "items": node.items and canonical(node.items),
        "pattern": node.pattern and node.pattern[1],
        "any_of": sorted((sorted((canonical(one) for one in group), key=to_json) for group in node.any_of), key=to_json),
        "all_of": sorted((canonical(one) for one in node.all_of), key=to_json),
    }
    for name in ("format", *_SIZES.values(), *_BOUNDS.values()):
        found[name] = getattr(node, name)
    return found


def _has_type(value: Value, types: frozenset[str]) -> bool:
    kind = type_of(value)
    return kind in types or (kind == "integer" and "number" in types)


def _by_key(value: Value) -> Value:
    """Return a value with the keys of its objects in alphabetical order."""
    if isinstance(value, list):
        return [_by_key(one) for one in value]
    return {key: _by_key(one) for key, one in sorted(value.items())} if isinstance(value, dict) else value


# ---------------------------------------------------------------------------------------------------- validating


def type_of(value: Value) -> str:
    """Return the type of a value, in a schema's words; a whole number is an integer."""
    if value is None:
        return "null"
    if isinstance(value, float) and value.is_integer():
        return "integer"
    names = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def problem(node: Node, value: Value, path: str = "") -> str | None:
    """Return why a value does not fit a schema, in one line that names the place; None if it fits."""
    if node is ANYTHING:
        return None
    where = f"{path}: " if path else ""
    kind = type_of(value)
    if kind not in node.types and not (kind == "integer" and "number" in node.types):
        allowed = " or ".join(name for name in TYPES if name in node.types)
        return f"{where}must be {allowed}, found {to_json(value):.40}" if allowed else f"{where}is not allowed"
    if node.enum is not None and not any(same(value, one) for one in node.enum):
        return f"{where}must be one of {', '.join(map(to_json, node.enum)):.120}, found {to_json(value):.40}"
    found = _KINDS[kind](node, value, path) if kind in _KINDS else None
    for one in node.all_of:
        found = found or problem(one, value, path)
    for group in node.any_of:
        if found is None and all(problem(one, value, path) for one in group):
            reasons = [problem(one, value, path) for one in group]
            found = reasons[0] if len(group) == 1 else f"{where}fits none of {len(group)} alternatives: {reasons[0]}"
    return found


def fits(node: Node, value: Value) -> bool:
    """Return whether a value fits a schema."""
    return problem(node, value) is None


def _text_problem(node: Node, value: str, path: str) -> str | None:
    where = f"{path}: " if path else ""
    if len(value) < node.min_length or (node.max_length is not None and len(value) > node.max_length):
        return f"{where}must have {_span(node.min_length, node.max_length)} characters, found {len(value)}"
    if node.pattern is not None and not node.pattern[0].matches(value):
        return f"{where}must match {node.pattern[1]!r:.60}, found {value!r:.40}"
    if node.format is not None and not FORMATS[node.format].fits(value):
        return f"{where}must be a {node.format}, found {value!r:.40}"
    return None


def _number_problem(node: Node, value: float, path: str) -> str | None:
    bounds = (
        (node.minimum is not None and value < node.minimum, "at least", node.minimum),
        (node.maximum is not None and value > node.maximum, "at most", node.maximum),
        (node.above is not None and value <= node.above, "above", node.above),
        (node.below is not None and value >= node.below, "below", node.below),
    )
    for broken, word, bound in bounds:
        if broken:
            return f"{f'{path}: ' if path else ''}must be {word} {bound}, found {value}"
    return None


def _array_problem(node: Node, value: Sequence[Value], path: str) -> str | None:
    where = f"{path}: " if path else ""
    if len(value) < node.min_items or (node.max_items is not None and len(value) > node.max_items):
        return f"{where}must have {_span(node.min_items, node.max_items)} elements, found {len(value)}"
    for number, element in enumerate(value):
        place = f"{path}[{number}]"
        one = node.prefix[number] if number < len(node.prefix) else node.items
        found = f"{place}: is one element too many" if one is None else problem(one, element, place)
        if found:
            return found
    return None


def _object_problem(node: Node, value: Mapping[str, Value], path: str) -> str | None:
    for key in node.required:
        if key not in value:
            return f"{f'{path}: ' if path else ''}the key {key!r} is missing"
    for key, member in value.items():
        place = f"{path}.{key}" if path else key
        one = node.properties.get(key, node.additional)
        found = f"{place}: there is no such key" if one is None else problem(one, member, place)
        if found:
            return found
    return None


def _span(least: int, most: int | None) -> str:
    return f"at least {least}" if most is None else f"{least} to {most}"


_KINDS: Mapping[str, Any] = {
    "string": _text_problem,
    "integer": _number_problem,
    "number": _number_problem,
    "array": _array_problem,
    "object": _object_problem,
}
