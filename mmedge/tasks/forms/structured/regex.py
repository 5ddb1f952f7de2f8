r"""Regular expressions: reading them, matching in linear time, writing them for llguidance, completing a text.

    parse(r"[A-Z]{2}-\d+").matches("AB-12")      True
    parse(r"(a+)+$")                             matched in linear time as well: a set of states moves over the text
    parse(r"(a)\1")                              ValueError: back-references are not supported

What is supported is what is regular: literals, classes, groups, alternatives, repetition, anchors at the ends. Knows no JSON, no
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

Ranges = tuple[tuple[int, int], ...]
MOST_STATES = 200_000
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


class Regex:
    """A regular expression; a whole text matches or does not."""

    @cached_property
    def automaton(self) -> Automaton:
        """Its states, made once."""
        return Automaton(self)

    def matches(self, text: str) -> bool:
        """Return whether the whole text matches, in time linear in its length."""
        return self.automaton.accepts(text)


@dataclass(frozen=True)
class Chars(Regex):
    """One character of some ranges of code points, sorted and apart."""

    ranges: Ranges

    def __contains__(self, character: str) -> bool:
        code = ord(character)
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True)
class Sequenced(Regex):
    """One after the other."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True)
class Either(Regex):
    """One of several; nothing matches where there are none."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True)
class Repeated(Regex):
    """The same several times; `most` is None where there is no limit."""

    part: Regex
    least: int
    most: int | None


EMPTY = Sequenced(())
NOTHING = Either(())


def chars(ranges: Iterable[tuple[int, int]]) -> Chars:
    """Return the characters of some ranges."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        elif low <= high:
            merged.append((low, high))
    return Chars(tuple(merged))


def of(characters: str) -> Chars:
    """Return one of some characters."""
    return chars((ord(character), ord(character)) for character in characters)


def without(some: Chars, other: Chars) -> Chars:
    """Return the characters of the one that are not among the other."""
    found, cut = [], [*other.ranges, (_LAST + 1, _LAST + 1)]
    for low, high in some.ranges:
        for first, last in cut:
            if low < first:
                found.append((low, min(high, first - 1)))
            low = max(low, last + 1)
            if low > high:
                break
    return chars(found)


ANY = without(Chars(((0, _LAST),)), Chars((_SURROGATES,)))
DIGIT = chars([(48, 57)])


def literal(text: str) -> Regex:
    """Return what matches a text alone."""
    return Sequenced(tuple(of(character) for character in text))


def sequence(*parts: Regex) -> Regex:
    """Return one after the other."""
    if NOTHING in parts:
        return NOTHING
    return parts[0] if len(parts) == 1 else Sequenced(parts)


def either(parts: Iterable[Regex]) -> Regex:
    """Return one of several."""
    found = tuple(dict.fromkeys(part for part in parts if part != NOTHING))
    return found[0] if len(found) == 1 else Either(found)


def optional(part: Regex) -> Regex:
    """Return a part or none."""
    return EMPTY if part == NOTHING else Repeated(part, 0, 1)


def repeated(part: Regex, least: int, most: int | None) -> Regex:
    """Return a part several times."""
    if part == NOTHING or most == 0:
        return NOTHING if least else EMPTY
    return Repeated(part, least, most)


# ------------------------------------------------------------------------------------------------------- reading

_CLASSES = {
    "d": DIGIT,
    "w": chars([(48, 57), (65, 90), (95, 95), (97, 122)]),
    "s": of(" \t\n\r\f\v\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))),
}
_CLASSES |= {name.upper(): without(ANY, found) for name, found in list(_CLASSES.items())}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_DOT = without(ANY, of("\n\r\u2028\u2029"))
_MOST_REPEATS = 1000


class _RegexReader:
    """Reads one expression, character by character."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth = text, 0, 0

    def peek(self) -> str:
        return self.text[self.place : self.place + 1]

    def take(self) -> str:
        found = self.peek()
        if not found:
            raise ValueError("it ends too early")
        self.place += 1
        return found

    def comes(self, text: str) -> bool:
        if self.text.startswith(text, self.place):
            self.place += len(text)
            return True
        return False

    def alternatives(self) -> Regex:
        self.depth += 1
        if self.depth > 50:
            raise ValueError("groups nested more than 50 deep")
        found = [self.series()]
        while self.comes("|"):
            found.append(self.series())
        self.depth -= 1
        return either(found) if len(found) > 1 else found[0]

    def series(self) -> Regex:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.one()))
        return parts[0] if len(parts) == 1 else Sequenced(tuple(parts))

    def repeated(self, part: Regex) -> Regex:
        while (sign := self.peek()) and sign in "*+?{":
            if sign == "{" and not self._is_count():
                break
            least, most = self._count()
            if part in (_START, _END):
                raise ValueError("an anchor cannot be repeated")
            part = Repeated(part, least, most)
            self.comes("?")  # a lazy one matches the same texts
            if self.peek() == "+" and self.text[self.place - 1] != "?":
                raise ValueError("possessive repetition is not supported")
        return part

    def _is_count(self) -> bool:
        end = self.text.find("}", self.place)
        inside = self.text[self.place + 1 : end].split(",") if end > 0 else ["x"]
        return len(inside) <= 2 and inside[0].isdigit() and (len(inside) == 1 or inside[1].isdigit() or not inside[1])

    def _count(self) -> tuple[int, int | None]:
        sign = self.take()
        if sign != "{":
            return (1 if sign == "+" else 0), (1 if sign == "?" else None)
        end = self.text.index("}", self.place)
        low, comma, high = self.text[self.place : end].partition(",")
        self.place = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if max(least, most or 0) > _MOST_REPEATS:
            raise ValueError(f"more than {_MOST_REPEATS} repetitions")
        if most is not None and most < least:
            raise ValueError("a repetition whose maximum is below its minimum")
        return least, most

    def one(self) -> Regex:
        character = self.take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character in "*+?":
            raise ValueError("nothing to repeat")
        if character == "\\":
            return self._escaped(self.take(), in_class=False)
        return {".": _DOT, "^": _START, "$": _END}.get(character) or of(character)

    def _group(self) -> Regex:
        if self.comes("?"):
            if self.comes("<") and self.peek() not in ("=", "!"):
                while self.take() != ">":
                    pass
            elif not self.comes(":"):
                named = self.text.startswith("P<", self.place)  # as Python writes it
                raise ValueError("named groups are written (?<name>…)" if named else "look-around and flags are not supported")
        found = self.alternatives()
        if not self.comes(")"):
            raise ValueError("a group is not closed")
        return found

    def _escaped(self, character: str, in_class: bool) -> Chars:
        if character in _CLASSES:
            return _CLASSES[character]
        if character in _CONTROLS:
            return of(_CONTROLS[character])
        if character in "xu":
            if self.comes("{"):
                digits = self.text[self.place : self.text.find("}", self.place)]
                self.place += len(digits) + 1
            else:
                digits = self.text[self.place : self.place + (2 if character == "x" else 4)]
                self.place += len(digits)
            try:
                return of(chr(int(digits, 16)))
            except (ValueError, OverflowError):
                raise ValueError(f"invalid escape \\{character}{digits:.8}") from None
        if character.isdigit():
            raise ValueError("back-references are not supported")
        if character.isalpha() and not (in_class and character == "b"):
            raise ValueError(f"\\{character} is not supported")
        return of("\b" if character == "b" else character)

    def _class(self) -> Chars:
        negated, ranges = self.comes("^"), list[tuple[int, int]]()
        if self.peek() == "]":
            raise ValueError("an empty class")
        while not self.comes("]"):
            first = self._member()
            if self.peek() == "-" and self.text[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                last = self._member()
                if any(len(one.ranges) != 1 or one.ranges[0][0] != one.ranges[0][1] for one in (first, last)):
                    raise ValueError("a range must go from a character to a character")
                if first.ranges[0][0] > last.ranges[0][0]:
                    raise ValueError("a range that goes backwards")
                ranges.append((first.ranges[0][0], last.ranges[0][0]))
            else:
                ranges += first.ranges
        found = without(ANY, chars(ranges)) if negated else without(chars(ranges), Chars((_SURROGATES,)))
        if not found.ranges:
            raise ValueError("an empty class")
        return found

    def _member(self) -> Chars:
        character = self.take()
        return self._escaped(self.take(), in_class=True) if character == "\\" else of(character)


_START, _END = Repeated(NOTHING, 7, 7), Repeated(NOTHING, 8, 8)  # anchors, until `_anchored` takes them out


def _anchored(part: Regex, first: bool, last: bool) -> Regex:
    """Return an alternative with the rest of the text where it has no anchor: `b` is `.*b.*`."""
    parts = list(part.parts) if isinstance(part, Sequenced) else [part]
    if len(parts) == 1 and isinstance(parts[0], Either):
        return either(_anchored(one, first, last) for one in parts[0].parts)
    anything = Repeated(ANY, 0, None)
    if parts and parts[0] == _START:
        parts = parts[1:]
    elif first:
        parts = [anything, *parts]
    if parts and parts[-1] == _END:
        parts = parts[:-1]
    elif last:
        parts = [*parts, anything]
    return parts[0] if len(parts) == 1 else Sequenced(tuple(parts))


def _has_anchor(part: Regex) -> bool:
    if part in (_START, _END):
        return True
    if isinstance(part, (Sequenced, Either)):
        return any(map(_has_anchor, part.parts))
    return isinstance(part, Repeated) and _has_anchor(part.part)


@lru_cache(maxsize=64)  # some take half a second, and servers read the same schema with every request
def parse(text: str, *, whole: bool = False) -> Regex:
    """Read a regular expression.

    Args:
        text: In the dialect of ECMAScript, as JSON Schema has it.
        whole: It must match a whole text anyway; otherwise it is searched for, as a schema's `pattern` is, and `^` and `$` tie it.

    Raises:
        ValueError: It is invalid or not regular; the message says why, in one line.
    """
    reader = _RegexReader(text)
    found = reader.alternatives()
    if reader.peek():
        raise ValueError("unmatched closing parenthesis")
    found = _anchored(found, not whole, not whole)
    if _has_anchor(found):
        raise ValueError("anchors are supported only at the beginning and the end")
    _ = found.automaton  # one that is too large is refused here
    return found


# ------------------------------------------------------------------------------------------------------- writing


def _shown(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


def text_of(part: Regex) -> str:
    """Return an expression in the syntax of Rust's `regex`, which llguidance reads."""
    if isinstance(part, Chars):
        if len(part.ranges) == 1 and part.ranges[0][0] == part.ranges[0][1]:
            return _shown(part.ranges[0][0])
        return "[" + "".join(_shown(low) + (f"-{_shown(high)}" if high > low else "") for low, high in part.ranges) + "]"
    if isinstance(part, Sequenced):
        return "".join(map(text_of, part.parts))
    if isinstance(part, Either):
        return "(" + "|".join(map(text_of, part.parts)) + ")"
    assert isinstance(part, Repeated)
    return f"({text_of(part.part)}){{{part.least},{'' if part.most is None else part.most}}}"


# ----------------------------------------------------------------------------------------------------- automaton


class Automaton:
    """The states of an expression (Thompson 1968): a set of them moves over a text, so that nothing explodes.

    Raises:
        ValueError: There are too many states.
    """

    def __init__(self, regex: Regex) -> None:
        self._free: list[list[int]] = []  # where a state leads without a character
        self.edges: list[tuple[Chars, int] | None] = []
        self.final = self._state()
        self._begin = self._build(regex, self.final)
        self._closures: dict[int, frozenset[int]] = {}

    def _state(self, *free: int) -> int:
        if len(self._free) >= MOST_STATES:
            raise ValueError("it is too large: repetitions of repetitions, or too many alternatives")
        self._free.append(list(free))
        self.edges.append(None)
        return len(self._free) - 1

    def _build(self, part: Regex, after: int) -> int:
        """Return the state in front of a part that leads to the state `after`."""
        if isinstance(part, Chars):
            state = self._state()
            self.edges[state] = part, after
            return state
        if isinstance(part, Sequenced):
            for one in reversed(part.parts):
                after = self._build(one, after)
            return after
        if isinstance(part, Either):
            return self._state(*[self._build(one, after) for one in part.parts])
        assert isinstance(part, Repeated)
        if part.most is None:
            loop = self._state(after)
            self._free[loop].append(self._build(part.part, loop))
            after = loop
        for _ in range(0 if part.most is None else part.most - part.least):
            after = self._state(after, self._build(part.part, after))
        for _ in range(part.least):
            after = self._build(part.part, after)
        return after

    def closure(self, state: int) -> frozenset[int]:
        """Return the states that a state leads to without a character and from which one goes on, or the text may end."""
        found = self._closures.get(state)
        if found is None:
            seen, todo = {state}, [state]
            while todo:
                for other in self._free[todo.pop()]:
                    if other not in seen:
                        seen.add(other)
                        todo.append(other)
            found = frozenset(one for one in seen if self.edges[one] is not None or one == self.final)
            self._closures[state] = found
        return found

    @property
    def start(self) -> frozenset[int]:
        """The states before a text."""
        return self.closure(self._begin)

    def after(self, states: frozenset[int], character: str) -> frozenset[int]:
        """Return the states behind a character; none where no text that matches goes on so."""
        code, found = ord(character), set[int]()
        for state in states:
            edge = self.edges[state]
            if edge is not None and any(low <= code <= high for low, high in edge[0].ranges):
                found |= self.closure(edge[1])
        return frozenset(found)

    def accepts(self, text: str) -> bool:
        """Return whether a whole text matches."""
        states = self.start
        for character in text:
            states = self.after(states, character)
            if not states:
                return False
        return self.final in states

    def shortest(self, preferred: Sequence[str]) -> Completions:
        """Return the shortest way to the end from every state, over the characters that are preferred where there is a choice."""
        return Completions(self, preferred)


class Completions:
    """The shortest text that leads from each state to the end.

    Args:
        automaton: The states.
        preferred: Characters that are taken where an edge has several; without any of them, an edge's first one is.

    Attributes:
        steps: By state: the character to write and the state behind it; none at the end.
        length: By state: how many characters there are to the end.
    """

    def __init__(self, automaton: Automaton, preferred: Sequence[str]) -> None:
        self.automaton = automaton
        self.steps: dict[int, tuple[str, int]] = {}
        self.length: dict[int, int] = {automaton.final: 0}
        chosen: dict[Chars, str] = {}
        before: dict[int, list[int]] = {}  # which edges lead to a state
        for state, edge in enumerate(automaton.edges):
            if edge is not None:
                for behind in automaton.closure(edge[1]):
                    before.setdefault(behind, []).append(state)
        todo = [automaton.final]
        for behind in todo:
            for state in before.get(behind, ()):
                if state not in self.length:
                    edge = automaton.edges[state]
                    assert edge is not None
                    if edge[0] not in chosen:
                        first = (one for one in preferred if one in edge[0])
                        chosen[edge[0]] = next(first, chr(edge[0].ranges[0][0]))
                    self.steps[state] = chosen[edge[0]], behind
                    self.length[state] = self.length[behind] + 1
                    todo.append(state)

    def nearest(self, states: frozenset[int]) -> int | None:
        """Return the state that is nearest to the end; None where none leads there."""
        return min((state for state in states if state in self.length), key=lambda state: self.length[state], default=None)

    def text(self, state: int) -> str:
        """Return the shortest text from a state to the end."""
        found = []
        while state in self.steps:
            character, state = self.steps[state]
            found.append(character)
        return "".join(found)
