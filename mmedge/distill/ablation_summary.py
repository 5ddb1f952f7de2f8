"""The results of a comparison: every row's accuracy and verdicts with intervals, and what each row gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from mmedge.distill.ablation_plan import Unit
from mmedge.distill.durable import StageResult
from mmedge.distill.scoring import Signals, Verdicts
from mmedge.machine import MachineFacts
from mmedge.recipe import ROWS
from mmedge.statistics import (
    Estimate,
    auroc_over_seeds,
    balanced_accuracy,
    holm,
    mean_over_seeds,
    paired_difference,
    said_at_best_level,
)
from mmedge.storage import Json

SIGNAL_RESAMPLES = 200  # of thousands of questions from many trainings: more would take minutes

TITLES = {
    "standard": "labels only",
    "one_cot": "1 CoT",
    "one_cot_self_evaluation": "1 CoT + self-evaluation",
    "all_labels": "all labels, no rationales",
    "cots": "{m} CoTs",
    "cots_self_evaluation": "{m} CoTs + self-evaluation",
}


def title_of(row: str, cots: int) -> str:
    """Return the title of a row, for this many chains of thought per question."""
    return TITLES.get(row, row).format(m=cots).replace("1 CoTs", "1 CoT")


# --------------------------------------------------------------------------------------------- one training


class Judgements(BaseModel):
    """One student's verdicts on the held-out chains of thought, in their order.

    Attributes:
        confidences: P(correct) of each.
        correct: Whether each is right, as 0 or 1.
        said_correct: Whether the student says so.
    """

    confidences: list[float]
    correct: list[int]
    said_correct: list[int]


class TrainingResult(BaseModel):
    """What one training of a comparison ended with, as its `result.json` holds it.

    Attributes:
        row, labels, seed: Which training.
        method: The row's method.
        stages: What each stage ended with.
        lessons: How many lessons all stages took.
        after_stage1: Verdicts after stage 1; None without it.
        tests: By test, whether each question was answered right, as 0 or 1.
        oracle: By test, whether one of several sampled answers to each of its first questions was right, as 0 or 1.
        signals: By test, what the student showed of how likely its answers are right.
        verdicts: Verdicts at the end; None in a row without self-evaluation.
        wall_seconds: From loading the student to the last test; less where a killed training continued. None in older results.
    """

    row: str
    labels: str
    seed: int
    method: Json
    stages: dict[str, StageResult]
    lessons: int
    after_stage1: Judgements | None
    tests: dict[str, list[int]]
    oracle: dict[str, list[int]] = {}
    signals: dict[str, Signals] = {}
    verdicts: Judgements | None
    wall_seconds: float | None = None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages.values())


def judgements(found: Verdicts | None) -> Judgements | None:
    """Return verdicts as a result holds them."""
    if found is None:
        return None
    confidences = [round(value, 5) for value in found.confidences]
    return Judgements(confidences=confidences, correct=found.correct, said_correct=found.said_correct)


# --------------------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Difference:
    """What a row gains over another.

    Attributes:
        estimate: The difference of the shares of right answers.
        against: The other row's title.
        seeds: On how many seeds it rests.
    """

    estimate: Estimate
    against: str
    seeds: int


@dataclass(frozen=True)
class TestScore:
    """A row's answers to one test.

    Attributes:
        share: The share that is right over all seeds.
        by_seed: The same by seed.
        difference: What it gains.
        signals: How often a right answer has a higher score than a wrong one (AUROC), by what scores: the answer's own probability,
            or the verdict on it.
        oracle: How often one of several sampled answers is right, and what that gains over the greedy answers.
    """

    share: Estimate
    by_seed: dict[str, float]
    difference: Difference | None
    signals: dict[str, Estimate] = field(default_factory=dict)
    oracle: tuple[Estimate, Estimate] | None = None

    def to_json(self) -> Json:
        found: Json = {**self.share.to_json(), "by_seed": self.by_seed}
        found["signals"] = {name: area.to_json() for name, area in self.signals.items()}
        if self.oracle is not None:
            found["oracle"] = {**self.oracle[0].to_json(), "gain": self.oracle[1].to_json()}
        if self.difference is not None:
            rest = {"against": self.difference.against, "seeds": self.difference.seeds}
            found["difference"] = self.difference.estimate.to_json() | rest
        return found


@dataclass(frozen=True)
class JudgedCots:
    """A row's verdicts on the held-out chains of thought.

    Attributes:
        accuracy: The share that is right.
        accuracy_at_level: The same of P(correct) above a level that was chosen on the other half of the questions.
        balanced_accuracy: The mean of both classes' recalls, mean over the seeds; None where a class is missing.
        auroc: How often a right chain of thought has a higher P(correct) than a wrong one; None where a class is missing.
    """

    accuracy: Estimate
    accuracy_at_level: Estimate
    balanced_accuracy: float | None
    auroc: Estimate | None

    def to_json(self) -> Json:
        return {name: value.to_json() if isinstance(value, Estimate) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class ComparedRow:
    """One row of a comparison.

    Attributes:
        row, title, labels, method, seeds: What was trained.
        tests: Its answers.
        after_stage1, verdicts: Its verdicts after stage 1 and at the end.
        steps: Of each stage.
        lessons, tokens, seconds: Of one training, all stages together; the mean over the seeds.
        validations: For each seed, steps and answer accuracies of stage 2.
    """

    row: str
    title: str
    labels: str
    method: Json
    seeds: list[int]
    tests: dict[str, TestScore]
    after_stage1: JudgedCots | None
    verdicts: JudgedCots | None
    steps: dict[str, int]
    lessons: int
    tokens: int
    seconds: float
    validations: list[list[tuple[int, float]]]

    def to_json(self) -> Json:
        rest = {
            "tests": {name: score.to_json() for name, score in self.tests.items()},
            "after_stage1": self.after_stage1.to_json() if self.after_stage1 else None,
            "verdicts": self.verdicts.to_json() if self.verdicts else None,
        }
        return vars(self) | rest


@dataclass(frozen=True)
class MethodDecision:
    """Which method to use with one kind of labels: the cheapest of those that are not less accurate than the best beyond chance.

    Attributes:
        labels, test: What it is about.
        best: The title of the most accurate row.
        use: The title of the row to use: of the best and those that chance may have put below it, that with the fewest tokens.
        equal: Titles of those rows, the best included.
        behind: What the row to use gains over the best; None if it is the best.
        of: How many rows were compared, each with the best; p-values are corrected for that (Holm 1979).
    """

    labels: str
    test: str
    best: str
    use: str
    equal: list[str]
    behind: Estimate | None
    of: int

    def to_json(self) -> Json:
        return vars(self) | {"behind": self.behind.to_json() if self.behind else None}


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods, as `ablation.json` holds it.

    Attributes:
        recipe: Its name.
        equal: The budget that all rows share.
        seeds: Those that were trained.
        done, planned: How many trainings.
        cots: How many chains of thought a question has.
        test_questions: How many questions each test has.
        verdict_cots: How many held-out chains of thought verdicts are measured on.
        rows: The rows.
        decisions: Which to use, by kind of labels; none where there is only one row.
        machine: Where it was trained.
    """

    recipe: str
    equal: str
    seeds: list[int]
    done: int
    planned: int
    cots: int
    test_questions: dict[str, int]
    verdict_cots: int
    rows: list[ComparedRow]
    decisions: list[MethodDecision]
    machine: MachineFacts

    def to_json(self) -> Json:
        return {
            "recipe": self.recipe,
            "equal": self.equal,
            "seeds": self.seeds,
            "trainings": {"done": self.done, "planned": self.planned},
            "cots": self.cots,
            "test_questions": self.test_questions,
            "verdict_cots": self.verdict_cots,
            "rows": [row.to_json() for row in self.rows],
            "decisions": [decision.to_json() for decision in self.decisions],
            "machine": self.machine,
        }


def compared_rows(
    units: Sequence[Unit], found: Sequence[TrainingResult], cots: int, questions: Mapping[int, Sequence[str]]
) -> list[ComparedRow]:
    """Return the rows of what has been trained so far.

    Args:
        units: All trainings, in their order.
        found: What the first of them ended with.
        cots: How many chains of thought a question has.
        questions: By seed, the questions of the held-out chains of thought, in their order.
    """
    rows = []
    for labels in dict.fromkeys(unit.labels for unit in units):
        above: list[TrainingResult] = []
        for row in dict.fromkeys(unit.row for unit in units):
            results = [result for result in found if result.row == row and result.labels == labels]
            if not results:
                continue
            rows.append(_row(results, above, cots, questions))
            if row in ROWS:  # the recipe's own rows are all compared with the last of the paper's
                above = results
    return rows


def method_decisions(found: Sequence[TrainingResult], cots: int, test: str) -> list[MethodDecision]:
    """Return which method to use with each kind of labels, by the answers to one test; of rows that share all their seeds."""
    decisions = []
    for labels in dict.fromkeys(result.labels for result in found):
        rows: dict[str, dict[int, TrainingResult]] = {}
        for result in found:
            if result.labels == labels:
                rows.setdefault(result.row, {})[result.seed] = result
        seeds = sorted(set.intersection(*(set(row) for row in rows.values())))
        if len(rows) < 2 or not seeds:
            continue
        outcomes = {name: [row[seed].tests[test] for seed in seeds] for name, row in rows.items()}
        tokens = {name: _mean([row[seed].tokens for seed in seeds]) for name, row in rows.items()}
        best = max(rows, key=lambda name: _mean([_mean(one) for one in outcomes[name]]))
        gains = {name: paired_difference(outcomes[name], outcomes[best]) for name in rows if name != best}
        corrected = dict(zip(gains, holm([gain.p or 0.0 for gain in gains.values()]), strict=True))
        equal = [name for name in rows if name == best or corrected[name] >= 0.05]
        use = min(equal, key=lambda name: tokens[name])
        titles = [title_of(name, cots) for name in equal]
        decisions.append(
            MethodDecision(labels, test, title_of(best, cots), title_of(use, cots), titles, gains.get(use), len(gains))
        )
    return decisions


def _row(
    results: Sequence[TrainingResult], above: Sequence[TrainingResult], cots: int, questions: Mapping[int, Sequence[str]]
) -> ComparedRow:
    first = results[0]
    asked = [questions[result.seed] for result in results]
    return ComparedRow(
        row=first.row,
        title=title_of(first.row, cots),
        labels=first.labels,
        method=first.method,
        seeds=[result.seed for result in results],
        tests={name: _test(name, results, above, cots) for name in first.tests},
        after_stage1=_judged([result.after_stage1 for result in results], asked),
        verdicts=_judged([result.verdicts for result in results], asked),
        steps={name: stage.steps for name, stage in first.stages.items()},
        lessons=first.lessons,
        tokens=round(_mean([result.tokens for result in results])),
        seconds=round(_mean([result.seconds for result in results]), 1),
        validations=[
            [(entry.step, entry.details["answer"]["value"]) for entry in result.stages["stage2"].validations] for result in results
        ],
    )


def _test(name: str, results: Sequence[TrainingResult], above: Sequence[TrainingResult], cots: int) -> TestScore:
    pairs = [(a, b) for a in results for b in above if a.seed == b.seed]
    difference = None
    if pairs:
        estimate = paired_difference([a.tests[name] for a, _ in pairs], [b.tests[name] for _, b in pairs])
        difference = Difference(estimate, title_of(above[0].row, cots), len(pairs))
    by_seed = {str(result.seed): _mean(result.tests[name]) for result in results}
    share = mean_over_seeds([result.tests[name] for result in results])
    return TestScore(share, by_seed, difference, _areas(name, results), _oracle(name, results))


def _oracle(name: str, results: Sequence[TrainingResult]) -> tuple[Estimate, Estimate] | None:
    """Return how often one of the samples is right, and what that gains; None where a training has none."""
    sampled = [result.oracle.get(name, []) for result in results]
    if not all(sampled):
        return None
    greedy = [result.tests[name][: len(one)] for result, one in zip(results, sampled, strict=True)]
    return mean_over_seeds(sampled), paired_difference(sampled, greedy)


def _areas(name: str, results: Sequence[TrainingResult]) -> dict[str, Estimate]:
    """Return the AUROC of the signals that all trainings have of their answers to a test."""
    shown = [result.signals[name] for result in results if name in result.signals]
    scores = {"answer": [one.answer for one in shown], "answer_verdict": [one.answer_verdict for one in shown]}
    right = [list(map(bool, one.right)) for one in shown]
    groups = [[f"{number}/{place}" for place in range(len(one.right))] for number, one in enumerate(shown)]
    areas = {
        signal: auroc_over_seeds(rows, right, groups, resamples=SIGNAL_RESAMPLES)
        for signal, rows in scores.items()
        if shown and all(rows)
    }
    return {signal: area for signal, area in areas.items() if area is not None}


def _judged(verdicts: Sequence[Judgements | None], questions: Sequence[Sequence[str]]) -> JudgedCots | None:
    """Return how right several trainings' verdicts are, each on the held-out chains of thought of its own questions."""
    pairs = [(found, asked) for found, asked in zip(verdicts, questions, strict=True) if found]
    if not pairs:
        return None
    known = [found for found, _ in pairs]
    groups = [[f"{number}/{question}" for question in asked] for number, (_, asked) in enumerate(pairs)]
    correct = [list(map(bool, found.correct)) for found in known]
    levelled = [said_at_best_level(found.confidences, right, asked) for (found, asked), right in zip(pairs, correct, strict=True)]
    balanced = [balanced_accuracy(list(map(bool, one.said_correct)), right) for one, right in zip(known, correct, strict=True)]
    return JudgedCots(
        accuracy=_share_right([found.said_correct for found in known], correct, groups),
        accuracy_at_level=_share_right(levelled, correct, groups),
        balanced_accuracy=_mean([value for value in balanced if value is not None]) if None not in balanced else None,
        auroc=auroc_over_seeds([found.confidences for found in known], correct, groups),
    )


def _share_right(said: Sequence[Sequence[Any]], correct: Sequence[Sequence[bool]], groups: Sequence[Sequence[str]]) -> Estimate:
    """Return how many verdicts are right, with an interval over trainings and whole questions."""
    place = {group: number for number, group in enumerate(dict.fromkeys(group for row in groups for group in row))}
    successes, trials = ([[0] * len(place) for _ in groups] for _ in range(2))
    for row, (ones, right, asked) in enumerate(zip(said, correct, groups, strict=True)):
        for one, true, group in zip(ones, right, asked, strict=True):
            successes[row][place[group]] += bool(one) == true
            trials[row][place[group]] += 1
    return mean_over_seeds(successes, trials)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
