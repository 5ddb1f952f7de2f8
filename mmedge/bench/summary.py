"""From the variants' replies to the report: accuracies, percentiles, ratios, shares of the machine's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmedge.bench.ceilings import Ceilings
from mmedge.bench.results import (
    AnswerScores,
    ConfidenceQuality,
    FailedVariant,
    Interval,
    Latency,
    MeasuredVariant,
    OfflineBlock,
    PairedRatio,
    Percentiles,
    Probe,
    Reached,
    ServerResult,
    Share,
    Throughput,
    VariantSamples,
)
from mmedge.bench.scenarios import PERCENTILES, seconds_of
from mmedge.bench.scheduler import Row, Said
from mmedge.bench.settings import BenchSettings
from mmedge.bench.timing import differs, mean_rate, quantile, ratio
from mmedge.manifest import Arithmetic
from mmedge.reports.formats import size
from mmedge.statistics import auroc, balanced_accuracy, calibration_error, percentile
from mmedge.storage import Json
from mmedge.tasks.evaluation_set import EvaluationSet, HeldOutCot
from mmedge.tasks.forms import AnswerForm


def processors_of(row: Row, settings: BenchSettings) -> int:
    """Return how many processors a variant computes on at once."""
    threads = int(row.opened["threads"])
    return min(threads, settings.cpus or threads)


def _identity(row: Row) -> dict[str, Any]:
    place = row.spec.place
    return {"name": row.name, "label": row.label, "folder": place.name, "kind": row.spec.kind, "place": str(place)}


def failed(row: Row) -> FailedVariant:
    """Return the report of a variant that could not be measured."""
    assert row.problem is not None
    return FailedVariant(**_identity(row), problem=row.problem.what, hint=row.problem.hint)


def measured(
    row: Row,
    base: Row,
    settings: BenchSettings,
    questions: EvaluationSet,
    cots: Sequence[HeldOutCot],
    ceilings: dict[int, Ceilings],
) -> MeasuredVariant:
    """Return the report of a variant that was measured.

    Args:
        row: The variant.
        base: The one that its times are compared with.
        settings: How much was measured.
        questions: What was asked.
        cots: The chains of thought that it judged.
        ceilings: By number of processors.
    """
    judged = [(verdict == "correct", held.correct) for verdict, held in zip(row.verdicts, cots, strict=True) if verdict is not None]
    says_correct, actual = [says for says, _ in judged], [truth for _, truth in judged]
    right = {split: _right(said, questions) for split, said in row.said.items()}
    resident = [int(look["resident_memory_bytes"]) for look in row.memory]
    per_token = [one["decode_seconds"] / one["decode_steps"] for one in _single(row) if one["decode_steps"]]
    decode = percentile(per_token, 50) if per_token else None
    return MeasuredVariant(
        **_identity(row),
        engine=row.opened["engine"],
        precision=row.opened["precision"],
        device=row.opened["device"],
        threads=row.opened["threads"],
        kernels=row.opened.get("kernels"),
        cpus=settings.cpus,
        memory_limit=None if settings.memory_limit is None else size(settings.memory_limit),
        answer_accuracy={split: Share.of([one for one in outcomes if one is not None]) for split, outcomes in right.items()},
        answer_scores={split: found for split, said in row.said.items() if (found := _scores(said, questions)) is not None},
        withheld=sum(one.withheld for said in row.said.values() for one in said),
        confidence=_confidence(row, right) if settings.ask == "confidence" else None,
        verdict_accuracy=Share.of([says == truth for says, truth in judged]),
        verdict_balanced_accuracy=balanced_accuracy(says_correct, actual),
        verdict_always_correct=Share.of(actual),
        latency_ms=_latency(row),
        ratio_to_first=_against(row, base),
        time_to_first_token_ms=_percentiles_ms([one["time_to_first_token"] for one in _single(row)]),
        inter_token_latency_ms=None if decode is None else 1000 * decode,
        tokens_per_second=1 / decode if decode else None,
        reached=_reached(row, decode, ceilings.get(processors_of(row, settings))),
        offline=[_throughput(batch, [OfflineBlock(**one) for one in blocks]) for batch, blocks in row.offline.items()],
        server=_served(row, settings) if row.server else None,
        load_seconds=percentile(row.load_seconds, 50),
        peak_memory_bytes=max(look["peak_memory_bytes"] for look in row.memory),
        steady_memory_bytes=int(percentile(resident, 50)),
        bytes_on_disk=row.opened["bytes_on_disk"],
        samples=_samples(row, questions.form, right, resident),
    )


def _single(row: Row) -> list[Json]:
    return [reply for one in row.single for reply in one]


def _right(said: Sequence[Said], questions: EvaluationSet) -> list[bool | None]:
    """Return whether each answer is right; None where no label says so."""
    return [
        None if one.example.label is None else questions.form.agrees(one.text, one.example.label, one.example.choices)
        for one in said
    ]


def _scores(said: Sequence[Said], questions: EvaluationSet) -> AnswerScores | None:
    """Return the scores of fields where the form of the answers has any."""
    pairs = [(one.text, one.example.label) for one in said if one.example.label is not None]
    found = questions.form.scores([text for text, _ in pairs], [label for _, label in pairs]) if pairs else None
    return None if found is None else AnswerScores.model_validate(found)


def _confidence(row: Row, right: dict[str, list[bool | None]]) -> ConfidenceQuality | None:
    pairs = [
        (float(one.confidence), bool(truth))
        for split, said in row.said.items()
        for one, truth in zip(said, right[split], strict=True)
        if truth is not None and one.confidence is not None
    ]
    if not pairs:
        return None
    values, truths = [value for value, _ in pairs], [truth for _, truth in pairs]
    return ConfidenceQuality(questions=len(pairs), calibration_error=calibration_error(values, truths), auroc=auroc(values, truths))


def _percentiles_ms(seconds: Sequence[float]) -> Percentiles | None:
    return Percentiles(**{f"p{p}": 1000 * percentile(seconds, p) for p in PERCENTILES}) if seconds else None


def _latency(row: Row) -> Latency | None:
    if not row.single:
        return None
    table = seconds_of(row.single)
    values: dict[str, Any] = {"count": sum(map(len, table)), "rounds": len(table)}
    for p in PERCENTILES:
        found = quantile(table, p)
        values |= {f"p{p}": 1000 * found.value, f"p{p}_interval_95": (1000 * found.low, 1000 * found.high)}
    return Latency(**values)


def _against(row: Row, base: Row) -> PairedRatio | None:
    if row is base or not row.single:
        return None
    table, other = seconds_of(row.single), seconds_of(base.single)
    return PairedRatio.of(ratio(table, other), differs=differs(table, other))


def _reached(row: Row, seconds_per_token: float | None, ceilings: Ceilings | None) -> Reached | None:
    """Return what shares of the machine's ceilings decoding reached; None where either is not known."""
    work = row.opened.get("work")
    if seconds_per_token is None or ceilings is None or row.opened["device"] != "cpu" or not work:
        return None
    kind: Arithmetic = work.get("arithmetic", "float32")
    return Reached(
        weight_bytes_per_token=work["bytes"],
        operations_per_token=work["operations"],
        bandwidth_share=ceilings.share_of_bandwidth(work["bytes"], seconds_per_token),
        arithmetic_share=ceilings.share_of_arithmetic(work["operations"], seconds_per_token, kind),
        arithmetic=kind,
    )


def _throughput(batch: int, blocks: list[OfflineBlock]) -> Throughput:
    joules = [one.energy.total_joules / one.answers for one in blocks if one.energy and one.energy.total_joules is not None]
    return Throughput(
        batch=batch,
        answers_per_second=Interval.of(mean_rate([one.answers / one.seconds for one in blocks])),
        tokens_per_second=percentile([one.tokens / one.seconds for one in blocks], 50),
        joules_per_answer=percentile(joules, 50) if joules else None,
        blocks=blocks,
    )


def _served(row: Row, settings: BenchSettings) -> ServerResult:
    probes = [Probe(**one) for one in row.server]
    held = max((probe.rate for probe in probes if probe.held), default=None)
    return ServerResult(latency_bound_ms=1000 * settings.latency_bound, answers_per_second=held, probes=probes)


def _samples(row: Row, form: AnswerForm, right: dict[str, list[bool | None]], resident: list[int]) -> VariantSamples:
    places = [(number, place) for number, one in enumerate(row.single) for place in range(len(one))]
    measured = ("seconds", "time_to_first_token", "decode_seconds", "decode_steps", "tokens")
    columns: dict[str, Any] = {name: [round(reply[name], 6) for reply in _single(row)] for name in measured}
    return VariantSamples(
        round=[number for number, _ in places],
        question=[place for _, place in places],
        timed_questions=row.timed,
        **columns,
        warmup_passes=[[round(value, 6) for value in passes] for passes in row.warmup],
        load_seconds=row.load_seconds,
        resident_memory_bytes=resident,
        ids={split: [one.example.id for one in said] for split, said in row.said.items()},
        answers={split: [form.readable(one.text) for one in said] for split, said in row.said.items()},
        confidences={split: [one.confidence for one in said] for split, said in row.said.items()},
        correct=right,
    )
