"""From schemas to regular expressions: which texts a student may write, in JSON or compact, keys in the schema's order.

A schema without recursion describes a regular language, so one expression says it all: llguidance masks tokens by it, and our own
automaton knows the shortest way to its end. Every text that it matches is valid; not every valid text is matched: numbers have at
most 15 digits and no exponent, arrays at most 32 elements unless the schema says more, objects only keys that the schema names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from mmedge.tasks.forms.structured import compact
from mmedge.tasks.forms.structured.compact import Place
from mmedge.tasks.forms.structured.formats import FORMATS
from mmedge.tasks.forms.structured.plain import FIRST, LAST, PLAIN, mapped, plain_texts
from mmedge.tasks.forms.structured.regex import (
    ANY,
    DIGIT,
    EMPTY,
    NOTHING,
    Chars,
    Regex,
    chars,
    either,
    literal,
    of,
    optional,
    repeated,
    sequence,
    without,
)
from mmedge.tasks.forms.structured.schemas import ANYTHING, NEVER, Node, fits
from mmedge.tasks.forms.structured.values import to_json

DIGITS = 15  # of a number's whole part: all of them below 2^53
DECIMALS = 6
MOST_ELEMENTS = 32
LONGEST_TEXT = 400  # characters of a text whose schema allows more than that
MOST_ALTERNATIVES = 400


# -------------------------------------------------------------------------------------------------- alternatives


def alternatives(node: Node) -> list[Node]:
    """Return schemas without `any_of` and `all_of` that together say the same.

    Raises:
        ValueError: There are too many, or two patterns would have to hold at once.
    """
    found = [replace(node, any_of=(), all_of=())] if node is not ANYTHING and node is not NEVER else [node]
    for one in node.all_of:
        found = _both(found, alternatives(one))
    for group in node.any_of:
        found = _both(found, [flat for one in group for flat in alternatives(one)])
    return found


def _both(left: Sequence[Node], right: Sequence[Node]) -> list[Node]:
    if len(left) * len(right) > MOST_ALTERNATIVES:
        raise ValueError(f"anyOf and allOf combine to more than {MOST_ALTERNATIVES} alternatives")
    return [found for one in left for other in right if (found := _intersection(one, other)).types]


def _types(node: Node) -> frozenset[str]:
    return node.types | {"integer"} if "number" in node.types else node.types


def _intersection(left: Node, right: Node) -> Node:
    """Return the schema of values that fit both of two schemas without alternatives."""
    if left is ANYTHING or right is ANYTHING:
        return right if left is ANYTHING else left
    if left.pattern and right.pattern and left.pattern != right.pattern:
        raise ValueError("two patterns for one text cannot be combined")
    if left.format and right.format and left.format != right.format:
        raise ValueError("two formats for one text cannot be combined")
    enums = [one.enum for one in (left, right) if one.enum is not None]
    keys = dict.fromkeys([*left.properties, *right.properties])
    members = {key: _all((left.properties.get(key, left.additional), right.properties.get(key, right.additional))) for key in keys}
    length = max(len(left.prefix), len(right.prefix))
    elements = [_all((_at(left, number), _at(right, number))) for number in range(length + 1)]
    return Node(
        types=_types(left) & _types(right),
        enum=tuple(v for v in enums[0] if fits(left, v) and fits(right, v)) if enums else None,
        properties=members,
        required=tuple(dict.fromkeys([*left.required, *right.required])),
        additional=_none_if_never(_all((left.additional, right.additional))),
        prefix=tuple(elements[:-1]),
        items=_none_if_never(elements[-1]),
        pattern=left.pattern or right.pattern,
        format=left.format or right.format,
        min_length=max(left.min_length, right.min_length),
        max_length=_least(left.max_length, right.max_length),
        min_items=max(left.min_items, right.min_items),
        max_items=_least(left.max_items, right.max_items),
        minimum=_most(left.minimum, right.minimum),
        maximum=_least(left.maximum, right.maximum),
        above=_most(left.above, right.above),
        below=_least(left.below, right.below),
    )


def _at(node: Node, number: int) -> Node | None:
    return node.prefix[number] if number < len(node.prefix) else node.items


def _all(parts: Iterable[Node | None]) -> Node:
    found = [NEVER if part is None else part for part in parts]
    if any(part is NEVER for part in found):
        return NEVER
    kept = [part for part in found if part is not ANYTHING]
    return kept[0] if len(kept) == 1 else Node(all_of=tuple(kept)) if kept else ANYTHING


def _none_if_never(node: Node) -> Node | None:
    return None if node is NEVER else node


T = TypeVar("T", int, float)


def _least(left: T | None, right: T | None) -> T | None:
    return right if left is None else left if right is None else min(left, right)


def _most(left: T | None, right: T | None) -> T | None:
    return right if left is None else left if right is None else max(left, right)


# ------------------------------------------------------------------------------------------------------- numbers


def _digits(low: str, high: str) -> Regex:
    """Return the digits from one to another number of the same length."""
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return repeated(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return sequence(of(low[0]), _digits(low[1:], high[1:]))
    rest, found = len(low) - 1, []
    first, last = ord(low[0]), ord(high[0])
    if low[1:].strip("0"):
        found.append(sequence(of(low[0]), _digits(low[1:], "9" * rest)))
        first += 1
    if high[1:].strip("9"):
        found.append(sequence(of(high[0]), _digits("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        found.append(sequence(chars([(first, last)]), repeated(DIGIT, rest, rest)))
    return either(found)


def _naturals(low: int, high: int) -> Regex:
    """Return the whole numbers from `low` (at least 0) to `high`, without leading zeros."""
    found = []
    for length in range(len(str(max(low, 0))), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        if first <= last:
            found.append(_digits(str(first), str(last)))
    return either(found)


def integers(low: int, high: int) -> Regex:
    """Return the whole numbers of a range."""
    found = []
    if high >= 0:
        found.append(_naturals(max(low, 0), high))
    if low < 0:
        found.append(sequence(of("-"), _naturals(max(1, -high), -low)))
    return either(found)


def _decimals(low: Fraction, high: Fraction, negative: bool) -> Regex:
    """Return numbers with a fraction from `low` (at least 0) to `high`, in units of the last decimal, both included."""
    first, last = math.ceil(low * 10**DECIMALS), math.floor(high * 10**DECIMALS)
    if first > last:
        return NOTHING
    (a, below), (b, above) = divmod(first, 10**DECIMALS), divmod(last, 10**DECIMALS)
    sign = literal("-") if negative else EMPTY
    point = of(".")

    def part(whole: int, least: int, most: int) -> Regex:
        spans = (
            (count, -(-least // 10 ** (DECIMALS - count)), most // 10 ** (DECIMALS - count)) for count in range(1, DECIMALS + 1)
        )
        fractions = (_digits(f"{low:0{count}}", f"{high:0{count}}") for count, low, high in spans if low <= high)
        return sequence(_naturals(whole, whole), point, either(fractions))

    if a == b:
        return sequence(sign, part(a, below, above))
    between = sequence(_naturals(a + 1, b - 1), point, repeated(DIGIT, 1, DECIMALS)) if a + 1 <= b - 1 else NOTHING
    return sequence(sign, either([between, part(a, below, 10**DECIMALS - 1), part(b, 0, above)]))


def numbers(node: Node, *, whole: bool) -> Regex:
    """Return the numbers that fit a schema."""
    limit = 10**DIGITS - 1
    step = Fraction(1) if whole else Fraction(1, 10**DECIMALS)
    low, high = Fraction(-limit), Fraction(limit)
    if node.minimum is not None:
        low = max(low, Fraction(node.minimum))
    if node.maximum is not None:
        high = min(high, Fraction(node.maximum))
    first, last = math.ceil(low), math.floor(high)
    if node.above is not None:
        bound = Fraction(node.above)
        first, low = max(first, math.floor(bound) + 1), max(low, (math.floor(bound / step) + 1) * step)
    if node.below is not None:
        bound = Fraction(node.below)
        last, high = min(last, math.ceil(bound) - 1), min(high, (math.ceil(bound / step) - 1) * step)
    found = [integers(first, last)] if first <= last else []
    if not whole and low <= high:
        if high >= 0:
            found.append(_decimals(max(low, Fraction(0)), high, negative=False))
        if low < 0:
            found.append(_decimals(max(-high, step), -low, negative=True))
    return either(found)


# --------------------------------------------------------------------------------------------------------- texts

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_CONTROL = chars([(0, 31)])
_BARE_IN_JSON = without(without(ANY, _CONTROL), of('"\\'))
_IN_JSON = either([_BARE_IN_JSON, *(literal(_ESCAPES[one]) for one in '"\\\n\t')])


def _in_json(some: Chars) -> Regex:
    """Return characters as they stand within a JSON text."""
    special = [literal(_ESCAPES[one]) for one in _ESCAPES if one in some]
    special += [literal(f"\\u{code:04x}") for code in range(32) if chr(code) in some and chr(code) not in _ESCAPES]
    rest = without(without(some, _CONTROL), of('"\\'))
    return either([*([rest] if rest.ranges else []), *special])


def _quoted(part: Regex) -> Regex:
    return sequence(of('"'), part, of('"'))


# ------------------------------------------------------------------------------------------------------ grammars


class NothingFits(ValueError):
    """No value fits a schema."""


@dataclass(frozen=True)
class Grammar:
    """Makes the expressions of one spelling.

    Attributes:
        compact: The compact spelling; JSON otherwise.
    """

    compact: bool

    def whole(self, node: Node) -> Regex:
        """Return what a whole value may be.

        Raises:
            ValueError: The schema cannot be written as one expression, or nothing fits it.
        """
        place = Place((node,))
        if self.compact and place.only_objects:
            found = either(self._bare_object(flat, place) for flat in alternatives(node) if "object" in flat.types)
        else:
            found = self._value(node, place)
        if found == NOTHING:
            raise NothingFits("no value fits the schema")
        return found

    def arguments(self, node: Node) -> Regex:
        """Return the arguments of a call, each with what separates it from what is before, or the JSON object."""
        place = Place((node,))
        if not self.compact:
            return self._value(node, place)
        flats = [flat for flat in alternatives(node) if "object" in flat.types]
        listed = [flat for flat in flats if flat.enum is not None]
        if any(fits(flat, one) for flat in listed for one in flat.enum or ()):
            raise ValueError("enum and const of all arguments together are not supported")
        return either(self._object(flat, place, "", "", led=True) for flat in flats if flat not in listed)

    def _bare_object(self, node: Node, place: Place) -> Regex:
        if node.enum is not None:
            return self._enum(node, place, whole=True)
        return self._object(node, place, "", "", none=literal("()"))  # without members it still is a text

    def _value(self, node: Node, place: Place) -> Regex:
        return either(self._flat(flat, place) for flat in alternatives(node))

    def _enum(self, node: Node, place: Place, *, whole: bool = False) -> Regex:
        write = compact.write if whole else compact.written
        others = replace(node, enum=None)  # each value of an enumeration is one of it
        texts = [v for v in node.enum or () if fits(others, v)]
        ordered = [compact.ordered(place, v) for v in texts]
        return either(literal(write(place, v) if self.compact else to_json(v)) for v in ordered)

    def _flat(self, node: Node, place: Place) -> Regex:
        if node.enum is not None:
            return self._enum(node, place)
        kinds: dict[str, Callable[[], Regex]] = {
            "object": lambda: self._object(node, place, *("()" if self.compact else "{}")),
            "array": lambda: self._array(node, place),
            "string": lambda: self._text(node),
            "number": lambda: numbers(node, whole=False),
            "integer": lambda: numbers(node, whole=True),
            "boolean": lambda: either([literal("true"), literal("false")]),
            "null": lambda: literal("null"),
        }
        types = _written_types(node)
        return either(make() for name, make in kinds.items() if name in types)

    def _text(self, node: Node) -> Regex:
        if node.pattern or node.format:
            if node.min_length or node.max_length is not None:
                raise ValueError("minLength and maxLength cannot be combined with pattern or format; say it in the pattern")
            if node.pattern and node.format:
                raise ValueError("pattern and format cannot be combined")
            part = node.pattern[0] if node.pattern else FORMATS[node.format or ""].regex
            plain = plain_texts(part) if self.compact else NOTHING
            return _quoted(mapped(part, _in_json)) if plain == NOTHING else plain
        least = node.min_length
        most = None if node.max_length is None else min(node.max_length, max(least, LONGEST_TEXT))
        if least > LONGEST_TEXT:
            raise ValueError(f"minLength must be at most {LONGEST_TEXT}")
        if most is not None and most < least:
            return NOTHING
        quoted = _quoted(repeated(_IN_JSON, least, most))
        if not self.compact or most == 0:
            return quoted
        inner = sequence(repeated(PLAIN, max(0, least - 2), None if most is None else max(0, most - 2)), LAST)
        rest = inner if least > 1 else EMPTY if most == 1 else optional(inner)
        return either([sequence(FIRST, rest), quoted])

    def _array(self, node: Node, place: Place) -> Regex:
        separator = literal("; " if self.compact else ",")
        most = MOST_ELEMENTS if node.max_items is None else node.max_items
        fixed = node.prefix[:most]
        further = NOTHING if node.items is None else self._value(node.items, place.element(len(fixed)))
        rest_least, rest_most = max(0, node.min_items - len(fixed)), max(0, max(most, node.min_items) - len(fixed))
        if not fixed:
            some = sequence(further, repeated(sequence(separator, further), max(0, rest_least - 1), max(0, rest_most - 1)))
            inner = EMPTY if rest_most == 0 else some if rest_least else optional(some)
        else:
            inner = repeated(sequence(separator, further), rest_least, rest_most)
            for number in range(len(fixed) - 1, -1, -1):
                one = self._value(fixed[number], place.element(number))
                inner = sequence(*([separator] if number else []), one, inner)
                inner = inner if number < node.min_items else optional(inner)
        return sequence(of("["), inner, of("]"))

    def _object(self, node: Node, place: Place, opening: str, closing: str, *, led: bool = False, none: Regex = EMPTY) -> Regex:
        separator = literal("; " if self.compact else ",")
        keys = [
            *(key for key in place.names if key in node.properties),
            *(key for key in node.required if key not in node.properties),
        ]
        with_one: Regex = EMPTY  # what follows a member
        without_one = none  # what follows where there is none yet
        for key in reversed(keys):
            known = node.properties.get(key, node.additional)
            value = NOTHING if known is None else self._value(known, place.member(key))
            name = place.names.get(key) or to_json(key)
            member = sequence(literal(f"{name}: " if self.compact else f"{to_json(key)}:"), value)
            first = sequence(member, with_one)
            if key in node.required:
                without_one, with_one = first, sequence(separator, member, with_one)
            else:
                without_one = either([first, without_one])
                with_one = sequence(optional(sequence(separator, member)), with_one)
        if led:
            return with_one
        return sequence(literal(opening), without_one, literal(closing))


def _written_types(node: Node) -> frozenset[str]:
    """Return the types that are written: where a schema leaves them open, those that its keywords are about."""
    if len(node.types) < 7:
        return node.types
    about = {
        "object": node.properties or node.required or node.additional is not ANYTHING,
        "array": node.prefix or node.min_items or node.max_items is not None or node.items is not ANYTHING,
        "string": node.pattern or node.format or node.min_length or node.max_length is not None,
        "number": (node.minimum, node.maximum, node.above, node.below) != (None, None, None, None),
    }
    named = frozenset(name for name, told in about.items() if told) if node is not ANYTHING else frozenset()
    return named or frozenset(("string", "number", "boolean", "null"))
