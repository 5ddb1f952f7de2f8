"""The bundles that are served, by the names that clients ask for: `RECIPE/BUNDLE`, such as `quickstart/bundle-int8`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mmedge.engines.batching import BatchingEngine
from mmedge.engines.engine import HasRows
from mmedge.engines.joining import JoiningEngine
from mmedge.errors import MmedgeError
from mmedge.folders import MANIFEST
from mmedge.runtime import Answer, AnswerOptions, Student
from mmedge.runtime.options import AFTERWARDS, SettledOptions, strategy_of

_MOST_SETTLED = 64  # different options whose completed form is kept


@dataclass
class Model:
    """One bundle.

    Attributes:
        name: What clients call it.
        student: Who answers.
        created: When it was exported, in seconds since 1970.
        folder: Where it lies.
        threads: Threads within one operation; None for what the bundle asks for.
    """

    name: str
    student: Student
    created: int
    folder: Path
    threads: int | None = None
    _settled: dict[AnswerOptions, SettledOptions] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _shared: JoiningEngine | BatchingEngine | None = None

    def share(self, rows: int, cache: int, told: Callable[[int], None]) -> None:
        """Let requests that come at once be written together.

        Args:
            rows: The most that are written at once.
            cache: Bytes of memory for what they have read.
            told: Called with the rows of every batch, or of every step where rows can join and leave.
        """
        speaker, workers = self.student.speaker, self.student.workers
        engine = speaker.engine
        lanes = [engine.rows(rows, cache // workers) for _ in range(workers)] if isinstance(engine, HasRows) else []
        joined = [lane for lane in lanes if lane is not None]
        shared = JoiningEngine(engine, joined, told) if joined else BatchingEngine(engine, workers, rows, told)
        self.student.speaker, self._shared = speaker.on(shared), shared

    def asked_by(self, check: Callable[[], None], max_tokens: int | None) -> Student:
        """Return the student for one request.

        Args:
            check: Raises where nobody waits for the answer any more; it is then not written any further.
            max_tokens: The longest answer; None for the student's.
        """
        found = copy(self.student) if max_tokens is None else self.student.limited(max_tokens)
        if self._shared is not None:
            found.speaker = found.speaker.on(self._shared.asked_by(check))
        return found

    @cached_property
    def fingerprint(self) -> str:
        """What answers depend on, in short."""
        return self.student.bundle.manifest.identity()[:16]

    @property
    def form(self) -> str:
        """What its answers look like, in words."""
        return self.student.bundle.form.instruction()

    def decides_by_samples(self, options: AnswerOptions) -> bool:
        """Whether the answer is chosen among several that the student samples."""
        strategy = options.strategy or strategy_of(self.student.bundle)
        return strategy.kind in AFTERWARDS

    def settled(self, options: AnswerOptions) -> SettledOptions:
        """Return completed options; those seen before are not completed again.

        Raises:
            MmedgeError: See `AnswerOptions.settled`.
        """
        with self._lock:
            found = self._settled.get(options)
        if found is None:
            found = self.student.settled(options)
            with self._lock:
                if len(self._settled) >= _MOST_SETTLED:
                    self._settled.clear()
                self._settled[options] = found
        return found

    def degraded(self, answer: Answer) -> Answer:
        """Return the student's own answer where a bigger model should have answered, and did not."""
        if not answer.withheld or answer.problem is None:
            return answer
        text = answer.guess or ""
        return replace(answer, text=text, value=self.student.bundle.form.value_of(text), withheld=False)


def open_models(folders: Iterable[Path], threads: int | None = None) -> dict[str, Model]:
    """Open bundles.

    Args:
        folders: Where they lie.
        threads: Threads within one operation; by default what each bundle asks for.

    Raises:
        MmedgeError: One cannot be opened, or two have the same name.
    """
    found: dict[str, Model] = {}
    for folder in folders:
        student = Student.load(folder, threads, hold=True)
        name = f"{student.bundle.manifest.recipe or 'student'}/{folder.resolve().name}"
        if name in found:
            raise MmedgeError(f"two bundles are called {name}", "serve one of them, or rename a folder")
        found[name] = Model(name, student, int((folder / MANIFEST).stat().st_mtime), folder, threads)
    return found


def opened_again(model: Model) -> Model:
    """Open what lies in a model's folder now, under the name that clients know.

    Raises:
        MmedgeError: It cannot be opened.
    """
    student = Student.load(model.folder, model.threads, hold=True)
    return Model(model.name, student, int((model.folder / MANIFEST).stat().st_mtime), model.folder, model.threads)
