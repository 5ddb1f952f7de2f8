"""Tables and formats: the same cells in a terminal, in Markdown and on a page, and no text becomes markup."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from mmedge.reports import formats
from mmedge.reports.page import Page
from mmedge.reports.tables import Cell, Column, Table

HOSTILE = "<b>[red]a|b\n&\x1b[31m"


def in_terminal(table: Table, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(table.rich())
    return captured.get()


def test_a_table_says_the_same_everywhere() -> None:
    table = Table("bench", ["variant", "ms"], [["int8", Cell("3.1", "strong")], ["fp32", "9.8"]], caption="2 cores")
    assert table.markdown() == "| variant | ms |\n| --- | --: |\n| int8 | **3.1** |\n| fp32 | 9.8 |"
    shown = in_terminal(table)
    assert all(text in shown for text in ("bench", "variant", "int8", "3.1", "9.8", "2 cores"))
    assert (
        "<td" in table.html() and "<strong>3.1</strong>" in table.html() and '<th class="left short">variant</th>' in table.html()
    )


def test_no_cell_becomes_markup() -> None:
    table = Table(HOSTILE, [HOSTILE, "x"], [[HOSTILE, "1"]], caption=HOSTILE)
    assert "[red]a|b" in in_terminal(table)
    body = table.markdown().splitlines()
    assert len(body) == 3 and "&lt;b>[red]a\\|b &amp;" in body[2]
    page = Page("t")
    page.table(table)
    assert "<b>" not in page.text() and "&lt;b&gt;" in page.text() and "\x1b" not in page.text()


def test_nothing_in_a_table_controls_a_terminal() -> None:
    hostile = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202etxt"
    table = Table(hostile, [Column(hostile, "left"), hostile], [[hostile, Cell(hostile, "bad")]], caption=hostile)
    for shown in (in_terminal(table, 300), table.markdown(), table.html()):
        assert "owned" in shown and not set(shown) & set("\x1b\x07\x9b\u202e")


def test_columns_stand_where_they_say_and_can_be_left_out() -> None:
    table = Table("", ["", Column("why", "left"), "count"], [["a", "because", "1"]])
    assert table.take([0, 2]).headings == ["", "count"] and table.take([2]).rows == [["1"]]
    assert table.markdown().splitlines()[1] == "| --- | --- | --: |"
    mixed = Table("", ["", "ms", "signal", "change"], [["a", "1.2 [1.0, 1.4]", "answer", "+1.2"], ["b", "–", "verdict", ""]])
    assert mixed.markdown().splitlines()[1] == "| --- | --: | --- | --: |"  # text to the left, figures to the right
    assert "━" not in in_terminal(Table("", ["", ""], [["a", "1"]]))  # without headings there is no row of them


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.share(0.712, (0.68, 0.74)), "71.2 % [68.0, 74.0]"),
        (formats.share(0.5), "50.0 %"),
        (formats.points(-0.012, (-0.03, 0.021), 0.14), "-1.2 [-3.0, +2.1], p = 0.140"),
        (formats.points(0.1, (0.05, 0.15), 0.00001), "+10.0 [+5.0, +15.0], p < 0.001"),
        (formats.estimate(0.712, (0.68, 0.74), digits=3), "0.712 [0.680, 0.740]"),
        (formats.estimate(1234.5, (12.34, 0.0123)), "1,234 [12.3, 0.012]"),
        (formats.number(1234.56, 0), "1,235"),
        (
            [formats.size(count) for count in (999, 300_000_000, 1_500_000_000, 512 << 20)],
            ["999 B", "300 MB", "1.5 GB", "536.9 MB"],
        ),
        ([formats.duration(seconds) for seconds in (42, 425, 7800)], ["42 s", "7 min 05 s", "2 h 10 min"]),
        (formats.share(*formats.in_json({"value": 0.5, "interval_95": [0.4, 0.6]})), "50.0 % [40.0, 60.0]"),
        (formats.share(*formats.in_json(None)), "–"),
    ],
)
def test_numbers_are_written_in_one_way(written: object, expected: object) -> None:
    assert written == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_a_dash(value: float | None) -> None:
    for write in (formats.number, formats.significant, formats.share, formats.points, formats.estimate, formats.size):
        assert write(value) == formats.NOTHING
    assert formats.share(0.5, (math.nan, 0.6)) == "50.0 %"
