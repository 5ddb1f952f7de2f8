"""The report of a bench, typed; `schema.json` beside this file describes its JSON.

    report = BenchReport.read(Path("bench.json"))
    report.measured[0].latency_ms.p50
    write_json(path, report.to_json())

Fields are those of the JSON. Times are in seconds and sizes in bytes unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator

from mmedge.bench.ceilings import Ceilings
from mmedge.bench.energy import EnergyUse
from mmedge.bench.settings import Ask, BenchSettings, Scenario
from mmedge.bench.watch import WatchSummary
from mmedge.errors import MmedgeError
from mmedge.machine import MachineFacts
from mmedge.manifest import Arithmetic
from mmedge.statistics import Estimate, Proportion, proportion
from mmedge.storage import Json, read_json

FORMAT: Final = "mmedge-bench/3"

Pair = tuple[float, float]  # lower and upper end of a 95 % interval


class ReportPart(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Interval(ReportPart):
    """A value with its 95 % interval."""

    value: float
    interval_95: Pair

    @property
    def interval(self) -> Pair:
        return self.interval_95

    @classmethod
    def of(cls, found: Estimate, **more: Any) -> Self:
        return cls(value=found.value, interval_95=(found.low, found.high), **more)


class PairedRatio(Interval):
    """A ratio of times, and whether it differs from 1 by more than chance."""

    differs: bool


class Share(ReportPart):
    """A share of successes with its 95 % Wilson interval; the value is None where nothing was tried."""

    value: float | None
    interval_95: Pair
    successes: int
    total: int

    @property
    def interval(self) -> Pair:
        return self.interval_95

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Self:
        return cls.model_validate(proportion(outcomes).to_json())


class Percentiles(ReportPart):
    p50: float
    p90: float
    p99: float


class Latency(Percentiles):
    """Milliseconds of single answers, over all rounds."""

    p50_interval_95: Pair
    p90_interval_95: Pair
    p99_interval_95: Pair
    count: int
    rounds: int


class ConfidenceQuality(ReportPart):
    """How good confidences are: calibrated, and higher for right answers than for wrong ones."""

    questions: int
    calibration_error: float
    auroc: float | None


class Reached(ReportPart):
    """Decoding one token against the machine's ceilings."""

    weight_bytes_per_token: int
    operations_per_token: int
    bandwidth_share: float
    arithmetic_share: float
    arithmetic: Arithmetic


class OfflineBlock(ReportPart):
    """One block of the offline scenario."""

    answers: int
    seconds: float
    tokens: int
    energy: EnergyUse | None = None


class Throughput(ReportPart):
    """The offline scenario at one batch size."""

    batch: int
    answers_per_second: Interval
    tokens_per_second: float
    joules_per_answer: float | None
    blocks: list[OfflineBlock]


class Probe(ReportPart):
    """One rate that the server scenario tried."""

    rate: float
    arrivals: int
    answered: int
    held: bool
    p50_ms: float
    p90_ms: float
    p99_ms: float
    answers_per_second: float
    latencies: list[float]


class ServerResult(ReportPart):
    """The server scenario; `answers_per_second` is the highest rate that was held."""

    latency_bound_ms: float
    answers_per_second: float | None
    probes: list[Probe]


class VariantSamples(ReportPart):
    """Every sample: columns of equal length for times, lists by split for answers."""

    round: list[int]
    question: list[int]
    timed_questions: list[str]
    seconds: list[PositiveFloat]
    time_to_first_token: list[float]
    decode_seconds: list[float]
    decode_steps: list[int]
    tokens: list[int]
    warmup_passes: list[list[float]]
    load_seconds: list[float]
    resident_memory_bytes: list[int]
    ids: dict[str, list[str]]
    answers: dict[str, list[str]]
    confidences: dict[str, list[float | None]]
    correct: dict[str, list[bool | None]]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not len(self.round) == len(self.question) == len(self.seconds):
            raise ValueError("times without their questions")
        if any(place >= len(self.timed_questions) for place in self.question):
            raise ValueError("a time of a question that is not named")
        if {split: len(ids) for split, ids in self.ids.items()} != {split: len(right) for split, right in self.correct.items()}:
            raise ValueError("answers without their questions")
        return self

    def rounds(self) -> list[dict[str, float]]:
        """Return the seconds of each round by question (split and id)."""
        table: dict[int, dict[str, float]] = {}
        for number, place, seconds in zip(self.round, self.question, self.seconds, strict=True):
            table.setdefault(number, {})[self.timed_questions[place]] = seconds
        return [one for _, one in sorted(table.items())]


class VariantResult(ReportPart):
    """A variant; its name follows from engine, precision and device alone, whatever else is measured.

    The label also tells it apart from others of that name in the same report, by its place or its threads.
    """

    name: str
    label: str = ""
    folder: str
    kind: str
    place: str

    @property
    def shown(self) -> str:
        return self.label or self.name


class FailedVariant(VariantResult):
    """A variant that could not be measured."""

    problem: str
    hint: str

    @property
    def why(self) -> str:
        return f"{self.problem} → {self.hint}" if self.hint else self.problem


class FieldScore(ReportPart):
    """How often a field of structured answers was right; None where it was never written, or no label has it."""

    f1: float | None
    precision: float | None
    recall: float | None
    labels: int


class AnswerScores(ReportPart):
    """What structured answers are worth beyond being right as a whole: the share that is valid, and their fields."""

    answers: int
    valid: float
    all_fields: FieldScore
    fields: dict[str, FieldScore]


class MeasuredVariant(VariantResult):
    """A variant that was measured; what belongs to another scenario is None, or empty.

    `kernels` is the instruction set that the native engine used; None for other engines.
    """

    problem: None = None
    engine: str
    precision: str
    device: str
    threads: int
    kernels: str | None = None
    cpus: int | None
    memory_limit: str | None
    answer_accuracy: dict[str, Share]
    answer_scores: dict[str, AnswerScores] = {}
    withheld: int
    confidence: ConfidenceQuality | None
    verdict_accuracy: Share
    verdict_balanced_accuracy: float | None
    verdict_always_correct: Share
    latency_ms: Latency | None
    ratio_to_first: PairedRatio | None
    time_to_first_token_ms: Percentiles | None
    inter_token_latency_ms: float | None
    tokens_per_second: float | None
    reached: Reached | None
    offline: list[Throughput]
    server: ServerResult | None
    load_seconds: float
    peak_memory_bytes: PositiveInt
    steady_memory_bytes: int
    bytes_on_disk: PositiveInt
    samples: VariantSamples

    @property
    def overall(self) -> Proportion:
        """The share of right answers over all splits."""
        shares = self.answer_accuracy.values()
        return Proportion(sum(one.successes for one in shares), sum(one.total for one in shares))


class RemoteFacts(ReportPart):
    """Where something was measured with `--remote`, and how the packages came to be there."""

    host: str
    python: str
    machine: str
    packages: str


class ShippingDecision(ReportPart):
    """Which variant to ship, why, and what to keep in mind; `ship` is None where no variant could be measured."""

    ship: str | None
    sentence: str
    caveats: list[str]


class BenchReport(ReportPart):
    """A report of `mmedge bench`."""

    format: Literal["mmedge-bench/3"] = FORMAT
    task: str
    questions: dict[str, int]
    questions_in_set: dict[str, int]
    ask: Ask
    scenarios: list[Scenario]
    settings: BenchSettings
    precision_reached: bool | None
    continued: int
    machine: MachineFacts
    watch: WatchSummary
    noisy: list[str]
    ceilings: list[Ceilings]
    batch: int = 1
    variants: list[MeasuredVariant | FailedVariant]
    decision: ShippingDecision | None = None
    remote: RemoteFacts | None = None

    @property
    def measured(self) -> list[MeasuredVariant]:
        return [variant for variant in self.variants if isinstance(variant, MeasuredVariant)]

    @property
    def failed(self) -> list[FailedVariant]:
        return [variant for variant in self.variants if isinstance(variant, FailedVariant)]

    def to_json(self) -> Json:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Any, source: Path | str) -> Self:
        """Return a report that was read.

        Args:
            value: The JSON value.
            source: Where it was read from, for the error.

        Raises:
            MmedgeError: It is something else, has another format, or parts of it are missing.
        """
        if not isinstance(value, dict) or not isinstance(value.get("variants"), list):
            raise MmedgeError(f"{source} is not a report of mmedge bench", "name a bench.json")
        if value.get("format") != FORMAT:
            raise MmedgeError(
                f"{source} has format {value.get('format')!r}; this version reads {FORMAT!r}", "run mmedge bench again"
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise MmedgeError(
                f"{source} is not a complete report: {where}: {first['msg'].lower()}", "run mmedge bench again"
            ) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report from its file.

        Raises:
            MmedgeError: See `from_json`.
        """
        return cls.from_json(read_json(path), path)
