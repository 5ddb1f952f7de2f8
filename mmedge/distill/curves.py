"""The page that shows how a training goes, or how it went: losses, validations and speed, from the files of its stages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from mmedge.charts import Series, line_chart
from mmedge.page import Page
from mmedge.progress import duration
from mmedge.storage import Json

REFRESH_SECONDS = 10

_MOST_LINES = 12  # of one chart
_MOST_VALIDATIONS = 100  # in one table
_LOG_RANGE = 20.0  # largest by smallest loss beyond which the scale is logarithmic
_STAGES = (
    ("stage1", "Stage 1: self-evaluation", {"predict": "verdict", "explain": "evaluation"}),
    (
        "stage2",
        "Stage 2: reasoning",
        {
            "predict": "answer",
            "explain": "rationale",
            "evaluation_predict": "verdict",
            "evaluation_explain": "evaluation",
        },
    ),
)


def write_training_page(folder: Path, *, title: str, finished: bool) -> None:
    """Write `training.html` from what a training run has left so far; nothing else in its folder is touched.

    What is missing, half written or no measurement in the stages' files is left out.

    Args:
        folder: Of the run, with `stage1` and `stage2`.
        title: The page's heading.
        finished: Whether the training has ended; until then a browser reads the page again every 10 s.

    Raises:
        MmedgeError: The page cannot be written.
    """
    state = "finished" if finished else f"in training; this page renews itself every {REFRESH_SECONDS} s"
    page = Page(title, state, refresh_seconds=None if finished else REFRESH_SECONDS)
    for name, heading, names in _STAGES:
        records = _records(folder / name / "metrics.jsonl")
        page.heading(heading)
        _add_stage(page, records, _done(folder / name / "done.json"), names, finished)
    page.write(folder / "training.html")


def _add_stage(page: Page, records: list[Json], done: Json, names: dict[str, str], finished: bool) -> None:
    steps = _by_step(record for record in records if "validation" not in record)
    validations = _by_step(record["validation"] for record in records if isinstance(record.get("validation"), dict))
    page.note(_line(steps, done, finished))
    if not steps and not validations:
        return
    losses, log_y, nothing_below = _losses(steps, names)
    caption = "Mean loss per target token since the line before." + (" Log scale." if log_y else "")
    if nothing_below:
        caption += " Losses of 0 or less are not on it."
    page.figure(line_chart(losses, x_label="step", y_label="loss", log_y=log_y), caption)
    page.figure(
        line_chart(_speed(steps), x_label="step", y_label="tokens/s", zero=True),
        "Between two lines of the log; where a validation lies between them, its time counts too.",
    )
    if validations:
        page.figure(
            line_chart(_scores(validations), x_label="step", y_label="validation", percent=True, markers=True),
            "Shaded: 95 % interval of the answer accuracy. A verdict's balanced accuracy and AUROC of 50 % say nothing.",
        )
        best = _best_step(validations, done)
        shown = [
            one for index, one in enumerate(validations) if index >= len(validations) - _MOST_VALIDATIONS or _step(one) == best
        ]
        if len(shown) < len(validations):
            page.note(f"The last {_MOST_VALIDATIONS} of {len(validations):,} validations, and the best.")
        page.table(*_table(shown, best))


def _line(steps: Sequence[Json], done: Json, finished: bool) -> str:
    """Return how far a stage is, how fast, and how long it took or will take."""
    if not steps and not done:
        return "did not run" if finished else "not begun"
    last = steps[-1] if steps else {}
    step = _first(_number(done.get("steps")), _number(last.get("step")))
    planned = _first(_number(done.get("planned_steps")), _number(last.get("steps")))
    tokens = _first(_number(done.get("tokens")), _number(last.get("tokens")))
    seconds = _first(_number(done.get("seconds")), _number(last.get("seconds")))
    words = [f"step {_count(step)} of {_count(planned)}" if planned > 0 else f"step {_count(step)}"]
    if done and step < planned:
        words[0] += " (stopped early)"
    if math.isfinite(tokens):
        words.append(f"{_count(tokens)} tokens")
    rates = []
    if seconds > 0 and math.isfinite(tokens):
        rates.append(f"{_count(tokens / seconds)} tokens/s over all")
    recent = _rate(steps[-2], last) if len(steps) > 1 else math.nan
    if math.isfinite(recent):
        rates.append(f"{_count(recent)} tokens/s of late")
    words += [", ".join(rates)] if rates else []
    if seconds >= 0:
        words.append(f"{duration(seconds)} so far" if not done and not finished else f"{duration(seconds)}")
    left = seconds / step * (planned - step) if step > 0 else math.nan
    if not done and not finished and 0 <= left < 1e10:
        words.append(f"about {duration(left)} left")
    return " · ".join(words)


def _losses(steps: Sequence[Json], names: dict[str, str]) -> tuple[list[Series], bool, bool]:
    """Return the losses, whether they need a log scale, and whether there are some that have no place on it."""
    keys = [key for key in dict.fromkeys(chain.from_iterable(steps)) if key.endswith("_loss")]
    at = [_step(record) for record in steps]
    series: list[Series] = []
    smallest, largest, nothing_below = math.inf, 0.0, False
    for key in keys:
        values = [_number(record.get(key)) for record in steps]
        there = [value for value in values if value == value]
        if not there:
            continue
        positive = [value for value in there if value > 0]
        nothing_below = nothing_below or len(positive) < len(there)
        smallest, largest = min([smallest, *positive]), max([largest, *positive])
        kind = key.removesuffix("_loss")
        name = names.get(kind, kind.replace("_", " "))
        if any(name == one.name for one in series):
            name = kind.replace("_", " ")
        series.append(Series(name, list(zip(at, values, strict=True))))
        if len(series) == _MOST_LINES:
            break
    log_y = largest > _LOG_RANGE * smallest
    return series, log_y, log_y and nothing_below


def _speed(steps: Sequence[Json]) -> list[Series]:
    points = [(_step(record), _rate(before, record)) for before, record in pairwise(steps)]
    return [Series("", points)]


def _scores(validations: Sequence[Json]) -> list[Series]:
    at = [_step(one) for one in validations]
    found = []
    accuracies = [_share(one.get("answer")) for one in validations]
    if any(map(_is_measured, accuracies)):
        values, low, high = zip(*accuracies, strict=True)
        found.append(Series("answer accuracy", list(zip(at, values, strict=True)), low, high))
    for key, name in (("balanced_accuracy", "verdict balanced accuracy"), ("auroc", "verdict AUROC")):
        points = [(step, _verdict(one, key)) for step, one in zip(at, validations, strict=True)]
        if any(map(math.isfinite, (value for _, value in points))):
            found.append(Series(name, points))
    return found


def _table(validations: Sequence[Json], best: float) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows; what no validation has is no column."""
    columns: list[tuple[str, Callable[[Json], str]]] = [
        ("score", lambda one: _plain(_number(one.get("score")))),
        ("answer accuracy", lambda one: _interval(_share(one.get("answer")))),
        ("verdict accuracy", lambda one: _interval(_share(_verdict_of(one).get("accuracy")))),
        ("balanced", lambda one: _plain(_verdict(one, "balanced_accuracy"))),
        ("AUROC", lambda one: _plain(_verdict(one, "auroc"))),
    ]
    filled = [(heading, cells) for heading, text in columns if any(cells := [text(one) for one in validations])]
    steps = [f"{_count(_step(one))} ★ best" if _step(one) == best else _count(_step(one)) for one in validations]
    rows = [[step, *(cells[index] or "–" for _, cells in filled)] for index, step in enumerate(steps)]
    return ["step", *(heading for heading, _ in filled)], rows


def _best_step(validations: Sequence[Json], done: Json) -> float:
    """Return the step that the stage was selected at: as it says itself, or else the first with the highest score."""
    best = done.get("best")
    said = _number(best.get("step")) if isinstance(best, dict) else math.nan
    if math.isfinite(said):
        return said
    scores = [(_number(one.get("score")), -_step(one)) for one in validations]
    return -max((pair for pair in scores if math.isfinite(pair[0])), default=(0.0, math.nan))[1]


# ---------------------------------------------------------------------------------- what the files say


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _records(path: Path) -> list[Json]:
    """Return the JSON objects of a log; lines that are none are skipped."""
    found = [_json(line) for line in _text(path).split("\n") if line.startswith("{")]
    return [record for record in found if isinstance(record, dict)]


def _done(path: Path) -> Json:
    done = _json(_text(path))
    return done if isinstance(done, dict) else {}


def _by_step(records: Iterable[Json]) -> list[Json]:
    """Return records by step; of those with one step the last, and none without."""
    found = {_step(record): record for record in records}
    return [found[step] for step in sorted(step for step in found if step == step)]


def _step(record: Json) -> float:
    return _number(record.get("step"))


def _number(value: Any) -> float:
    """Return a finite number below 1e15, the largest that means anything in a log, or NaN."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15:
        return float(value)
    return math.nan


def _rate(before: Json, after: Json) -> float:
    """Return tokens per second between two lines, or NaN."""
    seconds = _number(after.get("seconds")) - _number(before.get("seconds"))
    tokens = _number(after.get("tokens")) - _number(before.get("tokens"))
    return tokens / seconds if seconds > 1e-6 and tokens >= 0 else math.nan


def _share(value: Any) -> tuple[float, float, float]:
    """Return a share and its interval, NaN where it is missing."""
    found = value if isinstance(value, dict) else {}
    ends = found.get("interval_95")
    low, high = map(_number, ends) if isinstance(ends, list) and len(ends) == 2 else (math.nan, math.nan)
    return _number(found.get("value")), low, high


def _is_measured(share: tuple[float, float, float]) -> bool:
    return math.isfinite(share[0])


def _verdict_of(validation: Json) -> Json:
    verdict = validation.get("verdict")
    return verdict if isinstance(verdict, dict) else {}


def _verdict(validation: Json, key: str) -> float:
    return _number(_verdict_of(validation).get(key))


def _first(*values: float) -> float:
    return next((value for value in values if math.isfinite(value)), math.nan)


# ------------------------------------------------------------------------------------------------ words


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "?"


def _plain(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ""


def _interval(share: tuple[float, float, float]) -> str:
    value, low, high = share
    if not math.isfinite(value):
        return ""
    interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{100 * value:.1f} %{interval}"
