"""HTML pages: one self-contained file each, which loads nothing from elsewhere.

    page = Page("Annotations of svamp")
    page.heading("Yield")
    page.table(Table("", ["", "count"], [["parsed", "97"]]))
    page.bars([("correct", 573, "71.6 %")])
    page.figure(line_chart(lines, x_label="step", y_label="loss"), "Losses of stage 1.")
    page.write(Path("annotations.html"))

All text is escaped: what a teacher wrote is shown, never interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedge.reports.tables import Table, escaped
from mmedge.storage import write_text

_STYLE = """
:root { color-scheme: light dark;
        --ink: #1b1f24; --paper: #ffffff; --soft: #f2f4f7; --line: #d6dbe1; --mark: #2f6fdb; --dim: #5a6572; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14181d; --soft: #1e242b; --line: #343c46; --mark: #6ea0f5; --dim: #9aa5b1;
          --series1: #5db2f0; --series2: #ff8f4d; --series3: #35cfa0; --series4: #eca3cd; --series5: #ffc04d; --series6: #a5dcff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 60rem; }
.lead { font-size: 1.15rem; border-left: .3rem solid var(--mark); padding: .3rem 0 .3rem .9rem; margin: .75rem 0; }
.dim { color: var(--dim); }
.scroll { overflow-x: auto; background:  /* a shade where there is more to scroll to */
  linear-gradient(90deg, var(--paper) 50%, transparent) 0 0 / 2.5rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 50%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) 0 0 / 1rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) 100% 0 / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
         overflow-wrap: break-word; }
.left { text-align: left; } td.left:not(.short) { min-width: 12rem; } td.short { white-space: nowrap; } th { font-weight: 600; }
.bars { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr max-content; gap: .3rem .8rem; align-items: center; }
.bars i { display: block; height: .9rem; background: var(--mark); border-radius: 2px; min-width: 1px; }
.bars .track { background: var(--soft); border-radius: 2px; } .bars > :nth-child(3n) { text-align: right; }
.scroll + .bars, .scroll + .scroll { margin-top: 1rem; }
@media (max-width: 40rem) {
  .bars { grid-template-columns: 1fr max-content; grid-auto-flow: row dense; }
  .bars .track { grid-column: 1 / -1; margin-bottom: .4rem; }
  th, td { padding: .3rem .45rem; } td.left.short { white-space: normal; min-width: 7rem; }
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.5rem; }
.figures { margin: .75rem 0 1rem; } figure { margin: 0; min-width: 0; }
figcaption { color: var(--dim); font-size: .9rem; margin-top: .25rem; max-width: 37.5rem; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; } pre { white-space: pre-wrap; font: .9rem/1.45 ui-monospace, monospace; margin: .3rem 0; }
.text { background: var(--soft); border-radius: 6px; padding: .4rem .7rem; margin: .4rem 0; }
"""

_FIGURES = '<div class="figures">'


class Page:
    """A page that grows from top to bottom.

    Args:
        title: Its heading.
        subtitle: A line below it.
        refresh_seconds: After how many seconds a browser reads the page again; None for never.
    """

    def __init__(self, title: str, subtitle: str = "", refresh_seconds: int | None = None) -> None:
        self._title = title
        self._refresh_seconds = refresh_seconds
        self._parts = [f"<h1>{escaped(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="dim">{escaped(subtitle)}</p>')

    def lead(self, text: str, caveats: Sequence[str] = ()) -> None:
        """Add what the page is for in one sentence, such as a decision, and what to keep in mind about it."""
        self._parts.append(f'<p class="lead">{escaped(text)}</p>')
        for caveat in caveats:
            self.note(caveat)

    def heading(self, text: str, note: str = "") -> None:
        """Begin a section, with a sentence that says what it shows."""
        self._parts.append(f"<h2>{escaped(text)}</h2>")
        if note:
            self.note(note)

    def note(self, text: str) -> None:
        """Add a sentence."""
        self._parts.append(f'<p class="dim">{escaped(text)}</p>')

    def table(self, table: Table) -> None:
        """Add a table without its title and caption, which a page has as heading and notes."""
        self._parts.append(f'<div class="scroll">{table.html()}</div>')

    def bars(self, bars: Sequence[tuple[str, float, str]], largest: float | None = None) -> None:
        """Add horizontal bars: name, length, and text after it. Lengths are shares of `largest`, or of the longest bar."""
        top = largest or max((length for _, length, _ in bars), default=0) or 1
        cells = []
        for name, length, words in bars:
            width = max(0.0, min(100.0, 100 * length / top))
            cells.append(
                f'<span>{escaped(name)}</span><span class="track"><i style="width:{width:.2f}%"></i></span>'
                f"<span>{escaped(words)}</span>"
            )
        self._parts.append(f'<div class="bars">{"".join(cells)}</div>')

    def figure(self, svg: str, caption: str = "") -> None:
        """Add a chart of `mmedge.reports.charts`, as it is; figures that follow each other share a row where there is room.

        Raises:
            ValueError: It is not an SVG element.
        """
        if not svg.startswith("<svg ") or not svg.endswith("</svg>"):
            raise ValueError("a figure is one SVG element")
        words = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
        before = ""
        if self._parts[-1].startswith(_FIGURES):
            before = self._parts.pop().removeprefix(_FIGURES).removesuffix("</div>")
        self._parts.append(f"{_FIGURES}{before}<figure>{svg}{words}</figure></div>")

    def details(self, summary: str, texts: Sequence[tuple[str, str]]) -> None:
        """Add a section to unfold: texts, each with a line that says what it is."""
        inside = "".join(
            f'<div class="text"><span class="dim">{escaped(what)}</span><pre>{escaped(text)}</pre></div>' for what, text in texts
        )
        self._parts.append(f"<details><summary>{escaped(summary)}</summary>{inside}</details>")

    def text(self) -> str:
        """Return the whole page."""
        refresh = "" if self._refresh_seconds is None else f'<meta http-equiv="refresh" content="{self._refresh_seconds:d}">'
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"{refresh}<title>{escaped(self._title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, atomically."""
        write_text(path, self.text())
