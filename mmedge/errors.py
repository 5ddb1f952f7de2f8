"""The one exception that users see: what is wrong, where, and what to do about it, in one or two lines."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def printable(text: str) -> str:
    """Return text with every character that could control a terminal, or reverse the direction of writing, replaced by `�`.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if sign in _DIRECTIONS or (unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t")
        else sign
        for sign in text
    )


def is_broken(text: str) -> bool:
    """Whether a text has characters that nobody writes: those that control a terminal or embed directions, halves, or `�`.

    Marks of direction are allowed: texts in Arabic and Hebrew have them.
    """
    return "\N{REPLACEMENT CHARACTER}" in printable(re.sub("[\u200e\u200f]", "", text))


class Notice(FutureWarning):
    """Something still works that the next version will refuse, such as a field's old name."""


class MmedgeError(Exception):
    """A failure that the user can do something about.

    Args:
        what: What is wrong and where, in one line.
        hint: What to do about it, in one line; empty where `what` says it already.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n  → {hint}")
        self.what = what
        self.hint = hint


class TooLong(MmedgeError):
    """What a student is to read is longer than it can read."""


class LimitTooLow(MmedgeError):
    """No whole answer has as few tokens as an answer may have."""


class MissingExtra(MmedgeError):
    """An optional package is needed and not installed."""


class WrongOption(MmedgeError):
    """An option that the bundle cannot follow, or that contradicts another.

    Args:
        option: Its name in `AnswerOptions`, such as `target_accuracy`.
        what: See `MmedgeError`.
        hint: See `MmedgeError`.
    """

    def __init__(self, option: str, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.option = option


def missing_extra(package: str, extra: str) -> MissingExtra:
    """Return the error for an optional package that is needed and not installed."""
    return MissingExtra(f"this needs the package {package!r}, which is not installed", f"pip install 'mmedge[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for a name that is not among those known; empty where none of them is like it."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}? " if close else ""
