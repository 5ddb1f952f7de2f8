"""Progress of long work: a live bar in a terminal, plain lines now and then elsewhere; always rate and time left.

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

PLAIN_SECONDS = 15.0  # how often a line is written where there is no terminal


class Step:
    """One piece of work in progress."""

    def __init__(self, progress: Progress, name: str, total: int | None, done: int = 0) -> None:
        self._progress, self._name, self._total = progress, name, total
        self._done = self._at_start = done
        self._start = self._printed = time.monotonic()
        self._bar = None
        if progress.live is not None:
            self._bar = progress.live.add_task(name, total=total, completed=done, detail="")

    def advance(self, count: int = 1, **details: object) -> None:
        """Note that `count` more are done, with what is worth showing beside it."""
        self._done += count
        detail = "  ".join(f"{name} {value}" for name, value in details.items())
        if self._bar is not None and self._progress.live is not None:
            self._progress.live.update(self._bar, advance=count, detail=detail)
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self._progress.line(self._plain(now, detail))

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
        """Show a piece of work while the block runs."""
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
