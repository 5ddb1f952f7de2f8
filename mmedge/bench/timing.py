"""Statistics of times measured one after the other on a machine that drifts, stalls and remembers.

Variants are compared on pairs: the same question, in the same round, one right after the other, so that what slows the machine
slows both. Successive times resemble each other, so they say less than as many independent ones would; and two processes of
the very same program differ, by where their memory happens to lie (Kalibera and Jones 2013). So each round is a process of its
own, and from four rounds on intervals are Student's, over rounds. With fewer, blocks of neighbouring times are resampled that
are as long as the times' memory (moving block bootstrap; Künsch 1989, circular as in Politis and Romano 1992). Knows nothing of
processes or reports: tables of seconds go in, estimates come out.

    table = [[0.0031, 0.0040], [0.0030, 0.0042]]       two rounds over the same two questions
    quantile(table, 50)                                the median with its interval
    ratio(slow, fast)                                  how many times as long, paired
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mmedge.statistics import Estimate

TimeTable = Sequence[Sequence[float]]  # seconds, (rounds, questions)

RESAMPLES = 600
SURE = 0.999  # the interval that must exclude 1 before two variants are said to differ: 20 comparisons of equals raise no alarm
FEW_ROUNDS = 4  # from so many rounds on it is known what rounds, and so processes, differ by
ONE_PROCESS = (
    0.1  # by so much two of the same may differ where there are fewer: benchmarks/bench_noise.py saw 6 % on a busy machine
)
SETTLED = 0.05  # warm-up ends with a pass that is not by more than this share faster than the fastest before it
MOST_PASSES = 8
_CHUNK = 4_000_000  # times resampled at once


def memory(times: Sequence[float]) -> int:
    """Return how many neighbouring times are correlated: the length of a block to resample.

    Four times the integrated autocorrelation time, summed up to the first lag that is lost in noise, and at least twice the cube
    root of the count; never more than a fifth of it. Blocks half as long raise twice as many false alarms on a simulated machine
    that remembers, stalls and drifts (`tests/bench/test_timing.py`).
    """
    x = np.asarray(times, dtype=float)
    n = len(x)
    least = int(max(1, np.ceil(2 * np.cbrt(n))))
    if n < 10 or float(np.ptp(x)) == 0.0:
        return min(least, max(1, n // 5))
    ranks = np.argsort(np.argsort(x)).astype(float)  # a single stall of a second must not hide the correlation of the others
    ranks -= ranks.mean()
    variance = float(ranks @ ranks)
    total = 1.0
    for lag in range(1, n // 3):
        correlation = float(ranks[:-lag] @ ranks[lag:]) / variance
        if correlation < 2 / math.sqrt(n):
            break
        total += 2 * correlation
    return int(min(max(least, math.ceil(4 * total)), max(1, n // 5)))


def _block_starts(rng: np.random.Generator, count: int, block: int, resamples: int) -> NDArray[np.int64]:
    """Return places of resampled times, (resamples, count): blocks of neighbours, the end joined to the beginning."""
    starts = rng.integers(count, size=(resamples, math.ceil(count / block)))
    places = (starts[:, :, None] + np.arange(block)) % count
    return places.reshape(resamples, -1)[:, :count]


@lru_cache(maxsize=256)
def _student_t(level: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's t, by bisection of its distribution function (integrated by Simpson's rule)."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf((1 + level) / 2)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def inside(t: float) -> float:
        # t = √ν · tan a turns the density into a power of the cosine over a bounded angle
        angles = np.linspace(0.0, math.atan(t / math.sqrt(freedom)), 401)
        heights = np.cos(angles) ** (freedom - 1)
        weights = np.array([1.0, *([4.0, 2.0] * 199), 4.0, 1.0])
        return float(2 * scale * math.sqrt(freedom) * (weights @ heights) * (angles[1] / 3))

    low, high = 0.0, 1.0
    while inside(high) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return (low + high) / 2


def _widened(value: float, low: float, high: float, blocks: float, level: float) -> tuple[float, float]:
    """Widen an interval for the few blocks that it rests on.

    Resampling k things varies by (k − 1)/k of what they do, and how much they vary is itself known from k things only.
    """
    freedom = max(1.0, blocks - 1)
    factor = math.sqrt((freedom + 1) / freedom) * _student_t(level, freedom) / _student_t(level, math.inf)
    return value - (value - low) * factor, value + (high - value) * factor


def _between_rounds(logs: Sequence[float], level: float, least: int = FEW_ROUNDS) -> float:
    """Return half an interval of the mean of rounds, by Student's t; 0 for too few rounds."""
    if len(logs) < least:
        return 0.0
    return _student_t(level, len(logs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))


def _student(value: float, rounds: Sequence[float], level: float) -> Estimate:
    """Return an estimate with Student's interval over rounds; all in logarithms."""
    half = _between_rounds(rounds, level)
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half))


def _resampled(value: float, drawn: NDArray[np.float64], blocks: float, level: float) -> Estimate:
    """Return an estimate with a resampled interval; all in logarithms."""
    tail = 50 * (1 - level)
    low, high = (float(end) for end in np.percentile(drawn, [tail, 100 - tail]))
    low, high = _widened(value, min(low, value), max(high, value), blocks, level)
    return Estimate(math.exp(value), math.exp(low), math.exp(high))


def quantile(table: TimeTable, percent: float, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return a percentile of the times with an interval that says what another run on the same questions would give.

    With two or three rounds the questions stay as they are, and for each block of neighbouring questions the round is resampled;
    with one round the times themselves are resampled in blocks, so that the interval includes differences between questions.

    Args:
        table: Seconds, (rounds, questions), each round in the order of asking; positive.
        percent: 50 for the median.
        level: Level of the interval.
        seed: Seed of the resampling.
    """
    logs = np.log(np.asarray(table, dtype=float))
    rounds, count = logs.shape
    value = float(np.percentile(logs, percent))
    if rounds * count == 1:
        return Estimate(math.exp(value), math.exp(value), math.exp(value))
    if rounds >= FEW_ROUNDS:
        return _student(value, [float(np.percentile(one, percent)) for one in logs], level)
    rng = np.random.default_rng(seed)
    typical = np.median(logs, axis=0) if rounds > 1 else np.zeros(count)
    block = memory((logs - typical).ravel())
    drawn: list[NDArray[np.float64]] = []
    step = max(1, min(RESAMPLES, _CHUNK // (rounds * count)))
    for start in range(0, RESAMPLES, step):
        many = min(step, RESAMPLES - start)
        if rounds == 1:
            sample = logs[0][_block_starts(rng, count, block, many)]
        else:
            size = min(block, count)
            which = rng.integers(rounds, size=(many, rounds, math.ceil(count / size)))
            sample = logs[np.repeat(which, size, axis=2)[:, :, :count], np.arange(count)].reshape(many, -1)
        drawn.append(np.percentile(sample, percent, axis=1))
    found = np.concatenate(drawn)
    if rounds > 1:  # one of so few rounds varies less than one of all there could be
        found = value + (found - value) * math.sqrt(rounds / (rounds - 1))
    return _resampled(value, found, rounds * count / block, level)


def ratio(new: TimeTable, base: TimeTable, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return how many times as long `new` takes as `base`: the median over pairs, with an interval.

    Args:
        new: Seconds, (rounds, questions).
        base: The same questions in the same rounds, taken in turn with `new`.
        level: Level of the interval.
        seed: Seed of the resampling.
    """
    rows = np.log(np.asarray(new, dtype=float)) - np.log(np.asarray(base, dtype=float))
    pairs = rows.ravel()
    value = float(np.median(pairs))
    if len(pairs) == 1:
        return Estimate(math.exp(value), math.exp(value), math.exp(value))
    if len(rows) >= FEW_ROUNDS:
        return _student(value, [float(np.median(row)) for row in rows], level)
    rng = np.random.default_rng(seed)
    block = memory(pairs)
    drawn: list[NDArray[np.float64]] = []
    step = max(1, min(RESAMPLES, _CHUNK // len(pairs)))
    for start in range(0, RESAMPLES, step):
        drawn.append(np.median(pairs[_block_starts(rng, len(pairs), block, min(step, RESAMPLES - start))], axis=1))
    return _resampled(value, np.concatenate(drawn), len(pairs) / block, level)


def differs(new: TimeTable, base: TimeTable) -> bool:
    """Return whether one of two variants is slower beyond chance.

    The 99.9 % interval of their ratio excludes 1, and with fewer than four rounds, when it is not known how much processes
    differ, the ratio is beyond what processes differ by.
    """
    found = ratio(new, base, SURE)
    return not found.low <= 1 <= found.high and (len(new) >= FEW_ROUNDS or abs(math.log(found.value)) > math.log1p(ONE_PROCESS))


def half_width(found: Estimate) -> float:
    """Return half the interval as a share of the value."""
    return max(found.high - found.value, found.value - found.low) / found.value


def precise(tables: Sequence[TimeTable], precision: float) -> bool:
    """Return whether the medians of all variants, and their ratios to the first, are known as precisely as is wanted.

    Args:
        tables: Each variant's seconds, (rounds, questions); at least four rounds, or they are never precise.
        precision: Half an interval as a share of the value, such as 0.03.
    """
    if not tables or len(tables[0]) < FEW_ROUNDS:
        return not tables
    return all(half_width(quantile(table, 50)) <= precision for table in tables) and all(
        half_width(ratio(table, tables[0])) <= precision for table in tables[1:]
    )


def settled(passes: Sequence[float]) -> bool:
    """Return whether warm-up is over: the latest pass is not by more than 5 % faster than the fastest before, or there were eight.

    Args:
        passes: Seconds of each pass over the same few questions.
    """
    if len(passes) < 2:
        return False
    return passes[-1] > (1 - SETTLED) * min(passes[:-1]) or len(passes) >= MOST_PASSES


def mean_rate(rates: Sequence[float]) -> Estimate:
    """Return the typical rate of several blocks of work, the geometric mean, its interval by Student's t over blocks.

    With one or two blocks, which tell next to nothing of how blocks differ, the interval is their range.
    """
    logs = np.log(np.asarray(rates, dtype=float))
    value = float(logs.mean())
    half = _between_rounds(list(logs), 0.95, least=3)
    low, high = (value - half, value + half) if half else (float(logs.min()), float(logs.max()))
    return Estimate(math.exp(value), math.exp(low), math.exp(high))
