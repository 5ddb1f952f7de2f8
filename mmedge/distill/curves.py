"""The page that shows a training, running or finished: losses, validations and speed, from the files of its stages."""

from __future__ import annotations

import json
import math
import operator
import uuid
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mmedge.distill.stages import STAGES, loss_names
from mmedge.reports.charts import Series, line_chart, thinned
from mmedge.reports.formats import NOTHING, duration, number, share
from mmedge.reports.page import Page
from mmedge.reports.tables import Cell, Table
from mmedge.storage import Json

REFRESH_SECONDS = 10

_LARGEST = 1e15  # larger values in a log are not measurements
_MOST_LINES = 12  # of one chart
_MOST_VALIDATIONS = 100  # in one table
_LOG_RANGE = 20.0  # largest by smallest loss beyond which the scale is logarithmic


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
    state = "finished" if finished else f"training; this page refreshes itself every {REFRESH_SECONDS} s"
    page = Page(title, state, refresh_seconds=None if finished else REFRESH_SECONDS)
    for place, stage in enumerate(STAGES):
        if place > 1 and not (folder / stage.name).is_dir():
            continue
        records = _log(folder / stage.name / "metrics.jsonl")
        page.heading(stage.title)
        _add_stage(page, records, _done(folder / stage.name / "done.json"), loss_names(stage), finished)
    page.write(folder / "training.html")


def _add_stage(page: Page, records: list[Json], done: Json, names: dict[str, str], finished: bool) -> None:
    steps = _by_step([record for record in records if "validation" not in record])
    validations = _by_step(
        [{"step": record.get("step"), **record["validation"]} for record in records if isinstance(record.get("validation"), dict)]
    )
    page.note(_line(steps, done, finished))
    if not steps and not validations:
        return
    at = _column(steps, "step")
    losses, log_y, nothing_below = _losses(steps, at, names)
    caption = "Loss on the batch of each logged step." + (" Log scale." if log_y else "")
    if nothing_below:
        caption += " Losses of 0 or less are not shown."
    page.figure(line_chart(losses, x_label="step", y_label="loss", log_y=log_y), caption)
    if validations:
        scores = _scores(validations)
        words = [
            "Shaded: 95 % interval of the answer accuracy." if any(one.low for one in scores) else "",
            "A balanced accuracy or an AUROC of 50 % is chance." if any(one.low is None for one in scores) else "",
        ]
        page.figure(
            line_chart(scores, x_label="step", y_label="validation", percent=True, markers=True), " ".join(filter(None, words))
        )
    page.figure(
        line_chart([Series("", thinned(at[1:], _rates(steps)))], x_label="step", y_label="tokens/s", zero=True),
        "Averaged between log entries, including validations.",
    )
    if validations:
        best = _best_step(validations, done)
        shown = [
            one for index, one in enumerate(validations) if index >= len(validations) - _MOST_VALIDATIONS or _step(one) == best
        ]
        if len(shown) < len(validations):
            page.note(f"The last {_MOST_VALIDATIONS} of {len(validations):,} validations, and the best.")
        page.table(_table(shown, best))


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
    recent = _rates(steps[-2:])
    if recent and math.isfinite(recent[0]):
        rates.append(f"{_count(recent[0])} tokens/s in the last interval")
    words += [", ".join(rates)] if rates else []
    if seconds >= 0:
        words.append(f"{duration(seconds)} so far" if not done and not finished else f"{duration(seconds)}")
    left = seconds / step * (planned - step) if step > 0 else math.nan
    if not done and not finished and 0 <= left < 1e10:
        words.append(f"about {duration(left)} left")
    return " · ".join(words)


def _losses(steps: Sequence[Json], at: list[float], names: dict[str, str]) -> tuple[list[Series], bool, bool]:
    """Return the losses, whether they need a log scale, and whether there are some that have no place on it."""
    keys = [key for key in dict.fromkeys(chain.from_iterable(steps)) if key.endswith("_loss")]
    series: list[Series] = []
    smallest, largest, nothing_below = math.inf, 0.0, False
    for key in keys:
        values = _column(steps, key)
        there = [value for value in values if value == value]
        if not there:
            continue
        least = min(there)
        if least <= 0:
            nothing_below, least = True, min((value for value in there if value > 0), default=math.inf)
        smallest, largest = min(smallest, least), max(largest, max(there))
        kind = key.removesuffix("_loss")
        name = names.get(kind, kind.replace("_", " "))
        if any(name == one.name for one in series):
            name = kind.replace("_", " ")
        series.append(Series(name, thinned(at, values)))
        if len(series) == _MOST_LINES:
            break
    log_y = largest > _LOG_RANGE * smallest
    return series, log_y, log_y and nothing_below


def _rates(steps: Sequence[Json]) -> list[float]:
    """Return tokens per second between each two lines of the log, NaN where they do not say."""
    seconds, tokens = _column(steps, "seconds"), _column(steps, "tokens")
    spans, amounts = map(operator.sub, seconds[1:], seconds), map(operator.sub, tokens[1:], tokens)
    return [amount / span if span > 1e-6 and amount >= 0 else math.nan for span, amount in zip(spans, amounts, strict=True)]


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


def _table(validations: Sequence[Json], best: float) -> Table:
    """Return the table of validations; what none of them has is no column."""

    def share_of(value: Any) -> str:
        found, *interval = _share(value)
        return share(found, interval)

    columns: list[tuple[str, Callable[[Json], str]]] = [
        ("score", lambda one: number(_number(one.get("score")), 3)),
        ("answer accuracy", lambda one: share_of(one.get("answer"))),
        ("verdict accuracy", lambda one: share_of(_verdict_of(one).get("accuracy"))),
        ("balanced", lambda one: number(_verdict(one, "balanced_accuracy"), 3)),
        ("AUROC", lambda one: number(_verdict(one, "auroc"), 3)),
    ]
    written = {heading: [text(one) for one in validations] for heading, text in columns}
    filled = {heading: cells for heading, cells in written.items() if set(cells) != {NOTHING}}
    steps = [Cell(f"{_count(_step(one))} ★ best", "strong") if _step(one) == best else _count(_step(one)) for one in validations]
    return Table("", ["step", *filled], list(zip(steps, *filled.values(), strict=True)))


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


def _log(path: Path) -> list[Json]:
    """Return the JSON objects of a log, one a line; lines that are none are skipped, and so is half a last line."""
    lines, _, last = _text(path).rpartition("\n")
    # All at once takes three quarters of the time. The mark between two lines cannot be in one, so that no two are read as one.
    mark = uuid.uuid4().hex[:12]
    found = _read("[" + lines.replace("\n", f',"{mark}",') + "]")
    breaks = lines.count("\n")
    if not (isinstance(found, list) and len(found) == 2 * breaks + 1 and found[1::2].count(mark) == breaks):
        return [value for line in (*lines.split("\n"), last) if isinstance(value := _read(line), dict)]
    return [value for value in (*found[::2], _read(last)) if isinstance(value, dict)]


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _done(path: Path) -> Json:
    """Return what a stage says that it ended with; empty while it does not."""
    done = _read(_text(path))
    return done if isinstance(done, dict) else {}


def _by_step(records: list[Json]) -> list[Json]:
    """Return records by step; of those with one step the last, and none without."""
    steps = _column(records, "step")
    if all(map(operator.lt, steps, steps[1:])):
        return records if len(records) != 1 or steps[0] == steps[0] else []
    found = dict(zip(steps, records, strict=True))
    return [found[step] for step in sorted(step for step in found if step == step)]


def _step(record: Json) -> float:
    return _number(record.get("step"))


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST:
        return float(value)
    return math.nan


def _column(records: Sequence[Json], key: str) -> list[float]:
    """Return one number of each record, NaN where there is none."""
    try:
        values: list[Any] = list(map(operator.itemgetter(key), records))
    except KeyError:
        values = [record.get(key) for record in records]
    kinds = set(map(type, values))
    if kinds <= {float, int, type(None)}:  # the usual case, without a call for each
        there = values if type(None) not in kinds else [value for value in values if value is not None]
        if there and min(there) > -_LARGEST and max(there) < _LARGEST and not math.isnan(sum(there)):  # a sum with NaN is NaN
            return values if there is values else [math.nan if value is None else value for value in values]
    return [_number(value) for value in values]


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
