"""A bench report as tables in the terminal, as Markdown, and as a page to look at; the JSON is the report itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mmedge.bench.results import BenchReport, MeasuredVariant
from mmedge.bench.timing import FEW_ROUNDS
from mmedge.errors import MmedgeError
from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart
from mmedge.reports.formats import NOTHING, estimate, number, share, share_of, significant, size
from mmedge.reports.page import Page
from mmedge.reports.tables import Column, Table
from mmedge.storage import write_json, write_text

ASKED = {"answer": "the answer only", "rationale": "answer and rationale", "confidence": "answer and confidence"}
_PAGE_ONLY = ("load s", "steady MB", "verdicts, balanced")


def write_report(report: BenchReport, folder: Path) -> str:
    """Write a report as `bench.json`, `.md` and `.html`, beside a fuller one of the same task as `bench-partial`.

    Returns:
        The files' name without its ending.
    """
    name = "bench"
    try:
        before = BenchReport.read(folder / "bench.json")
        if before.task == report.task and sum(before.questions.values()) > sum(report.questions.values()):
            name = "bench-partial"
    except MmedgeError:
        pass  # there is none, or none worth keeping
    write_json(folder / f"{name}.json", report.to_json())
    write_text(folder / f"{name}.md", markdown(report))
    page(report).write(folder / f"{name}.html")
    return name


# ------------------------------------------------------------------------------------------------------- tables


def _fields(variant: MeasuredVariant, split: str) -> str:
    found = variant.answer_scores.get(split)
    return number(found.all_fields.f1, 3) if found is not None else ""


def _summary(report: BenchReport) -> Table:
    """Return the table of all variants; the times are also ratios to the first that was measured."""
    columns: list[tuple[str, Callable[[MeasuredVariant], str]]] = []
    for split in report.questions:
        columns.append((f"answers: {split}", lambda v, split=split: share_of(v.answer_accuracy.get(split))))  # type: ignore[misc]
        if any(split in variant.answer_scores for variant in report.measured):
            columns.append((f"fields, F1: {split}", lambda v, split=split: _fields(v, split)))  # type: ignore[misc]
    if any(variant.verdict_accuracy.total for variant in report.measured):
        columns.append(("verdicts", lambda v: share_of(v.verdict_accuracy)))
        columns.append(("verdicts, balanced", lambda v: number(v.verdict_balanced_accuracy, 3)))
    if report.ask == "confidence":
        columns.append(("AUROC", lambda v: number(v.confidence.auroc if v.confidence else None, 3)))
        columns.append(("calibration error", lambda v: number(v.confidence.calibration_error if v.confidence else None, 3)))
    columns.append(("threads", lambda v: str(v.threads)))
    if "single" in report.scenarios:
        columns += [
            ("ms/answer p50", lambda v: estimate(v.latency_ms.p50, v.latency_ms.p50_interval_95) if v.latency_ms else NOTHING),
            ("p90", lambda v: significant(v.latency_ms.p90 if v.latency_ms else None)),
            ("p99", lambda v: significant(v.latency_ms.p99 if v.latency_ms else None)),
            ("× time", _against),
            ("first token ms", lambda v: significant(v.time_to_first_token_ms.p50 if v.time_to_first_token_ms else None)),
            ("tokens/s decoding", lambda v: number(v.tokens_per_second, 0)),
        ]
    columns += [
        ("load s", lambda v: significant(v.load_seconds)),
        ("peak MB", lambda v: number(v.peak_memory_bytes / 1e6, 0)),
        ("steady MB", lambda v: number(v.steady_memory_bytes / 1e6, 0)),
        ("disk MB", lambda v: number(v.bytes_on_disk / 1e6)),
    ]
    rows = [[variant.shown, *(cell(variant) for _, cell in columns)] for variant in report.measured]
    headings: list[str | Column] = [Column("variant", "left", wraps=False), *(heading for heading, _ in columns)]
    return Table(f"bench: {report.task}", headings, rows)


def _against(variant: MeasuredVariant) -> str:
    found = variant.ratio_to_first
    if found is None:
        return "1"
    return estimate(found.value, found.interval_95) + ("" if found.differs else " =")


def _failed(report: BenchReport) -> Table:
    return Table("not measured", ["variant", Column("why", "left")], [[one.shown, one.why] for one in report.failed])


def _offline(report: BenchReport) -> Table:
    headings = [
        "variant",
        *(f"batch {batch}" for batch in report.settings.batches),
        "tokens/s overall, last batch",
        "J/answer, last batch",
    ]
    rows = []
    for variant in report.measured:
        rates = [estimate(one.answers_per_second.value, one.answers_per_second.interval_95) for one in variant.offline]
        last = variant.offline[-1]
        energy = "not available" if last.joules_per_answer is None else significant(last.joules_per_answer)
        rows.append([variant.shown, *rates, significant(last.tokens_per_second), energy])
    asked = next((one.blocks[0].answers for variant in report.measured for one in variant.offline), 0)
    return Table(f"offline: answers a second, {asked} questions at once", headings, rows)


def _server(report: BenchReport) -> Table:
    bound = 1000 * report.settings.latency_bound
    headings = ["variant", f"rate that holds p99 ≤ {bound:g} ms", "p99 ms there", "next rate tried", "p99 ms there"]
    rows = []
    for variant in report.measured:
        probes = variant.server.probes if variant.server else []
        held = max((one for one in probes if one.held), key=lambda one: one.rate, default=None)
        broken = min((one for one in probes if not one.held), key=lambda one: one.rate, default=None)
        cells = [variant.shown]
        for one in (held, broken):
            if one is None:
                cells += ["none", NOTHING]
            else:
                cells += [f"{significant(one.rate)}/s, {one.arrivals} questions", significant(one.p99_ms)]
        rows.append(cells)
    return Table("server: questions at random moments, one answered at a time", headings, rows)


def _reached(report: BenchReport) -> Table:
    ceilings = "; ".join(
        f"{one.threads} thread{'s' if one.threads > 1 else ''}: {one.read_bytes_per_second / 1e9:.1f} GB/s read,"
        f" {one.float32_operations_per_second / 1e9:.0f} (float32) or {one.int8_operations_per_second / 1e9:.0f} (int8)"
        " G operations/s"
        for one in report.ceilings
    )
    headings = ["variant", "weights read per token, MB", "of the bandwidth", "M operations per token", "of the arithmetic"]
    rows = []
    for variant in report.measured:
        one = variant.reached
        if one is None:
            rows.append([variant.shown, *[NOTHING] * 4])
            continue
        read, done = number(one.weight_bytes_per_token / 1e6), significant(one.operations_per_token / 1e6)
        arithmetic = f"{share(one.arithmetic_share)} ({one.arithmetic})"
        rows.append([variant.shown, read, share(one.bandwidth_share), done, arithmetic])
    return Table("decoding one token against this machine's ceilings", headings, rows, caption=ceilings)


def _scenarios(report: BenchReport) -> list[Table]:
    """Return the tables below the first."""
    found = []
    if any(variant.reached for variant in report.measured):
        found.append(_reached(report))
    if any(variant.offline for variant in report.measured):
        found.append(_offline(report))
    if any(variant.server for variant in report.measured):
        found.append(_server(report))
    return found


def tables(report: BenchReport) -> list[Table]:
    """Return the report as tables for the terminal; the first without what only a page has room for."""
    first = _summary(report)
    first = first.take([place for place, heading in enumerate(first.headings) if heading not in _PAGE_ONLY])
    first = replace(first, caption=conditions(report))
    return [first, *_scenarios(report), *([_failed(report)] if report.failed else [])]


def decision(report: BenchReport) -> list[str]:
    """Return which variant to ship, and the caveats, a paragraph each; empty for a report without."""
    return [report.decision.sentence, *report.decision.caveats] if report.decision else []


def markdown(report: BenchReport) -> str:
    """Return the report as Markdown: the decision, tables, and the conditions below them."""
    others = [*_scenarios(report), *([_failed(report)] if report.failed else [])]
    parts = [_summary(report).markdown()]
    for table in others:
        parts += [table.title, table.markdown(), *([table.caption] if table.caption else [])]
    return "\n\n".join([*decision(report), *parts, conditions(report)]) + "\n"


# ------------------------------------------------------------------------------------------------------- words


def conditions(report: BenchReport) -> str:
    """Return one paragraph that says where and how it was measured."""
    where, settings = report.machine, report.settings
    counts = ", ".join(
        f"{count} {split}" + ("" if count == report.questions_in_set[split] else f" (of {report.questions_in_set[split]})")
        for split, count in report.questions.items()
    )
    versions = " ".join(f"{name} {version}" for name, version in where["packages"].items())
    native = f", native engine with {kernels}" if (kernels := _kernels(report)) else ""
    bounds = [f"on {settings.cpus} of the cores"] if settings.cpus else []
    bounds += [f"in {size(settings.memory_limit)}"] if settings.memory_limit else []
    said = [
        f"{report.task}: {counts} questions, {ASKED[report.ask]}, batch {report.batch}, "
        f"{where['cores']} cores, {where['processor']}, {where['memory_gb']} GB, Python {where['python']}, {versions}{native}."
    ]
    if bounds:
        said.append(f"Each variant ran {' and '.join(bounds)}.")
    said.append("Variants took turns on every question; brackets are 95 % Wilson intervals for shares.")
    timed = next((variant.latency_ms for variant in report.measured if variant.latency_ms), None)
    if timed:
        over = f"{timed.rounds} rounds" if timed.rounds >= FEW_ROUNDS else "blocks of neighbouring times"
        said.append(
            f"Those of times are over {over}, each round of new processes; × time is paired, relative to the first row; "
            "= marks what a 99.9 % interval cannot tell from it. Tokens/s decoding: the inverse of the time between two tokens."
        )
    uses = [block.energy for variant in report.measured for one in variant.offline for block in one.blocks if block.energy]
    if uses and uses[0].missing:
        said.append(f"Energy: {'; '.join(uses[0].missing)}.")
    if settings.precision is not None:
        said.append(f"Precision of {share(settings.precision)}: {'reached' if report.precision_reached else 'not reached'}.")
    return " ".join(said)


# ------------------------------------------------------------------------------------------------------- page


def page(report: BenchReport) -> Page:
    """Return the report as a page that holds all that it shows."""
    variants = report.measured
    found = Page(f"Bench: {report.task}")
    if report.decision:
        found.lead(report.decision.sentence, report.decision.caveats)
    first = _summary(report)
    found.heading("Results")
    for part in _parts(first.headings):
        found.table(first.take(part))
    if report.failed:
        found.heading("Not measured")
        found.table(_failed(report))
    _add_times(found, [variant for variant in variants if variant.latency_ms])
    for table in _scenarios(report):
        found.heading(table.title[0].upper() + table.title[1:], table.caption)
        found.table(table)
    if any(variant.offline for variant in variants):
        found.heading("Throughput")
        found.figure(_throughput_chart(variants), "Answers a second over batch sizes.")
    if any(variant.server for variant in variants):
        found.figure(_server_chart(variants), "p99 of the time from arrival to answer, over the rate of arrivals.")
    found.heading("Memory", "The largest resident size of each process, including the interpreter and its libraries.")
    found.bars([(one.shown, one.peak_memory_bytes, size(one.peak_memory_bytes)) for one in variants])
    found.heading("On disk")
    found.bars([(one.shown, one.bytes_on_disk, size(one.bytes_on_disk)) for one in variants])
    found.heading("What each variant is")
    headings = ["variant", "engine", "precision", "device", "threads", "place"]
    rows = [[one.shown, one.engine, one.precision, one.device, str(one.threads), one.place] for one in variants]
    found.table(Table("", headings, rows))
    found.heading("How it was measured", conditions(report))
    found.table(Table("", ["", Column(align="left")], _machine_rows(report)))
    return found


def _parts(headings: Sequence[str]) -> list[list[int]]:
    """Return the columns of the first table as three tables that fit a page: quality, time, memory."""
    quality, time = headings.index("threads"), headings.index("load s")
    return [[*range(quality)], [0, *range(quality, time)], [0, *range(time, len(headings))]]


def _add_times(page: Page, variants: Sequence[MeasuredVariant]) -> None:
    if not variants:
        return
    page.heading("Accuracy and time")
    scored = [variant for variant in variants if variant.overall.total]
    if scored:
        page.figure(*_trade_off(scored))
    page.figure(_ratios(variants), "Time relative to the first variant, paired by question and round.")
    page.figure(_distributions(variants), "Distribution of the times of single answers.")
    page.figure(_over_time(variants), "The same in the order in which they were measured: drift and stalls show up here.")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other dominates: none is at most as slow and at least as accurate, and better in one.

    Args:
        points: (latency, accuracy) of each.

    Returns:
        Their places, from the fastest on.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    found: list[int] = []
    for place in order:
        if not found or points[place][1] > points[found[-1]][1]:
            found.append(place)
    return found


def _trade_off(variants: Sequence[MeasuredVariant]) -> tuple[str, str]:
    """Return the chart of accuracy against latency, and a sentence that names the front."""
    points = [(variant.latency_ms.p50, variant.overall.value) for variant in variants if variant.latency_ms]
    front = pareto_front(points)
    series = []
    for variant, point in zip(variants, points, strict=True):
        low, high = variant.overall.interval
        series.append(Series(variant.shown, [point], [low], [high]))
    if len(front) > 1:
        series.append(Series("Pareto front", [points[place] for place in front], dashed=True))
    names = ", ".join(variants[place].shown for place in front)
    return (
        line_chart(series, x_label="ms/answer, p50", y_label="right answers, all splits", percent=True, log_x=True),
        f"Accuracy against latency; bars are 95 % intervals. No variant is both faster and more accurate than: {names}.",
    )


def _ratios(variants: Sequence[MeasuredVariant]) -> str:
    found = []
    for variant in variants:
        ratio = variant.ratio_to_first
        value, (low, high) = (ratio.value, ratio.interval_95) if ratio else (1.0, (1.0, 1.0))
        found.append(IntervalRow(variant.shown, value, low, high, f"{significant(value)} ×"))
    return interval_chart(found, x_label="time relative to the first")


def _distributions(variants: Sequence[MeasuredVariant]) -> str:
    series = []
    for variant in variants:
        times = sorted(1000 * value for value in variant.samples.seconds)
        series.append(Series(variant.shown, [(value, (place + 1) / len(times)) for place, value in enumerate(times)]))
    return line_chart(series, x_label="ms/answer", y_label="answers that took no longer", percent=True, log_x=True)


def _over_time(variants: Sequence[MeasuredVariant]) -> str:
    series = [
        Series(variant.shown, [(place + 1, 1000 * value) for place, value in enumerate(variant.samples.seconds)])
        for variant in variants
    ]
    return line_chart(series, x_label="question, in the order of asking", y_label="ms/answer", log_y=True)


def _throughput_chart(variants: Sequence[MeasuredVariant]) -> str:
    series = []
    for variant in variants:
        points = [(one.batch, one.answers_per_second.value) for one in variant.offline]
        low, high = ([one.answers_per_second.interval_95[end] for one in variant.offline] for end in (0, 1))
        series.append(Series(variant.shown, points, low, high))
    return line_chart(series, x_label="batch", y_label="answers a second", zero=True, markers=True)


def _server_chart(variants: Sequence[MeasuredVariant]) -> str:
    series = []
    for variant in variants:
        probes = sorted(variant.server.probes, key=lambda one: one.rate) if variant.server else []
        series.append(Series(variant.shown, [(one.rate, one.p99_ms) for one in probes]))
    return line_chart(series, x_label="questions a second", y_label="p99, ms", log_y=True, log_x=True, markers=True)


def _kernels(report: BenchReport) -> str:
    """Return the instruction sets that the native engine used; nothing where nothing ran on it."""
    used = sorted({variant.kernels for variant in report.measured if variant.kernels})
    return f"{', '.join(used)} kernels" if used else ""


def _machine_rows(report: BenchReport) -> list[list[str]]:
    where, watch = report.machine, report.watch

    def span(values: tuple[float, float] | None, unit: str) -> str:
        return "not available here" if values is None else f"{values[0]:.2f} to {values[1]:.2f} {unit}"

    load, steal = watch.other_load_cores, watch.steal_share
    return [
        ["processor", f"{where['processor']}, {where['cores']} cores"],
        ["memory", f"{where['memory_gb']} GB"],
        ["system", f"{where['system']}, Python {where['python']}, mmedge {where['mmedge']}"],
        *([["native engine", kernels]] if (kernels := _kernels(report)) else []),
        ["packages", " ".join(f"{name} {version}" for name, version in where["packages"].items())],
        ["other load while measuring", "not available here" if load is None else f"{load:.2f} cores"],
        ["taken by the host", "not available here" if steal is None else share(steal)],
        ["frequency", span(watch.frequency_ghz, "GHz")],
        ["temperature", span(watch.temperature_c, "°C")],
        ["noise", "; ".join(report.noisy) or "none"],
    ]
