"""A bench report as a table in the terminal, as Markdown, and as a page to look at; the JSON is the report itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmedge.bench.timing import FEW_ROUNDS
from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart
from mmedge.reports.formats import NOTHING, estimate, number, share, significant, size
from mmedge.reports.page import Page
from mmedge.reports.tables import Column, Table
from mmedge.statistics import Proportion

ASKED = {"answer": "the answer only", "rationale": "answer and rationale", "confidence": "answer and confidence"}
_PAGE_ONLY = ("load s", "steady MB", "verdicts, balanced")


def _share(found: dict[str, Any]) -> str:
    proportion = Proportion(found["successes"], found["total"])
    return share(proportion.value, proportion.interval)


def _split_share(split: str, variant: dict[str, Any]) -> str:
    return _share(variant["answer_accuracy"].get(split, {"successes": 0, "total": 0}))


def _against(variant: dict[str, Any]) -> str:
    found = variant["ratio_to_first"]
    if found is None:
        return "1"
    return estimate(found["value"], found["interval_95"]) + ("" if found["differs"] else " =")


def measured(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the variants that were measured, without those that have a problem."""
    return [variant for variant in report["variants"] if not variant["problem"]]


def problems(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the variants that were not measured, and why."""
    return [(variant["name"], _why(variant)) for variant in report["variants"] if variant["problem"]]


def _why(variant: dict[str, Any]) -> str:
    hint = variant.get("hint")
    return f"{variant['problem']} → {hint}" if hint else str(variant["problem"])


def _summary(report: dict[str, Any]) -> Table:
    """Return the table of all variants; the times are also ratios to the first that was measured."""
    variants = measured(report)
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [("variant", lambda v: str(v["name"]))]
    for split in report["questions"]:
        columns.append((f"answers: {split}", functools.partial(_split_share, split)))
    if variants and variants[0]["verdict_accuracy"]["total"]:
        columns.append(("verdicts", lambda v: _share(v["verdict_accuracy"])))
        columns.append(("verdicts, balanced", lambda v: number(v["verdict_balanced_accuracy"], 3)))
    if report["ask"] == "confidence":
        columns.append(("AUROC", lambda v: number((v["confidence"] or {}).get("auroc"), 3)))
        columns.append(("calibration error", lambda v: number((v["confidence"] or {}).get("calibration_error"), 3)))
    columns.append(("threads", lambda v: str(v["threads"])))
    if variants and variants[0]["latency_ms"]:
        columns += [
            ("ms/answer p50", lambda v: estimate(v["latency_ms"]["p50"], v["latency_ms"]["p50_interval_95"])),
            ("p90", lambda v: significant(v["latency_ms"]["p90"])),
            ("p99", lambda v: significant(v["latency_ms"]["p99"])),
            ("× time", _against),
            ("first token ms", lambda v: significant(v["time_to_first_token_ms"]["p50"])),
            ("tokens/s decoding", lambda v: number(v["tokens_per_second"], 0)),
        ]
    columns += [
        ("load s", lambda v: significant(v["load_seconds"])),
        ("peak MB", lambda v: f"{v['peak_memory_bytes'] / 1e6:.0f}"),
        ("steady MB", lambda v: f"{v['steady_memory_bytes'] / 1e6:.0f}"),
        ("disk MB", lambda v: f"{v['bytes_on_disk'] / 1e6:.1f}"),
    ]
    body = []
    for variant in report["variants"]:
        if variant["problem"]:
            body.append([variant["name"], _why(variant), *[""] * (len(columns) - 2)])
        else:
            body.append([cell(variant) for _, cell in columns])
    headings: list[str | Column] = [Column("variant", "left", wraps=False), *(name for name, _ in columns[1:])]
    return Table(f"bench: {report['task']}", headings, body)


def _offline(report: dict[str, Any]) -> Table:
    batches = [f"batch {batch}" for batch in report["settings"]["batches"]]
    headings = ["variant", *batches, "tokens/s over all, last", "J/answer, last"]
    body = []
    for variant in measured(report):
        rates = [
            estimate(one["answers_per_second"]["value"], one["answers_per_second"]["interval_95"]) for one in variant["offline"]
        ]
        last = variant["offline"][-1]
        energy = "not available" if last["joules_per_answer"] is None else significant(last["joules_per_answer"])
        body.append([variant["name"], *rates, significant(last["tokens_per_second"]), energy])
    asked = next((one["blocks"][0]["answers"] for variant in measured(report) for one in variant["offline"]), 0)
    return Table(f"offline: answers a second, {asked} questions at once", headings, body)


def _server(report: dict[str, Any]) -> Table:
    bound = 1000 * report["settings"]["latency_bound"]
    headings = ["variant", f"rate that holds p99 ≤ {bound:g} ms", "p99 ms there", "next rate tried", "p99 ms there"]
    body = []
    for variant in measured(report):
        probes = variant["server"]["probes"]
        held = max((one for one in probes if one["held"]), key=lambda one: one["rate"], default=None)
        broken = min((one for one in probes if not one["held"]), key=lambda one: one["rate"], default=None)
        cells = [variant["name"]]
        for one in (held, broken):
            if one is None:
                cells += ["none", NOTHING]
            else:
                cells += [f"{significant(one['rate'])}/s, {one['arrivals']} questions", significant(one["p99_ms"])]
        body.append(cells)
    return Table("server: questions at random moments, one answered at a time", headings, body)


def _reached(report: dict[str, Any]) -> Table:
    ceilings = "; ".join(
        f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}: {one['read_bytes_per_second'] / 1e9:.1f} GB/s read,"
        f" {one['float32_operations_per_second'] / 1e9:.0f} (float32) or {one['int8_operations_per_second'] / 1e9:.0f} (int8)"
        " G operations/s"
        for one in report["ceilings"]
    )
    headings = ["variant", "weights read a token, MB", "of the bandwidth", "M operations a token", "of the arithmetic"]
    body = []
    for variant in measured(report):
        one = variant["reached"]
        if one is None:
            body.append([variant["name"], *[NOTHING] * 4])
            continue
        read, done = one["weight_bytes_per_token"] / 1e6, one["operations_per_token"] / 1e6
        shares = [share(one[name]) for name in ("bandwidth_share", "arithmetic_share")]
        body.append([variant["name"], number(read), shares[0], significant(done), f"{shares[1]} ({one['arithmetic']})"])
    return Table(f"decoding one token against this machine's ceilings ({ceilings})", headings, body)


def sections(report: dict[str, Any]) -> list[Table]:
    """Return every table."""
    found = [_summary(report)]
    variants = measured(report)
    if any(variant.get("reached") for variant in variants):
        found.append(_reached(report))
    if any(variant["offline"] for variant in variants):
        found.append(_offline(report))
    if any(variant["server"] for variant in variants):
        found.append(_server(report))
    return found


def noise(report: dict[str, Any]) -> str:
    """Return what makes the times of a report doubtful; empty where nothing does."""
    return f"NOISY: {'; '.join(report['noisy'])} while this was measured." if report["noisy"] else ""


def conditions(report: dict[str, Any]) -> str:
    """Return one line that says where and how it was measured."""
    where, settings = report["machine"], report["settings"]
    counts = ", ".join(
        f"{count} {split}" + ("" if count == report["questions_in_set"][split] else f" (of {report['questions_in_set'][split]})")
        for split, count in report["questions"].items()
    )
    versions = " ".join(f"{name} {version}" for name, version in where["packages"].items())
    bounds = [f"on {settings['cpus']} of the cores"] if settings["cpus"] else []
    bounds += [f"in {size(settings['memory_limit'])}"] if settings["memory_limit"] else []
    said = (
        f"{report['task']}: {counts} questions, {ASKED[report['ask']]}, batch {report['batch']}, "
        f"{where['cores']} cores, {where['processor']}, {where['memory_gb']} GB, Python {where['python']}, {versions}. "
        + (f"Each variant ran {' and '.join(bounds)}. " if bounds else "")
        + "Variants took turns on every question; brackets are 95 % Wilson intervals for shares."
    )
    timed = next((variant["latency_ms"] for variant in measured(report) if variant["latency_ms"]), None)
    if timed:
        over = f"{timed['rounds']} rounds" if timed["rounds"] >= FEW_ROUNDS else "blocks of neighbouring times"
        said += (
            f" Those of times are over {over}, each round of new processes; × time is paired, relative to the first row; "
            "= marks what a 99.9 % interval cannot tell from it. Tokens/s decoding: one over the time between two tokens."
        )
    blocks = [block for variant in measured(report) for one in variant["offline"] for block in one["blocks"]]
    missing: list[str] = next((block["energy"]["missing"] for block in blocks if block.get("energy")), [])
    if missing:
        said += f" Energy: {'; '.join(missing)}."
    if settings["precision"] is not None:
        reached = "reached" if report["precision_reached"] else "not reached"
        said += f" Precision of {100 * settings['precision']:g} %: {reached}."
    return said


def tables(report: dict[str, Any]) -> list[Table]:
    """Return the report as tables for the terminal; the first without what only a page has room for."""
    first, *others = sections(report)
    first = _without_failed(report, first).take([p for p, heading in enumerate(first.headings) if heading not in _PAGE_ONLY])
    return [replace(first, caption=" ".join(filter(None, [noise(report), conditions(report)]))), *others]


def _without_failed(report: dict[str, Any], table: Table) -> Table:
    missing = {name for name, _ in problems(report)}
    return replace(table, rows=[row for row in table.rows if row[0] not in missing])


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown tables with the conditions below them."""
    first, *others = sections(report)
    parts = [first.markdown(), *(f"{table.title}\n\n{table.markdown()}" for table in others)]
    return "\n\n".join(filter(None, [*parts, noise(report), conditions(report)])) + "\n"


# ------------------------------------------------------------------------------------------------------- page


def _overall(variant: dict[str, Any]) -> Proportion:
    """Return the share of right answers over all splits."""
    shares = variant["answer_accuracy"].values()
    return Proportion(sum(one["successes"] for one in shares), sum(one["total"] for one in shares))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other beats: none is at most as slow and at least as accurate, and better in one of both.

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


def _trade_off(variants: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the chart of accuracy against latency, and a sentence that names the front."""
    points = [(variant["latency_ms"]["p50"], _overall(variant).value) for variant in variants]
    front = pareto_front(points)
    series = [
        Series(variant["name"], [point], [_overall(variant).interval[0]], [_overall(variant).interval[1]])
        for variant, point in zip(variants, points, strict=True)
    ]
    if len(front) > 1:
        series.append(Series("Pareto front", [points[place] for place in front], dashed=True))
    names = ", ".join(variants[place]["name"] for place in front)
    return (
        line_chart(series, x_label="ms/answer, p50", y_label="right answers, all splits", percent=True, log_x=True),
        f"Accuracy against latency; bars are 95 % intervals. No variant is both faster and more accurate than: {names}.",
    )


def _distributions(variants: Sequence[dict[str, Any]]) -> str:
    series = []
    for variant in variants:
        times = sorted(1000 * value for value in variant["samples"]["seconds"])
        series.append(Series(variant["name"], [(value, (place + 1) / len(times)) for place, value in enumerate(times)]))
    return line_chart(series, x_label="ms/answer", y_label="answers that took no longer", percent=True, log_x=True)


def _over_time(variants: Sequence[dict[str, Any]]) -> str:
    series = []
    for variant in variants:
        times = variant["samples"]["seconds"]
        series.append(Series(variant["name"], [(place + 1, 1000 * value) for place, value in enumerate(times)]))
    return line_chart(series, x_label="question, in the order of asking", y_label="ms/answer", log_y=True)


def page(report: dict[str, Any]) -> Page:
    """Return the report as a page that holds all that it shows."""
    variants, missing = measured(report), problems(report)
    found = Page(f"Bench: {report['task']}", conditions(report))
    if report["noisy"]:
        found.note(noise(report))
    first, *others = sections(report)
    found.heading("Results")
    for half in _halves(first.headings):
        found.table(_without_failed(report, first).take(half))
    for table in others:
        found.heading(table.title)
        found.table(table)
    if missing:
        found.heading("Not measured")
        found.table(Table("", ["variant", Column("why", "left")], missing))
    timed = [variant for variant in variants if variant["latency_ms"]]
    if timed:
        found.heading("Accuracy and time")
        scored = [variant for variant in timed if _overall(variant).total]
        if scored:
            found.figure(*_trade_off(scored))
        found.figure(_ratios(timed), "Time relative to the first variant, paired by question and round.")
        found.figure(_distributions(timed), "Distribution of the times of single answers.")
        found.figure(_over_time(timed), "The same in the order in which they were measured: drift and stalls are seen here.")
    if any(variant["offline"] for variant in variants):
        found.heading("Throughput")
        found.figure(_throughput_chart(variants), "Answers a second over batch sizes.")
    if any(variant["server"] for variant in variants):
        found.figure(_server_chart(variants), "p99 of the time from arrival to answer, over the rate of arrivals.")
    found.heading("Memory", "The largest resident size of each process, the interpreter and its libraries included.")
    found.bars([(one["name"], one["peak_memory_bytes"], f"{one['peak_memory_bytes'] / 1e6:.0f} MB") for one in variants])
    found.heading("On disk")
    found.bars([(one["name"], one["bytes_on_disk"], f"{one['bytes_on_disk'] / 1e6:.1f} MB") for one in variants])
    found.heading("What each variant is")
    headings = ["variant", "engine", "precision", "device", "threads", "place"]
    places = [[v["name"], v["engine"], v["precision"], v["device"], str(v["threads"]), v["place"]] for v in variants]
    found.table(Table("", headings, places))
    found.heading("The machine")
    found.table(Table("", ["", Column(align="left")], _machine_rows(report)))
    return found


def _halves(headings: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the columns of the first table as two tables that fit a page: how good, and at what cost."""
    middle = headings.index("threads")
    return [*range(middle)], [0, *range(middle, len(headings))]


def _ratios(variants: Sequence[dict[str, Any]]) -> str:
    found = []
    for variant in variants:
        ratio = variant["ratio_to_first"]
        value, (low, high) = (1.0, (1.0, 1.0)) if ratio is None else (ratio["value"], ratio["interval_95"])
        found.append(IntervalRow(variant["name"], value, low, high, f"{significant(value)} ×"))
    return interval_chart(found, x_label="times as long as the first")


def _throughput_chart(variants: Sequence[dict[str, Any]]) -> str:
    series = []
    for variant in variants:
        rates = [(one["batch"], one["answers_per_second"]) for one in variant["offline"]]
        series.append(
            Series(
                variant["name"],
                [(batch, rate["value"]) for batch, rate in rates],
                [rate["interval_95"][0] for _, rate in rates],
                [rate["interval_95"][1] for _, rate in rates],
            )
        )
    return line_chart(series, x_label="batch", y_label="answers a second", zero=True, markers=True)


def _server_chart(variants: Sequence[dict[str, Any]]) -> str:
    series = []
    for variant in variants:
        probes = sorted(variant["server"]["probes"], key=lambda one: float(one["rate"])) if variant["server"] else []
        series.append(Series(variant["name"], [(one["rate"], one["p99_ms"]) for one in probes]))
    return line_chart(series, x_label="questions a second", y_label="p99, ms", log_y=True, log_x=True, markers=True)


def _machine_rows(report: dict[str, Any]) -> list[list[str]]:
    where, watch = report["machine"], report["watch"]

    def span(values: Sequence[float] | None, unit: str) -> str:
        return "not told here" if values is None else f"{values[0]:.2f} to {values[1]:.2f} {unit}"

    load, steal = watch["other_load_cores"], watch["steal_share"]
    return [
        ["processor", f"{where['processor']}, {where['cores']} cores"],
        ["memory", f"{where['memory_gb']} GB"],
        ["system", f"{where['system']}, Python {where['python']}, mmedge {where['mmedge']}"],
        ["packages", " ".join(f"{name} {version}" for name, version in where["packages"].items())],
        ["other load while measuring", "not told here" if load is None else f"{load:.2f} cores"],
        ["taken by the host", "not told here" if steal is None else share(steal)],
        ["frequency", span(watch["frequency_ghz"], "GHz")],
        ["temperature", span(watch["temperature_c"], "°C")],
        ["noise", noise(report) or "none that was seen"],
    ]
