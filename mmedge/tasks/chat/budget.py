"""How much one rendering of a chat template may do: loop turns and calls, characters and items read, characters written.

Everything that a template can make grow is looked at before it is computed, since a single product of two short texts may not fit
into memory. Knows values, and no templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2

STEPS = 200_000  # loop turns and calls; long conversations take a few thousand
LONGEST = 2_000_000  # characters of a text, or what a nested value weighs
WORK = 100_000_000  # characters and items that are read or made: about a second
WRITTEN = 16_000_000  # characters that are written, also into blocks that are kept or written again
ITEM, NODE = 4, 20  # characters that take as long as an item that is passed over, or looked into
_DIGITS = re.compile(r"\d+")


class TooMuch(jinja2.TemplateRuntimeError):
    """A template that does more than a chat template may need."""


class RenderingBudget:
    """What is left of one rendering's work."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Allow the work of one rendering."""
        self._steps, self._work, self._written = STEPS, WORK, WRITTEN

    def step(self, written: int = 0) -> None:
        """Note a loop turn or a call, and what its block writes of itself."""
        self._steps -= 1
        if self._steps < 0:
            raise TooMuch(f"the template takes more than {STEPS:,} loop turns and calls")
        if written:
            self.write(written)

    def work(self, amount: int) -> None:
        """Note that so many characters or items are read or made."""
        self._work -= amount
        if self._work < 0:
            raise TooMuch("the template reads or makes too much text")

    def write(self, characters: int) -> None:
        """Note what is written."""
        self._written -= characters
        if self._written < 0:
            raise TooMuch(f"the template writes more than {WRITTEN:,} characters")

    def made(self, value: Any) -> None:
        """Note a result."""
        size = size_of(value)
        fits(size)
        self.work(size)

    def compared(self, value: Any) -> None:
        """Note a value that is compared or turned into text as a whole."""
        self.work(weight_of(value))


def fits(size: float) -> None:
    """Refuse a result that would be too large.

    Raises:
        TooMuch: It would be.
    """
    if size > LONGEST:
        raise TooMuch(f"a text or list of more than {LONGEST:,} characters or items")


def size_of(value: Any) -> int:
    """Return the length of a text, or of a collection without what lies in it, whose items take longer; 1 of anything else."""
    if isinstance(value, (str, bytes)):
        return len(value) + 1
    if isinstance(value, (list, tuple, dict, set, frozenset, range)):
        return ITEM * len(value) + 1
    return value.bit_length() // 3 + 1 if isinstance(value, int) else 1


def weight_of(value: Any) -> int:
    """Return what a value weighs with all that lies in it, as often as it does.

    Raises:
        TooMuch: It weighs too much to be written or compared.
    """
    if isinstance(value, str):
        return len(value) + 1
    total, left = 0, [value]
    while left:
        one = left.pop()
        total += NODE + (size_of(one) if isinstance(one, (str, bytes, int)) else 0)
        fits(total)
        if isinstance(one, Mapping):
            inner: Iterable[Any] = (part for pair in one.items() for part in pair)
        elif isinstance(one, (list, tuple, set, frozenset, range)):
            inner = one
        else:
            continue
        fits(total + NODE * len(one))
        left.extend(inner)
    return total


def settled(value: Any) -> Any:
    """Return what an iterator gives as a list, anything else as it is."""
    if not isinstance(value, Iterator):
        return value
    found: list[Any] = []
    for one in value:
        found.append(one)
        fits(len(found))
    return found


def check_format(text: str, values: Any, mark: str) -> None:
    """Refuse a format whose result may be too long.

    Args:
        text: The format.
        values: What is put into it.
        mark: What begins a place in it: `%` or `{`.

    Raises:
        TooMuch: The result may be too long.
    """
    widths = sum(int(digits[:9]) for digits in _DIGITS.findall(text))
    fits(len(text) + widths + text.count(mark) * weight_of(values))
    if "*" in text if mark == "%" else re.search(r"\{[^{}]*\{", text):
        raise TooMuch("a format takes its widths from values")


def check_number(value: Any, most: int = LONGEST) -> None:
    """Refuse a width or a count that is too large.

    Raises:
        TooMuch: It is.
    """
    if isinstance(value, (int, float)) and not abs(value) <= most:
        raise TooMuch(f"a width or count of {value!r}"[:60])
