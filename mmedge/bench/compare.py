"""`mmedge compare`: what changed between two reports of `mmedge bench`, beyond noise, and whether a bound is broken.

    mmedge compare base.json new.json --max-slowdown 5% --max-accuracy-drop 1

Variants are matched by what they are: engine, precision and device; where several are the same, by threads and by how much their
places have in common. Times are compared question by question, answers question by question too (McNemar 1947). The two reports
were not measured in turns, so that the machine itself may have changed between them: a slowdown breaks its bound only where the
whole interval lies beyond it and it is not due to chance (`timing.differs`), and reports that were noisy, or from different
machines, are marked as such. An accuracy breaks its bound by its value on these questions, since the same student gives the same
answers every time; the report also says whether the change is more than chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mmedge.bench.results import BenchReport, FailedVariant, Interval, MeasuredVariant, ReportPart
from mmedge.bench.settings import parse_share
from mmedge.bench.timing import FEW_ROUNDS, ONE_PROCESS, differs, ratio
from mmedge.errors import MmedgeError
from mmedge.reports.formats import estimate, points, share
from mmedge.statistics import mcnemar, paired_difference
from mmedge.storage import Json

AnyVariant = MeasuredVariant | FailedVariant


@dataclass(frozen=True)
class Bounds:
    """What must not happen.

    Attributes:
        slowdown: The largest share by which a variant may be slower; None for any.
        accuracy_drop: The most points by which its accuracy may be lower.
        memory_growth: The largest share by which its peak memory may grow.
    """

    slowdown: float | None = None
    accuracy_drop: float | None = None
    memory_growth: float | None = None


def read_bounds(slowdown: str | None, accuracy_drop: float | None, memory_growth: str | None) -> Bounds:
    """Return the bounds of a command line."""
    return Bounds(
        None if slowdown is None else parse_share(slowdown, "--max-slowdown"),
        accuracy_drop,
        None if memory_growth is None else parse_share(memory_growth, "--max-memory-growth"),
    )


class TimeChange(Interval):
    """How many times as long it takes, over the rounds and questions that both reports have."""

    questions: int
    rounds: int
    changed: bool


class AccuracyChange(Interval):
    """By what share of the questions that both answered more are right."""

    p: float
    questions: int
    questions_before: int
    gained: int
    lost: int
    splits: dict[str, float]
    changed: bool


class VariantChange(ReportPart):
    """What changed of one variant; memory and disk as ratios."""

    name: str
    time: TimeChange | None
    accuracy: AccuracyChange | None
    peak_memory: float
    bytes_on_disk: float


class ReportComparison(ReportPart):
    """What changed; `broken` lists every broken bound, `notes` what makes the comparison doubtful."""

    base: str
    new: str
    variants: list[VariantChange]
    broken: list[str]
    notes: list[str]

    def to_json(self) -> Json:
        return self.model_dump(mode="json")


def compare(base: Path, new: Path, bounds: Bounds) -> ReportComparison:
    """Compare two reports.

    Raises:
        MmedgeError: One is not a report, they are about different questions, or have no variant in common.
    """
    before, after = BenchReport.read(base), BenchReport.read(new)
    if before.task != after.task or before.ask != after.ask:
        raise MmedgeError(
            f"{base} is about {before.task} ({before.ask}), {new} about {after.task} ({after.ask})",
            "compare reports of the same questions",
        )
    found: list[VariantChange] = []
    broken: list[str] = []
    notes = _notes(before, after)
    for earlier, later in _pairs(before.variants, after.variants):
        if earlier is None:
            assert later is not None
            notes.append(f"{later.shown}: only in {new}")
        elif later is None:
            if isinstance(earlier, FailedVariant) or bounds == Bounds():
                notes.append(f"{earlier.shown}: only in {base}")
            else:  # what is not measured cannot keep a bound
                broken.append(f"{earlier.shown} was measured in {base} and is not in {new}")
        elif isinstance(later, FailedVariant):
            if isinstance(earlier, MeasuredVariant):
                broken.append(f"{earlier.shown} can no longer be measured: {later.problem}")
            else:
                notes.append(f"{later.shown}: {later.problem}")
        elif isinstance(earlier, FailedVariant):
            notes.append(f"{later.shown}: was not measured before: {earlier.problem}")
        else:
            notes += _other_settings(before, after, earlier, later)
            change = _change(earlier, later)
            found.append(change)
            broken += _broken(change, bounds, notes)
    if not found and not broken:
        raise MmedgeError(f"{base} and {new} have no measured variant in common", "measure the same variants")
    return ReportComparison(base=str(base), new=str(new), variants=found, broken=broken, notes=notes)


def _pairs(old: Sequence[AnyVariant], new: Sequence[AnyVariant]) -> list[tuple[AnyVariant | None, AnyVariant | None]]:
    """Return what belongs together, in the order of the new report, then what is only in the old one."""
    likely = sorted(
        ((_likeness(old[i], new[j]), i, j) for i in range(len(old)) for j in range(len(new))), key=lambda one: one[0], reverse=True
    )
    match_of: dict[int, int] = {}
    for likeness, i, j in likely:
        if likeness > (0, 0, 0) and j not in match_of and i not in match_of.values():
            match_of[j] = i
    pairs = [(old[match_of[j]] if j in match_of else None, later) for j, later in enumerate(new)]
    return [*pairs, *((earlier, None) for i, earlier in enumerate(old) if i not in match_of.values())]


def _likeness(one: AnyVariant, other: AnyVariant) -> tuple[int, int, int]:
    """Return how well two variants match: whether they are the same, have as many threads, and what their places share."""
    threads = 0
    if isinstance(one, MeasuredVariant) and isinstance(other, MeasuredVariant):
        are_same = (one.engine, one.precision, one.device) == (other.engine, other.precision, other.device)
        threads = int(one.threads == other.threads)
    else:  # one that was not opened names no engine
        are_same = (one.kind, one.folder) == (other.kind, other.folder)
    if not are_same:
        return 0, 0, 0
    parts = zip(reversed(PurePath(one.place).parts), reversed(PurePath(other.place).parts), strict=False)
    common = next((count for count, (a, b) in enumerate(parts) if a != b), min(len(PurePath(v.place).parts) for v in (one, other)))
    return 1, threads, common


def _notes(before: BenchReport, after: BenchReport) -> list[str]:
    notes = []
    for report, which in ((before, "base"), (after, "new")):
        if report.noisy:
            notes.append(f"the {which} report is noisy: {'; '.join(report.noisy)}")
    both = [
        {**{name: one.machine.get(name) for name in ("processor", "cores", "memory_gb", "python")}, **one.machine["packages"]}
        for one in (before, after)
    ]
    names = dict.fromkeys([*both[0], *sorted(both[1])])
    values = {name: [one.get(name) for one in both] for name in names}
    differing = [f"{name} {old} → {new}" for name, (old, new) in values.items() if old != new]
    if differing:
        notes.append(f"not the same machine: {', '.join(differing)}")
    return notes


def _other_settings(before: BenchReport, after: BenchReport, earlier: MeasuredVariant, later: MeasuredVariant) -> list[str]:
    """Note settings that a variant was measured with that differ."""
    pairs = [("threads", earlier.threads, later.threads)]
    pairs += [
        (name, getattr(before.settings, field), getattr(after.settings, field))
        for name, field in (("cpus", "cpus"), ("memory limit", "memory_limit"))
    ]
    differing = ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)
    return [f"{later.shown} was measured with other settings: {differing}"] if differing else []


def _change(before: MeasuredVariant, after: MeasuredVariant) -> VariantChange:
    return VariantChange(
        name=after.shown,
        time=time_change(before, after),
        accuracy=accuracy_change(before, after),
        peak_memory=after.peak_memory_bytes / before.peak_memory_bytes,
        bytes_on_disk=after.bytes_on_disk / before.bytes_on_disk,
    )


def time_change(before: MeasuredVariant, after: MeasuredVariant) -> TimeChange | None:
    """Return the ratio of times, paired by question, over the rounds that both reports have; None where one has no times."""
    if before.latency_ms is None or after.latency_ms is None:
        return None
    both = [before.samples.rounds(), after.samples.rounds()]
    shared = sorted(set.intersection(*(set(one) for table in both for one in table)))
    if not shared:
        return None
    old, new = ([[one[name] for name in shared] for one in table] for table in both)
    rounds = min(len(old), len(new))
    old, new = old[:rounds], new[:rounds]
    return TimeChange.of(ratio(new, old), questions=len(shared), rounds=rounds, changed=differs(new, old))


def accuracy_change(before: MeasuredVariant, after: MeasuredVariant) -> AccuracyChange | None:
    """Return by how much the share of right answers changed on the questions that both answered; None where there are none."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    answered = 0
    for split, ids in before.samples.ids.items():
        later = dict(zip(after.samples.ids.get(split, ()), after.samples.correct.get(split, ()), strict=True))
        for question, was in zip(ids, before.samples.correct[split], strict=True):
            answered += was is not None
            now = later.get(question)
            if was is not None and now is not None:
                pairs.setdefault(split, []).append((now, was))
    every = [pair for found in pairs.values() for pair in found]
    if not every:
        return None
    gained, lost = (sum(pair == kind for pair in every) for kind in ((True, False), (False, True)))
    return AccuracyChange.of(
        paired_difference([[float(now) for now, _ in every]], [[float(was) for _, was in every]]),
        p=mcnemar(gained, lost),
        questions=len(every),
        questions_before=answered,
        gained=gained,
        lost=lost,
        splits={split: sum(now - was for now, was in found) / len(found) for split, found in pairs.items()},
        changed=mcnemar(gained, lost) < 0.05,
    )


def _broken(change: VariantChange, bounds: Bounds, notes: list[str]) -> list[str]:
    found = _too_slow(change, bounds.slowdown, notes) if bounds.slowdown is not None else []
    if bounds.accuracy_drop is not None:
        found += _less_accurate(change, bounds.accuracy_drop)
    if bounds.memory_growth is not None and change.peak_memory > 1 + bounds.memory_growth:
        more, most = share(change.peak_memory - 1), share(bounds.memory_growth)
        found.append(f"{change.name}: peak memory grew by {more}, more than {most}")
    return found


def _too_slow(change: VariantChange, most: float, notes: list[str]) -> list[str]:
    name, time = change.name, change.time
    if time is None:
        return [f"{name}: no times to compare with --max-slowdown"]
    low, high = time.interval_95
    if low > 1 + most and time.changed:
        return [f"{name} is slower by {share(time.value - 1)}, more than {share(most)}"]
    if high > 1 + most:
        why = "" if time.rounds >= FEW_ROUNDS else f", and processes may differ by {share(ONE_PROCESS)}"
        notes.append(
            f"{name}: a slowdown beyond {share(most)} cannot be ruled out ({share(low - 1)} to {share(high - 1)}{why}); "
            f"measure more, with --within or at least --rounds {FEW_ROUNDS}"
        )
    return []


def _less_accurate(change: VariantChange, most: float) -> list[str]:
    name, accuracy = change.name, change.accuracy
    if accuracy is None:
        return [f"{name}: no answers to compare with --max-accuracy-drop"]
    found = []
    worse = next((split for split, value in accuracy.splits.items() if -100 * value > most + 1e-9), None)
    if -100 * accuracy.value > most + 1e-9:
        found.append(f"{name}: accuracy fell by {-100 * accuracy.value:.1f} points, more than {most:g} (p = {accuracy.p:.3f})")
    elif worse is not None:
        found.append(f"{name}: accuracy on {worse} fell by {-100 * accuracy.splits[worse]:.1f} points, more than {most:g}")
    if accuracy.questions < accuracy.questions_before:
        counts = f"{accuracy.questions} of the {accuracy.questions_before} questions"
        found.append(f"{name} answered only {counts} that it was measured on before")
    return found


def text(found: ReportComparison) -> str:
    """Return a comparison as lines: what changed, what did not, what is doubtful, and what is broken."""
    lines = []
    for one in found.variants:
        parts = []
        if one.time is not None:
            word = "changed" if one.time.changed else "no change beyond noise"
            counts = f"{one.time.questions} questions, {one.time.rounds} round{'' if one.time.rounds == 1 else 's'}"
            parts.append(f"time × {estimate(one.time.value, one.time.interval_95, 3)}, {word} ({counts})")
        if one.accuracy is not None:
            accuracy = one.accuracy
            counts = f"{accuracy.gained} gained, {accuracy.lost} lost of {accuracy.questions}, p = {accuracy.p:.3f}"
            parts.append(f"right answers {points(accuracy.value, accuracy.interval_95)} points ({counts})")
        parts.append(f"peak memory × {one.peak_memory:.3f}, disk × {one.bytes_on_disk:.3f}")
        lines.append(f"{one.name}: {'; '.join(parts)}")
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"BROKEN: {why}" for why in found.broken] or ["no bound is broken"]
    return "\n".join(lines)
