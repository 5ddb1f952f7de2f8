"""The one exception that users see: what is wrong, where, and what to do about it, in one or two lines."""

import unicodedata

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def printable(text: str) -> str:
    """Return text that only says something: signs that steer a terminal, or turn the direction of writing, become `�`.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if sign in _TURNING or (unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t")
        else sign
        for sign in text
    )


class MmedgeError(Exception):
    """A failure that the user can do something about.

    Args:
        what: What is wrong and where, one line.
        hint: What to do about it, one line; empty when `what` says it already.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n  → {hint}")
        self.what = what
        self.hint = hint


def missing_extra(package: str, extra: str) -> MmedgeError:
    """Return the error for a command that needs an optional dependency which is not installed."""
    return MmedgeError(
        f"this needs the package {package!r}, which is not installed",
        f"pip install 'mmedge[{extra}]'",
    )
