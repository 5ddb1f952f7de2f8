"""Which of the variants that were measured to ship, and why, in one sentence.

    decide(report).sentence
    Ship onnxruntime int8: 61.8 % of 600 answers right (-0.3 points [-1.3, +0.7] against torch fp32, not more than chance), the
    fastest of the 3 equally accurate variants; 4.76 ms per answer (p50, 0.16 × the time of torch fp32), 1.3 MB on disk.

The rule: of the variants that are not less accurate than the most accurate one beyond chance (McNemar 1947, on the same
questions), the fastest; of those that are as fast within the noise, the smallest on disk. It knows nothing of what a product
needs beyond that: a page shows all figures below the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmedge.bench.compare import accuracy_change, time_change
from mmedge.bench.results import BenchReport, MeasuredVariant, ShippingDecision
from mmedge.reports.formats import points, share, significant, size

HIDDEN = 0.02  # a loss of accuracy that could be there unseen, from which on it is worth a caveat


def decide(report: BenchReport) -> ShippingDecision:
    """Return which variant to ship."""
    variants = report.measured
    if not variants:
        return ShippingDecision(ship=None, sentence="No variant could be measured, so there is nothing to ship yet.", caveats=[])
    caveats = [f"The machine was noisy ({'; '.join(report.noisy)}): measure again before relying on times."] if report.noisy else []
    if report.failed:
        caveats.append(f"Not measured, and so not considered: {', '.join(one.shown for one in report.failed)}.")
    scored = [one for one in variants if one.overall.total]
    if len(variants) == 1:
        only = variants[0]
        said = f"Only {only.shown} was measured: {_accuracy(only)}{_cost(only, only)}. Measure others beside it to choose."
        return ShippingDecision(ship=only.shown, sentence=said, caveats=caveats)
    if not scored:
        ship, why = _cheapest(variants, "variants")
        caveats.append("No question has a label, so nothing says how often a variant is right.")
        return ShippingDecision(ship=ship.shown, sentence=f"Ship {ship.shown}: {why}{_cost(ship, variants[0])}.", caveats=caveats)
    best = max(scored, key=lambda one: one.overall.value)
    kept = [one for one in scored if one is best or not _is_worse(best, one)]
    ship, why = _cheapest(kept, "equally accurate variants")
    said = f"Ship {ship.shown}: {_accuracy(ship)}{_against_best(ship, best)}, {why}{_cost(ship, variants[0])}."
    if faster := [one for one in scored if one not in kept and _is_faster(one, ship)]:
        said += f" {_list(faster)} {'is' if len(faster) == 1 else 'are'} faster, but less accurate."
    if ship is not best:
        caveats += _hidden_loss(ship, best)
    return ShippingDecision(ship=ship.shown, sentence=said, caveats=caveats)


# ------------------------------------------------------------------------------------------------------- the rule


def _is_worse(best: MeasuredVariant, other: MeasuredVariant) -> bool:
    change = accuracy_change(best, other)
    return change is not None and change.changed and change.value < 0


def _cheapest(variants: Sequence[MeasuredVariant], noun: str) -> tuple[MeasuredVariant, str]:
    """Return the variant that costs least, and the words that say so."""
    if len(variants) == 1:
        return variants[0], "and every other variant is less accurate"
    fastest = min(variants, key=_seconds)
    as_fast = [one for one in variants if one is fastest or not _is_faster(fastest, one)]
    ship = min(as_fast, key=lambda one: one.bytes_on_disk)
    if len(as_fast) == 1:
        return ship, f"the fastest of the {len(variants)} {noun}"
    return ship, f"the smallest of the {len(as_fast)} fastest among {len(variants)} {noun}"


def _seconds(variant: MeasuredVariant) -> float:
    """Return the seconds of one answer, of the scenario that was measured; infinite if none was."""
    if variant.latency_ms is not None:
        return variant.latency_ms.p50 / 1000
    if variant.offline:
        return 1 / max(one.answers_per_second.value for one in variant.offline)
    if variant.server is not None and variant.server.answers_per_second:
        return 1 / variant.server.answers_per_second
    return float("inf")


def _is_faster(one: MeasuredVariant, other: MeasuredVariant) -> bool:
    """Return whether one variant is faster than another beyond noise."""
    change = time_change(other, one)
    if change is not None:
        return change.changed and change.value < 1
    if one.offline and other.offline:
        mine, theirs = (max(v.offline, key=lambda at: at.answers_per_second.value).answers_per_second for v in (one, other))
        return mine.interval[0] > theirs.interval[1]
    return _seconds(one) < _seconds(other)


# ------------------------------------------------------------------------------------------------------- words


def _accuracy(variant: MeasuredVariant) -> str:
    found = variant.overall
    return f"{share(found.value)} of {found.total} answers right" if found.total else "answers without labels"


def _against_best(ship: MeasuredVariant, best: MeasuredVariant) -> str:
    if ship is best:
        return ""
    change = accuracy_change(best, ship)
    if change is None or not change.value:
        return f", like {best.shown}"
    return f" ({points(change.value, change.interval_95)} points against {best.shown}, not more than chance)"


def _cost(variant: MeasuredVariant, first: MeasuredVariant) -> str:
    """Return what an answer costs, as the end of a sentence; ratios are to the first variant."""
    parts = []
    if variant.latency_ms is not None:
        ratio = variant.ratio_to_first
        against = f", {significant(ratio.value)} × the time of {first.shown}" if ratio else ""
        parts.append(f"{significant(variant.latency_ms.p50)} ms per answer (p50{against})")
    elif variant.offline:
        top = max(variant.offline, key=lambda one: one.answers_per_second.value)
        parts.append(f"{significant(top.answers_per_second.value)} answers per second in batches of {top.batch}")
    elif variant.server is not None and variant.server.answers_per_second:
        parts.append(f"{significant(variant.server.answers_per_second)} answers per second within the latency bound")
    parts.append(f"{size(variant.bytes_on_disk)} on disk")
    return "; " + ", ".join(parts)


def _hidden_loss(ship: MeasuredVariant, best: MeasuredVariant) -> list[str]:
    """Return a caveat where so few questions were asked that a real loss of accuracy could be there unseen."""
    change = accuracy_change(best, ship)
    if change is None or -change.interval_95[0] < HIDDEN:
        return []
    return [
        f"These {change.questions} questions could hide a loss of up to {-100 * change.interval_95[0]:.1f} points against "
        f"{best.shown}; more test questions would show it."
    ]


def _list(variants: Sequence[MeasuredVariant]) -> str:
    return " and ".join(one.shown for one in variants)
