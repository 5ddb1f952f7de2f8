"""Numbers with their uncertainty: intervals for accuracies, percentiles for latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


@dataclass(frozen=True)
class Proportion:
    """A share of successes with its 95 % Wilson score interval (Wilson 1927).

    Attributes:
        successes: How many of `total` succeeded.
        total: How many were tried; 0 gives a value of NaN and the interval [0, 1].
    """

    successes: int
    total: int

    @property
    def value(self) -> float:
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, float | int | list[float] | None]:
        low, high = self.interval
        return {
            "value": self.value if self.total else None,
            "interval_95": [low, high],
            "successes": self.successes,
            "total": self.total,
        }

    def __str__(self) -> str:
        if not self.total:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def proportion(outcomes: Sequence[bool]) -> Proportion:
    """Return the share of true outcomes with its interval."""
    return Proportion(sum(map(bool, outcomes)), len(outcomes))


def balanced_accuracy(predicted: Sequence[bool], actual: Sequence[bool]) -> float | None:
    """Return the mean of the two classes' recalls, or None when a class is absent.

    Always saying the same thing scores 0.5, however unequal the classes are.
    """
    positives = [p for p, a in zip(predicted, actual, strict=True) if a]
    negatives = [not p for p, a in zip(predicted, actual, strict=True) if not a]
    if not positives or not negatives:
        return None
    return (sum(positives) / len(positives) + sum(negatives) / len(negatives)) / 2


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation between the sorted samples (at least one)."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
