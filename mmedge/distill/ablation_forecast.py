"""What a comparison will cost, and what difference between two methods it can see: `mmedge ablate RECIPE --plan`.

Costs are the tokens of every row, counted in the lessons of its first steps, at a rate that finished trainings had or that a
few steps of one row are timed at. Power is that of a paired comparison of two rows' answers, over questions and seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mmedge.distill.ablation_summary import TrainingResult
from mmedge.distill.chain import StageChain
from mmedge.distill.objectives import UnseenSection
from mmedge.distill.streams import EncodedStream
from mmedge.distill.training import StageTrainer
from mmedge.reports.formats import NOTHING, duration, number
from mmedge.reports.tables import Table
from mmedge.statistics import POWER_80
from mmedge.storage import Json
from mmedge.students.student import TorchStudent

COUNTED_STEPS = 3  # of each stage, whose lessons' tokens are counted
PROBED_STEPS = 3
# What is assumed of two rows where too few trainings have finished to know it; as on the embedded task with 3,000 questions:
BETWEEN_TRAININGS = 0.018  # standard deviation of the difference of two trainings' accuracies
DISAGREE = 0.3  # share of the questions that one row answers right and the other wrong
FEW_SEEDS = 3  # of two rows, from which their differences' spread is taken


@dataclass(frozen=True)
class RowForecast:
    """One row.

    Attributes:
        title, labels: Which.
        planned, done: Trainings.
        lessons, tokens: Of one training; folds' students are counted.
        seconds: Of one training, with its tests where finished ones say how long these take.
    """

    title: str
    labels: str
    planned: int
    done: int
    lessons: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """A comparison before it is trained.

    Attributes:
        rows: The rows.
        tokens_per_second: At which their times are told.
        measured: Where the rate comes from.
        detectable: By test, the smallest difference of two rows' shares of right answers that is found with 80 % power.
        spread: Where that comes from.
        seeds: How many there are.
    """

    rows: list[RowForecast]
    tokens_per_second: float
    measured: str
    detectable: dict[str, float]
    spread: str
    seeds: int

    def seconds(self, workers: int = 1) -> float:
        """Return how long what is left takes, on so many workers."""
        return sum((row.planned - row.done) * row.seconds for row in self.rows) / workers

    def to_json(self) -> Json:
        return vars(self) | {"rows": [vars(row) for row in self.rows], "seconds_left": self.seconds()}


def tokens_of_training(chain: StageChain, student: TorchStudent) -> int:
    """Return about how many tokens a training takes, from the lessons of the first steps of each of its stages."""
    total = 0.0
    for stage in chain.stages:
        limit, seed = chain.recipe.training.max_target_tokens, chain.recipe.seed
        counts = []
        for place, stream in enumerate(chain.streams(stage, student)):
            if stream.objective.lessons(0):  # some come from what a student has yet to write
                encoded = EncodedStream(stream, student.encoder, limit, seed, f"{stage.name}/{place}")
                lessons = [one for step in range(COUNTED_STEPS) for group in encoded.batch(step) for one in group]
                counts.append(sum(lesson.tokens for lesson in lessons) / COUNTED_STEPS)
        total += (chain.section(stage).max_steps or 0) * sum(counts)
    method = chain.recipe.method
    folds = [section.folds for section in method.objectives.values() if isinstance(section, UnseenSection)]
    return round(total * (1 + sum(count - 1 for count in folds)))  # each fold's student learns from the other folds


def probed_rate(trainer: StageTrainer) -> float:
    """Return the tokens a second of a few steps; the student learns them, and nothing is kept."""
    trainer.runner.prepare()
    trainer.runner.take(0)  # the first one also allocates
    started = time.perf_counter()
    tokens = sum(trainer.runner.take(step)[1] for step in range(1, PROBED_STEPS + 1))
    return tokens / (time.perf_counter() - started)


def detectable(found: Sequence[TrainingResult], questions: Mapping[str, int], seeds: int) -> tuple[dict[str, float], str]:
    """Return by test the smallest difference of two rows that is found with 80 % power, and where its spread comes from.

    Args:
        found: Trainings that have finished.
        questions: How many questions each test has.
        seeds: How many seeds each row has in the end.
    """
    variances = {name: _variance(found, name) for name in questions}
    if all(value is not None for value in variances.values()):
        spread = "the differences of finished trainings"
    else:
        spread = (
            f"assumed: {100 * BETWEEN_TRAININGS:.1f} points between two trainings, {100 * DISAGREE:.0f} % of questions answered"
            " differently"
        )
        variances = {name: BETWEEN_TRAININGS**2 + DISAGREE / count for name, count in questions.items()}
    return {name: POWER_80 * math.sqrt((value or 0.0) / seeds) for name, value in variances.items()}, spread


def _variance(found: Sequence[TrainingResult], test: str) -> float | None:
    """Return the variance of two rows' difference from seed to seed, the mean over pairs; None where too few have finished."""
    shares: dict[tuple[str, str], dict[int, float]] = {}
    for one in found:
        shares.setdefault((one.labels, one.row), {})[one.seed] = float(np.mean(one.tests[test]))
    values = []
    for (first, a), (second, b) in combinations(shares.items(), 2):
        both = sorted(a.keys() & b.keys())
        if first[0] == second[0] and len(both) >= FEW_SEEDS:
            values.append(float(np.var([a[seed] - b[seed] for seed in both], ddof=1)))
    return float(np.mean(values)) if values else None


def table(forecast: Forecast) -> Table:
    """Return a forecast as a table."""
    rows = [
        [
            f"{row.title}, {row.labels} labels",
            str(row.planned),
            str(row.done),
            f"{row.lessons:,}",
            f"{row.tokens / 1000:,.0f} k",
            duration(row.seconds) if row.seconds else NOTHING,
        ]
        for row in forecast.rows
    ]
    headings = ["row", "trainings", "done", "lessons each", "tokens each", "time each"]
    return Table("what it will cost", headings, rows)


def words(forecast: Forecast, workers: int, folder: Path) -> list[str]:
    """Return a forecast's sentences."""
    left = sum(row.planned - row.done for row in forecast.rows)
    at = f"{number(forecast.tokens_per_second, 0)} tokens/s, {forecast.measured}"
    side = "" if workers == 1 else f" on {workers} workers that are as fast as this process"
    seen = ", ".join(f"{100 * value:.1f} points on {name}" for name, value in forecast.detectable.items())
    seeds = f"{forecast.seeds} seeds" if forecast.seeds > 1 else "one seed"
    alone = "; this says nothing of other trainings" if forecast.seeds == 1 else ""
    return [
        f"{left} trainings are left in {folder}: about {duration(forecast.seconds(workers))}{side} ({at}).",
        f"Smallest difference between two rows found with {seeds} and 80 % power: {seen} ({forecast.spread}){alone}.",
    ]
