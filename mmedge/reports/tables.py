"""One table for the terminal, for Markdown and for a page.

    found = Table("bench", ["variant", "ms/answer"], [["int8", Cell("3.1", "strong")], ["fp32", "9.8"]], caption="2 cores")
    console.print(found.rich())
    found.markdown()
    page.table(found)

All text is escaped when it is shown, and what could control a terminal is replaced. Columns of figures are aligned to the right,
the first one and columns of text to the left, unless a column says otherwise.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mmedge.errors import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Emphasis = Literal["plain", "strong", "good", "bad"]
_STYLES: dict[Emphasis, str] = {"plain": "", "strong": "bold", "good": "green", "bad": "bold red"}
_SHORT, _SHORT_FIGURES = 28, 40  # characters of a cell, of text or figures, that is not broken into lines on a page
_FIGURE = re.compile(r"[-+−±<>≤≥≈~]?\s?\d|–|∞")  # how a figure begins, or that there is none
_LONGEST = 5000  # characters of one text that are shown on a page


@dataclass(frozen=True)
class Cell:
    """A cell that is emphasised."""

    text: str
    emphasis: Emphasis = "plain"


@dataclass(frozen=True)
class Column:
    """A column with its alignment, and whether a terminal may break its cells into lines."""

    heading: str = ""
    align: Literal["left", "right"] = "right"
    wraps: bool = True


def escaped(text: str) -> str:
    """Return text as HTML: escaped, without control characters, and cut to a readable length."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"
    return html.escape(printable(text))


def in_markdown(text: str) -> str:
    """Return text as one line of Markdown's tables and headings: escaped, without control characters."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


@dataclass(frozen=True)
class Table:
    """Cells in rows and columns.

    Attributes:
        title: Shown above it in a terminal; a page and a Markdown file have headings of their own.
        columns: Headings, or columns with an alignment; without any heading there is no row of headings.
        rows: As many cells each as there are columns.
        caption: Shown below it in a terminal.
    """

    title: str
    columns: Sequence[str | Column]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""

    @cached_property
    def _columns(self) -> list[Column]:
        return [
            replace(one, heading=printable(one.heading))
            if isinstance(one, Column)
            else Column(printable(one), "right" if place and self._holds_figures(place) else "left")
            for place, one in enumerate(self.columns)
        ]

    def _holds_figures(self, place: int) -> bool:
        """Return whether most of a column's cells are figures; a remark may stand in the place of one."""
        texts = [row[place].text for row in self._cells if row[place].text]
        return 2 * sum(bool(_FIGURE.match(text)) for text in texts) >= len(texts)

    @cached_property
    def _cells(self) -> list[list[Cell]]:
        cells = [[one if isinstance(one, Cell) else Cell(one) for one in row] for row in self.rows]
        return [[Cell(printable(one.text), one.emphasis) for one in row] for row in cells]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self._columns]

    def take(self, places: Sequence[int]) -> Table:
        """Return the table with only some of its columns."""
        columns = self._columns
        return replace(
            self, columns=[columns[place] for place in places], rows=[[row[place] for place in places] for row in self.rows]
        )

    def rich(self, *, lines: bool = False, grid: bool = True) -> RichTable:
        """Return the table for a terminal.

        Args:
            lines: Whether there is a line between rows.
            grid: Whether there is a frame around it.
        """
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        found = RichTable(
            title=Text(printable(self.title)) if self.title else None,
            title_justify="left",
            caption=Text(printable(self.caption)) if self.caption else None,
            caption_justify="left",
            show_header=any(self.headings),
            show_lines=lines,
            box=box.HEAVY_HEAD if grid else None,
            padding=(0, 1) if grid else (0, 2, 0, 0),
        )
        for column in self._columns:
            found.add_column(Text(column.heading), justify=column.align, no_wrap=not column.wraps, overflow="fold")
        for row in self._cells:
            found.add_row(*(Text(cell.text, style=_STYLES[cell.emphasis]) for cell in row))
        return found

    def markdown(self) -> str:
        """Return the table as Markdown, without title and caption."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        def written(cell: Cell) -> str:
            text = in_markdown(cell.text)
            return text if cell.emphasis == "plain" or not text else f"**{text}**"

        sides = ["---" if column.align == "left" else "--:" for column in self._columns]
        body = [line([written(cell) for cell in row]) for row in self._cells]
        return "\n".join([line([written(Cell(heading)) for heading in self.headings]), line(sides), *body])

    def html(self) -> str:
        """Return the table as HTML, without title and caption; `Page` has the style for it."""

        def cell(kind: str, column: Column, one: Cell) -> str:
            short = len(one.text) <= (_SHORT if column.align == "left" else _SHORT_FIGURES)
            names = [name for name, holds in (("left", column.align == "left"), ("short", short)) if holds]
            classes = f' class="{" ".join(names)}"' if names else ""
            text = escaped(one.text) if one.emphasis == "plain" else f"<strong>{escaped(one.text)}</strong>"
            return f"<{kind}{classes}>{text}</{kind}>"

        def line(kind: str, cells: Sequence[Cell]) -> str:
            return f"<tr>{''.join(cell(kind, column, one) for column, one in zip(self._columns, cells, strict=True))}</tr>"

        head = line("th", [Cell(heading) for heading in self.headings])
        return f"<table><thead>{head}</thead><tbody>{''.join(line('td', row) for row in self._cells)}</tbody></table>"
