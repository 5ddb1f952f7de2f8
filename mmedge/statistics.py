"""Numbers with their uncertainty: intervals for accuracies, percentiles for latencies; the tests hold them against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


def _wilson(p: float, n: float) -> tuple[float, float]:
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))  # rounding must not leave p outside


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


def said_at_best_level(scores: Sequence[float], positive: Sequence[bool], groups: Sequence[str]) -> list[bool]:
    """Return how often scores are right at the best threshold, chosen for each half of the groups on the other half.

    How often a judge says yes depends on how often it was taught to; if the threshold that separates yes from no is set on data of
    the kind it will see, as calibration does, only the order of its scores matters. Cross-fitting keeps the choice honest.

    Args:
        scores: Higher means yes.
        positive: What is so.
        groups: What each belongs to, such as its question; a group is never split.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    half = np.array([{group: place % 2 for place, group in enumerate(sorted(set(groups)))}[group] for group in groups])
    said = np.zeros(len(values), dtype=bool)
    for side in (0, 1):
        fitted, kept = values[half != side], truth[half != side]
        levels = np.concatenate([[-np.inf], np.unique(fitted), [np.inf]])
        right = [int(np.count_nonzero((fitted >= level) == kept)) for level in levels]
        said[half == side] = values[half == side] >= levels[int(np.argmax(right))]
    return [bool(one) for one in said]


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


def auroc(scores: Sequence[float] | NDArray[np.float64], positive: Sequence[bool] | NDArray[np.bool_]) -> float | None:
    """Return how often a positive one scores higher than a negative one (ties count half); None when a class is absent.

    The area under the receiver operating characteristic, by ranks (Mann and Whitney 1947).
    """
    values, truth = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def confidence_bins(confidences: Sequence[float] | NDArray[np.float64], bins: int = 10) -> list[NDArray[np.intp]]:
    """Return the places of answers in bins of about equally many, rising; equal confidences are never told apart.

    Args:
        confidences: At least one.
        bins: How many; fewer where confidences coincide.
    """
    p = np.asarray(confidences, dtype=float)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    member = np.searchsorted(edges, p, side="left")
    return [np.flatnonzero(member == number) for number in np.unique(member)]


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Return the expected calibration error: how far stated confidence and share of right answers lie apart, on average.

    Bins hold equally many answers each (Nguyen and O'Connor 2015), so that it does not depend on where confidences crowd; see
    `confidence_bins`.

    Args:
        confidences: Each from 0 to 1; at least one.
        right: Whether each answer is right.
        bins: How many; fewer where there are fewer answers than that.
    """
    p, truth = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    return float(sum(len(part) * abs(p[part].mean() - truth[part].mean()) for part in confidence_bins(p, bins)) / len(p))


def calibration_by_chance(confidences: Sequence[float], bins: int = 10, draws: int = 500, seed: int = 0) -> float:
    """Return what the calibration error of honest confidences stays below 19 times of 20, for want of more answers alone.

    Answers are simulated as right with just the probability that is stated of each. A bootstrap interval would not do: resampling
    only ever adds to the error.
    """
    p = np.asarray(confidences, dtype=float)
    rng = np.random.default_rng(seed)
    members = confidence_bins(p, bins)
    right = rng.random((draws, len(p))) < p
    errors = sum(len(part) * np.abs(p[part].mean() - right[:, part].mean(1)) for part in members) / len(p)
    return float(np.percentile(errors, 95))


def risk_coverage(
    confidences: Sequence[float] | NDArray[np.float64], right: Sequence[bool] | NDArray[np.bool_]
) -> tuple[list[float], list[float]]:
    """Return coverage and risk: the share of questions answered, the most confident first, and the share of wrong ones among them.

    Where several answers are equally confident, they count in proportion, in whatever order they come (El-Yaniv and Wiener 2010).

    Returns:
        Two lists of as many places as there are answers.
    """
    values, wrong = np.asarray(confidences, dtype=float), 1.0 - np.asarray(right, dtype=float)
    distinct, place = np.unique(-values, return_inverse=True)
    mean = np.bincount(place, wrong, len(distinct)) / np.bincount(place, minlength=len(distinct))
    spread = np.sort(place, kind="stable")
    errors = np.cumsum(mean[spread])
    count = np.arange(1, len(values) + 1)
    return (count / len(values)).tolist(), (errors / count).tolist()


def accuracy_at(confidences: Sequence[float], right: Sequence[bool], coverage: float) -> float:
    """Return the share of right answers among the most confident share of them."""
    return accuracy_of_risk(risk_coverage(confidences, right)[1], coverage)


def accuracy_of_risk(risk: Sequence[float], coverage: float) -> float:
    """Return the same, of what `risk_coverage` returned."""
    return 1 - risk[max(0, math.ceil(coverage * len(risk) - 1e-9) - 1)]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        p: How likely so large a difference from zero is by chance, two-sided; None for what is not a difference.
    """

    value: float
    low: float
    high: float
    p: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval_95": [self.low, self.high]} | ({} if self.p is None else {"p": self.p})


RESAMPLES = 10_000
POWER_80 = 2.8  # standard errors of a difference that 80 of 100 comparisons find, by a two-sided test at 5 %: 1.96 + 0.84


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float | None], count: int, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Return any statistic of some questions with its percentile bootstrap interval (Efron and Tibshirani 1993).

    Args:
        statistic: Takes the indices of the resampled questions, (count,); returns None where it is not defined on them.
        count: How many questions there are.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        None where the statistic is not defined on all questions.
    """
    return bootstrap_all(lambda indices: [statistic(indices)], count, resamples, seed)[0]


def bootstrap_all(
    statistics: Callable[[NDArray[np.int64]], Sequence[float | None]], count: int, resamples: int = 1000, seed: int = 0
) -> list[Estimate | None]:
    """Return several statistics of the same questions, each as `bootstrap` would: what they have in common is computed once."""
    values = statistics(np.arange(count))
    rng = np.random.default_rng(seed)
    rows = [statistics(rng.integers(count, size=count)) for _ in range(resamples)]
    found: list[Estimate | None] = []
    for place, value in enumerate(values):
        drawn = [one for row in rows if (one := row[place]) is not None]
        low, high = np.percentile(drawn, [2.5, 97.5]) if drawn and value is not None else (value, value)
        found.append(None if value is None else Estimate(value, float(low or 0), float(high or 0)))
    return found


Outcomes = Sequence[Sequence[float]]  # a row for each training, a column for each question


def _resampled(successes: NDArray[np.float64], trials: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Return the mean of `resamples` tables whose rows (trainings) and columns (questions) are drawn with replacement.

    Args:
        successes: (trainings, questions).
        trials: (trainings, questions); 0 where a training was not asked a question.
        seed: Seed of the resampling.
        resamples: How often to resample.
    """
    rng = np.random.default_rng(seed)
    seeds, questions = successes.shape
    drawn = np.empty(resamples)
    for start in range(0, resamples, 500):
        many = min(500, resamples - start)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=many) / seeds
        of_questions = rng.multinomial(questions, np.full(questions, 1 / questions), size=many).astype(float)
        shares = (of_questions @ successes.T) / np.maximum(of_questions @ trials.T, 1)
        drawn[start : start + many] = (of_seeds * shares).sum(1)
    return drawn


def mean_over_seeds(successes: Outcomes, trials: Outcomes | None = None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return the share of successes over several trainings, the mean of their shares, with an interval over both.

    A bootstrap that draws questions and trainings, so that the interval says what another test set and another seed would
    give (Efron and Tibshirani 1993, percentile interval). With one training it is about questions alone.

    Args:
        successes: For each training, how many successes each question had.
        trials: For each training, how many trials each question had, 0 where it was not asked; one where this is None.
        seed: Seed of the resampling.
        resamples: How often to resample.
    """
    table = np.asarray(successes, dtype=float)
    counts = np.ones(table.shape) if trials is None else np.asarray(trials, dtype=float)
    value = float((table.sum(1) / counts.sum(1)).mean())
    if value in (0.0, 1.0):  # resampling what is all the same shows no variation
        return Estimate(value, *_wilson(value, table.shape[1]))
    low, high = np.percentile(_resampled(table, counts, seed, resamples), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def auroc_over_seeds(
    scores: Outcomes,
    positive: Sequence[Sequence[bool]],
    groups: Sequence[Sequence[str]],
    seed: int = 0,
    resamples: int = RESAMPLES // 10,
) -> Estimate | None:
    """Return the mean AUROC of several trainings, with an interval over trainings and groups of items.

    Args:
        scores: For each training, a score for each of its items.
        positive: For each training, whether each item is a positive one.
        groups: For each training, the question that each item belongs to; questions are drawn whole, and for all trainings alike.
        seed: Seed of the resampling.
        resamples: How often to resample.

    Returns:
        None where one class is absent.
    """
    found = [auroc(row, truth) for row, truth in zip(scores, positive, strict=True)]
    if not found or found[0] is None:
        return None
    number = {group: place for place, group in enumerate(dict.fromkeys(group for row in groups for group in row))}
    members = [np.array([number[group] for group in row]) for row in groups]
    values_of, truth_of = [np.asarray(row, dtype=float) for row in scores], [np.asarray(row, dtype=bool) for row in positive]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        times = rng.multinomial(len(number), np.full(len(number), 1 / len(number)))
        values = []
        for row in rng.integers(len(scores), size=len(scores)):
            items = np.repeat(np.arange(len(members[row])), times[members[row]])
            values.append(auroc(values_of[row][items], truth_of[row][items]))
        if values[0] is not None:
            drawn.append(float(np.mean([value for value in values if value is not None])))
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (0.0, 1.0)
    return Estimate(float(np.mean([value for value in found if value is not None])), float(low), float(high))


def paired_difference(new: Outcomes, base: Outcomes, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return by how much the share of successes differs, paired by training and question, with interval and p.

    The interval is that of `mean_over_seeds`, on the differences; where no outcome differs, as wide to either side as Wilson's
    for none of as many questions. With one training, p is McNemar's exact test on the
    questions on which the two differ (McNemar 1947); with more, the share of resampled differences on the other side of zero,
    doubled.
    """
    difference = np.asarray(new, dtype=float) - np.asarray(base, dtype=float)
    if not difference.any():  # resampling what is all the same shows no variation
        most = _wilson(0.0, difference.shape[1])[1]
        return Estimate(0.0, -most, most, 1.0)
    drawn = _resampled(difference, np.ones(difference.shape), seed, resamples)
    low, high = np.percentile(drawn, [2.5, 97.5])
    if len(difference) == 1:
        p = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    else:
        p = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())) + 1 / resamples)
    return Estimate(float(difference.mean()), float(low), float(high), p)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p of McNemar's test: how likely so uneven a split of the changed questions is by chance."""
    changed, fewer = gained + lost, min(gained, lost)
    if not changed:
        return 1.0
    tail = sum(math.comb(changed, count) for count in range(fewer + 1)) / 2**changed
    return float(min(1.0, 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for as many comparisons as there are (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = most
    return found
