"""A check of JSON documents against the part of JSON Schema (draft 2020-12) that `mmedge/bench/schema.json` uses."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = frozenset(
    ("$schema", "$defs", "$ref", "title", "description", "type", "const", "enum", "required", "properties", "additionalProperties")
) | frozenset(("items", "minItems", "maxItems", "minimum", "maximum", "oneOf", "allOf"))


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name in ("number", "integer"):
        return False
    return isinstance(value, _TYPES[name])


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$") -> list[str]:
    """Return everything in which a document is not as its schema says; empty where it is.

    Raises:
        ValueError: The schema uses a word that is not checked here.
    """
    root = schema if root is None else root
    if unknown := schema.keys() - _KNOWN:
        raise ValueError(f"not checked: {sorted(unknown)}")
    found: list[str] = []
    if (reference := schema.get("$ref")) is not None:
        found += violations(value, root["$defs"][reference.removeprefix("#/$defs/")], root, at)
    if (types := schema.get("type")) is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            return [*found, f"{at}: {value!r:.60} is no {' or '.join(names)}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r:.60} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r:.60} is none of {schema['enum']}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found += [f"{at}: {value} < {schema['minimum']}"] if value < schema.get("minimum", value) else []
        found += [f"{at}: {value} > {schema['maximum']}"] if value > schema.get("maximum", value) else []
    for part in schema.get("allOf", ()):
        found += violations(value, part, root, at)
    if "oneOf" in schema:
        ways = [violations(value, way, root, at) for way in schema["oneOf"]]
        if sum(not way for way in ways) != 1:
            found.append(f"{at}: {sum(not way for way in ways)} of {len(ways)} ways fit: {[way[0] for way in ways if way]}")
    if isinstance(value, dict):
        found += [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        inside, other = schema.get("properties", {}), schema.get("additionalProperties")
        for name, item in value.items():
            part = inside.get(name, other)
            if part is not None:
                found += violations(item, part, root, f"{at}.{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{at}: {len(value)} items")
        for place, item in enumerate(value if "items" in schema else ()):
            found += violations(item, schema["items"], root, f"{at}[{place}]")
    return found
