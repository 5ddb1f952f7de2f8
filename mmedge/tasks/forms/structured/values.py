"""JSON values: strict reading, comparison by value, and JSON found in what a teacher wrote.

    parse('{"a": 1.0}')                       {"a": 1}
    parse('{"a": 1, "a": 2}')                 ValueError: the key 'a' occurs twice
    find('Answer: {"a": 1} is what I found')  Found(0, 8, 16, {"a": 1})

Text is untrusted: what another program would read differently is refused: duplicate keys, NaN, lone surrogates, whole numbers
beyond 2^53.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Value = Any  # None, bool, int, float, str, list or dict of these
LARGEST = 2**53  # beyond it, programs that read numbers as doubles read another number
DEEPEST = 64  # levels of nesting
MOST_BROKEN = 100  # brackets of a text that begin no JSON
CUT_OFF = "cut off"  # the problem of JSON that the end of a text breaks off
_BRACKET = re.compile(r"[{\[]")
_STARTS = re.compile(r"[{\[\"]|-?\d|\b(?:true|false|null)\b")


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r:.60} occurs twice")
    return found


def _constant(name: str) -> Value:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > LARGEST:
        raise ValueError(f"the number {text:.24} is beyond 2^53")
    return int(text)


def _float(text: str) -> float | int:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text:.24} is too large")
    return int(value) if value.is_integer() and abs(value) <= LARGEST else value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float)


def _checked(value: Value, depth: int = 0) -> Value:
    """Return a value after a look at its depth and its texts."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels of nesting")
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"a lone surrogate in {value!a:.60}")
    elif isinstance(value, dict):
        for key, member in value.items():
            _checked(key)
            _checked(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _checked(member, depth + 1)
    return value


def parse(text: str) -> Value:
    """Return the value of a JSON text; a number without a fraction is an int, however it is written.

    Raises:
        ValueError: It is not JSON, or JSON that programs read differently; the message is one line.
    """
    try:
        return _checked(_DECODER.decode(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of nesting") from None


def plain_value(value: object) -> Value:
    """Return a value that another reader parsed as `parse` would have read it.

    Raises:
        ValueError: As `parse`.
    """
    try:
        return parse(json.dumps(value, ensure_ascii=True))
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of nesting") from None


def to_json(value: Value) -> str:
    """Return a value as JSON without white space between its parts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def same(left: Value, right: Value) -> bool:
    """Return whether two values are equal as JSON: the order of keys does not matter, true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# ------------------------------------------------------------------------------------------- in a teacher's text


@dataclass(frozen=True)
class Found:
    """JSON within a text.

    Attributes:
        start: Where it begins.
        end: Where it ends; the text's length if it does not.
        value: The value.
        problem: Why there is no value: `cut off`, or what is wrong; empty if there is one.
    """

    start: int
    end: int
    value: Value = None
    problem: str = ""


def find(text: str, start: int = 0) -> Found | None:
    """Return the first JSON value from a place in a text on, or what begins like one and is broken; None where nothing does."""
    begin = _STARTS.search(text, start)
    if begin is None:
        return None
    place = begin.start()
    end = _closed(text, place) if text[place] in '{["' else None
    try:
        value, stop = _DECODER.raw_decode(text, place)
        return Found(place, stop, _checked(value))
    except (ValueError, RecursionError) as error:
        if text[place] in '{["' and end is None:
            return Found(place, len(text), problem=CUT_OFF)
        return Found(place, end or begin.end(), problem=str(error)[:200] or "nested too deeply")


def _closed(text: str, start: int) -> int | None:
    """Return where the bracket or the quote at a place is closed; None where it never is."""
    depth, place, quoted = 0, start, False
    while place < len(text):
        character = text[place]
        if quoted:
            if character == "\\":
                place += 1
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        place += 1
        if not quoted and depth <= 0:
            return place
    return None


def objects(text: str) -> Iterator[Found]:
    """Yield the objects and arrays within a text, one after the other, and what begins like one and is broken.

    After many that are broken, the rest of the text is left: each is read to its end, so that brackets alone would take for ever.
    """
    place, broken = 0, 0
    while broken < MOST_BROKEN and (begin := _BRACKET.search(text, place)) is not None:
        found = find(text, begin.start())
        assert found is not None
        yield found
        broken += bool(found.problem)
        place = max(found.end, begin.end()) if not found.problem or text[begin.start()] == "{" else begin.end()
