"""Charts as SVG text, for pages and as files of their own: lines over steps, and values with their intervals.

    svg = line_chart([Series("student", [(0, 0.2), (100, 0.7)])], x_label="step", y_label="accuracy", percent=True)
    page.figure(svg, "Validation accuracy.")
    write_text(Path("accuracy.svg"), standalone(svg))

Charts load nothing and run no script. They take the colours of text and grid from the page around them, so that they are
readable in light and dark; all text is escaped. Values that are not finite, or beyond ±1e100, count as not measured.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmedge.errors import printable
from mmedge.reports.axes import Axis, linear_axis, log_axis, number_text

_WIDTH = 480  # units of every viewBox; a page shows one as 0.7 to 1.25 CSS pixels
_PLOT_HEIGHT = 220
_ROW, _TALL_ROW = 26, 42  # of an interval chart: name beside the whisker, name above it
_LINE = 19  # from one line of text to the next
_FONT, _SMALL = 14.0, 13.0
_MOST_POINTS = 400  # that one line is drawn with
_LARGEST, _SMALLEST = 1e100, 1e-100  # what counts as a measurement; the second on a log scale
_STYLE = "display:block;width:100%;max-width:37.5rem;height:auto"
_FILE_WIDTH, _FILE_MARGIN = 720, 12

_INK, _DIM, _GRID = "var(--ink, #1b1f24)", "var(--dim, #5a6572)", "var(--line, #d6dbe1)"
# Okabe and Ito's colours, without yellow, which cannot be seen on white; a dark page has brighter ones.
_COLOURS = (
    *(
        f"var(--series{number}, {colour})"
        for number, colour in enumerate(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), 1)
    ),
    _INK,
)
_DASHES = ("", "2 3", "9 3 2 3")  # for the first seven series, the next seven, and all others

_Point = tuple[float, float, float, float]  # x, y, low, high; NaN where there is no interval


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What the legend calls it; empty for none.
        points: (x, y) in the order in which they are joined.
        low: Lower end of the 95 % interval at each point; NaN where there is none.
        high: Upper end.
        dashed: Whether the line is dashed.

    Raises:
        ValueError: There is one of `low` and `high` without the other, or not one number for each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both low and high")
        for ends in (self.low, self.high):
            if ends is not None and len(ends) != len(self.points):
                raise ValueError(f"{len(self.points)} points, but {len(ends)} ends of intervals")


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval chart.

    Attributes:
        name: Text at the left.
        value: Where the dot is.
        low: Lower end of the whisker; NaN for no whisker.
        high: Upper end.
        words: Text at the right, usually the values.
        group: Rows of one group have one colour.
    """

    name: str
    value: float
    low: float
    high: float
    words: str = ""
    group: str = ""


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    zero: bool = False,
    markers: bool = False,
    log_y: bool = False,
    log_x: bool = False,
) -> str:
    """Return lines over a common x axis as SVG; intervals become shaded bands.

    A point that is not finite interrupts its line, and one that stands alone becomes a dot. Of thousands of points about
    400 are drawn, the extremes among them. The scales are those of the data.

    Args:
        series: The lines, in the order of the legend.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        percent: Whether y are shares from 0 to 1, shown as %.
        zero: Whether the y axis begins at 0; without effect on a log scale.
        markers: Whether every point is marked; hovering over a mark shows its values.
        log_y: Whether the y axis is logarithmic; points below 1e-100 then count as not measured.
        log_x: Whether the x axis is logarithmic; without effect where an x is not positive.
    """
    looks = [_look(index, one.dashed) for index, one in enumerate(series)]
    found = [_drawn(one, log_y) for one in series]
    measured = [point for points in found for point in points if point is not None]
    label = f"{y_label} against {x_label}: {', '.join(one.name for one in series)}"
    if not measured:
        return _nothing(label)
    named = [(one.name, *look) for one, look in zip(series, looks, strict=True) if one.name]
    above, legend_height = _legend(named, 2 + _LINE)
    top = _LINE + legend_height + 14.0
    bottom = top + _PLOT_HEIGHT
    ends = [end for point in measured for end in point[1:] if -_LARGEST < end < _LARGEST and (end > _SMALLEST or not log_y)]
    low, high = min(ends), max(ends)
    if log_y:
        y_axis = log_axis(low, high, bottom, top, percent)
    else:
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        y_axis = linear_axis(low, high, bottom, top, 5, percent=percent)
    left = max(_width(text, _SMALL) for _, text in y_axis.ticks) + 10
    x_axis = _x_axis([point[0] for point in measured], left, log_x)
    parts = [_text(0, _SMALL + 1, y_label, _WIDTH, colour=_DIM), *above, *_frame(x_axis, y_axis, left, bottom, x_label)]

    bands: list[str] = []
    lines: list[str] = []
    dots: list[str] = []
    for one, points, (colour, dash) in zip(series, found, looks, strict=True):
        name = _clean(one.name)
        runs = _runs(points)
        lines += _line([run for run in runs if len(run) > 1], x_axis, y_axis, colour, dash, name)
        for run in runs:
            if one.low is not None:
                bands += _bands(run, x_axis, y_axis, colour)
            if markers or len(run) == 1:
                dots += [_dot(x_axis.place(point[0]), y_axis.place(point[1]), colour, _told(name, point, percent)) for point in run]
    return _svg(bottom + 44, label, parts + bands + lines + dots)


def _x_axis(steps: Sequence[float], left: float, log: bool) -> Axis:
    if log and min(steps) > _SMALLEST:
        return log_axis(min(steps), max(steps), left, _WIDTH - 24.0, False)
    whole = all(step == math.floor(step) for step in steps)
    return linear_axis(min(steps), max(steps), left, _WIDTH - 24.0, 6, snug=True, least_step=1.0 if whole else 0.0)


def _frame(x_axis: Axis, y_axis: Axis, left: float, bottom: float, x_label: str) -> list[str]:
    """Return the grid, the ticks with their texts, and what x is."""
    parts = []
    for value, text in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(_rule(left, y, _WIDTH - 24, y))
        parts.append(_text(left - 7, y + 4.3, text, left, size=_SMALL, anchor="end", colour=_DIM))
    parts.append(_rule(left, bottom, _WIDTH - 24, bottom, _DIM))
    for value, text in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(_rule(x, bottom, x, bottom + 4, _DIM))
        parts.append(_text(x, bottom + 18, text, _WIDTH, size=_SMALL, anchor="middle", colour=_DIM))
    parts.append(_text((left + _WIDTH - 24) / 2, bottom + 37, x_label, _WIDTH - left, anchor="middle", colour=_DIM))
    return parts


def interval_chart(rows: Sequence[IntervalRow], *, x_label: str, percent: bool = False) -> str:
    """Return values with their 95 % intervals as SVG, one row each: a dot with a whisker.

    Where names and words leave too little room, they go above the whisker. A value that is not finite has no dot.

    Args:
        rows: From top to bottom.
        x_label: What the values are, with their unit.
        percent: Whether they are shares from 0 to 1, shown as %.
    """
    label = f"{x_label}: {', '.join(row.name for row in rows)}"
    ends = [end for row in rows for end in (row.value, row.low, row.high) if _is_measured(end)]
    if not ends:
        return _nothing(label)
    groups = list(dict.fromkeys(row.group for row in rows))
    colours = {group: _COLOURS[index % len(_COLOURS)] for index, group in enumerate(groups)}
    named = [(group, colours[group], None) for group in groups if group] if len(groups) > 1 else []
    parts, legend_height = _legend(named, 0)
    names = max(_width(_clean(row.name), _FONT) for row in rows) + 14
    words = max(_width(_clean(row.words), _SMALL) for row in rows)
    words += 14 if words else 0
    beside = names + words <= 0.6 * _WIDTH
    left, right = (names, _WIDTH - max(words, 24.0)) if beside else (24.0, _WIDTH - 24.0)
    height = _ROW if beside else _TALL_ROW
    top = legend_height + 4.0
    bottom = top + height * len(rows)
    axis = linear_axis(min(ends), max(ends), left, right, max(2, int((right - left) / 70)), percent=percent)

    for value, text in axis.ticks:
        x = axis.place(value)
        if beside:
            parts.append(_rule(x, top, x, bottom))
        else:
            parts += [_rule(x, top + height * (index + 0.45), x, top + height * (index + 0.95)) for index in range(len(rows))]
        parts.append(_rule(x, bottom, x, bottom + 4, _DIM))
        parts.append(_text(x, bottom + 18, text, _WIDTH, size=_SMALL, anchor="middle", colour=_DIM))
    parts.append(_rule(left, bottom, right, bottom, _DIM))
    parts.append(_text((left + right) / 2, bottom + 37, x_label, 2 * min(_WIDTH - right, left) + right - left, "middle", _DIM))
    for index, row in enumerate(rows):
        colour = colours[row.group]
        y = top + height * (index + (0.5 if beside else 0.7))
        baseline = y + 4.6 if beside else y - 14
        room = min(_width(_clean(row.words), _SMALL) + 14, 0.6 * _WIDTH) if row.words else 0.0
        parts.append(_text(0, baseline, row.name, names if beside else _WIDTH - room))
        if row.words:
            parts.append(_text(_WIDTH, baseline, row.words, room, "end", _DIM, _SMALL))
        if _is_measured(row.low) and _is_measured(row.high):
            start, end = sorted((axis.place(row.low), axis.place(row.high)))
            parts.append(
                f'<path d="M{start:.1f} {y - 4:.1f}v8m0 -4H{end:.1f}m0 -4v8" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            )
        if _is_measured(row.value):
            told = _told(_clean(row.name), (0.0, row.value, row.low, row.high), percent, with_x=False)
            parts.append(_dot(axis.place(row.value), y, colour, told, 4.5))
    return _svg(bottom + 44, label, parts)


def standalone(svg: str) -> str:
    """Return a chart of this module as a file of its own: with its namespace, a white background and fixed colours.

    Raises:
        ValueError: It is not a chart of this module.
    """
    opened = re.match(r'<svg viewBox="0 0 (\d+) (\d+)" style="[^"]*"', svg)
    if opened is None:
        raise ValueError("not a chart of this module")
    width, height = (int(size) + 2 * _FILE_MARGIN for size in opened.groups())
    head, body = svg[opened.end() :].split(">", 1)  # a ">" in the label is escaped
    place = f'x="{-_FILE_MARGIN}" y="{-_FILE_MARGIN}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_FILE_MARGIN} {-_FILE_MARGIN} {width} {height}"'
        f' width="{_FILE_WIDTH}" height="{_FILE_WIDTH * height / width:.0f}"'
        + _fixed(f'{head}>\n<rect {place} fill="#ffffff"/>{body}')
        + "\n"
    )


def _fixed(svg: str) -> str:
    return re.sub(r'"var\(--\w+, (#\w+)\)"', r'"\1"', svg)  # quotes in text are escaped, so that text is never changed


# ----------------------------------------------------------------------------------------------- points


def _is_measured(value: float) -> bool:
    return -_LARGEST < value < _LARGEST


def _are_measured(values: Sequence[float], least: float) -> bool:
    return least < min(values) and max(values) < _LARGEST and not math.isnan(sum(values))  # a sum with NaN is NaN


def _drawn(series: Series, log_y: bool) -> list[_Point | None]:
    """Return the points that a series is drawn with, with None for those that are not measured."""
    least = _SMALLEST if log_y else -_LARGEST
    points, low, high = series.points, series.low, series.high
    indices: Sequence[int] = range(len(points))
    if len(points) > _MOST_POINTS:
        indices = _kept([x for x, _ in points], [y for _, y in points], least)
    found: list[_Point | None] = []
    for index in indices:
        x, y = points[index]
        ends = (math.nan, math.nan) if low is None or high is None else (low[index], high[index])
        found.append((x, y, *ends) if _is_measured(x) and least < y < _LARGEST else None)
    return found


def thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points that a line through many would be drawn with; quicker than to make all of them first."""
    if len(x) <= _MOST_POINTS:
        return list(zip(x, y, strict=True))
    return [(x[index], y[index]) for index in _kept(x, y, -_LARGEST)]


def _kept(xs: Sequence[float], ys: Sequence[float], least: float) -> list[int]:
    """Return which of many points are kept: the two ends, the lowest and the highest of each of many stretches, and all gaps."""
    lows = highs = ys
    gaps: list[int] = []
    if not (_are_measured(xs, -_LARGEST) and _are_measured(ys, least)):
        gaps = [index for index, (x, y) in enumerate(zip(xs, ys, strict=True)) if not (least < y < _LARGEST and _is_measured(x))]
        low_or_gap, high_or_gap = list(ys), list(ys)
        for index in gaps:
            low_or_gap[index], high_or_gap[index] = math.inf, -math.inf
        lows, highs = low_or_gap, high_or_gap
    kept = {0, len(ys) - 1, *gaps}
    stretches = _MOST_POINTS // 2 - 1
    inner = len(ys) - 2
    for number in range(stretches):
        start, end = 1 + number * inner // stretches, 1 + (number + 1) * inner // stretches
        stretch = lows[start:end]
        kept.add(start + stretch.index(min(stretch)))
        stretch = highs[start:end]
        kept.add(start + stretch.index(max(stretch)))
    return sorted(kept)


def _runs(points: Sequence[_Point | None], belongs: Callable[[_Point], bool] = lambda _: True) -> list[list[_Point]]:
    """Return the stretches of neighbouring points that are measured and belong."""
    runs: list[list[_Point]] = [[]]
    for point in points:
        if point is not None and belongs(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# ----------------------------------------------------------------------------------------------- pieces


def _look(index: int, dashed: bool) -> tuple[str, str]:
    """Return the colour and the dashes of a series."""
    turn = min(index // len(_COLOURS), len(_DASHES) - 1)
    return _COLOURS[index % len(_COLOURS)], "7 4" if dashed else _DASHES[turn]


def _line(runs: list[list[_Point]], x_axis: Axis, y_axis: Axis, colour: str, dash: str, name: str) -> list[str]:
    """Return the line of a series, interrupted between its runs."""
    if not runs:
        return []
    places = "M".join(" ".join([f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y, _, _ in run]) for run in runs)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    width = 2.2 if sum(map(len, runs)) < 150 else 1.6
    return [
        f'<path class="line" d="M{places}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dashes}>'
        f"<title>{html.escape(name)}</title></path>"
    ]


def _bands(run: list[_Point], x_axis: Axis, y_axis: Axis, colour: str) -> list[str]:
    """Return the shaded intervals of a run; the interval of a point alone is a whisker."""
    parts = []
    for band in _runs(run, lambda point: _is_measured(point[2]) and _is_measured(point[3])):
        xs = [f"{x_axis.place(point[0]):.1f}" for point in band]
        lower, upper = (
            [f"{y_axis.place(max(point[end], y_axis.low)):.1f}" for point in band] for end in (2, 3)
        )  # a log scale has no place for an end at 0
        if len(band) == 1:
            path = f"M{xs[0]} {lower[0]}V{upper[0]}"
            parts.append(f'<path class="band" d="{path}" stroke="{colour}" stroke-width="5" stroke-opacity="0.3"/>')
        else:
            there = [f"{x},{y}" for x, y in zip(xs, upper, strict=True)]
            back = [f"{x},{y}" for x, y in zip(xs[::-1], lower[::-1], strict=True)]
            parts.append(f'<polygon class="band" points="{" ".join(there + back)}" fill="{colour}" fill-opacity="0.22"/>')
    return parts


def _dot(x: float, y: float, colour: str, told: str, radius: float = 3.5) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" stroke="transparent" stroke-width="8">'
        f"<title>{html.escape(told)}</title></circle>"
    )


def _told(name: str, point: _Point, percent: bool, with_x: bool = True) -> str:
    """Return the tooltip of a dot."""
    x, y, low, high = point
    told = number_text(y, percent)
    if _is_measured(low) and _is_measured(high):
        told += f" [{number_text(low, percent)}, {number_text(high, percent)}]"
    at = f"{number_text(x, False)}: " if with_x else ""
    return f"{name}, {at}{told}" if name and with_x else f"{name}: {told}" if name else f"{at}{told}"


def _legend(entries: Sequence[tuple[str, str, str | None]], top: float) -> tuple[list[str], float]:
    """Return (name, colour, dashes, or None for a dot) as lines of a legend, and their height."""
    parts: list[str] = []
    x, y = 0.0, top
    for name, colour, dash in entries:
        sample = 12 if dash is None else 24
        width = min(_width(_clean(name), _FONT) + sample + 6, _WIDTH)
        if x and x + width > _WIDTH:
            x, y = 0.0, y + _LINE
        if dash is None:
            parts.append(f'<circle cx="{x + 5:.1f}" cy="{y + 9:.1f}" r="4.5" fill="{colour}"/>')
        else:
            dashes = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(f'<path d="M{x:.1f} {y + 9:.1f}h{sample - 2}" fill="none" stroke="{colour}" stroke-width="2.6"{dashes}/>')
        parts.append(_text(x + sample + 4, y + 13.5, name, width - sample - 4))
        x += width + 14
    return parts, y + _LINE - top if parts else 0.0


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str = _GRID) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="1"/>'


def _text(x: float, y: float, text: str, room: float, anchor: str = "start", colour: str = _INK, size: float = _FONT) -> str:
    """Return a line of text cut to its width; a tooltip then shows all of it."""
    text = _clean(text)
    shown, told = text, ""
    if _width(text, size) > room + 0.5:
        told = f"<title>{html.escape(text)}</title>"
        while shown and _width(shown, size) > room - size:
            shown = shown[:-1]
        shown = shown.rstrip() + "…"
    anchored = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{anchored}>{html.escape(shown)}{told}</text>'


def _clean(text: str) -> str:
    """Return text on one line, without characters that XML forbids, and not too long."""
    return re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", printable(" ".join(text[:400].split())))


def _width(text: str, size: float) -> float:
    """Return an estimate of a text's width, in units of the viewBox, rather too wide than too narrow."""
    return size * sum(1.05 if unicodedata.east_asian_width(sign) in "WF" else 0.57 for sign in text)


def _nothing(label: str) -> str:
    words = _text(_WIDTH / 2, 44, "nothing yet", _WIDTH, "middle", _DIM)
    frame = f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="79" rx="6" fill="none" stroke="{_GRID}"/>'
    return _svg(80, label, [frame, words])


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {math.ceil(height)}" style="{_STYLE}" role="img" aria-label="{html.escape(_clean(label))}"'
        f' font-family="system-ui, sans-serif">\n' + "\n".join(parts) + "\n</svg>"
    )
