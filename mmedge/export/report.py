"""`export.html`: the exports of a student, how they compare with it, and what quantizing each layer costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmedge.manifest import Exported, LayerCost, Manifest, change_text
from mmedge.reports.charts import Series, line_chart
from mmedge.reports.formats import NOTHING, duration, number, share, size
from mmedge.reports.page import Page
from mmedge.reports.tables import Column, Table

_LAYER = re.compile(r"^(?:(encoder|decoder)\.|layers\.)(\d+)\.(.+)$")


def write_report(path: Path, manifests: Mapping[str, Exported]) -> None:
    """Write the page of an export.

    Args:
        path: Where it goes.
        manifests: The manifest of each bundle by precision.
    """
    first = next(iter(manifests.values()))
    graphs = next((one.graphs for one in manifests.values() if isinstance(one, Manifest)), "none")
    page = Page(f"Bundles of {first.recipe}", f"{first.student.parameters:,} parameters, graphs: {graphs}")
    page.heading(
        "Bundles",
        "Compared with the torch student on validation questions; agreement and divergence are over the tokens of its own answers.",
    )
    headings: list[str | Column] = [
        "bundle",
        "size",
        "same answers",
        "top-1 agreement",
        "KL, nats per token",
        "accuracy",
        "change, points",
        "probability of the right answer",
        "change, points",
        Column("dtypes", "left"),
        "written in",
    ]
    page.table(Table("", headings, [_row(precision, manifest) for precision, manifest in manifests.items()]))
    for precision, manifest in manifests.items():
        _recovery(page, precision, manifest)
        _budget(page, precision, manifest)
        _sensitivity(page, precision, manifest.sensitivity)
    page.write(path)


def _row(precision: str, manifest: Exported) -> list[str]:
    checked = manifest.verification
    likely, accuracy = checked.label_probability, NOTHING
    if checked.accuracy_student is not None:
        accuracy = f"{share(checked.accuracy_student)} → {share(checked.accuracy_bundle)}"
    dtypes = Counter(manifest.quantization.layers.values())
    static = "; static activations" if any(step.static_activations for step in manifest.budget[-1:]) else ""
    tried = manifest.int8_cache if isinstance(manifest, Manifest) else None
    cache = "; keys and values in int8" if tried and not tried.problems else ""
    return [
        precision,
        size(sum(file.bytes for file in manifest.files.values())),
        f"{checked.same_answers} of {checked.questions}",
        share(checked.top1_agreement, digits=2),
        f"{checked.mean_kl:.1e}",
        accuracy,
        change_text(checked.accuracy_change),
        NOTHING if likely is None else f"{share(likely[0])} → {share(likely[1])}",
        change_text(checked.label_probability_change),
        (", ".join(f"{count} in {dtype}" for dtype, count in dtypes.most_common()) or precision) + static + cache,
        duration(manifest.written.seconds),
    ]


def _recovery(page: Page, precision: str, manifest: Exported) -> None:
    """Add what was learned from the student."""
    found = manifest.recovery
    if found is None:
        return
    cut = "" if found.steps == found.planned else f", stopped by its limit of time at step {found.steps} of {found.planned}"
    page.heading(
        f"{precision}: scales learned from the student",
        f"From {found.texts} texts of its own{cut}. KL to the student on held-out texts, in nats per token.",
    )
    bars = [("before", found.kl_before), ("after", found.kl_after)]
    page.bars([(name, value, f"{value:.1e}") for name, value in bars])


def _budget(page: Page, precision: str, manifest: Exported) -> None:
    """Add the attempts to stay within the accuracy budget, if there were several."""
    if len(manifest.budget) < 2:
        return
    title = f"{precision}: kept within {manifest.max_accuracy_drop:g} points"
    page.heading(title, "The linear layers that cost most to quantize are kept in a finer dtype, more of them in each attempt.")
    encoder = any(step.static_activations for step in manifest.budget)
    headings = [
        "layers kept finer",
        "scales learned",
        "the encoder's activations",
        "accuracy lost, points",
        "KL, nats per token",
        "what was wrong",
    ]
    rows = [
        [
            str(step.kept_finer),
            "yes" if step.recovered else "no",
            ("static" if step.static_activations else "dynamic") if encoder else NOTHING,
            number(step.accuracy_drop),
            f"{step.mean_kl:.1e}",
            "; ".join(step.problems) or "nothing",
        ]
        for step in manifest.budget
    ]
    page.table(Table("", headings, rows))


def _sensitivity(page: Page, precision: str, costs: Sequence[LayerCost]) -> None:
    """Add the loss that quantizing each linear layer is expected to cost, layer by layer."""
    if not costs:
        return
    lines: dict[str, list[tuple[float, float]]] = {}
    others = []
    for cost in costs:
        match = _LAYER.match(cost.linear)
        if match is None:
            others.append(cost)
            continue
        side, layer, part = match.groups()
        lines.setdefault(f"{side} {part}" if side else part, []).append((float(layer), cost.loss))
    page.heading(
        f"{precision}: what quantizing each linear layer costs",
        "The expected loss to second order, in nats per token, from inputs and gradients on calibration questions.",
    )
    series = [Series(name, sorted(points)) for name, points in sorted(lines.items())]
    if series:
        page.figure(line_chart(series, x_label="layer", y_label="loss, nats per token", log_y=True, markers=True))
    worst = [*others, *costs][: len(others) + 10]
    page.bars([(cost.linear, cost.loss, f"{cost.loss:.1e} nats, {size(cost.bytes)}") for cost in worst])
