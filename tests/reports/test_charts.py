"""Charts: what is drawn lies where it belongs, what cannot be drawn is left out, and no name becomes markup."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart, standalone, thinned
from mmedge.reports.page import Page

HOSTILE = '</title></svg><script>alert(1)</script> & "q" \x1b[31m \u202eevil \uffff'


def _drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def _of(svg: str, kind: str, name: str | None = None) -> list[ElementTree.Element]:
    return [element for element in _drawn(svg).iter(kind) if name is None or element.get("class") == name]


def _places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)]


def _lines(svg: str) -> list[list[list[tuple[float, float]]]]:
    """Return the places of each line, run by run."""
    return [[_places(run) for run in line.attrib["d"].split("M")[1:]] for line in _of(svg, "path", "line")]


def _words(svg: str) -> list[str]:
    return [element.text or "" for element in _of(svg, "text")]


def _ticks(svg: str, anchor: str) -> dict[str, tuple[float, float]]:
    return {
        element.text or "": (float(element.attrib["x"]), float(element.attrib["y"]))
        for element in _of(svg, "text")
        if element.get("text-anchor") == anchor
    }


def test_points_lie_in_the_plot_at_the_place_that_the_ticks_give() -> None:
    points = [(0.0, 0.0), (10.0, 5.0), (20.0, 10.0)]
    svg = line_chart([Series("a", points)], x_label="step", y_label="loss")
    [[run]] = _lines(svg)
    y_ticks, x_ticks = _ticks(svg, "end"), _ticks(svg, "middle")
    assert {"0", "2", "4", "6", "8", "10"} <= set(y_ticks) and {"0", "5", "10", "15", "20", "step"} == set(x_ticks)
    assert [x for x, _ in run] == pytest.approx([x_ticks[text][0] for text in ("0", "10", "20")], abs=0.11)
    assert [run[0][1], run[2][1]] == pytest.approx([y_ticks[text][1] - 4.3 for text in ("0", "10")], abs=0.11)
    assert run[1][1] == pytest.approx((run[0][1] + run[2][1]) / 2, abs=0.11)
    _, _, width, height = map(float, _drawn(svg).attrib["viewBox"].split())
    assert all(0 < x < width and 0 < y < height for x, y in run)


def test_factors_of_x_are_distances_on_a_logarithmic_scale() -> None:
    svg = line_chart([Series("a", [(1, 0), (10, 1), (100, 2)])], x_label="x", y_label="y", log_x=True)
    [[run]] = _lines(svg)
    ticks = _ticks(svg, "middle")
    assert [x for x, _ in run] == pytest.approx([ticks[text][0] for text in ("1", "10", "100")], abs=0.11)
    assert run[1][0] - run[0][0] == pytest.approx(run[2][0] - run[1][0], abs=0.2)
    for points in ([(0, 1), (10, 2)], [(-3, 1), (3, 2)]):  # what has no logarithm is drawn on a linear scale
        series = [Series("a", points)]
        assert line_chart(series, x_label="x", y_label="y", log_x=True) == line_chart(series, x_label="x", y_label="y")


def test_the_legend_wraps_and_stays_above_the_plot() -> None:
    series = [Series(f"a rather long name, the {i}th", [(0, i), (1, i + 1)]) for i in range(9)]
    svg = line_chart(series, x_label="x", y_label="y")
    names = [element for element in _of(svg, "text") if "rather" in (element.text or "")]
    rows = {float(element.attrib["y"]) for element in names}
    assert len(names) == 9 and len(rows) > 3
    assert max(rows) < min(y for line in _lines(svg) for run in line for _, y in run)
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in _of(svg, "path", "line")}) == 9


def test_what_is_not_finite_interrupts_the_line_and_a_point_alone_is_a_dot() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 2.0, 1.0, -math.inf, 1e308]
    svg = line_chart([Series("a", list(enumerate(values)))], x_label="x", y_label="y")
    assert "nan" not in svg and "inf" not in svg
    [runs] = _lines(svg)
    assert [len(run) for run in runs] == [2, 2] and len(_of(svg, "circle")) == 1
    assert len(_of(line_chart([Series("a", [(5, 0.4)])], x_label="x", y_label="y"), "circle")) == 1


@pytest.mark.parametrize("series", [[], [Series("a", [])], [Series("a", [(0, math.nan), (math.inf, 1)])]])
@pytest.mark.parametrize("log_y", [False, True])
def test_nothing_measured_says_so(series: list[Series], log_y: bool) -> None:
    assert _words(line_chart(series, x_label="x", y_label="y", log_y=log_y)) == ["nothing yet"]


def test_bands_enclose_their_line_and_stop_where_there_is_no_interval() -> None:
    points = [(0, 0.5), (1, 0.6), (2, 0.7), (3, 0.8)]
    whole = line_chart([Series("a", points, [0.4] * 4, [0.9] * 4)], x_label="x", y_label="y", percent=True)
    [band] = _of(whole, "polygon", "band")
    [[run]] = _lines(whole)
    upper, lower = _places(band.attrib["points"])[:4], _places(band.attrib["points"])[4:][::-1]
    for (x, y), (x_up, y_up), (x_low, y_low) in zip(run, upper, lower, strict=True):
        assert x == x_up == x_low and y_up < y < y_low
    torn = line_chart([Series("a", points, [0.4, math.nan, 0.4, 0.4], [0.9] * 4)], x_label="x", y_label="y")
    assert len(_of(torn, "path", "band")) == 1 and len(_places(_of(torn, "polygon", "band")[0].attrib["points"])) == 4
    assert not _of(line_chart([Series("a", points)], x_label="x", y_label="y"), "polygon")
    with pytest.raises(ValueError):
        Series("a", points, low=[0.1] * 4)
    with pytest.raises(ValueError):
        Series("a", points, low=[0.1] * 3, high=[0.1] * 4)


def test_a_log_scale_gives_equal_room_to_equal_ratios() -> None:
    svg = line_chart([Series("a", [(0, 0.01), (1, 1), (2, 100), (3, 0), (4, -1)])], x_label="x", y_label="y", log_y=True)
    [[run]] = _lines(svg)
    assert len(run) == 3 and run[0][1] - run[1][1] == pytest.approx(run[1][1] - run[2][1], abs=0.2)
    assert {"0.01", "1", "100"} <= set(_words(svg))
    svg = line_chart([Series("a", [(0, 1), (1, 2)], [0, 1], [2, 3])], x_label="x", y_label="y", log_y=True)
    [band] = _of(svg, "polygon", "band")
    assert all(0 < y < 300 for _, y in _places(band.attrib["points"]))  # an interval down to 0 ends at the axis


def test_thousands_of_points_are_thinned_and_the_extremes_and_gaps_stay() -> None:
    values = [math.sin(i / 50) for i in range(20_000)]
    values[7_777], values[11_111], values[15_000] = 9.0, -9.0, math.nan
    svg = line_chart([Series("a", list(enumerate(values)))], x_label="x", y_label="y")
    [runs] = _lines(svg)
    places = [place for run in runs for place in run]
    assert len(places) <= 600 and len(runs) == 2
    ordered = sorted(y for _, y in places)
    assert ordered[1] - ordered[0] > 50 and ordered[-1] - ordered[-2] > 50  # both spikes are there
    x_ticks = _ticks(svg, "middle")
    assert places[0][0] == pytest.approx(x_ticks["0"][0], abs=0.1) and len(svg) < 20_000


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e-300, 2e-300], [-1e99, 1e99], [1e9, 1e9 + 1e-3], [5e-324, 1.0], [-3.0, -3.0], [1e15, 1e15 + 2]]
)
@pytest.mark.parametrize("percent", [False, True])
@pytest.mark.parametrize("log_y", [False, True])
def test_odd_ranges_are_drawn_within_the_plot(values: list[float], percent: bool, log_y: bool) -> None:
    points = [(value, value) for value in values]
    for zero in (False, True):
        svg = line_chart([Series("a", points)], x_label="x", y_label="y", percent=percent, zero=zero, log_y=log_y)
        assert all(0 < x < 480 and 0 < y < 290 for line in _lines(svg) for run in line for x, y in run)
        assert len(svg) < 15_000 and not re.search(r'"[^"<>]*\b(nan|inf)\b[^"<>]*"', svg)
    rows = [IntervalRow("r", value, value, value) for value in values]
    assert len(_drawn(interval_chart(rows, x_label="x", percent=percent))) > 3


def test_shares_are_shown_as_percent_and_a_mark_tells_its_numbers() -> None:
    svg = line_chart(
        [Series("answers", [(150, 0.7)], [0.6], [0.8])], x_label="step", y_label="accuracy", percent=True, markers=True
    )
    assert "70 %" in _words(svg) and not [word for word in _words(svg) if word.startswith("0.")]
    [mark] = _of(svg, "circle")
    assert mark.findtext("title") == "answers, 150: 70.0 % [60.0 %, 80.0 %]"
    top = line_chart([Series("a", [(0, 0.97), (1, 1.0)])], x_label="x", y_label="y", percent=True)
    assert "100 %" in _words(top) and "102 %" not in _words(top)


def test_hostile_names_stay_text() -> None:
    svgs = [
        line_chart([Series(HOSTILE, [(0, 1), (1, 2)])], x_label=HOSTILE, y_label=HOSTILE, markers=True),
        line_chart([], x_label=HOSTILE, y_label=HOSTILE),
        interval_chart([IntervalRow(HOSTILE, 1, 0, 2, HOSTILE, HOSTILE), IntervalRow("b", 1, 0, 2, "", "g")], x_label=HOSTILE),
    ]
    for svg in svgs:
        for text in (svg, standalone(svg)):
            root = ElementTree.fromstring(text)
            assert not [element for element in root.iter() if element.tag.endswith("script")]
            assert not re.search("[\x1b\u202e\uffff]", text) and "<script" not in text
    assert HOSTILE[:20] in (_drawn(svgs[0]).findtext(".//title") or "")


def test_interval_rows_are_dots_with_whiskers_in_the_colour_of_their_group() -> None:
    rows = [
        IntervalRow("ours", 0.7, 0.6, 0.8, "70 %", "student"),
        IntervalRow("theirs", 0.5, 0.4, 0.6, "50 %", "student"),
        IntervalRow("teacher", 0.9, 0.85, 0.95, "90 %", "teacher"),
        IntervalRow("broken", math.nan, math.nan, math.nan, "–", "teacher"),
    ]
    svg = interval_chart(rows, x_label="accuracy", percent=True)
    dots = [element for element in _of(svg, "circle") if element.find("title") is not None]
    assert dots[0].findtext("title") == "ours: 70.0 % [60.0 %, 80.0 %]" and len(dots) == 3
    assert dots[0].get("fill") == dots[1].get("fill") != dots[2].get("fill")
    places = [float(dot.attrib["cx"]) for dot in dots]
    assert places[1] < places[0] < places[2]
    whiskers = [element.attrib["d"] for element in _of(svg, "path") if "v8" in element.attrib["d"]]
    for place, whisker in zip(places, whiskers, strict=True):
        start, end = re.findall(r"[MH]([\d.]+)", whisker)
        assert float(start) < place < float(end)
    assert {"student", "teacher", "ours", "broken", "–", "40 %"} <= set(_words(svg))
    assert "student" not in _words(interval_chart(rows[:2], x_label="accuracy"))  # one group needs no legend
    assert _words(interval_chart([], x_label="x")) == ["nothing yet"]


def test_long_names_stand_above_their_whisker_or_are_cut_and_told() -> None:
    short = interval_chart([IntervalRow("a", 1, 0, 2, "1")], x_label="x")
    long = interval_chart([IntervalRow("a name that takes half of the width", 1, 0, 2, "12.3 % [10.0, 14.0]")], x_label="x")
    assert _of(short, "text")[-2].attrib["y"] > _of(short, "circle")[0].attrib["cy"]
    assert float(_of(long, "text")[-2].attrib["y"]) < float(_of(long, "circle")[0].attrib["cy"]) - 10
    name = "endless " * 30
    texts = _of(interval_chart([IntervalRow(name, 1, 0, 2)], x_label="x"), "text")
    cut = next(element for element in texts if element.text and "…" in element.text)
    assert cut.findtext("title") == name.strip() and cut.text and len(cut.text) < 70


def test_a_chart_stands_alone_with_fixed_colours() -> None:
    svg = line_chart([Series('"var(--ink, #123456)"', [(0, 1), (1, 2)])], x_label="x", y_label="y")
    alone = standalone(svg)
    root = ElementTree.fromstring(alone)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > 400 and "style" not in root.attrib
    assert root[0].get("fill") == "#ffffff" and 'fill="var(' not in alone and 'stroke="var(' not in alone
    assert [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")] == _words(svg)
    with pytest.raises(ValueError):
        standalone("<p>no chart</p>")


def test_a_page_shows_figures_and_renews_itself_only_when_asked_to(tmp_path: Path) -> None:
    svg = line_chart([Series("a", [(0, 1), (1, 2)])], x_label="x", y_label="y")
    page = Page("t", refresh_seconds=10)
    page.figure(svg, "<b>caption</b>")
    page.figure(svg)
    page.note("between")
    page.figure(svg)
    page.write(tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert text.count(f"<figure>{svg}") == 3 and text.count('<div class="figures">') == 2
    assert "<figcaption>&lt;b&gt;caption&lt;/b&gt;</figcaption>" in text and text.count("<div") == text.count("</div>")
    assert '<meta http-equiv="refresh" content="10">' in text and "default-src 'none'; style-src 'unsafe-inline'" in text
    assert 'http-equiv="refresh"' not in Page("t").text()
    with pytest.raises(ValueError):
        page.figure("<script>1</script>")


def test_thinning_beforehand_keeps_extremes_and_ends() -> None:
    y = [float(i % 10) for i in range(5_000)]
    y[1_234], y[4_321] = 99.0, -99.0
    points = thinned([float(i) for i in range(5_000)], y)
    assert len(points) <= 600 and {(0.0, 0.0), (4999.0, 9.0), (1234.0, 99.0), (4321.0, -99.0)} <= set(points)
    assert points == sorted(points) and thinned([1.0, 2.0], [3.0, math.nan])[0] == (1.0, 3.0)
