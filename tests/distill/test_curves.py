"""The page of a training: what the logs say is on it, and nothing in them can break it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmedge.distill.curves import write_training_page


def _step(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "steps": 100,
        "predict_loss": 2.0,
        "explain_loss": 3.0,
        "tokens": 100 * step,
        "seconds": 0.5 * step,
    } | more


def _validation(step: int, score: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "validation": {"step": step, "score": score, **more}}


def _share(value: float) -> dict[str, Any]:
    return {"value": value, "interval_95": [value - 0.1, value + 0.1], "successes": 7, "total": 10}


def _write(folder: Path, stage: str, lines: list[Any], end: str = "") -> None:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / stage / "metrics.jsonl").write_text(text + end, encoding="utf-8")


def _page(folder: Path, finished: bool = False) -> tuple[str, str]:
    """Write the page and return its two stages."""
    write_training_page(folder, title="training <of> r", finished=finished)
    text = (folder / "training.html").read_text(encoding="utf-8")
    assert "<h1>training &lt;of&gt; r</h1>" in text
    _, first, second = text.split("<h2>")
    return first, second


def _names(part: str) -> list[str]:
    """Return what the lines of a stage's charts are called."""
    return re.findall(r'<path class="line"[^>]*><title>([^<]*)</title>', part)


def test_both_stages_are_shown_with_readable_names(tmp_path: Path) -> None:
    _write(tmp_path, "stage1", [_step(10), _step(20), _validation(20, 0.6, verdict={"accuracy": _share(0.7), "auroc": None})])
    more = {"evaluation_predict_loss": 0.7, "evaluation_explain_loss": 1.0}
    _write(tmp_path, "stage2", [_step(10, **more), _step(20, **more)])
    first, second = _page(tmp_path)
    assert first.startswith("Stage 1") and second.startswith("Stage 2")
    assert _names(first) == ["verdict", "evaluation"] and _names(second) == ["answer", "rationale", "verdict", "evaluation"]
    assert "70.0 % [60.0, 80.0]" in first and "AUROC</th>" not in first


def test_the_line_says_how_far_how_fast_and_how_long(tmp_path: Path) -> None:
    _write(tmp_path, "stage2", [_step(10), _step(20), _step(30, tokens=4000)])
    first, second = _page(tmp_path)
    assert "not begun" in first
    assert (
        "step 30 of 100 · 4,000 tokens · 267 tokens/s over all, 400 tokens/s in the last interval · 15 s so far · about 35 s left"
        in second
    )
    first, second = _page(tmp_path, finished=True)
    assert "did not run" in first and "left" not in second.split("</p>")[0]


def test_the_page_renews_itself_only_while_training_goes_on(tmp_path: Path) -> None:
    _write(tmp_path, "stage1", [_step(10)])
    _page(tmp_path)
    assert '<meta http-equiv="refresh" content="10">' in (tmp_path / "training.html").read_text(encoding="utf-8")
    _page(tmp_path, finished=True)
    assert 'http-equiv="refresh"' not in (tmp_path / "training.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage1", "training.html"]


def test_a_stage_that_is_done_says_what_it_ended_with(tmp_path: Path) -> None:
    _write(tmp_path, "stage1", [_step(10), _step(20), _validation(10, 0.9), _validation(20, 0.8)])
    first, _ = _page(tmp_path)
    assert "10 ★ best" in first and "left" in first
    done = {"steps": 20, "planned_steps": 100, "tokens": 5000, "seconds": 100.0, "best": {"step": 20, "score": 0.8}}
    (tmp_path / "stage1" / "done.json").write_text(json.dumps(done))
    first, _ = _page(tmp_path)
    assert "20 ★ best" in first and "10 ★" not in first
    assert "step 20 of 100 (stopped early) · 5,000 tokens · 50 tokens/s over all" in first and "left" not in first.split("</p>")[0]


def test_validations_are_drawn_with_their_interval_and_listed(tmp_path: Path) -> None:
    verdict = {"accuracy": _share(0.7), "balanced_accuracy": 0.6, "auroc": 0.65}
    lines = [_validation(step, score, answer=_share(score), verdict=verdict) for step, score in ((10, 0.3), (20, 0.5), (30, 0.5))]
    _write(tmp_path, "stage2", lines)
    _, second = _page(tmp_path)
    assert _names(second) == ["answer accuracy", "verdict balanced accuracy", "verdict AUROC"]
    assert second.count('<polygon class="band"') == 1 and "20 ★ best" in second  # the first of two that are equal
    assert second.count("<circle") == 9 and "answer accuracy, 20: 50.0 % [40.0 %, 60.0 %]" in second


@pytest.mark.parametrize(("largest", "log"), [(15.0, False), (25.0, True)])
def test_a_wide_range_of_losses_gets_a_log_scale(tmp_path: Path, largest: float, log: bool) -> None:
    _write(tmp_path, "stage1", [_step(10, predict_loss=largest, explain_loss=1.0), _step(20, predict_loss=1.0, explain_loss=0.0)])
    first, _ = _page(tmp_path)
    assert ("Log scale." in first) is log and ("Losses of 0 or less" in first) is log


def test_many_validations_are_listed_in_part_and_the_best_always(tmp_path: Path) -> None:
    _write(tmp_path, "stage1", [_validation(step, 1 / step) for step in range(1, 1001)])
    first, _ = _page(tmp_path)
    assert first.count("<tr>") == 102 and "<strong>1 ★ best</strong>" in first and "of 1,000 validations" in first


GARBAGE: list[Any] = [
    "", "null", "[1, 2]", "7", '"text"', "{", "}", '{"step": 5, "lo', '{"a": [{}', '{}]}, {"x": 1}', "\x00\x1b",
    "[" * 100_000, '{"step": 3, "tokens": -Infinity}',
    '{"step": ' + "9" * 5000 + "}", '{"step": NaN, "predict_loss": 1}', '{"step": 3, "predict_loss": Infinity}',
    {"step": "x", "predict_loss": "y", "tokens": [], "seconds": {}}, {"step": True}, {}, {"step": 10**400, "x_loss": 10**400},
    {"step": 4, "<script>_loss": 1.5, "\ud800_loss": 2, "predict_loss": None, "tokens": 1e300, "seconds": -5},
    {"step": 5, "<script>_loss": 1.5, "tokens": 3, "seconds": 0, "steps": -1},
    {"step": 1, "validation": None}, {"step": 1, "validation": []}, {"validation": {}},
    {"step": 6, "validation": {"score": "high"}}, {"step": 7, "validation": {"answer": 3, "verdict": "yes"}},
    {"step": 8, "validation": {"step": 8, "answer": {"value": 2, "interval_95": [None, 1]}, "verdict": {"accuracy": [1]}}},
    {"step": 9, "validation": {"answer": {"value": 0.5, "interval_95": "ab"}}},
    {"step": 10, "validation": {"verdict": {"balanced_accuracy": "x", "auroc": 1e200}}},
]  # fmt: skip


def test_garbage_is_skipped_and_what_lies_between_is_shown(tmp_path: Path) -> None:
    whole = [_step(10), _step(20), _validation(20, 0.7, answer=_share(0.7))]
    _write(tmp_path, "stage1", whole)
    clean, _ = _page(tmp_path)
    _write(tmp_path, "stage1", ["not json", whole[0], '{"a": [{}', '{}]}, {"x": 1}', "[]", *whole[1:]], end='{"step": 30, "predi')
    assert _page(tmp_path)[0] == clean
    _write(tmp_path, "stage1", GARBAGE)
    _write(tmp_path, "stage2", [line for one in GARBAGE for line in (one, *whole)])
    for stage, done in (("stage1", '{"best": 3, "steps": "x", "seconds": NaN}'), ("stage2", "[" * 100_000)):
        (tmp_path / stage / "done.json").write_text(done)
    first, second = _page(tmp_path)
    assert "<script>" not in first + second and "&lt;script&gt;" in first and "rationale" in second


def test_lines_that_are_whole_only_together_are_not_read_as_one(tmp_path: Path) -> None:
    _write(tmp_path, "stage1", [_step(10), '{"step": 20, "steps": [{}', '{}], "a": 1}, {}, {"step": 30}', '{"b": 1}, {"c": 2}'])
    assert "step 10 of 100" in _page(tmp_path)[0]
    _write(tmp_path, "stage1", [_step(10, predict_loss=1.0), _step(20, predict_loss=10**400), _step(30, predict_loss=2)])
    assert "step 30 of 100" in _page(tmp_path)[0]


@pytest.mark.parametrize("line", [line for line in GARBAGE if line])
def test_no_single_line_stops_the_page(tmp_path: Path, line: Any) -> None:
    _write(tmp_path, "stage1", [line])
    _write(tmp_path, "stage2", [], end=line if isinstance(line, str) else json.dumps(line))
    (tmp_path / "stage2" / "done.json").write_text(line if isinstance(line, str) else json.dumps(line))
    assert all(_page(tmp_path))


def test_no_file_at_all_and_files_that_are_none(tmp_path: Path) -> None:
    first, second = _page(tmp_path / "new")
    assert "not begun" in first and "not begun" in second
    (tmp_path / "stage1" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "stage2").write_text("a file")
    assert "not begun" in _page(tmp_path)[0]
    (tmp_path / "stage1" / "metrics.jsonl").rmdir()
    (tmp_path / "stage1" / "metrics.jsonl").write_bytes(b"\xff\xfe{\x80}\n" + json.dumps(_step(10)).encode() + b"\r\n")
    assert "step 10 of 100" in _page(tmp_path)[0]
