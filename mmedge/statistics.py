"""Numbers with their uncertainty: intervals for accuracies, percentiles for latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


def _wilson(p: float, n: float) -> tuple[float, float]:
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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
        return _wilson(self.value, self.total)

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


@dataclass
class ClusteredShare:
    """A share of successes whose trials come in groups that resemble each other, such as the answers to one question.

    Its 95 % interval is Wilson's with the effective number of trials: as many independent ones as would vary as much as the
    groups do (the ratio estimator's variance between groups; Cochran, Sampling Techniques, 1977, section 3.12).
    """

    successes: int = 0
    total: int = 0
    groups: int = 0
    _products: tuple[int, int, int] = (0, 0, 0)  # sums of successes², successes × trials, trials²

    def add(self, successes: int, trials: int) -> None:
        """Add one group."""
        if trials:
            self.successes += successes
            self.total += trials
            self.groups += 1
            a, b, c = self._products
            self._products = (a + successes * successes, b + successes * trials, c + trials * trials)

    @property
    def value(self) -> float:
        return self.successes / self.total if self.total else math.nan

    @property
    def effective(self) -> float:
        """The number of independent trials that would be as telling."""
        p = self.value
        if self.groups < 2 or p in (0.0, 1.0):
            return float(self.groups if p in (0.0, 1.0) else self.total)
        a, b, c = self._products
        between = (a - 2 * p * b + p * p * c) / (self.groups - 1) * self.groups / (self.total * self.total)
        return min(float(self.total), p * (1 - p) / between) if between > 0 else float(self.total)

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        return _wilson(self.value, self.effective)

    def to_json(self) -> dict[str, float | int | list[float] | None]:
        return {
            "value": self.value if self.total else None,
            "interval_95": list(self.interval),
            "successes": self.successes,
            "total": self.total,
            "questions": self.groups,
        }

    def __str__(self) -> str:
        if not self.total:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
