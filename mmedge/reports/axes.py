"""Axes of charts: where a value lies between two ends, and which round values are marked, with their texts.

    axis = linear_axis(0.13, 0.72, 0, 200, 5, percent=True)
    axis.ticks              [(0.0, "0 %"), (0.2, "20 %"), …]
    axis.place(0.5)         125.0

Knows units of a drawing and texts, nothing of what is drawn.
"""

from __future__ import annotations

import math


class Axis:
    """A scale on which the value `low` lies at `start` and `high` at `end`, in units of the drawing.

    Attributes:
        low: The value at its start.
        ticks: The values that are marked, with their texts.
    """

    def __init__(
        self, low: float, high: float, start: float, end: float, ticks: list[tuple[float, str]], log: bool = False
    ) -> None:
        self.low, self.ticks, self._log = low, ticks, log
        if log:
            low, high = math.log(low), math.log(high)
        self._scale = (end - start) / (high - low)
        self._offset = start - self._scale * low

    def place(self, value: float) -> float:
        """Return where a value lies."""
        return self._offset + self._scale * (math.log(value) if self._log else value)


def linear_axis(
    low: float,
    high: float,
    start: float,
    end: float,
    count: int,
    *,
    percent: bool = False,
    snug: bool = False,
    least_step: float = 0.0,
) -> Axis:
    """Return an axis with round ticks; it ends at ticks, or, where it is `snug`, where the data ends.

    Args:
        low: The least value.
        high: The largest.
        start: Where the axis starts, in units of the drawing.
        end: Where it ends.
        count: About how many ticks it has.
        percent: Whether values are shares, shown as percentages.
        snug: Whether it ends where the data does.
        least_step: The least distance of two ticks.
    """
    floor, ceiling = (0.0, 1.0) if percent and low >= 0 and high <= 1 else (-math.inf, math.inf)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-90):
        pad = 0.05 if percent else 0.1 * abs(high) if abs(high) > 1e-80 else 0.5
        low, high = max(low - pad, floor), min(high + pad, ceiling)
    step = max(_round_step((high - low) / count), least_step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if snug:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = min(first * step, low), max(last * step, high)
    values = [index * step for index in range(first, last + 1)]
    return Axis(low, high, start, end, _tick_texts(values, step, percent))


def log_axis(low: float, high: float, start: float, end: float, percent: bool) -> Axis:
    """Return a logarithmic axis for positive values, with ticks at 1, 2 and 5 or at powers of ten; see `linear_axis`."""
    if high / low < 1.0001:
        low, high = low / 2, high * 2
    pad = (high / low) ** 0.02
    low, high = low / pad, high * pad
    decades = math.log10(high / low)
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, math.ceil(decades / 6)))
    values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    values = [value for value in values if low <= value <= high]
    if len(values) < 2:
        linear = linear_axis(low, high, start, end, 4, percent=percent, snug=True)
        return Axis(low, high, start, end, linear.ticks, log=True)
    texts = [f"{100 * value:g} %" if percent else _short(value) for value in values]
    return Axis(low, high, start, end, list(zip(values, texts, strict=True)), log=True)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`, but for rounding."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((digit * power for digit in (1, 2, 5) if digit * power >= least * 0.999), 10 * power)


def _tick_texts(values: list[float], step: float, percent: bool) -> list[tuple[float, str]]:
    """Return values with their texts, all with as many digits after the point as the step needs."""
    largest = max(map(abs, values), default=0.0)
    unit, suffix = 1.0, ""
    if percent:
        unit, suffix = 0.01, " %"
    elif 2e4 <= largest < 1e15:
        unit, suffix = next((unit, suffix) for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 2 * unit)
    digits = max(0, -math.floor(math.log10(step / unit) + 1e-6))
    if digits > 6 or largest / unit >= 1e15:
        return [(value, _signed(f"{value / unit:.3g}{suffix}")) for value in values]
    texts = [f"{round(value / unit, digits) + 0.0:,.{digits}f}{suffix}" for value in values]  # + 0.0 makes −0 a 0
    return [(value, _signed(text) if value or percent else "0") for value, text in zip(values, texts, strict=True)]


def _short(value: float) -> str:
    """Return a positive number with no more characters than it needs."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if max(unit, 1e4) <= value < 1e4 * unit:
            return f"{value / unit:g}{suffix}"
    return _signed(f"{value:g}")


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def number_text(value: float, percent: bool) -> str:
    """Return a number as tooltips show it."""
    if percent:
        return f"{100 * value:.1f} %" if abs(value) < 1e9 else f"{100 * value:.4g} %"
    return _signed(f"{value:,.0f}" if 1000 <= abs(value) < 1e12 or value == 0 else f"{value:.4g}")
