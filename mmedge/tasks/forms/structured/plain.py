"""Texts that the compact spelling writes without quotes: which characters they have, and which patterns are always so."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from mmedge.tasks.forms.structured.regex import (
    ANY,
    NOTHING,
    Chars,
    Either,
    Regex,
    Repeated,
    Sequenced,
    chars,
    either,
    of,
    repeated,
    sequence,
    without,
)

UNSAFE = ';)]"\\'  # in a text without quotes; at its beginning also what opens
OPENING = '"([{'
PLAIN = without(without(ANY, chars([(0, 31), (127, 127)])), of(UNSAFE))
_SPACES = chars([(32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)])
_SPACES = chars([*_SPACES.ranges, (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)])
LAST = without(PLAIN, _SPACES)
FIRST = without(LAST, of(OPENING))


def is_plain(text: str) -> bool:
    """Return whether a text can stand without quotes, if it is not like a number."""
    inside = all(character >= " " and character not in UNSAFE and character != "\x7f" for character in text)
    return bool(text) and inside and text[0] not in OPENING and not text[0].isspace() and not text[-1].isspace()


def mapped(part: Regex, one: Callable[[Chars], Regex]) -> Regex:
    """Return an expression with its characters replaced."""
    if isinstance(part, Chars):
        return one(part)
    if isinstance(part, Sequenced):
        return sequence(*[mapped(inner, one) for inner in part.parts])
    if isinstance(part, Either):
        return either(mapped(inner, one) for inner in part.parts)
    assert isinstance(part, Repeated)
    return repeated(mapped(part.part, one), part.least, part.most)


def _only_plain(some: Chars) -> Regex:
    found = without(some, without(ANY, PLAIN))
    return found if found.ranges else NOTHING


def _ends_in_space(part: Regex) -> bool:
    """Whether a text that matches may be empty, or begin with what opens, or begin or end with a space."""
    automaton = part.automaton
    starts = [edge for state in automaton.start if (edge := automaton.edges[state])]
    lasts = [edge for edge in automaton.edges if edge and automaton.final in automaton.closure(edge[1])]
    around = [
        *((edge, [*_SPACES.ranges, *of(OPENING).ranges]) for edge in starts),
        *((edge, _SPACES.ranges) for edge in lasts),
    ]
    return automaton.final in automaton.start or any(
        low <= last and first <= high for edge, ranges in around for low, high in edge[0].ranges for first, last in ranges
    )


@lru_cache(maxsize=256)
def plain_texts(pattern: Regex) -> Regex:
    """Return the texts of a pattern that stand without quotes; nothing where some of them would be read otherwise, so that all
    texts of the pattern are written in quotes."""
    found = mapped(pattern, _only_plain)
    return NOTHING if found == NOTHING or _ends_in_space(found) else found
