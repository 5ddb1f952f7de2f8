"""The fields of a JSON request, each read once with its type and range; one that nobody read is refused.

fields = Fields({"n": 2, "nonsense": 1})
fields.whole("n", 1, 16)     2
fields.finish()              ApiError: unknown field nonsense
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any

from mmedge.serve.failures import ApiError, invalid

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')  # texts, and what numbers look like
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character beyond 16 bits, which only two of them make
SHOWN = 60  # characters of a name or value that an error repeats


def parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a request's body holds.

    Raises:
        ApiError: It is not a JSON object; the message says where.
    """
    if not body:
        raise invalid("the body is empty, and must be a JSON object", code="invalid_json")
    text = ""
    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
        if _HALF.search(body):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        place = _place(body[: error.start].decode("utf-8", "replace"))
        raise invalid(f"the body is not valid UTF-8 at {place}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise invalid("the body has text with half of a character (a lone surrogate)", code="invalid_json") from None
    except RecursionError:
        raise invalid("the body's JSON is nested too deeply", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON at line {error.lineno}, column {error.colno}", code="invalid_json") from None
    except ValueError:
        raise _wrong_number(text) from None
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    return document


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _wrong_number(text: str) -> ApiError:
    """Return the error of a text whose first number that cannot be read is NaN, infinite, or too long."""
    most = sys.get_int_max_str_digits()  # Python reads no longer whole number
    for token in _TOKEN.finditer(text):
        digits = token[0].removeprefix("-")
        if digits in ("NaN", "Infinity"):
            return invalid(f"the body is not valid JSON at {_place(text[: token.start()])}: {digits}", code="invalid_json")
        if digits.isdecimal() and len(digits) > most:
            where = _place(text[: token.start()])
            return invalid(f"the body has a number of more than {most:,} digits at {where}", code="invalid_json")
    return invalid("the body is not valid JSON", code="invalid_json")


def _place(before: str) -> str:
    """Return the place behind a text, counted from 1."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # which of them counts, everybody decides otherwise
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise invalid(f"the body has an object with {name[:SHOWN]!r} twice", code="invalid_json")
    return found


class Fields:
    """The fields of one object; null is the same as absent.

    Args:
        document: The object.
        within: The name of the field that holds it; empty for the request itself.
    """

    def __init__(self, document: dict[str, Any], within: str = "") -> None:
        self._left = {name: value for name, value in document.items() if value is not None}
        self._within = f"{within}." if within else ""

    def name(self, name: str) -> str:
        """Return a field's whole name, for errors."""
        return f"{self._within}{name[:SHOWN]}"

    def take(self, name: str) -> Any:
        """Return a field's value as it is; None where it is absent."""
        return self._left.pop(name, None)

    def wrong(self, name: str, what: str) -> ApiError:
        """Return the error of a wrong value."""
        return invalid(f"{self.name(name)} must be {what}", self.name(name))

    def text(self, name: str) -> str | None:
        """Return a text."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def flag(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """Return a number within a range."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def numbers(self, name: str, least: float, most: float) -> float | dict[str, float] | None:
        """Return a number within a range, or an object of such numbers."""
        value = self.take(name)
        if value is None:
            return None
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not least <= one <= most:
                raise self.wrong(name, f"a number from {least:g} to {most:g}, or an object of such numbers by field")
        return value if isinstance(value, dict) else float(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number within a range."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return a list of texts; a single text is a list of one."""
        value = self.take(name)
        if value is None:
            return ()
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > most or not all(isinstance(item, str) for item in items):
            raise self.wrong(name, f"a string or a list of at most {most} strings")
        return tuple(items)

    def object(self, name: str) -> Fields | None:
        """Return the fields of an object."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.name(name))

    def finish(self) -> None:
        """Refuse what nobody read.

        Raises:
            ApiError: There is such a field.
        """
        if self._left:
            name = self.name(sorted(self._left)[0])
            raise invalid(f"unknown field {name}", name, "unknown_parameter")
