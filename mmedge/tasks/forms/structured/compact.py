"""The compact spelling of values: what a small student learns to write instead of JSON, and the way back.

    {"name": "BookRestaurant", "arguments": {"party_size_number": "eight", "timeRange": "tonight"}}
    restaurant; number: eight; time: tonight

    {"title": "Dune; Part Two", "years": [1965, 2021], "author": {"name": "4"}}
    title: "Dune; Part Two"; years: [1965; 2021]; author: (name: "4")

Keys have short names: the first word that no other key at the same place has. Texts stand without quotes where nothing else could
be meant. A value comes back exactly; what is read is not validated here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mmedge.tasks.forms.structured.formats import FORMATS
from mmedge.tasks.forms.structured.plain import is_plain, plain_texts
from mmedge.tasks.forms.structured.regex import NOTHING
from mmedge.tasks.forms.structured.schemas import ANYTHING, TYPES, Node, fits
from mmedge.tasks.forms.structured.values import DEEPEST, Value, parse, to_json

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NAME = re.compile(r"[A-Za-z0-9_.$-]+")
_SCALAR = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null")
_BARE = re.compile(r"[^;)\]]*")
_QUOTED = json.JSONDecoder()


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each key: its first word that no other has, or the key itself, in quotes where it is not a name."""
    words = {key: [word.lower() for word in _WORDS.findall(key)] for key in keys}
    found = {}
    for key in words:
        others = {word for other, its in words.items() if other != key for word in its} | (words.keys() - {key})
        own = next((word for word in words[key] if word not in others and len(word) > 1), key)
        found[key] = own if _NAME.fullmatch(own) else to_json(key)
    return found


def is_scalar_text(text: str) -> bool:
    """Return whether a text without quotes could be a number, true, false or null."""
    return _SCALAR.fullmatch(text) is not None


@dataclass(frozen=True)
class Place:
    """A place in values of a schema.

    Attributes:
        nodes: What may stand there: the schemas of all alternatives.
    """

    nodes: tuple[Node, ...]

    @cached_property
    def parts(self) -> tuple[Node, ...]:
        """The schemas, and those that they are made of."""
        found, todo = [], list(reversed(self.nodes))
        while todo:
            node = todo.pop()
            found.append(node)
            todo += reversed([*node.all_of, *(one for group in node.any_of for one in group)])
        return tuple(found)

    @cached_property
    def names(self) -> dict[str, str]:
        """The short names of the keys that are known here, in order."""
        return short_names(key for node in self.parts for key in node.properties)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The keys by their short names."""
        return {name: key for key, name in self.names.items()}

    @cached_property
    def members(self) -> dict[str, Place]:
        """The places of members by key."""
        return {key: Place(tuple(one.properties[key] for one in self.parts if key in one.properties)) for key in self.names}

    @cached_property
    def others(self) -> Place:
        """The place of members with other keys."""
        return Place(tuple(node.additional for node in self.parts if node.additional is not None))

    @cached_property
    def elements(self) -> tuple[Place, ...]:
        """The places of an array's elements; the last one is that of all further ones."""
        longest = max((len(node.prefix) for node in self.parts), default=0)
        return tuple(self._element(number) for number in range(longest + 1))

    def _element(self, number: int) -> Place:
        found = (node.prefix[number] if number < len(node.prefix) else node.items for node in self.parts)
        return Place(tuple(node for node in found if node is not None))

    def member(self, key: str) -> Place:
        """Return the place of a member."""
        return self.members.get(key, self.others)

    def element(self, number: int) -> Place:
        """Return the place of an element."""
        return self.elements[min(number, len(self.elements) - 1)]

    def paths(self, path: str = "", depth: int = 0, *, elements: bool = True) -> Iterator[str]:
        """Yield the dotted paths of all fields that are known; those within arrays too, unless `elements` is false."""
        for key, place in self.members.items():
            own = f"{path}.{key}" if path else key
            yield own
            if depth < DEEPEST:
                yield from place.paths(own, depth + 1, elements=elements)
        known = elements and any(node.prefix or node.items is not ANYTHING for node in self.parts)
        for place in self.elements if known else ():
            yield from place.paths(path, depth + 1)

    @cached_property
    def only_objects(self) -> bool:
        """Whether nothing but an object may stand here."""
        return not any(fits_type(node, name) for node in self.nodes for name in TYPES if name != "object")

    @cached_property
    def quotes(self) -> bool:
        """Whether all texts are written in quotes, since a pattern has some that need them."""
        patterns = [node.pattern[0] for node in self.parts if node.pattern]
        patterns += [FORMATS[node.format].regex for node in self.parts if node.format]
        return any(plain_texts(pattern) == NOTHING for pattern in patterns)

    def takes(self, scalar: Value) -> bool:
        """Return whether a number, true, false or null may stand here."""
        return any(fits(node, scalar) for node in self.nodes)


def fits_type(node: Node, name: str) -> bool:
    """Return whether a value of a type may fit a schema, by the types that it states alone."""
    if name not in node.types or (node.enum is not None and name == "object" and not any(isinstance(v, dict) for v in node.enum)):
        return False
    return all(fits_type(one, name) for one in node.all_of) and all(
        any(fits_type(one, name) for one in group) for group in node.any_of
    )


def ordered(place: Place, value: Value) -> Value:
    """Return a value with its keys in the schema's order, others behind them."""
    if isinstance(value, dict):
        keys = [key for key in place.names if key in value]
        keys += sorted(value.keys() - set(keys))
        return {key: ordered(place.member(key), value[key]) for key in keys}
    if isinstance(value, list):
        return [ordered(place.element(number), one) for number, one in enumerate(value)]
    return value


# ------------------------------------------------------------------------------------------------------- writing


def write(place: Place, value: Value) -> str:
    """Return the compact text of a whole value."""
    if isinstance(value, dict) and value and place.only_objects:
        return _members(place, value)
    return written(place, value)


def call(place: Place, name: str, arguments: Mapping[str, Value]) -> str:
    """Return the compact text of a call: the function's short name, and its arguments."""
    return f"{name}; {_members(place, arguments)}" if arguments else name


def _members(place: Place, value: Mapping[str, Value]) -> str:
    names = place.names
    return "; ".join(f"{names.get(key) or to_json(key)}: {written(place.member(key), one)}" for key, one in value.items())


def written(place: Place, value: Value) -> str:
    """Return the compact text of a value within another."""
    if isinstance(value, dict):
        return f"({_members(place, value)})"
    if isinstance(value, list):
        return "[" + "; ".join(written(place.element(number), one) for number, one in enumerate(value)) + "]"
    if not isinstance(value, str):
        return to_json(value)
    otherwise = place.quotes or not is_plain(value) or (is_scalar_text(value) and _is_taken(place, value))
    return to_json(value) if otherwise else value


def _is_taken(place: Place, text: str) -> bool:
    try:
        return place.takes(parse(text))
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------------- reading


def read(place: Place, text: str) -> Value:
    """Return the value of a compact text.

    Raises:
        ValueError: It is not one; the message is one line.
    """
    reader = _CompactReader(text)
    whole = place.only_objects and not text.lstrip().startswith("(")
    value = reader.members(place, "") if whole else reader.value(place)
    reader.end()
    return value


def read_call(text: str, functions: Mapping[str, tuple[str, Place]]) -> tuple[str, Value]:
    """Return name and arguments of a call.

    Args:
        text: The compact text.
        functions: Name and place of the arguments, by the function's short name.

    Raises:
        ValueError: It is not a call.
    """
    name, _, rest = text.partition(";")
    if name.strip() not in functions:
        raise ValueError(f"there is no function {name.strip()!r:.40}")
    full, place = functions[name.strip()]
    reader = _CompactReader(rest)
    arguments = reader.members(place, "") if rest.strip() else {}
    reader.end()
    return full, arguments


class _CompactReader:
    def __init__(self, text: str) -> None:
        self._text, self._place, self._depth = text, 0, 0

    def _skip(self) -> str:
        """Skip spaces and return what comes, without taking it."""
        while self._text[self._place : self._place + 1] == " ":
            self._place += 1
        return self._text[self._place : self._place + 1]

    def _take(self, sign: str) -> None:
        if self._skip() != sign:
            raise ValueError(f"expected {sign!r} at character {self._place + 1}")
        self._place += 1

    def end(self) -> None:
        if self._skip():
            raise ValueError(f"unexpected {self._text[self._place]!r} at character {self._place + 1}")

    def value(self, place: Place) -> Value:
        sign = self._skip()
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError("nested too deeply")
        if sign == "(":
            self._place += 1
            value: Value = self.members(place, ")")
            self._take(")")
        elif sign == "[":
            value = self._elements(place)
        elif sign == '"':
            value = self._quoted()
        else:
            value = self._bare(place)
        self._depth -= 1
        return value

    def members(self, place: Place, closing: str) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while self._skip() != closing:
            if found:
                self._take(";")
            key = self._key(place)
            if key in found:
                raise ValueError(f"the key {key!r:.60} occurs twice")
            found[key] = self.value(place.member(key))
        return found

    def _key(self, place: Place) -> str:
        if self._skip() == '"':
            key = self._quoted()
        else:
            name = _NAME.match(self._text, self._place)
            if name is None:
                raise ValueError(f"expected a key at character {self._place + 1}")
            self._place = name.end()
            if name[0] not in place.keys:
                raise ValueError(f"there is no key {name[0]!r:.40}")
            key = place.keys[name[0]]
        self._take(":")
        return key

    def _elements(self, place: Place) -> list[Value]:
        self._take("[")
        found: list[Value] = []
        while self._skip() != "]":
            if found:
                self._take(";")
            found.append(self.value(place.element(len(found))))
        self._take("]")
        return found

    def _quoted(self) -> str:
        try:
            value, self._place = _QUOTED.raw_decode(self._text, self._place)
        except ValueError:
            raise ValueError(f"a text that is not closed at character {self._place + 1}") from None
        return str(value)

    def _bare(self, place: Place) -> Value:
        match = _BARE.match(self._text, self._place)
        text = match[0].strip() if match else ""
        if not text:
            raise ValueError(f"expected a value at character {self._place + 1}")
        self._place += len(match[0]) if match else 0
        return parse(text) if is_scalar_text(text) and _is_taken(place, text) else text
