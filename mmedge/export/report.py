"""`export.html`: what bundles of a student there are, how they compare with it, and what rounding each product costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedge.export.verify import change_text
from mmedge.reports.charts import Series, line_chart
from mmedge.reports.formats import NOTHING, duration, number, share, size
from mmedge.reports.page import Page
from mmedge.reports.tables import Table

_LAYER = re.compile(r"^(?:(encoder|decoder)\.|layers\.)(\d+)\.(.+)$")


def write_report(path: Path, manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the page of an export.

    Args:
        path: Where it goes.
        manifests: The manifest of each bundle by precision.
    """
    first = next(iter(manifests.values()))
    page = Page(f"Bundles of {first['recipe']}", f"{first['student']['parameters']:,} parameters, graphs: {first['graphs']}")
    page.heading(
        "Bundles",
        "Compared with the torch student on validation questions; agreement and divergence are over the tokens of its own answers.",
    )
    headings = [
        "bundle",
        "size",
        "same answers",
        "top-1 agreement",
        "KL, nats a token",
        "accuracy",
        "change, points",
        "probability of the right answer",
        "change, points",
        "numbers",
        "written in",
    ]
    page.table(Table("", headings, [_row(precision, manifest) for precision, manifest in manifests.items()]))
    for precision, manifest in manifests.items():
        _budget(page, precision, manifest)
        _sensitivity(page, precision, manifest.get("sensitivity") or ())
    page.write(path)


def _row(precision: str, manifest: Mapping[str, Any]) -> list[str]:
    checked = manifest["verification"]
    change, likely = checked["accuracy_change"], checked.get("label_probability")
    accuracy = NOTHING
    if checked["accuracy_student"] is not None:
        accuracy = f"{share(checked['accuracy_student'])} → {share(checked['accuracy_bundle'])}"
    kinds = Counter(manifest.get("numbers", {}).get("layers", {}).values())
    fixed = "; encoder's inputs in fixed steps" if any(step.get("fixed_steps") for step in manifest.get("budget", ())[-1:]) else ""
    return [
        precision,
        size(sum(file["bytes"] for file in manifest["files"].values())),
        f"{checked['same_answers']} of {checked['questions']}",
        share(checked["top1_agreement"], digits=2),
        f"{checked['mean_kl']:.1e}",
        accuracy,
        change_text(change),
        NOTHING if likely is None else f"{share(likely[0])} → {share(likely[1])}",
        change_text(checked.get("label_probability_change")),
        (", ".join(f"{count} in {kind}" for kind, count in kinds.most_common()) or precision) + fixed,
        duration(manifest["written"]["seconds"]),
    ]


_STEPS = {True: "in fixed steps", False: "in steps of each question's own"}


def _budget(page: Page, precision: str, manifest: Mapping[str, Any]) -> None:
    """Add what was tried before the accuracy held, where it did not at once."""
    history = manifest.get("budget") or ()
    if len(history) < 2:
        return
    title = f"{precision}: kept within {manifest['max_accuracy_drop']:g} points"
    page.heading(title, "The products whose rounding costs most stay in finer numbers, more of them each time.")
    headings = ["products kept finer", "the encoder's inputs", "accuracy lost, points", "KL, nats a token", "what was wrong"]
    rows = [
        [
            str(step["kept_finer"]),
            _STEPS[bool(step.get("fixed_steps"))] if any(one.get("fixed_steps") for one in history) else NOTHING,
            number(step["accuracy_drop"]),
            f"{step['mean_kl']:.1e}",
            "; ".join(step["problems"]) or "nothing",
        ]
        for step in history
    ]
    page.table(Table("", headings, rows))


def _sensitivity(page: Page, precision: str, costs: Sequence[Mapping[str, Any]]) -> None:
    """Add the loss that each product's rounding is foreseen to cost, layer by layer."""
    if not costs:
        return
    lines: dict[str, list[tuple[float, float]]] = {}
    others = []
    for cost in costs:
        match = _LAYER.match(cost["product"])
        if match is None:
            others.append(cost)
            continue
        side, layer, part = match.groups()
        lines.setdefault(f"{side} {part}" if side else part, []).append((float(layer), float(cost["loss"])))
    page.heading(
        f"{precision}: what rounding each product costs",
        "The loss foreseen to second order, in nats a token, from inputs and gradients on calibration questions.",
    )
    series = [Series(name, sorted(points)) for name, points in sorted(lines.items())]
    if series:
        page.figure(line_chart(series, x_label="layer", y_label="loss, nats a token", log_y=True, markers=True))
    worst = [*others, *costs][: len(others) + 10]
    page.bars([(cost["product"], cost["loss"], f"{cost['loss']:.1e} nats, {size(cost['bytes'])}") for cost in worst])
