"""`mmedge evaluate`: does the student know when it is wrong?

The test questions are answered once with all evidence for confidences, and k chains of thought are sampled for each.
`evaluation_figures.py` computes what follows from the answers; this file collects them, in a journal, so that an
evaluation that was killed can continue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmedge.bench.evaluation_figures import AnsweredQuestion, TeacherAnswers, cascade_of, out_of_scope_of, split_of
from mmedge.bench.evaluation_results import CalibrationFacts, EvaluationReport, Price
from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.runtime.strategies import Sample, Strategy
from mmedge.runtime.student import Student
from mmedge.statistics import percentile
from mmedge.storage import Journal, sha256_file, sha256_json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, EvaluationSet, read_evaluation_set

ALL = "all"


@dataclass(frozen=True)
class EvaluationSettings:
    """How much to measure.

    Attributes:
        questions: Questions of each test split; None for all.
        samples: Chains of thought that are sampled for each question; 0 for none.
        temperature: Sampling temperature.
        seed: Sampling seed.
        batch: Questions answered together.
        timed: Questions that are answered one by one with every strategy, for its price in time; 0 for none.
    """

    questions: int | None = None
    samples: int = 5
    temperature: float = 0.7
    seed: int = 0
    batch: int = 16
    timed: int = 20

    @property
    def strategy(self) -> Strategy:
        """How chains of thought are sampled."""
        return Strategy("samples", max(1, self.samples), "both", self.temperature, self.seed)


def evaluate(
    student: Student,
    settings: EvaluationSettings,
    progress: Progress,
    evaluation: Path | None = None,
    journal: Path | None = None,
) -> EvaluationReport:
    """Measure how well a bundle knows when it is wrong.

    Args:
        student: The bundle, opened.
        settings: How much to measure.
        progress: Where progress is shown.
        evaluation: The evaluation set; that beside the bundle by default.
        journal: Where answers are kept until all are there, so that an evaluation that was killed continues; the caller removes
            it when the report is written.

    Raises:
        MmedgeError: The bundle's task has no labelled test questions, or another evaluation holds the journal.
    """
    bundle = student.bundle
    source = evaluation or bundle.folder.resolve().parent / FILE_NAME
    questions = _questions(source, student)
    splits = {
        name: labelled[: settings.questions]
        for name, examples in questions.tests().items()
        if (labelled := [example for example in examples if example.label is not None])
    }
    if not splits:
        raise MmedgeError(f"{source} has no labelled test questions", "add labels to its test questions")
    teacher = _teacher_answers(questions)
    outside = [example for examples in questions.tests().values() for example in examples if example.out_of_scope]
    key = sha256_json([bundle.manifest.identity(), asdict(replace(settings, timed=0)), sha256_file(source)])
    kept = Journal(journal, key) if journal else None
    if kept is not None and len(kept):
        progress.line(f"continuing: {len(kept)} batches are already answered")
    try:
        answered = {name: _answered(student, examples, name, settings, kept, progress) for name, examples in splits.items()}
        held_out = [examples[0] for examples in teacher.values()]
        doubted = _answered(
            student, outside[: settings.questions], "questions out of scope", replace(settings, samples=0), kept, progress
        )
        escalated = _answered(student, held_out, "held-out questions", replace(settings, samples=0), kept, progress)
        prices = _prices(student, next(iter(splits.values())), settings, progress)
    finally:
        if kept is not None:
            kept.close()
    everything = [one for found in answered.values() for one in found]
    if len(answered) > 1:
        answered[ALL] = everything
    return EvaluationReport(
        bundle=bundle.folder.name,
        recipe=bundle.manifest.recipe,
        task=questions.task,
        precision=bundle.manifest.precision,
        settings=asdict(settings),
        machine=machine(),
        confidence=_calibration(student),
        prices=prices,
        splits={name: split_of(student, found) for name, found in answered.items()},
        cascade=cascade_of(student, escalated, teacher),
        out_of_scope=out_of_scope_of(student, everything, doubted),
    )


def _questions(source: Path, student: Student) -> EvaluationSet:
    """Read an evaluation set.

    Raises:
        MmedgeError: It cannot be read, or has other answers than the bundle's task.
    """
    questions = read_evaluation_set(source)
    questions.check(student.bundle.form, source)
    return questions


def _teacher_answers(questions: EvaluationSet) -> TeacherAnswers:
    found: TeacherAnswers = {}
    for cots in questions.cots.values():
        for held in cots:
            if held.example.label is not None:
                _, right, characters = found.setdefault(held.example.id, (held.example, [], []))
                right.append(held.correct)
                characters.append(len(held.cot.rationale) + len(held.cot.pseudo_label))
    return found


def _answered(
    student: Student,
    examples: Sequence[Example],
    name: str,
    settings: EvaluationSettings,
    kept: Journal | None,
    progress: Progress,
) -> list[AnsweredQuestion]:
    """Answer questions batch by batch; batches that are in the journal are taken from there."""
    found: list[AnsweredQuestion] = []
    with progress.task(name, len(examples)) as step:
        for start in range(0, len(examples), settings.batch):
            batch = examples[start : start + settings.batch]
            place = f"{name}/{start}"
            stored = kept.get(place) if kept is not None else None
            if stored is None:
                shown = student.examined(batch)
                sampled = student.sampled(batch, settings.strategy) if settings.samples else [[] for _ in batch]
                stored = [
                    {"text": text, "evidence": asdict(evidence), "samples": [asdict(sample) for sample in samples]}
                    for (text, evidence), samples in zip(shown, sampled, strict=True)
                ]
                if kept is not None:
                    kept.put(place, stored)
            for example, one in zip(batch, stored, strict=True):
                agrees = student.bundle.form.agrees(one["text"], example.label or "", example.choices)
                right = agrees and not example.out_of_scope
                samples = [Sample(**sample) for sample in one["samples"]]
                found.append(AnsweredQuestion(example, one["text"], right, Evidence(**one["evidence"]), samples))
            step.advance(len(batch))
    return found


def _calibration(student: Student) -> CalibrationFacts:
    stated = student.bundle.manifest.confidence
    signals = stated.get("signals") or {}
    shown = {name: {key: value for key, value in found.items() if key != "confidences"} for name, found in signals.items()}
    return CalibrationFacts(questions=stated.get("questions"), chosen=stated.get("chosen"), why=stated.get("why"), signals=shown)


def _prices(student: Student, examples: Sequence[Example], settings: EvaluationSettings, progress: Progress) -> dict[str, Price]:
    """Return the time of each strategy, one question at a time, strategies taking turns."""
    if not settings.timed:
        return {}
    samples = settings.strategy
    retry = student.strategy_with("retry", samples=samples.samples)
    ways: dict[str, Callable[[Example], object]] = {
        "answer": lambda example: student.answer(example, strategy=Strategy()),
        "answer, rationale": lambda example: student.answer(example, explain=True, strategy=Strategy()),
        "answer, rationale, confidence": lambda example: student.answer(example, explain=True, strategy=Strategy("confidence")),
        f"{samples.samples} samples": lambda example: student.answer(example, strategy=samples),
        "retry": lambda example: student.answer(example, strategy=retry),
    }
    learned = student.bundle.manifest.student.learned
    if learned is not None and "rationale" not in learned:  # all others write rationales
        ways = {"answer": ways["answer"]}
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
    return {
        name: Price(
            p50_ms=1000 * percentile(taken, 50),
            mean_ms=1000 * sum(taken) / len(taken),
            times_answer=percentile([t / b for t, b in zip(taken, seconds["answer"], strict=True)], 50),
            mean_times_answer=sum(taken) / sum(seconds["answer"]),
            count=len(taken),
        )
        for name, taken in seconds.items()
    }
