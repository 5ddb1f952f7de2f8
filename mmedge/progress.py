"""Progress of long work: a live bar in a terminal, plain lines now and then elsewhere, with rate and time left.

with progress.task("stage 2", total=1000) as step:
    step.advance(1, loss=0.42, rate="512 tokens/s")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mmedge.reports.formats import duration

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class Step:
    """One task in progress."""

    def __init__(self, progress: Progress, name: str, total: int | None, done: int = 0) -> None:
        self._progress, self._name, self._total = progress, name, total
        self._done = self._at_start = done
        self._start = self._printed = time.monotonic()
        self._bar = None
        if progress.live is not None:
            self._bar = progress.live.add_task(name, total=total, completed=done, detail="")

    def advance(self, count: int = 1, **details: object) -> None:
        """Note that `count` more are done.

        Args:
            count: How many more.
            details: Values to show, such as a loss; `rate` is computed where it is not given.
        """
        self._done += count
        now = time.monotonic()
        details.setdefault("rate", self._rate(now))
        detail = "  ".join(f"{name} {value}" for name, value in details.items())
        if self._bar is not None and self._progress.live is not None:
            self._progress.live.update(self._bar, advance=count, detail=detail)
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self._progress.line(self._plain(now, detail))

    def _rate(self, now: float) -> str:
        rate = (self._done - self._at_start) / max(now - self._start, 1e-9)
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"

    def _plain(self, now: float, detail: str) -> str:
        seconds, done = now - self._start, self._done - self._at_start
        parts = [f"{self._name}: {self._done}" + (f"/{self._total}" if self._total else "")]
        if self._total and done:
            parts.append(f"{duration((self._total - self._done) * seconds / done)} left")
        return ", ".join(filter(None, [*parts, detail]))


class Progress:
    """Where progress is shown; everything goes to standard error, so that results on standard output stay clean."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self.live: RichProgress | None = None

    def line(self, text: str) -> None:
        """Write one line."""
        if self._quiet:
            return
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, done: int = 0) -> Iterator[Step]:
        """Show a task while the block runs.

        Args:
            name: What is done.
            total: How many there are to do; None where that is not known.
            done: How many of them were done before.
        """
        if self._quiet or not self._console.is_terminal:
            yield Step(self, name, total, done)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as self.live:
            try:
                yield Step(self, name, total, done)
            finally:
                live, self.live = self.live, None
                live.refresh()
