"""The formats of texts that schemas may ask for: what matches, in linear time, and what is checked beyond that."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from mmedge.tasks.forms.structured.regex import Regex, parse

_DAYS = r"(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP = r"[1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00"
_DATE = rf"([1-9][0-9]{{3}}-({_DAYS})|({_LEAP})-02-29)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,20})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def _is_date(text: str) -> bool:
    if len(text) != 10 or not text.isascii() or text[4] != "-" or text[7] != "-":
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return text.isascii()


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        written: What is written where a student's answer is constrained; all of it has the format.
        check: Whether a text has the format, where that is more than what is written.
    """

    written: str
    check: Callable[[str], bool] | None = None

    @cached_property
    def regex(self) -> Regex:
        """What is written."""
        return parse(self.written, whole=True)

    def fits(self, text: str) -> bool:
        """Return whether a text has the format."""
        return self.check(text) if self.check else self.regex.matches(text)


def _is_time(text: str) -> bool:
    if FORMATS["time"].regex.matches(text.upper()):
        return text.isascii()
    leap = text.upper().replace(":60", ":59", 1)  # a leap second is the last one of a day in UTC
    if not text.isascii() or ":60" not in text[5:8] or not FORMATS["time"].regex.matches(leap):
        return False
    clock = int(leap[:2]) * 60 + int(leap[3:5])
    offset = 0 if leap[-1] == "Z" else (1 if leap[-6] == "-" else -1) * (int(leap[-5:-3]) * 60 + int(leap[-2:]))
    return (clock + offset) % 1440 == 1439


def _is_email(text: str) -> bool:
    local, _, host = text.rpartition("@")
    if not _LOCAL.matches(local):
        return False
    if host[:1] == "[" and host[-1:] == "]":
        return _is_ipv4(host[1:-1]) or (host[1:6] == "IPv6:" and _is_ipv6(host[6:-1]))
    return _HOSTS.matches(host)


def _is_date_time(text: str) -> bool:
    return _is_date(text[:10]) and text[10:11] in ("T", "t") and _is_time(text[11:])


_LOCAL = parse(rf'{_ATOM}(\.{_ATOM})*|"([^"\\\x00-\x1f]|\\.)*"', whole=True)
_HOSTS = parse(rf"{_HOST}(\.{_HOST})*", whole=True)
FORMATS = {
    "date": Format(_DATE, _is_date),
    "time": Format(_TIME, _is_time),
    "date-time": Format(f"{_DATE}T{_TIME}", _is_date_time),
    "email": Format(rf"{_ATOM}(\.{_ATOM})*@{_HOST}(\.{_HOST})+", _is_email),
    "ipv4": Format(rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}", _is_ipv4),
    "uuid": Format(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
}
