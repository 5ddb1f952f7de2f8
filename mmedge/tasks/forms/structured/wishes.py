"""What a new question is to give values for, in words for a teacher: a sampled combination of an object's members.

    members(schema, [{"city"}, {"city", "day"}], draw)     'with these values and no others: city (the city), day (a day: "friday")'

Half of the combinations are ones that seeds have; the others are drawn, so that rare ones occur. Members that need no value in the
question are the schema's business: this only asks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmedge.tasks.forms.structured.values import Value, to_json

_LONGEST_NOTE = 160
_IDENTIFIER = re.compile(r"^[\w.]*(?:\w_\w|[a-z][A-Z])[\w.]*$")


def members(schema: Value, known: Sequence[set[str]], draw: random.Random) -> str:
    """Return which members the answer to a new question has.

    Args:
        schema: Of an object, as its document states it.
        known: The members of the seeds' answers.
        draw: Chooses.
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or not properties:
        return "without any values" if not properties else ""
    chosen = _combination(list(properties), schema.get("required") or [], known, draw)
    if not chosen:
        return "without any values"
    return "with these values and no others: " + "; ".join(_in_words(name, properties[name], draw) for name in chosen)


def given(values: Mapping[str, Value], introduced: str = " these values and no others:") -> str:
    """Return which members an answer has, and their values."""
    told = "; ".join(f"{name} = {to_json(value)}" for name, value in values.items())
    return f"with{introduced} {told}" if told else "without any values"


def is_identifier(name: str) -> bool:
    """Whether a name is spelled as programs spell them: with an underscore, or a capital behind a small letter."""
    return _IDENTIFIER.search(name) is not None


def _combination(names: Sequence[str], required: Sequence[str], known: Sequence[set[str]], draw: random.Random) -> list[str]:
    """Return names in their order: those of a seed, or as many as a seed has, one more or one less."""
    needed = set(required)
    if known and draw.random() < 0.5:
        chosen = draw.choice(known) | needed
    else:
        size = len(draw.choice(known)) + draw.choice((-1, 0, 0, 1)) if known else draw.randint(1, 3)
        free = [name for name in names if name not in needed]
        chosen = needed | set(draw.sample(free, max(0, min(len(free), size - len(needed)))))
        if not chosen:
            chosen = {draw.choice(names)}
    return [name for name in names if name in chosen]


def _in_words(name: str, schema: Any, draw: random.Random) -> str:
    """Return a member with what the schema says of it; one of an enumeration's values is chosen."""
    if not isinstance(schema, dict):
        return name
    values = schema.get("enum") or ([True, False] if schema.get("type") == "boolean" else [])
    note = str(schema.get("description") or "")[:_LONGEST_NOTE]
    if values:
        note = f"{note}: {to_json(draw.choice(values))}" if note else to_json(draw.choice(values))
    return f"{name} ({note})" if note else name
