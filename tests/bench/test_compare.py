"""`mmedge compare`: what changed beyond noise, and which bounds are broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.bench.compare import Bounds, compare
from mmedge.bench.results import FORMAT
from mmedge.errors import MmedgeError
from mmedge.statistics import proportion
from tests.conftest import is_one_line_error, mmedge

ROUNDS, QUESTIONS = 4, 50
Report = dict[str, Any]
BOUNDS = ("--max-slowdown", "5%", "--max-accuracy-drop", "1")


def variant(precision: str, seed: int, speed: float = 1.0) -> Report:
    """A variant as `mmedge bench` reports it, on a machine that remembers and stalls now and then."""
    cost = np.random.default_rng(5).lognormal(-6, 0.3, QUESTIONS)
    rng = np.random.default_rng(seed)
    noise = np.exp(0.02 * rng.normal(size=(ROUNDS, QUESTIONS))) * (1 + (rng.random((ROUNDS, QUESTIONS)) < 0.03) * 4)
    right = np.random.default_rng(6).random(QUESTIONS) < 0.7
    times = (cost * noise * speed).ravel().tolist()
    share = proportion(right.tolist()).to_json()
    middle = {"p50": speed, "p90": 2 * speed, "p99": 3 * speed}
    around = {f"{p}_interval_95": [value, value] for p, value in middle.items()}
    return {
        **{"name": f"onnxruntime {precision}", "label": precision, "folder": f"bundle-{precision}", "kind": "bundle"},
        **{"place": f"run/bundle-{precision}", "problem": None, "engine": "onnxruntime", "precision": precision, "device": "cpu"},
        **{"threads": 1, "cpus": None, "memory_limit": None, "withheld": 0, "confidence": None, "reached": None, "offline": []},
        **{"answer_accuracy": {"test": share}, "verdict_accuracy": share, "verdict_always_correct": share},
        **{"verdict_balanced_accuracy": None, "ratio_to_first": None, "inter_token_latency_ms": None, "tokens_per_second": None},
        **{"server": None, "load_seconds": 0.5, "steady_memory_bytes": 90_000_000, "time_to_first_token_ms": middle},
        "latency_ms": {**middle, **around, "count": ROUNDS * QUESTIONS, "rounds": ROUNDS},
        "peak_memory_bytes": 100_000_000,
        "bytes_on_disk": 2_000_000,
        "samples": {
            "round": [number for number in range(ROUNDS) for _ in range(QUESTIONS)],
            "question": [*range(QUESTIONS)] * ROUNDS,
            "timed_questions": [f"test/q{number}" for number in range(QUESTIONS)],
            "seconds": times,
            **{"time_to_first_token": times, "decode_seconds": times, "decode_steps": [1] * len(times), "tokens": [1] * len(times)},
            **{"warmup_passes": [], "load_seconds": [0.5], "resident_memory_bytes": [90_000_000], "confidences": {}, "answers": {}},
            "ids": {"test": [f"q{number}" for number in range(QUESTIONS)]},
            "correct": {"test": right.tolist()},
        },
    }


def failed(name: str, precision: str, problem: str) -> Report:
    """A variant that could not be measured."""
    place = {"folder": f"bundle-{precision}", "kind": "bundle", "place": f"run/bundle-{precision}"}
    return {"name": name, "label": name, **place, "problem": problem, "hint": ""}


def report(seed: int, speed: float = 1.0) -> Report:
    """A report of two variants, a and b."""
    watch = {"looks": 0, "other_load_cores": None, "steal_share": None, "frequency_ghz": None, "temperature_c": None}
    facts = {"mmedge": "0", "python": "3.11", "system": "s", "processor": "p", "cores": 2, "memory_gb": 8.0}
    return {
        **{"format": FORMAT, "task": "t", "questions": {"test": QUESTIONS}, "questions_in_set": {"test": QUESTIONS}},
        **{"ask": "answer", "scenarios": ["single", "accuracy"], "precision_reached": None, "continued": 0, "ceilings": []},
        "settings": {},
        "noisy": [],
        "watch": {**watch, "noisy": [], "samples": []},
        "machine": {**facts, "packages": {"onnxruntime": "1"}},
        "variants": [variant("a", 2 * seed, speed), variant("b", 2 * seed + 1, speed)],
    }


def written(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path, "base.json", report(0))


def test_the_same_again_breaks_nothing_in_twenty_runs(base: Path, tmp_path: Path) -> None:
    for seed in range(1, 21):
        found = compare(base, written(tmp_path, "new.json", report(seed)), Bounds(0.05, 1, 0.1))
        assert found.broken == [] and not any(one.time is None or one.time.changed for one in found.variants)


def test_a_tenth_slower_is_found_and_fails(base: Path, tmp_path: Path) -> None:
    slow = written(tmp_path, "new.json", report(1, speed=1.1))
    done = mmedge("compare", base, slow, *BOUNDS)
    assert done.code == 1 and "BROKEN: a is slower by 1" in done.out and "Traceback" not in done.err
    found = json.loads(mmedge("compare", base, slow, "--json").out)
    assert all(one["time"]["changed"] and 1.08 < one["time"]["value"] < 1.12 for one in found["variants"])
    assert found["broken"] == []  # no bound was named
    allowed = mmedge("compare", base, slow, "--max-slowdown", "20%")
    assert allowed.code == 0 and "no bound is broken" in allowed.out
    unsure = mmedge("compare", base, slow, "--max-slowdown", "10%")
    assert unsure.code == 0 and "cannot be ruled out" in unsure.out


def test_fewer_right_answers_fail_with_how_likely_that_is_by_chance(base: Path, tmp_path: Path) -> None:
    worse = report(1)
    right = worse["variants"][1]["samples"]["correct"]["test"]
    lost = [place for place, truth in enumerate(right) if truth][:8]
    gained = [place for place, truth in enumerate(right) if not truth][:2]
    for place in (*lost, *gained):
        right[place] = not right[place]
    done = mmedge("compare", base, written(tmp_path, "new.json", worse), *BOUNDS)
    assert done.code == 1 and "BROKEN: b: accuracy fell by 12.0 points, more than 1 (p = 0.109)" in done.out
    assert "(2 gained, 8 lost of 50, p = 0.109)" in done.out and "BROKEN: a" not in done.out
    allowed = mmedge("compare", base, tmp_path / "new.json", "--max-accuracy-drop", "12")
    assert allowed.code == 0


def test_answers_are_paired_by_question_and_not_by_place(base: Path, tmp_path: Path) -> None:
    turned = report(1)
    for one in turned["variants"]:
        for name in ("ids", "correct"):
            one["samples"][name]["test"] = one["samples"][name]["test"][::-1][:30]
    found = compare(base, written(tmp_path, "new.json", turned), Bounds())
    assert all(one.accuracy and one.accuracy.questions == 30 and one.accuracy.value == 0 for one in found.variants)


def test_memory_that_grows_and_variants_that_are_gone(base: Path, tmp_path: Path) -> None:
    new = report(1)
    new["variants"][0]["peak_memory_bytes"] *= 2
    new["variants"][1] = failed("run/bundle-b", "b", "does not fit in 300 MB")
    new["variants"].append(failed("c", "c", "no such variant: c"))
    new["noisy"] = ["other processes used 1.00 cores"]
    new["machine"]["packages"]["onnxruntime"] = "2"
    found = compare(base, written(tmp_path, "new.json", new), Bounds(memory_growth=0.1))
    assert found.broken == [
        "a: peak memory grew by 100.0 %, more than 10.0 %",
        "b can no longer be measured: does not fit in 300 MB",
    ]
    notes = " ".join(found.notes)
    assert "new report is noisy" in notes and "onnxruntime 1 → 2" in notes and "c: only in" in notes
    new["variants"] = new["variants"][:1]
    without = written(tmp_path, "new.json", new)
    assert compare(base, without, Bounds()).broken == []
    assert compare(base, without, Bounds(slowdown=0.05)).broken == [f"b was measured in {base} and is not in {without}"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(format="mmedge-bench/1"), "has format"),
        (lambda r: r.update(task="u"), "about u"),
        (lambda r: r.update(variants=[variant("z", 1)]), "no measured variant in common"),
        (lambda r: r.pop("variants"), "not a report of mmedge bench"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    base: Path, tmp_path: Path, change: Callable[[Report], object], complaint: str
) -> None:
    new = copy.deepcopy(report(1))
    change(new)
    path = written(tmp_path, "new.json", new)
    with pytest.raises(MmedgeError, match=complaint):
        compare(base, path, Bounds())


def test_a_report_of_the_bench_itself_is_the_same_as_itself(tiny_run: Path, tmp_path: Path) -> None:
    done = mmedge("bench", tiny_run / "bundle-int8", "--questions", "4", "--verdicts", "0", "--out", tmp_path, "-q")
    assert done.code == 0, done.err
    same = mmedge("compare", tmp_path / "bench.json", tmp_path / "bench.json", *BOUNDS)
    assert same.code == 0 and "× 1.000 [1.000, 1.000], no change beyond noise" in same.out
    nothing = mmedge("compare", tmp_path / "none.json", tmp_path / "bench.json")
    assert is_one_line_error(nothing) and "no such file" in nothing.err


def test_times_are_paired_by_question_whatever_else_was_asked(tmp_path: Path) -> None:
    """The new report timed every other question, in another order: places mean something else in it."""
    base, new = report(1), report(1)
    for one in new["variants"]:
        samples = one["samples"]
        order = list(range(QUESTIONS - 1, -1, -2))
        seconds = np.array(samples["seconds"]).reshape(ROUNDS, QUESTIONS)[:, order]
        samples |= {
            "round": [number for number in range(ROUNDS) for _ in order],
            "question": [*range(len(order))] * ROUNDS,
            "timed_questions": [f"test/q{number}" for number in order],
            "seconds": seconds.ravel().tolist(),
        }
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds(slowdown=0.05))
    assert not found.broken
    assert all(one.time and one.time.value == 1.0 and one.time.questions == QUESTIONS // 2 for one in found.variants)


def test_what_was_not_asked_again_and_one_split_that_gets_worse_break_the_bound(tmp_path: Path) -> None:
    base, new = report(1), report(1)
    for one in new["variants"]:
        for kind in ("ids", "correct"):
            one["samples"][kind]["test"] = one["samples"][kind]["test"][:2]
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds(accuracy_drop=1))
    assert any(f"answered only 2 of the {QUESTIONS} questions" in why for why in found.broken)
    base, new = report(1), report(1)
    for whole in (base, new):
        for one in whole["variants"]:
            one["samples"]["ids"]["hard"] = [f"h{number}" for number in range(20)]
            one["samples"]["correct"]["hard"] = [whole is base] + [True] * 19
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds(accuracy_drop=2))
    assert any("accuracy on hard fell by 5.0 points" in why for why in found.broken)


@pytest.mark.parametrize("part", ["noisy", "samples", "latency_ms", "peak_memory_bytes", "machine", "seconds"])
def test_a_report_with_a_hole_is_one_line(part: str, tmp_path: Path) -> None:
    new = report(1)
    if part in new:
        del new[part]
    elif part == "seconds":
        new["variants"][0]["samples"]["seconds"] = [0.0] * (ROUNDS * QUESTIONS)
    else:
        del new["variants"][0][part]
    with pytest.raises(MmedgeError, match="complete report"):
        compare(written(tmp_path, "a.json", report(1)), written(tmp_path, "b.json", new), Bounds(slowdown=0.05))


def test_other_settings_are_said(tmp_path: Path) -> None:
    base, new = report(1), report(1)
    new["settings"] = {"cpus": 1}
    new["variants"][0]["threads"] = 2
    notes = " ".join(compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds()).notes)
    assert "threads 1 → 2" in notes and "cpus None → 1" in notes


def named(value: Report, **changes: object) -> Report:
    """A variant that differs in some of what it says."""
    return {**copy.deepcopy(value), **changes}


def test_variants_are_matched_by_what_they_are_whatever_stands_beside_them(tmp_path: Path) -> None:
    """Two runs measured together, then one alone from another folder, and again under other names."""
    base, new = report(1), report(2)
    ours = [named(base["variants"][0], label=f"a ({run})", place=f"old/{run}/bundle-a") for run in ("svamp", "quickstart")]
    base["variants"] = ours
    new["variants"] = [named(new["variants"][0], label="a", place="/other/disk/quickstart/bundle-a")]
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds())
    assert [one.name for one in found.variants] == ["a"] and found.notes == [f"a (svamp): only in {tmp_path / 'a.json'}"]
    for one in base["variants"]:
        one["name"] = one.pop("label")  # as in a report of the version before
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds())
    assert len(found.variants) == 1 and found.notes == [f"a (svamp): only in {tmp_path / 'a.json'}"]


def test_threads_tell_apart_what_is_otherwise_the_same(tmp_path: Path) -> None:
    base, new = report(1), report(2)
    base["variants"] = [named(base["variants"][0], threads=count, label=f"a, {count} threads") for count in (1, 2)]
    new["variants"] = [named(new["variants"][0], threads=count, label=f"a, {count} threads") for count in (2, 1)]
    found = compare(written(tmp_path, "a.json", base), written(tmp_path, "b.json", new), Bounds())
    assert [one.name for one in found.variants] == ["a, 2 threads", "a, 1 threads"] and found.notes == []
