"""From JSON to frozen dataclasses, checked field by field: how manifests are read. Writing is `dataclasses.asdict`.

    read_as(Manifest, json.loads(text), "bundle-int8/manifest.json")

Fields of a newer minor version, which no dataclass here has, are ignored. Knows dataclasses, tuples, mappings, unions with None,
literals and JSON's own types; knows no file and no format.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mmedge.errors import MmedgeError

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Mapping: "an object", tuple: "a list"}


def read_as(kind: type[T], value: Any, where: str, hint: str = "") -> T:
    """Return a JSON value as a dataclass.

    Args:
        kind: The dataclass.
        value: What `json.loads` returned.
        where: Names the document in errors.
        hint: What to do where it does not fit.

    Raises:
        MmedgeError: A field is missing or of another type; the message names it.
    """
    try:
        return cast(T, _read(kind, value, ""))
    except ValueError as error:
        raise MmedgeError(f"{where}: {error}", hint) from None


@cache
def _fields(kind: type) -> list[tuple[str, Any, bool]]:
    """Return the name and type of each field, and whether it must be there."""
    types = get_type_hints(kind)
    return [(one.name, types[one.name], one.default is MISSING and one.default_factory is MISSING) for one in fields(kind)]


def _read(kind: Any, value: Any, place: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"field {place!r}: expected an object, found {value!r:.60}" if place else "expected a JSON object")
        found = {}
        for name, type_, needed in _fields(cast(type, kind)):
            inner = f"{place}.{name}" if place else name
            if name in value:
                found[name] = _read(type_, value[name], inner)
            elif needed:
                raise ValueError(f"field {inner!r} is missing")
        return kind(**found)  # type: ignore[operator]
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _read(next(one for one in inside if one is not type(None)), value, place)
    if origin is tuple and isinstance(value, (list, tuple)):
        if inside[-1] is ...:
            return tuple(_read(inside[0], one, place) for one in value)
        if len(value) == len(inside):
            return tuple(_read(type_, one, place) for type_, one in zip(inside, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {str(name): _read(inside[1], one, f"{place}.{name}") for name, one in value.items()}
    if kind is Any or (origin is Literal and value in inside):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ValueError(f"field {place!r}: expected a finite number, found {value!r:.60}")
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    expected = " or ".join(map(repr, inside)) if origin is Literal else _WORDS.get(origin or kind, str(kind))
    raise ValueError(f"field {place!r}: expected {expected}, found {value!r:.60}")
