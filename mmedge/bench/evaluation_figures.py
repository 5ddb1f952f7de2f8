"""How well a student knows when it is wrong, computed from its answers and their evidence.

For every signal (the answer's own probability, the student's evaluation of itself, both together, the agreement of the samples):
how well it separates right from wrong answers, how well calibrated it is, and what withholding or escalating the doubtful ones
is worth. Maps and thresholds are those that export chose on validation questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.bench.evaluation_results import (
    Abstaining,
    AnsweredRecord,
    Auroc,
    CalibrationError,
    CascadePoint,
    EscalationCurve,
    FieldQuality,
    OnValidation,
    OutOfScope,
    PairedDifference,
    ReliabilityBin,
    SignalQuality,
    SplitResult,
    StrategyResult,
)
from mmedge.bench.results import Interval, Share
from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError
from mmedge.runtime.confidence import OF_SEVERAL, SIGNALS, Signal, features_of, fields_of, has_signal
from mmedge.runtime.strategies import Choice, Sample, vote
from mmedge.runtime.student import Student
from mmedge.statistics import (
    Estimate,
    accuracy_of_risk,
    auroc,
    auroc_over_seeds,
    bootstrap,
    bootstrap_all,
    calibration_by_chance,
    calibration_error,
    confidence_bins,
    paired_difference,
    proportion,
    risk_coverage,
)
from mmedge.tasks.base import Example
from mmedge.tasks.forms.tools import ToolsForm

SAMPLES = "samples"  # the signal beside those of the runtime: the share of sampled answers that agree with the greedy one
COVERAGES = (0.7, 0.8, 0.9)
CHOICES: tuple[Choice, ...] = ("majority", "self_evaluation", "both")  # the last two of students that learned to judge
TARGETS = (0.8, 0.9, 0.95)
SHARES = (0.1, 0.2, 0.3)
NAME = "name"  # the field of a call that says which function
NAME_LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # thresholds on its confidence
NAME_SHARES = (0.02, 0.05, 0.1, 0.2)  # of validation questions, that thresholds chosen on them withhold at most
AIMS = (*((target, None) for target in TARGETS), *((None, share) for share in SHARES))  # accuracy, most withheld
FEW = 15  # right or wrong answers below which an AUROC has no interval

TeacherAnswers = dict[str, tuple[Example, list[bool], list[int]]]  # by question: whether each is right, and its characters


@dataclass
class AnsweredQuestion:
    """One question, answered.

    Attributes:
        example: The question.
        text: The greedy answer.
        right: Whether it is right.
        evidence: What the student showed.
        samples: What was sampled.
    """

    example: Example
    text: str
    right: bool
    evidence: Evidence
    samples: list[Sample] = field(default_factory=list)


def _confidences(student: Student, answered: Sequence[AnsweredQuestion], signal: str) -> list[float] | None:
    """Return P(right) of each answer by a signal; None where the bundle or the settings do not have it."""
    if signal == SAMPLES:
        if not answered or not answered[0].samples:
            return None
        form = student.bundle.form
        return [
            sum(form.agrees(sample.text, one.text, one.example.choices) for sample in one.samples) / len(one.samples)
            for one in answered
        ]
    name: Signal = next(known for known in SIGNALS if known == signal)
    if name != "answer" and (not answered or not has_signal(answered[0].evidence, name)):
        return None
    if student.confidence is not None and name not in student.confidence.maps:
        return None
    if student.confidence is not None:
        return student.confidence.of([one.evidence for one in answered], name)
    if name in OF_SEVERAL:
        return None
    scores = np.array([float(features_of(one.evidence, name)[0]) for one in answered])
    return [float(value) for value in 1 / (1 + np.exp(-scores))]


def _chosen_signal(student: Student) -> Signal:
    return student.confidence.chosen if student.confidence else "answer"


def split_of(student: Student, answered: Sequence[AnsweredQuestion]) -> SplitResult:
    """Return the result of one test split."""
    right = [one.right for one in answered]
    found = {signal: _confidences(student, answered, signal) for signal in (*SIGNALS, SAMPLES)}
    values = {signal: confidences for signal, confidences in found.items() if confidences is not None}
    against = (("answer_verdict", "answer"), ("evaluation", "answer"), ("combined", "answer"), ("combined", SAMPLES))
    pairs = [(one, base) for one, base in against if {one, base} <= values.keys()]
    return SplitResult(
        questions=len(answered),
        accuracy=Share.of(right),
        signals={signal: signal_quality(confidences, right) for signal, confidences in values.items()},
        auroc_differences={f"{one} - {base}": _auroc_difference(values[one], values[base], right) for one, base in pairs},
        abstaining=_abstaining(student, values, right),
        strategies=_strategies(student, answered),
        fields=_fields(student, answered),
        answers=[
            AnsweredRecord(
                id=one.example.id,
                answer=student.bundle.form.readable(one.text),
                right=one.right,
                confidence={signal: round(confidences[place], 5) for signal, confidences in values.items()},
                samples=[student.bundle.form.readable(sample.text) for sample in one.samples],
            )
            for place, one in enumerate(answered)
        ],
    )


def _fields(student: Student, answered: Sequence[AnsweredQuestion]) -> FieldQuality | None:
    """Return how good the confidences of fields are; None where answers have none, or are not calibrated."""
    confidences, right, questions = list[float](), list[bool](), list[str]()
    for number, one in enumerate(answered):
        stated = fields_of(student.confidence, one.evidence) or {}
        truth = student.bundle.form.fields_right(one.text, one.example.label or "")
        for path in stated.keys() & truth.keys():
            confidences.append(stated[path])
            right.append(truth[path])
            questions.append(str(number))
    if not right:
        return None
    found = auroc_over_seeds([confidences], [right], [questions])
    return FieldQuality(
        fields=len(right),
        right=sum(right) / len(right),
        auroc=None if found is None else Interval.of(found),
        calibration_error=calibration_error(confidences, right),
    )


# ------------------------------------------------------------------------------------------------------------- signals


def signal_quality(confidences: Sequence[float], right: Sequence[bool]) -> SignalQuality:
    """Return how well confidences separate right from wrong answers, and how well calibrated they are, with intervals."""
    p, truth = np.asarray(confidences), np.asarray(right, dtype=bool)

    def of(indices: NDArray[np.int64]) -> list[float | None]:
        drawn, outcomes = p[indices], truth[indices]
        risk, mean = risk_coverage(drawn, outcomes)[1], float(np.mean(outcomes))
        accuracies = [accuracy_of_risk(risk, share) for share in COVERAGES]
        return [auroc(drawn, outcomes), float(np.mean(risk)), *accuracies, *(one - mean for one in accuracies)]

    area, risk_coverage_area, *found = bootstrap_all(of, len(truth))
    accuracies, gains = found[: len(COVERAGES)], found[len(COVERAGES) :]

    def accuracy_of(share: float, found: Estimate | None) -> Interval | None:
        if found is not None and found.value in (0.0, 1.0):  # resampling identical outcomes shows no variation
            same = proportion([bool(found.value)] * max(1, math.ceil(share * len(truth) - 1e-9)))
            return Interval(value=same.value, interval_95=same.interval)
        return _interval(found)

    return SignalQuality(
        auroc=_auroc(area, min(int(truth.sum()), int((~truth).sum()))),
        calibration_error=CalibrationError(
            value=calibration_error(confidences, right), by_chance=calibration_by_chance(confidences)
        ),
        risk_coverage_area=_interval(risk_coverage_area),
        accuracy_at={f"{share:g}": accuracy_of(share, one) for share, one in zip(COVERAGES, accuracies, strict=True)},
        gain_at={f"{share:g}": _difference(one) for share, one in zip(COVERAGES, gains, strict=True)},
        risk_coverage=_thinned(*risk_coverage(confidences, right)),
        reliability=[
            ReliabilityBin(confidence=float(p[part].mean()), right=Share.of(truth[part].tolist())) for part in confidence_bins(p)
        ],
    )


def _interval(found: Estimate | None) -> Interval | None:
    return None if found is None else Interval.of(found)


def _difference(found: Estimate | None) -> PairedDifference | None:
    return None if found is None else PairedDifference.of(found, p=found.p)


def _auroc(found: Estimate | None, fewer: int) -> Auroc | None:
    """Return an AUROC; without an interval if there are too few answers of one kind to resample."""
    if found is None:
        return None
    return Auroc(value=found.value, interval_95=None if fewer < FEW else (found.low, found.high), fewer=fewer)


def _thinned(coverage: Sequence[float], risk: Sequence[float], most: int = 200) -> list[tuple[float, float]]:
    step = max(1, len(coverage) // most)
    places = [*range(step - 1, len(coverage) - 1, step), len(coverage) - 1]
    return [(round(coverage[place], 5), round(risk[place], 5)) for place in places]


def _auroc_difference(one: Sequence[float], base: Sequence[float], right: Sequence[bool]) -> PairedDifference | None:
    a, b, truth = np.asarray(one), np.asarray(base), np.asarray(right, dtype=bool)

    def difference(indices: NDArray[np.int64]) -> float | None:
        areas = [auroc(values[indices].tolist(), truth[indices].tolist()) for values in (a, b)]
        return None if areas[0] is None or areas[1] is None else areas[0] - areas[1]

    return _difference(bootstrap(difference, len(truth)))


# ------------------------------------------------------------------------------------------------------------- decisions


def _abstaining(
    student: Student, values: dict[str, list[float]], right: Sequence[bool], inside: Sequence[bool] = ()
) -> list[Abstaining]:
    """Return what thresholds chosen on validation questions do on these; `inside` says which are in scope, by default all."""
    if student.confidence is None:
        return []
    confidences, truth = np.asarray(values[student.confidence.chosen]), np.asarray(right, dtype=bool)
    known = np.asarray(inside or [True] * len(truth), dtype=bool)
    found: list[Abstaining] = []
    for target, share in AIMS:
        aim = Abstaining(target_accuracy=target, max_withheld=share)
        try:
            threshold = student.confidence.threshold(target_accuracy=target, max_withheld=share)
        except MmedgeError as error:
            found.append(aim.model_copy(update={"problem": error.what}))
            continue
        validation = OnValidation(accuracy=threshold.accuracy, withheld=threshold.withheld)
        shares = _withheld_below(threshold.value, confidences, truth, known)
        found.append(aim.model_copy(update={"on_validation": validation, **shares}))
    return found


def _withheld_below(
    threshold: float, confidences: NDArray[np.float64], right: NDArray[np.bool_], known: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return what a threshold does as fields of `Abstaining`; `known` says which questions are in scope."""
    given = confidences >= threshold
    return {
        "threshold": threshold,
        "accuracy_of_given": Share.of(right[given].tolist()),
        "withheld": Share.of((~given[known]).tolist()),
        "withheld_out_of_scope": None if known.all() else Share.of((~given[~known]).tolist()),
    }


def out_of_scope_of(student: Student, inside: Sequence[AnsweredQuestion], outside: Sequence[AnsweredQuestion]) -> OutOfScope | None:
    """Return how well confidences tell questions out of scope from others, and what thresholds withhold of both.

    Args:
        student: The bundle, opened.
        inside: Answers to labelled test questions.
        outside: Answers to test questions out of scope; None is returned without any.
    """
    if not outside:
        return None
    answered, known = [*inside, *outside], [True] * len(inside) + [False] * len(outside)
    truth = np.array(known)
    values: dict[str, list[float]] = {
        signal: found for signal in SIGNALS if (found := _confidences(student, answered, signal)) is not None
    }

    def area(confidences: Sequence[float]) -> Auroc | None:
        p = np.asarray(confidences)
        return _auroc(bootstrap(lambda places: auroc(p[places], truth[places]), len(p)), min(len(inside), len(outside)))

    areas: dict[str, Auroc | None] = {signal: area(confidences) for signal, confidences in values.items()}
    right, by_name = [one.right for one in answered], []
    if student.bundle.form.name == ToolsForm.name:  # which function is meant says more than how
        names = [(fields_of(student.confidence, one.evidence) or {}).get(NAME, 0.0) for one in answered]
        areas[NAME] = area(names)
        levels: list[tuple[float, float | None]] = [(level, None) for level in NAME_LEVELS]
        if student.confidence is not None and NAME in student.confidence.fields_given:
            levels = [(student.confidence.field_threshold(NAME, share), share) for share in NAME_SHARES] + levels
        by_name = [
            Abstaining(max_withheld=share, **_withheld_below(level, np.asarray(names), np.asarray(right), truth))
            for level, share in levels
        ]
    abstaining = _abstaining(student, values, right, known)
    return OutOfScope(questions=len(outside), in_scope=len(inside), auroc=areas, abstaining=abstaining, by_name=by_name)


def _strategies(student: Student, answered: Sequence[AnsweredQuestion]) -> dict[str, StrategyResult]:
    """Return how accurate each way of choosing an answer is, and how it differs from answering at once."""
    greedy = [one.right for one in answered]
    found = {"answer": StrategyResult(accuracy=Share.of(greedy))}
    if not answered[0].samples:
        return found
    form = student.bundle.form

    def chosen(one: AnsweredQuestion, choose_by: Choice) -> bool:
        place, _ = vote(one.samples, form, one.example.choices, choose_by)
        return form.agrees(one.samples[place].text, one.example.label or "", one.example.choices)

    def compared(outcomes: Sequence[bool], retried: Share | None = None) -> StrategyResult:
        difference = paired_difference([[float(one) for one in outcomes]], [[float(one) for one in greedy]])
        return StrategyResult(accuracy=Share.of(outcomes), difference=_difference(difference), retried=retried)

    for choose_by in CHOICES if student.judges else ("majority",):
        name = f"{len(answered[0].samples)} samples, {choose_by}"
        found[name] = compared([chosen(one, choose_by) for one in answered])
    if not student.judges:
        return found
    confidences = _confidences(student, answered, _chosen_signal(student)) or []
    doubtful = [p < student.strategy_with("retry").retry_below for p in confidences]
    outcomes = [
        chosen(replace(one, samples=[_greedy(one), *one.samples]), "both") if doubt else one.right
        for one, doubt in zip(answered, doubtful, strict=True)
    ]
    found["retry"] = compared(outcomes, Share.of(doubtful))
    return found


def _greedy(one: AnsweredQuestion) -> Sample:
    """Return the greedy answer as one more sample."""
    odds = one.evidence.evaluation or 0.0
    return Sample(one.text, "", float(1 / (1 + np.exp(-odds))))


def cascade_of(student: Student, answered: Sequence[AnsweredQuestion], teacher: TeacherAnswers) -> EscalationCurve | None:
    """Return what escalating the least confident questions to the recorded teacher gains, by the share escalated.

    Where the teacher answered a question several times, the mean over its answers counts.
    """
    if not answered:
        return None
    theirs = np.array([float(np.mean(teacher[one.example.id][1])) for one in answered])
    characters = np.array([float(np.mean(teacher[one.example.id][2])) for one in answered])
    own = np.array([float(one.right) for one in answered])
    signal = _chosen_signal(student)
    confidences = np.array(_confidences(student, answered, signal))
    order = np.argsort(confidences, kind="stable")
    curve = []
    for count in range(len(answered) + 1):
        together = own.copy()
        together[order[:count]] = theirs[order[:count]]
        curve.append((round(count / len(answered), 5), round(float(together.mean()), 5)))

    def mean_of(values: NDArray[np.float64]) -> Estimate:
        found = bootstrap(lambda indices: float(values[indices].mean()), len(values))
        assert found is not None
        return found

    points = []
    for share in (*SHARES, 0.5):
        if student.confidence is None:
            break
        threshold = student.confidence.threshold(max_withheld=share)
        doubtful = confidences < threshold.value
        together = np.where(doubtful, theirs, own)
        points.append(
            CascadePoint(
                max_escalated=share,
                threshold=threshold.value,
                escalated=Share.of(doubtful.tolist()),
                accuracy=Interval.of(mean_of(together)),
                gain_over_student=PairedDifference.of(mean_of(together - own)),
                teacher_characters_per_question=float((characters * doubtful).mean()),
            )
        )
    return EscalationCurve(
        questions=len(answered),
        signal=signal,
        student=Interval.of(mean_of(own)),
        teacher=Interval.of(mean_of(theirs)),
        teacher_characters_per_question=float(characters.mean()),
        curve=curve,
        points=points,
    )
