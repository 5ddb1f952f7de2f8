"""Numbers for people: the one place that decides how a share, an interval, a size or a time is written.

    share(0.712, (0.68, 0.74))      71.2 % [68.0, 74.0]
    points(0.012, (-0.003, 0.021))  +1.2 [-0.3, +2.1]
    significant(0.0123)             0.012
    size(536_870_912)               536.9 MB

What was not measured (None, or not finite) is a dash everywhere. Knows nothing about reports or tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

NOTHING = "–"

Interval = Sequence[float]


class Estimated(Protocol):
    """A value that was measured, and its interval."""

    @property
    def value(self) -> float | None: ...

    @property
    def interval(self) -> Interval: ...


def _is_measured(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with this many digits after the point."""
    return f"{value:,.{digits}f}" if _is_measured(value) else NOTHING


def significant(value: float | None) -> str:
    """Return a number with about three significant digits: `1,234`, `12.3`, `1.23`, `0.012`."""
    if not _is_measured(value):
        return NOTHING
    for least, digits in ((100, 0), (10, 1), (0.2, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"


def share(value: float | None, interval: Interval | None = None, digits: int = 1) -> str:
    """Return a share of 1 in percent, with its interval where there is one: `71.2 % [68.0, 74.0]`."""
    if not _is_measured(value):
        return NOTHING
    return f"{100 * value:.{digits}f} %{_between(interval, lambda end: f'{100 * end:.{digits}f}')}"


def share_of(found: Estimated | None) -> str:
    """Return a share that was measured, with its interval."""
    return share(found.value, found.interval) if found else NOTHING


def points(value: float | None, interval: Interval | None = None, p: float | None = None) -> str:
    """Return a difference of two shares in percentage points, with its interval and p: `+1.2 [-0.3, +2.1], p = 0.140`."""
    if not _is_measured(value):
        return NOTHING
    chance = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return f"{100 * value:+.1f}{_between(interval, lambda end: f'{100 * end:+.1f}')}{chance}"


def estimate(value: float | None, interval: Interval | None = None, digits: int | None = None) -> str:
    """Return a value with its interval: `0.71 [0.68, 0.74]`, with about three significant digits, or this many after the point."""

    def written(one: float) -> str:
        return significant(one) if digits is None else number(one, digits)

    return f"{written(value)}{_between(interval, written)}" if _is_measured(value) else NOTHING


def _between(interval: Interval | None, written: Callable[[float], str]) -> str:
    if interval is None or not all(map(_is_measured, interval)):
        return ""
    return f" [{', '.join(map(written, interval))}]"


def in_json(found: Mapping[str, Any] | None) -> tuple[float | None, Interval | None]:
    """Return value and interval of an estimate as `to_json` writes it, to be passed on: `share(*in_json(found))`."""
    return (found.get("value"), found.get("interval_95")) if found else (None, None)


def size(count: float | None) -> str:
    """Return a number of bytes: `300 MB`, `1.5 GB`."""
    if not _is_measured(count):
        return NOTHING
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Return a span of time: `42 s`, `7 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
