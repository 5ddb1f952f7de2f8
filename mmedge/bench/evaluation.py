"""`mmedge evaluate`: does the student know when it is wrong?

The test questions are answered once with everything that a confidence is made of, and k chains of thought are drawn for each.
From these come the accuracy, and for every signal (the answer's own probability, the student's evaluation of itself, both
together, the agreement of the samples) how well it tells right answers from wrong ones, how well calibrated it is, and what
withholding or handing on the doubtful answers is worth. Maps and thresholds are those that export chose on validation questions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.runtime.confidence import SIGNALS, Signal, features_of
from mmedge.runtime.strategies import Choice, Sample, Strategy, vote
from mmedge.runtime.student import Student
from mmedge.statistics import (
    Estimate,
    accuracy_at,
    auroc,
    bootstrap,
    calibration_by_chance,
    calibration_error,
    confidence_bins,
    paired_difference,
    percentile,
    proportion,
    risk_area,
    risk_coverage,
)
from mmedge.storage import Journal, sha256_file, sha256_json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, EvaluationSet, read_evaluation_set

SAMPLES = "samples"  # the signal beside those of the runtime: the share of drawn answers that agree with the greedy one
COVERAGES = (0.7, 0.8, 0.9)
CHOICES: tuple[Choice, ...] = ("majority", "self_evaluation", "both")
TARGETS = (0.8, 0.9, 0.95)
SHARES = (0.1, 0.2, 0.3)
ALL = "all"
FEW = 15  # right or wrong answers below which an AUROC has no interval


@dataclass(frozen=True)
class EvaluationSettings:
    """How much to measure.

    Attributes:
        questions: How many questions of each test split; None for all.
        samples: How many chains of thought are drawn for each question; 0 for none.
        temperature: Of drawing.
        seed: Of drawing.
        batch: Questions answered together.
        timed: Questions that are answered one by one by every strategy, for its price in time; 0 for none.
        threads: As in `Student.load`.
    """

    questions: int | None = None
    samples: int = 5
    temperature: float = 0.7
    seed: int = 0
    batch: int = 16
    timed: int = 20
    threads: int | None = None


@dataclass
class Asked:
    """One question, answered.

    Attributes:
        example: The question.
        text: The greedy answer.
        right: Whether it is right.
        evidence: What the student showed.
        samples: What was drawn.
    """

    example: Example
    text: str
    right: bool
    evidence: Evidence
    samples: list[Sample] = field(default_factory=list)


def evaluate(
    bundle: Path,
    settings: EvaluationSettings,
    progress: Progress,
    evaluation: Path | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Measure how well a bundle knows when it is wrong.

    Args:
        bundle: The bundle's folder.
        settings: How much to measure.
        progress: Where progress is shown.
        evaluation: The evaluation set; that beside the bundle by default.
        journal: Where answers are kept until all are there, so that an evaluation that was killed continues; the caller removes
            it when the report is written.

    Returns:
        The report as a JSON-able value; `evaluation_report.py` renders it.

    Raises:
        MmedgeError: The bundle cannot be opened, or there are no labelled test questions.
    """
    student = Student.load(bundle, settings.threads)
    source = evaluation or bundle.resolve().parent / FILE_NAME
    questions = read_evaluation_set(source)
    if questions.form.name != student.bundle.form.name:
        raise MmedgeError(
            f"{source} is about another task: its answers are judged by {questions.form.name}, the bundle's by "
            f"{student.bundle.form.name}",
            "name the evaluation set that was written beside the student: --evaluation FILE",
        )
    splits = {
        name: [example for example in examples if example.label is not None][: settings.questions]
        for name, examples in questions.tests().items()
    }
    splits = {name: examples for name, examples in splits.items() if examples}
    if not splits:
        raise MmedgeError(f"{source} has no labelled test questions")
    teacher = _teacher_answers(questions)
    held_out = [examples[0] for examples in teacher.values()]
    key = sha256_json(
        [
            student.bundle.manifest.identity(),
            asdict(replace(settings, timed=0, threads=None)),  # which change no answer
            sha256_file(source),
        ]
    )
    kept = Journal(journal, key) if journal else None
    if kept is not None and len(kept):
        progress.line(f"continues: {len(kept)} batches are answered already")
    try:
        asked = {name: _asked(student, examples, name, settings, kept, progress) for name, examples in splits.items()}
        cascaded = _asked(student, held_out, "held-out questions", settings, kept, progress, draws=False)
        prices = _prices(student, next(iter(splits.values())), settings, progress)
    finally:
        if kept is not None:
            kept.close()
    if len(asked) > 1:
        asked[ALL] = [one for found in asked.values() for one in found]
    return {
        "bundle": bundle.name,
        "recipe": student.bundle.manifest.recipe,
        "task": questions.task,
        "precision": student.bundle.manifest.precision,
        "settings": asdict(settings),
        "machine": machine(),
        "confidence": _calibration(student),
        "prices": prices,
        "splits": {name: _split(student, found, settings) for name, found in asked.items()},
        "cascade": _cascade(student, cascaded, teacher),
    }


def _teacher_answers(questions: EvaluationSet) -> dict[str, tuple[Example, list[bool], list[int]]]:
    """Return for each held-out question the example, whether each of the teacher's answers is right, and their characters."""
    found: dict[str, tuple[Example, list[bool], list[int]]] = {}
    for cots in questions.cots.values():
        for held in cots:
            if held.example.label is not None:
                _, right, characters = found.setdefault(held.example.id, (held.example, [], []))
                right.append(held.correct)
                characters.append(len(held.cot.rationale) + len(held.cot.pseudo_label))
    return found


def _asked(
    student: Student,
    examples: Sequence[Example],
    name: str,
    settings: EvaluationSettings,
    kept: Journal | None,
    progress: Progress,
    *,
    draws: bool = True,
) -> list[Asked]:
    """Answer questions batch by batch; batches that are in the journal are taken from there."""
    strategy = Strategy("samples", max(1, settings.samples), "both", settings.temperature, settings.seed)
    found: list[Asked] = []
    with progress.task(name, len(examples)) as step:
        for start in range(0, len(examples), settings.batch):
            batch = examples[start : start + settings.batch]
            place = f"{name}/{start}"
            stored = kept.get(place) if kept is not None else None
            if stored is None:
                shown = student.examined(batch)
                drawn = student.sampled(batch, strategy) if settings.samples and draws else [[] for _ in batch]
                stored = [
                    {"text": text, "evidence": asdict(evidence), "samples": [asdict(sample) for sample in samples]}
                    for (text, evidence), samples in zip(shown, drawn, strict=True)
                ]
                if kept is not None:
                    kept.put(place, stored)
            for example, one in zip(batch, stored, strict=True):
                right = student.bundle.form.agrees(one["text"], example.label or "", example.choices)
                samples = [Sample(**sample) for sample in one["samples"]]
                found.append(Asked(example, one["text"], right, Evidence(**one["evidence"]), samples))
            step.advance(len(batch))
    return found


# ------------------------------------------------------------------------------------------------------------- figures


def _confidences(student: Student, asked: Sequence[Asked], signal: str) -> list[float] | None:
    """Return P(right) of each answer by a signal; None where the bundle or the settings do not have it."""
    if signal == SAMPLES:
        if not asked or not asked[0].samples:
            return None
        judge = student.bundle.form
        return [
            sum(judge.agrees(sample.text, one.text, one.example.choices) for sample in one.samples) / len(one.samples)
            for one in asked
        ]
    name: Signal = next(known for known in SIGNALS if known == signal)
    if student.confidence is not None:
        return student.confidence.of([one.evidence for one in asked], name)
    if name == "combined":
        return None
    scores = np.array([float(features_of(one.evidence, name)[0]) for one in asked])
    return [float(value) for value in 1 / (1 + np.exp(-scores))]


def _split(student: Student, asked: Sequence[Asked], settings: EvaluationSettings) -> dict[str, Any]:
    right = [one.right for one in asked]
    signals: dict[str, Any] = {}
    values: dict[str, list[float]] = {}
    for signal in (*SIGNALS, SAMPLES):
        confidences = _confidences(student, asked, signal)
        if confidences is not None:
            values[signal] = confidences
            signals[signal] = signal_figures(confidences, right)
    differences = {
        f"{signal} - {base}": _json(_auroc_difference(values[signal], values[base], right))
        for signal, base in (("evaluation", "answer"), ("combined", "answer"), ("combined", SAMPLES))
        if signal in values and base in values
    }
    return {
        "questions": len(asked),
        "accuracy": proportion(right).to_json(),
        "signals": signals,
        "auroc_differences": differences,
        "abstaining": _abstaining(student, values, right),
        "strategies": _strategies(student, asked, settings),
        "answers": [
            {
                "id": one.example.id,
                "answer": one.text,
                "right": one.right,
                "confidence": {signal: round(found[place], 5) for signal, found in values.items()},
                "samples": [sample.text for sample in one.samples],
            }
            for place, one in enumerate(asked)
        ],
    }


def signal_figures(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """Return how well confidences tell right answers from wrong ones, and how well calibrated they are, with intervals."""
    p, truth = np.asarray(confidences), np.asarray(right, dtype=bool)

    def of(statistic: Callable[[list[float], list[bool]], float | None]) -> dict[str, Any] | None:
        return _json(bootstrap(lambda drawn: statistic(p[drawn].tolist(), truth[drawn].tolist()), len(truth)))

    def accuracy_of(share: float) -> dict[str, Any] | None:
        found = accuracy_at(confidences, right, share)
        if found in (0.0, 1.0):  # resampling what is all the same shows no variation
            return proportion([bool(found)] * max(1, math.ceil(share * len(truth) - 1e-9))).to_json()
        return of(lambda c, r: accuracy_at(c, r, share))

    coverage, risk = risk_coverage(confidences, right)
    fewer = min(int(truth.sum()), int((~truth).sum()))
    area = of(auroc)
    if area is not None and fewer < FEW:  # a handful of questions drawn anew and anew says nothing of others
        area = {"value": area["value"], "interval_95": None, "fewer": fewer}
    at = {f"{share:g}": accuracy_of(share) for share in COVERAGES}
    return {
        "auroc": area,
        "calibration_error": {
            "value": calibration_error(confidences, right),
            "by_chance": calibration_by_chance(confidences),
        },
        "risk_coverage_area": of(risk_area),
        "accuracy_at": at,
        "gain_at": {
            f"{share:g}": of(lambda c, r, share=share: accuracy_at(c, r, share) - float(np.mean(r)))  # type: ignore[misc]
            for share in COVERAGES
        },
        "risk_coverage": _thinned(coverage, risk),
        "reliability": _reliability(p, truth),
    }


def _json(found: Estimate | None) -> dict[str, Any] | None:
    return found.to_json() if found is not None else None


def _thinned(coverage: Sequence[float], risk: Sequence[float], most: int = 200) -> list[tuple[float, float]]:
    step = max(1, len(coverage) // most)
    places = [*range(step - 1, len(coverage) - 1, step), len(coverage) - 1]
    return [(round(coverage[place], 5), round(risk[place], 5)) for place in places]


def _reliability(p: np.ndarray[Any, np.dtype[np.float64]], truth: np.ndarray[Any, np.dtype[np.bool_]]) -> list[dict[str, Any]]:
    """Return for bins of equally many answers the mean confidence and the share of right ones."""
    return [
        {"confidence": float(p[part].mean()), "right": proportion(truth[part].tolist()).to_json()} for part in confidence_bins(p)
    ]


def _auroc_difference(left: Sequence[float], base: Sequence[float], right: Sequence[bool]) -> Estimate | None:
    a, b, truth = np.asarray(left), np.asarray(base), np.asarray(right, dtype=bool)

    def difference(drawn: Any) -> float | None:
        one, other = auroc(a[drawn].tolist(), truth[drawn].tolist()), auroc(b[drawn].tolist(), truth[drawn].tolist())
        return None if one is None or other is None else one - other

    return bootstrap(difference, len(truth))


def _abstaining(student: Student, values: dict[str, list[float]], right: Sequence[bool]) -> list[dict[str, Any]]:
    """Return what thresholds that were chosen on validation questions do on these."""
    if student.confidence is None:
        return []
    signal = student.confidence.chosen
    confidences, truth = np.asarray(values[signal]), np.asarray(right, dtype=bool)
    found: list[dict[str, Any]] = []
    aims: list[dict[str, float | None]] = [{"target_accuracy": value, "max_handed_on": None} for value in TARGETS]
    aims += [{"target_accuracy": None, "max_handed_on": value} for value in SHARES]
    for aim in aims:
        try:
            threshold = student.confidence.threshold(target_accuracy=aim["target_accuracy"], max_withheld=aim["max_handed_on"])
        except MmedgeError as error:
            found.append({**aim, "problem": error.what})
            continue
        given = confidences >= threshold.value
        found.append(
            {
                **aim,
                "threshold": threshold.value,
                "on_validation": {"accuracy": threshold.accuracy, "handed_on": threshold.withheld},
                "accuracy_of_given": proportion(truth[given].tolist()).to_json(),
                "withheld": proportion((~given).tolist()).to_json(),
            }
        )
    return found


def _strategies(student: Student, asked: Sequence[Asked], settings: EvaluationSettings) -> dict[str, Any]:
    """Return how accurate each way of choosing an answer is, and how it differs from answering at once."""
    greedy = [one.right for one in asked]
    found: dict[str, Any] = {"answer": {"accuracy": proportion(greedy).to_json(), "difference": None}}
    if not asked[0].samples:
        return found
    judge = student.bundle.form

    def chosen(one: Asked, choose_by: Choice) -> bool:
        place, _ = vote(one.samples, judge, one.example.choices, choose_by)
        return judge.agrees(one.samples[place].text, one.example.label or "", one.example.choices)

    for choose_by in CHOICES:
        outcomes = [chosen(one, choose_by) for one in asked]
        found[f"{settings.samples} samples, {choose_by}"] = _compared(outcomes, greedy)
    confidences = _confidences(student, asked, student.confidence.chosen if student.confidence else "answer") or []
    doubtful = [p < student.strategy_with("retry").retry_below for p in confidences]
    outcomes = [
        chosen(replace(one, samples=[_greedy(one), *one.samples]), "both") if doubt else one.right
        for one, doubt in zip(asked, doubtful, strict=True)
    ]
    found["retry"] = {**_compared(outcomes, greedy), "retried": proportion(doubtful).to_json()}
    return found


def _greedy(one: Asked) -> Sample:
    """Return the greedy answer as one more sample."""
    odds = one.evidence.evaluation or 0.0
    return Sample(one.text, "", float(1 / (1 + np.exp(-odds))))


def _compared(outcomes: Sequence[bool], base: Sequence[bool]) -> dict[str, Any]:
    difference = paired_difference([[float(right) for right in outcomes]], [[float(right) for right in base]])
    return {"accuracy": proportion(outcomes).to_json(), "difference": difference.to_json()}


def _cascade(
    student: Student, asked: Sequence[Asked], teacher: dict[str, tuple[Example, list[bool], list[int]]]
) -> dict[str, Any] | None:
    """Return what handing the least confident questions on to the recorded teacher gives, by the share handed on.

    Where the teacher answered a question several times, the mean over its answers counts.
    """
    if not asked:
        return None
    theirs = np.array([float(np.mean(teacher[one.example.id][1])) for one in asked])
    characters = np.array([float(np.mean(teacher[one.example.id][2])) for one in asked])
    own = np.array([float(one.right) for one in asked])
    signal = student.confidence.chosen if student.confidence else "answer"
    confidences = np.array(_confidences(student, asked, signal))
    order = np.argsort(confidences, kind="stable")
    curve = []
    for count in range(len(asked) + 1):
        answered = own.copy()
        answered[order[:count]] = theirs[order[:count]]
        curve.append((count / len(asked), float(answered.mean())))

    def mean_of(values: Any) -> dict[str, Any] | None:
        return _json(bootstrap(lambda drawn: float(values[drawn].mean()), len(values)))

    points = []
    for share in (*SHARES, 0.5):
        if student.confidence is None:
            break
        threshold = student.confidence.threshold(max_withheld=share)
        handed = confidences < threshold.value
        answered = np.where(handed, theirs, own)
        points.append(
            {
                "max_handed_on": share,
                "threshold": threshold.value,
                "handed_on": proportion(handed.tolist()).to_json(),
                "accuracy": mean_of(answered),
                "gain_over_student": mean_of(answered - own),
                "teacher_characters_per_question": float((characters * handed).mean()),
            }
        )
    return {
        "questions": len(asked),
        "signal": signal,
        "student": mean_of(own),
        "teacher": mean_of(theirs),
        "teacher_characters_per_question": float(characters.mean()),
        "curve": [(round(share, 5), round(accuracy, 5)) for share, accuracy in curve],
        "points": points,
    }


def _calibration(student: Student) -> dict[str, Any]:
    stated = student.bundle.manifest.confidence
    signals = stated.get("signals") or {}
    shown = {name: {key: value for key, value in found.items() if key != "confidences"} for name, found in signals.items()}
    return {"questions": stated.get("questions"), "chosen": stated.get("chosen"), "why": stated.get("why"), "signals": shown}


def _prices(student: Student, examples: Sequence[Example], settings: EvaluationSettings, progress: Progress) -> dict[str, Any]:
    """Return what each strategy costs in time: ratios to answering at once, one question at a time, strategies taking turns."""
    if not settings.timed:
        return {}
    drawn = Strategy("samples", max(1, settings.samples), temperature=settings.temperature, seed=settings.seed)
    ways: dict[str, Callable[[Example], object]] = {
        "answer": lambda example: student.answer(example, strategy=Strategy()),
        "answer, rationale": lambda example: student.answer(example, explain=True, strategy=Strategy()),
        "answer, rationale, confidence": lambda example: student.answer(example, explain=True, strategy=Strategy("confidence")),
        f"{drawn.samples} samples": lambda example: student.answer(example, strategy=drawn),
        "retry": lambda example: student.answer(example, strategy=student.strategy_with("retry", samples=drawn.samples)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(examples[0])
    with progress.task("what strategies cost", settings.timed) as step:
        for number in range(settings.timed):
            example = examples[number % len(examples)]
            for name, way in ways.items():
                started = time.perf_counter()
                way(example)
                seconds[name].append(time.perf_counter() - started)
            step.advance(1)
    base = percentile(seconds["answer"], 50)
    return {
        name: {
            "p50_ms": 1000 * percentile(taken, 50),
            "mean_ms": 1000 * sum(taken) / len(taken),
            "times_answer": percentile([t / b for t, b in zip(taken, seconds["answer"], strict=True)], 50),
            "mean_times_answer": sum(taken) / sum(seconds["answer"]),
            "count": len(taken),
        }
        for name, taken in seconds.items()
    } | {"base_ms": 1000 * base}
