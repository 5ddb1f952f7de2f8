"""What was measured of servers, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedge.bench.servers import Server, ServerBench
from mmedge.machine import machine
from mmedge.reports.formats import NOTHING, share, significant
from mmedge.reports.tables import Table
from mmedge.statistics import percentile, proportion
from mmedge.storage import write_json, write_text
from mmedge.tasks.base import Example
from mmedge.tasks.forms import AnswerForm

_HOW = {"mmedge": "the question", "student": "the student's prompt, as tokens", "chat": "the question, with what an answer must be"}


def document(servers: Sequence[Server], examples: Sequence[Example], form: AnswerForm, settings: ServerBench) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "format": "mmedge-bench-servers/1",
        "latency_bound_ms": 1000 * settings.latency_bound,
        "questions": len(examples),
        "machine": machine(),
        "servers": [
            {
                "url": server.url,
                "model": server.model,
                "asked_with": _HOW[server.kind],
                "p50_ms": 1000 * percentile(server.single, 50) if server.single else None,
                "p99_ms": 1000 * percentile(server.single, 99) if server.single else None,
                "rate_held": server.rate,
                "accuracy": _accuracy(server, examples, form),
                "as_the_first": _alike(server, servers[0], examples, form),
                "answers": server.answers,
                "probes": [probe.model_dump() for probe in server.probes],
            }
            for server in servers
        ],
    }


def _accuracy(server: Server, examples: Sequence[Example], form: AnswerForm) -> dict[str, Any] | None:
    """Return the share of answers that are right, with its interval; None where there are no labels."""
    judged = [
        text is not None and form.agrees(text, example.label, example.choices)
        for text, example in zip(server.answers, examples, strict=True)
        if example.label is not None
    ]
    return proportion(judged).to_json() if judged else None


def _alike(server: Server, first: Server, examples: Sequence[Example], form: AnswerForm) -> float:
    """Return the share of answers that mean what the first server's mean, those that are not answers word for word."""
    pairs = zip(server.answers, first.answers, examples, strict=True)
    alike = [
        one == other or (one is not None and other is not None and form.agrees(one, other, example.choices))
        for one, other, example in pairs
    ]
    return sum(alike) / max(1, len(alike))


def table(found: dict[str, Any]) -> Table:
    """Return the table of a document."""
    bound = found["latency_bound_ms"]
    headings = ["server", "model", "one at a time: p50 ms", "p99 ms", f"questions/s with p99 ≤ {bound:g} ms", "p50 ms there"]
    rows = []
    for one in found["servers"]:
        held = max((probe for probe in one["probes"] if probe["held"]), key=lambda probe: float(probe["rate"]), default=None)
        alone = [NOTHING if one[name] is None else significant(one[name]) for name in ("p50_ms", "p99_ms")]
        crowded = [NOTHING] * 2 if held is None else [significant(held["rate"]), significant(held["p50_ms"])]
        right = one["accuracy"]
        accuracy = NOTHING if right is None else share(right["value"], right["interval_95"])
        rows.append([one["url"], one["model"], *alone, *crowded, accuracy, f"{100 * one['as_the_first']:.1f} %"])
    title = f"servers: {found['questions']} questions, at random moments"
    return Table(title, [*headings, "right", "as the first"], rows)


def write(found: dict[str, Any], folder: Path) -> None:
    """Write a document as `servers.json` and `servers.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "servers.json", found)
    write_text(folder / "servers.md", f"# Servers\n\n{table(found).markdown()}\n")
