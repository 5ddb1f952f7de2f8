"""`mmedge compare`: what changed between two reports of `mmedge bench`, beyond noise, and whether a bound is broken.

    mmedge compare base.json new.json --max-slowdown 5% --max-accuracy-drop 1

Variants are matched by name. Times are compared question by question, answers question by question too (McNemar 1947). The two
reports were not measured in turns, so that the machine itself may have changed between them: a slowdown breaks its bound only
where the whole interval lies beyond it and it is no matter of chance (`timing.differs`), and reports that were noisy, or from
different machines, are said to be. An accuracy breaks its bound by its value on these questions, since the same student gives
the same answers every time; whether the change is more than chance is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.bench.bench import FORMAT
from mmedge.bench.limits import parse_share
from mmedge.bench.timing import FEW_ROUNDS, ONE_PROCESS, differs, ratio
from mmedge.errors import MmedgeError
from mmedge.statistics import mcnemar, paired_difference
from mmedge.storage import read_json


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
    """Return the bounds that a command line says."""
    return Bounds(
        None if slowdown is None else parse_share(slowdown),
        accuracy_drop,
        None if memory_growth is None else parse_share(memory_growth),
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of `mmedge bench`.

    Raises:
        MmedgeError: It is none, or one of another format.
    """
    report = read_json(path)
    if not isinstance(report, dict) or not isinstance(report.get("variants"), list):
        raise MmedgeError(f"{path} is no report of mmedge bench", "name a bench.json")
    if report.get("format") != FORMAT:
        raise MmedgeError(f"{path} has format {report.get('format')!r}; this version compares {FORMAT!r}", "run mmedge bench again")
    whole = [isinstance(variant, dict) and {"name", "problem"} <= variant.keys() for variant in report["variants"]]
    if not all(whole) or not {"task", "ask", "machine"} <= report.keys():
        raise MmedgeError(f"{path} is no whole report: parts of it are missing", "run mmedge bench again")
    return report


def compare(base: Path, new: Path, bounds: Bounds) -> dict[str, Any]:
    """Compare two reports.

    Returns:
        `variants`: for each that both measured, its changes; `broken`: every broken bound, in words; `notes`: what makes the
        comparison doubtful.

    Raises:
        MmedgeError: They are no reports, or have no variant in common.
    """
    before, after = read_report(base), read_report(new)
    try:
        return _compared(base, new, before, after, bounds)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise MmedgeError(
            f"{base} or {new} is no whole report: parts of it are missing or of another kind ({str(error)[:80]})",
            "run mmedge bench again",
        ) from error


def _compared(base: Path, new: Path, before: dict[str, Any], after: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
    if before["task"] != after["task"] or before["ask"] != after["ask"]:
        raise MmedgeError(
            f"{base} is about {before['task']} ({before['ask']}), {new} about {after['task']} ({after['ask']})",
            "compare reports of the same questions",
        )
    old = {variant["name"]: variant for variant in before["variants"]}
    found: list[dict[str, Any]] = []
    broken: list[str] = []
    notes = _notes(before, after)
    for variant in after["variants"]:
        name = variant["name"]
        earlier = old.pop(name, None)
        if earlier is None:
            notes.append(f"{name}: only in {new}")
        elif variant["problem"] or earlier["problem"]:
            if variant["problem"] and not earlier["problem"]:
                broken.append(f"{name} can no longer be measured: {variant['problem']}")
            else:
                notes.append(f"{name}: {variant['problem'] or 'was not measured before: ' + earlier['problem']}")
        else:
            notes += _other_settings(before, after, earlier, variant)
            change = _change(earlier, variant)
            found.append(change)
            broken += _broken(change, bounds, notes)
    for name, earlier in old.items():
        if earlier["problem"] or bounds == Bounds():
            notes.append(f"{name}: only in {base}")
        else:  # what is not measured keeps no bound
            broken.append(f"{name} was measured in {base} and is not in {new}")
    if not found and not broken:
        raise MmedgeError(f"{base} and {new} have no measured variant in common", "measure the same variants")
    return {"base": str(base), "new": str(new), "variants": found, "broken": broken, "notes": notes}


def _notes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    notes = []
    for report, which in ((before, "base"), (after, "new")):
        if report["noisy"]:
            notes.append(f"the {which} report is noisy: {'; '.join(report['noisy'])}")
    differing = [
        f"{name} {before['machine'].get(name)} → {after['machine'].get(name)}"
        for name in ("processor", "cores", "memory_gb", "python")
        if before["machine"].get(name) != after["machine"].get(name)
    ]
    packages = [report["machine"].get("packages", {}) for report in (before, after)]
    differing += [
        f"{name} {packages[0].get(name)} → {packages[1].get(name)}"
        for name in sorted(packages[0].keys() | packages[1].keys())
        if packages[0].get(name) != packages[1].get(name)
    ]
    if differing:
        notes.append(f"not the same machine: {', '.join(differing)}")
    return notes


def _other_settings(before: dict[str, Any], after: dict[str, Any], earlier: dict[str, Any], variant: dict[str, Any]) -> list[str]:
    """Say what a variant was measured with that differs."""
    pairs = [(name, earlier.get(name), variant.get(name)) for name in ("threads", "precision", "device", "engine")]
    settings = [report.get("settings", {}) for report in (before, after)]
    pairs += [(name.replace("_", " "), *(one.get(name) for one in settings)) for name in ("cpus", "memory_limit")]
    differing = ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)
    return [f"{variant['name']} was measured with other settings: {differing}"] if differing else []


def _change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": after["name"],
        "time": _time(before, after),
        "accuracy": _accuracy(before, after),
        "peak_memory": after["peak_memory_bytes"] / before["peak_memory_bytes"],
        "bytes_on_disk": after["bytes_on_disk"] / before["bytes_on_disk"],
    }


def _rounds(variant: dict[str, Any]) -> list[dict[str, float]]:
    """Return the seconds of each round by question (split and id).

    Raises:
        ValueError: A time is none.
    """
    samples = variant["samples"]
    names = samples["timed_questions"]
    table: dict[int, dict[str, float]] = {}
    for number, place, seconds in zip(samples["round"], samples["question"], samples["seconds"], strict=True):
        if not seconds > 0:
            raise ValueError("seconds")
        table.setdefault(number, {})[names[place]] = seconds
    return [one for _, one in sorted(table.items())]


def _time(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """Return the ratio of times, paired by question, over the rounds that both reports have; None where one has no times."""
    if not before["latency_ms"] or not after["latency_ms"]:
        return None
    both = [_rounds(before), _rounds(after)]
    shared = sorted(set.intersection(*(set(one) for table in both for one in table)))
    if not shared:
        return None
    old, new = ([[one[name] for name in shared] for one in table] for table in both)
    rounds = min(len(old), len(new))
    found = ratio(new[:rounds], old[:rounds])
    return {
        **found.to_json(),
        "questions": len(shared),
        "rounds": rounds,
        "changed": differs(new[:rounds], old[:rounds]),
    }


def _accuracy(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """Return by how much the share of right answers changed on the questions that both answered; None where there are none."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    answered = 0
    for split, ids in before["samples"]["ids"].items():
        later = dict(zip(after["samples"]["ids"].get(split, ()), after["samples"]["correct"].get(split, ()), strict=True))
        for question, was in zip(ids, before["samples"]["correct"][split], strict=True):
            answered += was is not None
            if was is not None and later.get(question) is not None:
                pairs.setdefault(split, []).append((bool(later[question]), bool(was)))
    every = [pair for found in pairs.values() for pair in found]
    if not every:
        return None
    new, old = [float(right) for right, _ in every], [float(was) for _, was in every]
    found = paired_difference([new], [old])
    gained = sum(right and not was for right, was in every)
    lost = sum(was and not right for right, was in every)
    return {
        **found.to_json(),
        "p": mcnemar(gained, lost),
        "questions": len(every),
        "questions_before": answered,
        "gained": gained,
        "lost": lost,
        "splits": {split: sum(right - was for right, was in found) / len(found) for split, found in pairs.items()},
        "changed": mcnemar(gained, lost) < 0.05,
    }


def _broken(change: dict[str, Any], bounds: Bounds, notes: list[str]) -> list[str]:
    found = []
    name, time, accuracy = change["name"], change["time"], change["accuracy"]
    if bounds.slowdown is not None:
        if time is None:
            found.append(f"{name}: no times to hold against --max-slowdown")
        elif time["interval_95"][0] > 1 + bounds.slowdown and time["changed"]:
            found.append(f"{name} is slower by {_percent(time['value'] - 1)}, more than {_percent(bounds.slowdown)}")
        elif time["interval_95"][1] > 1 + bounds.slowdown:
            low, high = (_percent(end - 1) for end in time["interval_95"])
            why = "" if time["rounds"] >= FEW_ROUNDS else f", and processes may differ by {_percent(ONE_PROCESS)}"
            notes.append(
                f"{name}: a slowdown beyond {_percent(bounds.slowdown)} is not ruled out ({low} to {high}{why}); measure more, "
                f"with --precision or at least --rounds {FEW_ROUNDS}"
            )
    if bounds.accuracy_drop is not None:
        if accuracy is None:
            found.append(f"{name}: no answers to hold against --max-accuracy-drop")
        else:
            if -100 * accuracy["value"] > bounds.accuracy_drop + 1e-9:
                found.append(
                    f"{name} answers {-100 * accuracy['value']:.1f} points fewer right, more than {bounds.accuracy_drop:g} "
                    f"(p = {accuracy['p']:.3f})"
                )
            elif split := next(
                (one for one, value in accuracy["splits"].items() if -100 * value > bounds.accuracy_drop + 1e-9), ""
            ):
                points = -100 * accuracy["splits"][split]
                found.append(f"{name} answers {points:.1f} points fewer right in {split}, more than {bounds.accuracy_drop:g}")
            if accuracy["questions"] < accuracy["questions_before"]:
                found.append(
                    f"{name} answered only {accuracy['questions']} of the {accuracy['questions_before']} questions that it was "
                    "measured on before"
                )
    if bounds.memory_growth is not None and change["peak_memory"] > 1 + bounds.memory_growth:
        more = _percent(change["peak_memory"] - 1)
        found.append(f"{name} needs {more} more memory at its peak, more than {_percent(bounds.memory_growth)}")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def text(found: dict[str, Any]) -> str:
    """Return a comparison in lines: what changed, what does not, what is doubtful, and what is broken."""
    lines = []
    for one in found["variants"]:
        parts = []
        if (time := one["time"]) is not None:
            low, high = time["interval_95"]
            word = "changed" if time["changed"] else "no change beyond noise"
            counts = f"{time['questions']} questions, {time['rounds']} round{'' if time['rounds'] == 1 else 's'}"
            parts.append(f"time × {time['value']:.3f} [{low:.3f}, {high:.3f}], {word} ({counts})")
        if (accuracy := one["accuracy"]) is not None:
            low, high = accuracy["interval_95"]
            parts.append(
                f"right answers {100 * accuracy['value']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] "
                f"({accuracy['gained']} gained, {accuracy['lost']} lost of {accuracy['questions']}, p = {accuracy['p']:.3f})"
            )
        parts.append(f"peak memory × {one['peak_memory']:.3f}, disk × {one['bytes_on_disk']:.3f}")
        lines.append(f"{one['name']}: {'; '.join(parts)}")
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"BROKEN: {why}" for why in found["broken"]] or ["no bound is broken"]
    return "\n".join(lines)
