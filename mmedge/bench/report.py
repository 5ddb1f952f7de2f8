"""A bench report as a table in the terminal and as Markdown; the JSON is the report itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rich.table import Table

from mmedge.statistics import Proportion


def _share(found: dict[str, Any]) -> str:
    return str(Proportion(found["successes"], found["total"]))


def _split_share(split: str, variant: dict[str, Any]) -> str:
    return _share(variant["answer_accuracy"].get(split, {"successes": 0, "total": 0}))


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and one row for each variant; the times are also ratios to the first variant."""
    variants = report["variants"]
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [("variant", lambda v: str(v["name"]))]
    for split in report["questions"]:
        columns.append((f"answers: {split}", functools.partial(_split_share, split)))
    if variants and variants[0]["verdict_accuracy"]["total"]:
        columns.append(("verdicts", lambda v: _share(v["verdict_accuracy"])))
        columns.append(("verdicts, balanced", lambda v: _number(v["verdict_balanced_accuracy"], 3)))
    base = variants[0]["latency_ms"]["p50"] if variants else 1.0
    columns += [
        ("threads", lambda v: str(v["threads"])),
        ("ms/answer p50", lambda v: _number(v["latency_ms"]["p50"])),
        ("p90", lambda v: _number(v["latency_ms"]["p90"])),
        ("p99", lambda v: _number(v["latency_ms"]["p99"])),
        ("× time", lambda v: f"{v['latency_ms']['p50'] / base:.2f}"),
        ("first token ms", lambda v: _number(v["time_to_first_token_ms"]["p50"])),
        ("tokens/s", lambda v: _number(v["tokens_per_second"], 0)),
        ("peak MB", lambda v: f"{v['peak_memory_bytes'] / 1e6:.0f}"),
        ("disk MB", lambda v: f"{v['bytes_on_disk'] / 1e6:.1f}"),
    ]
    return [name for name, _ in columns], [[cell(variant) for _, cell in columns] for variant in variants]


def conditions(report: dict[str, Any]) -> str:
    """Return one line that says where and how it was measured."""
    where = report["machine"]
    counts = ", ".join(f"{count} {split}" for split, count in report["questions"].items())
    versions = " ".join(f"{name} {version}" for name, version in where["packages"].items())
    return (
        f"{report['task']}: {counts} questions, batch {report['batch']}, {where['cores']} cores, {where['processor']}, "
        f"{where['memory_gb']} GB, Python {where['python']}, {versions}. Variants took turns on every question; brackets are "
        "95 % Wilson intervals; × time is relative to the first row."
    )


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table for the terminal."""
    headings, body = rows(report)
    found = Table(title=f"bench: {report['task']}", caption=conditions(report), caption_justify="left")
    for heading in headings:
        found.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=heading == "variant")
    for row in body:
        found.add_row(*row)
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table with the conditions below it."""
    headings, body = rows(report)
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines) + "\n\n" + conditions(report) + "\n"
