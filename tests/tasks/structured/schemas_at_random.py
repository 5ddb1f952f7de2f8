"""Schemas and values that fit them, at random, for tests of all that must hold for any schema."""

from __future__ import annotations

from random import Random
from typing import Any

KEYS = ("first_name", "last_name", "partySize", "city", "city_code", "a", "note", "é ü", "x:y", "name")
TEXTS = (
    "",
    "4",
    "true",
    "null",
    "a; b",
    "(x)",
    '"quoted"',
    " led",
    "plain",
    "two words",
    "é",
    "back\\slash",
    "line\nbreak",
    "x]",
    "1.50",
    "{}",
)
PATTERNS = (
    (r"^[A-Z]{2}-\d{1,3}$", ("AB-1", "ZZ-999")),
    (r"^\d+; \d+$", ("1; 2",)),
    (r"^(yes|no)$", ("yes", "no")),
    (r'^"?[a-z]*$', ('"', "abc")),
)
FORMATS = {
    "date": ("2024-02-29", "1999-12-31"),
    "time": ("12:30:00Z", "23:59:59+01:00"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000",),
    "ipv4": ("127.0.0.1",),
}


def schema(random: Random, depth: int = 0) -> Any:
    """Return a schema."""
    kinds = ["text", "enum", "pattern", "format", "integer", "number", "boolean", "null"]
    kinds += ["object", "object", "array", "tuple", "any_of", "all_of", "types"] * (depth < 3)
    kind = "object" if not depth and random.random() < 0.6 else random.choice(kinds)
    return _MAKERS[kind](random, depth)


def _text(random: Random, depth: int) -> Any:
    return {"type": "string", **random.choice([{}, {"minLength": 1}, {"maxLength": 12}, {"minLength": 2, "maxLength": 20}])}


def _number(random: Random, kind: str) -> Any:
    low = random.randint(-1200, 900)
    found: dict[str, Any] = {"type": kind}
    if random.random() < 0.6:
        found[random.choice(["minimum", "exclusiveMinimum"])] = low if kind == "integer" else low / 8
    if random.random() < 0.6:
        high = low + random.randint(2, 3000)
        found[random.choice(["maximum", "exclusiveMaximum"])] = high if kind == "integer" else high / 8
    return found


def _object(random: Random, depth: int) -> Any:
    keys = random.sample(KEYS, random.randint(0, 5))
    found: dict[str, Any] = {"type": "object", "properties": {key: schema(random, depth + 1) for key in keys}}
    if keys and random.random() < 0.7:
        found["required"] = random.sample(keys, random.randint(1, len(keys)))
    if random.random() < 0.5:
        found["additionalProperties"] = False
    return found


def _array(random: Random, depth: int) -> Any:
    least = random.randint(0, 2)
    return {"type": "array", "items": schema(random, depth + 1), "minItems": least, "maxItems": least + random.randint(0, 3)}


def _tuple(random: Random, depth: int) -> Any:
    parts = [schema(random, depth + 1) for _ in range(random.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": random.choice([False, {"type": "integer"}]), "maxItems": 4}


def _all_of(random: Random, depth: int) -> Any:
    base = _object(random, depth)
    keys = list(base["properties"])
    return {**base, "additionalProperties": True, "allOf": [{"required": keys[:1]}, {"type": "object"}]}


_MAKERS: dict[str, Any] = {
    "text": _text,
    "enum": lambda random, depth: {"enum": random.sample([*TEXTS, 4, None, True, 2.5], random.randint(1, 4))},
    "pattern": lambda random, depth: {"type": "string", "pattern": random.choice(PATTERNS)[0]},
    "format": lambda random, depth: {"type": "string", "format": random.choice(list(FORMATS))},
    "integer": lambda random, depth: _number(random, "integer"),
    "number": lambda random, depth: _number(random, "number"),
    "boolean": lambda random, depth: {"type": "boolean"},
    "null": lambda random, depth: {"type": "null"},
    "object": _object,
    "array": _array,
    "tuple": _tuple,
    "any_of": lambda random, depth: {"anyOf": [schema(random, depth + 1) for _ in range(random.randint(1, 3))]},
    "all_of": _all_of,
    "types": lambda random, depth: {"type": random.sample(["string", "integer", "number", "boolean", "null"], 2)},
}


def value(random: Random, one: Any) -> Any:
    """Return a value that is likely to fit a schema."""
    if "enum" in one:
        return random.choice(one["enum"])
    if "anyOf" in one:
        return value(random, random.choice(one["anyOf"]))
    kind = one.get("type", "string")
    kind = random.choice(kind) if isinstance(kind, list) else kind
    if kind == "object":
        required = [*one.get("required", ()), *(key for part in one.get("allOf", ()) for key in part.get("required", ()))]
        members = one.get("properties", {})
        keys = [key for key in members if key in required or random.random() < 0.5]
        random.shuffle(keys)
        return {key: value(random, members[key]) for key in keys}
    if kind == "array":
        fixed = [value(random, part) for part in one.get("prefixItems", ())]
        count = random.randint(one.get("minItems", 0), one.get("maxItems", 4))
        return (fixed + [value(random, one["items"]) for _ in range(count - len(fixed)) if one.get("items")])[:count]
    if kind == "string":
        texts = {**dict(PATTERNS), **FORMATS}.get(one.get("pattern", one.get("format")), TEXTS)
        return random.choice(texts)
    low, high = one.get("minimum", one.get("exclusiveMinimum", -50)), one.get("maximum", one.get("exclusiveMaximum", 4000))
    numbers = {"integer": random.randint(int(low), max(int(low), int(high))), "number": random.uniform(low, max(low, high))}
    return {"boolean": random.random() < 0.5, "null": None, **numbers}[kind]
