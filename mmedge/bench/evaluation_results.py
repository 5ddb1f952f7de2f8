"""The report of `mmedge evaluate`, typed; fields are its JSON's. What bundle or settings do not have is None or empty."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mmedge.bench.results import Interval, Pair, ReportPart, Share
from mmedge.machine import MachineFacts
from mmedge.storage import Json


class PairedDifference(Interval):
    """A difference, with its p-value where that is known."""

    p: float | None = None


class Auroc(ReportPart):
    """An AUROC; without an interval if there are fewer than `FEW` answers of one kind: `fewer` of them."""

    value: float
    interval_95: Pair | None
    fewer: int


class CalibrationError(ReportPart):
    """An expected calibration error, and what that of honest confidences stays below 19 times of 20."""

    value: float
    by_chance: float


class ReliabilityBin(ReportPart):
    """Answers of about the same confidence: its mean, and the share of right ones."""

    confidence: float
    right: Share


class SignalQuality(ReportPart):
    """How well a signal separates right from wrong answers; accuracies and gains by the share of questions answered."""

    auroc: Auroc | None
    calibration_error: CalibrationError
    risk_coverage_area: Interval | None
    accuracy_at: dict[str, Interval | None]
    gain_at: dict[str, PairedDifference | None]
    risk_coverage: list[Pair]
    reliability: list[ReliabilityBin]


class OnValidation(ReportPart):
    """What a threshold does on the validation questions that it was chosen on."""

    accuracy: float
    withheld: float


class Abstaining(ReportPart):
    """What a threshold chosen for an aim on validation questions does on these; or why there is none.

    Where there are questions out of scope too, `withheld` is of the others, and an answer to them counts as wrong.
    """

    target_accuracy: float | None = None
    max_withheld: float | None = None
    problem: str | None = None
    threshold: float | None = None
    on_validation: OnValidation | None = None
    accuracy_of_given: Share | None = None
    withheld: Share | None = None
    withheld_out_of_scope: Share | None = None


class StrategyResult(ReportPart):
    """How accurate a strategy is, and how it differs from answering at once."""

    accuracy: Share
    difference: PairedDifference | None = None
    retried: Share | None = None


class FieldQuality(ReportPart):
    """How well the confidences of structured answers' fields tell right ones from wrong ones; the interval is over questions."""

    fields: int
    right: float
    auroc: Interval | None
    calibration_error: float


class OutOfScope(ReportPart):
    """How well confidences tell questions out of scope from the others; any answer to one is wrong.

    Attributes:
        by_name: What thresholds on the confidence of a function's name do, chosen on validation questions (`max_withheld`) or
            fixed; empty for answers that are no calls.
    """

    questions: int
    in_scope: int
    auroc: dict[str, Auroc | None]
    abstaining: list[Abstaining]
    by_name: list[Abstaining] = Field(default_factory=list)


class AnsweredRecord(ReportPart):
    """One question's answer, and its confidence by signal."""

    id: str
    answer: str
    right: bool
    confidence: dict[str, float]
    samples: list[str]


class SplitResult(ReportPart):
    """One test split, or all of them together."""

    questions: int
    accuracy: Share
    signals: dict[str, SignalQuality]
    auroc_differences: dict[str, PairedDifference | None]
    abstaining: list[Abstaining]
    strategies: dict[str, StrategyResult]
    fields: FieldQuality | None = None
    answers: list[AnsweredRecord]


class CascadePoint(ReportPart):
    """A threshold that escalates at most a share of the validation questions, on held-out ones."""

    max_escalated: float
    threshold: float
    escalated: Share
    accuracy: Interval
    gain_over_student: PairedDifference
    teacher_characters_per_question: float


class EscalationCurve(ReportPart):
    """What escalating the least confident questions to the recorded teacher gives; the curve is (share escalated, accuracy)."""

    questions: int
    signal: str
    student: Interval
    teacher: Interval
    teacher_characters_per_question: float
    curve: list[Pair]
    points: list[CascadePoint]


class Price(ReportPart):
    """What a strategy costs in time, one question at a time; `times` are ratios to answering at once."""

    p50_ms: float
    mean_ms: float
    times_answer: float
    mean_times_answer: float
    count: int


class CalibrationFacts(ReportPart):
    """How the bundle's confidence was calibrated."""

    questions: int | None
    chosen: str | None
    why: str | None
    signals: dict[str, dict[str, Any]]


class EvaluationReport(ReportPart):
    """A report of `mmedge evaluate`."""

    bundle: str
    recipe: str
    task: str
    precision: str
    settings: dict[str, int | float | None]
    machine: MachineFacts
    confidence: CalibrationFacts
    prices: dict[str, Price]
    splits: dict[str, SplitResult]
    cascade: EscalationCurve | None
    out_of_scope: OutOfScope | None = None

    def to_json(self) -> Json:
        return self.model_dump(mode="json")
