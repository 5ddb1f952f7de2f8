"""Variants that take turns: each in a process of its own, asked the same thing one after the other, in rotating order.

A machine that slows down then slows all of them. Every reply is kept in a journal, so that a bench that was killed continues; a
variant that fails is recorded with its problem and not asked again. Knows processes and replies, not what they are measured for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmedge.bench.energy import EnergyMeter
from mmedge.bench.process import Variant
from mmedge.bench.settings import Ask, BenchSettings
from mmedge.bench.timing import settled
from mmedge.bench.watch import Watch
from mmedge.engines.environment import wanted_engine, wanted_kernels
from mmedge.engines.variants import VariantSpec, find_variants
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.storage import Journal, Json, sha256_file, sha256_json
from mmedge.tasks.base import Example


@dataclass(frozen=True)
class BenchQuestion:
    """One question, with its place in the test set."""

    split: str
    number: int
    example: Example


@dataclass(frozen=True)
class Said:
    """A variant's reply to one question."""

    example: Example
    text: str
    confidence: float | None
    withheld: bool

    @classmethod
    def of(cls, question: BenchQuestion, reply: Json, place: int = 0) -> Said:
        return cls(question.example, reply["texts"][place], reply["confidences"][place], reply["withheld"][place])


@dataclass
class Row:
    """A variant and what it did so far.

    Attributes:
        spec: What it is.
        name: Engine, precision and device; until it was opened, how the command line names it.
        label: The name, and what tells it apart from others of that name.
        variant: Its process, while it runs.
        problem: Why it is not asked any more.
        opened: Its reply when it was opened.
        warmup: Of each of its processes, seconds of each warm-up pass.
        load_seconds: Of each of its processes.
        single: Replies, (rounds, questions).
        timed: Split and id of each of these questions.
        said: By split.
        verdicts: None where its engine gives no logits.
        offline: Blocks by batch size.
        server: Rates that were tried.
        memory: What each look at its memory saw.
    """

    spec: VariantSpec
    name: str
    label: str = ""
    variant: Variant | None = None
    problem: MmedgeError | None = None
    opened: Json = field(default_factory=dict)
    warmup: list[list[float]] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    single: list[list[Json]] = field(default_factory=list)
    timed: list[str] = field(default_factory=list)
    said: dict[str, list[Said]] = field(default_factory=dict)
    verdicts: list[str | None] = field(default_factory=list)
    offline: dict[int, list[Json]] = field(default_factory=dict)
    server: list[Json] = field(default_factory=list)
    memory: list[Json] = field(default_factory=list)

    def fails(self, error: MmedgeError) -> None:
        """Mark it as failed."""
        self.problem = error
        if self.variant is not None:
            self.variant.close()
            self.variant = None

    def ask(self, request: Json) -> Json:
        """Ask it, if it still runs; the reply may be a problem."""
        if self.problem is None:
            assert self.variant is not None
            try:
                return self.variant.ask(request)
            except MmedgeError as error:
                self.fails(error)
        assert self.problem is not None
        return {"problem": self.problem.what, "hint": self.problem.hint}


def find_rows(places: Sequence[Path | str], settings: BenchSettings) -> list[Row]:
    """Return a row for each variant that the command line names, each once; one that does not exist has a problem."""
    rows: list[Row] = []
    for place in places:
        try:
            specs = find_variants(place)
        except MmedgeError as error:
            rows.append(Row(VariantSpec("unknown", Path(place)), str(place), problem=error))
            continue
        threads: Sequence[int | None] = settings.sweep_threads or (settings.threads,)
        rows += [Row(VariantSpec(spec.kind, spec.place, count), spec.text) for spec in specs for count in threads]
    return list({row.spec: row for row in rows}.values())


def label_rows(rows: Sequence[Row]) -> None:
    """Give every row a label of its own: its name, and where others have that too, its place and its threads."""
    for row in rows:
        row.label = row.name
    for same in _of_one_label(rows):
        if len({row.spec.place for row in same}) > 1:
            shown = _apart([row.spec.place for row in same])
            for row in same:
                row.label += f" ({shown[row.spec.place]})"
    for same in _of_one_label(rows):
        for row in same:
            count = row.spec.threads or row.opened.get("threads", "?")
            row.label += f", {count} thread{'' if count == 1 else 's'}"


def _of_one_label(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each label that several have."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return [same for same in found.values() if len(same) > 1]


def _apart(places: Sequence[Path]) -> dict[Path, str]:
    """Return as many of each place's last folders as tell them all apart."""
    whole = {place: place.resolve().parts for place in places}
    for count in range(1, max(map(len, whole.values()))):
        found = {place: "/".join(parts[-count:]) for place, parts in whole.items()}
        if len(set(found.values())) == len(found):
            return found
    return {place: str(place) for place in places}


def journal_key(rows: Sequence[Row], settings: BenchSettings, evaluation: Path) -> str:
    """Return the hash of everything that the replies of a bench depend on: variants, settings, questions, machine, engine.

    Raises:
        MmedgeError: The environment asks for an engine or for kernels that there are not.
    """

    def files(place: Path) -> dict[str, str]:
        if place.is_file():
            return {place.name: sha256_file(place)}
        if not place.is_dir():
            return {}
        return {path.name: sha256_file(path) for path in sorted(place.iterdir()) if path.suffix in (".json", ".safetensors")}

    variants = [[row.spec.to_json(), files(row.spec.place)] for row in rows]
    asked = {"questions": sha256_file(evaluation), "engine": wanted_engine(), "kernels": wanted_kernels()}
    return sha256_json({"variants": variants, "settings": asdict(settings), "on": machine(), **asked})


class VariantScheduler:
    """Asks variants in turn while they are measured.

    Args:
        rows: The variants.
        settings: How much is measured.
        progress: Where progress is shown.
        journal: Where replies are kept; None for nowhere.
    """

    def __init__(self, rows: Sequence[Row], settings: BenchSettings, progress: Progress, journal: Journal | None) -> None:
        self.rows, self.settings, self.progress, self._journal = rows, settings, progress, journal
        self.watch = Watch()
        self._worn: Sequence[BenchQuestion] = ()  # where new processes are due before anything is asked: what warms them up

    @property
    def running(self) -> list[Row]:
        """The variants that have not failed."""
        return [row for row in self.rows if row.problem is None]

    @contextmanager
    def opened(self, task: str) -> Iterator[None]:
        """Open every variant, and end them all after the block; what cannot be opened is noted with it.

        Args:
            task: The task that they must answer; empty for that of the first variant that names one.
        """
        try:
            for row in self.running:
                # plain questions name no task: the first variant that does decides
                task = task or next((str(one.opened["task"]) for one in self.rows if one.opened.get("task")), "")
                self._open(row, task)
            for row in self.rows:
                if row.problem is not None:
                    self.progress.line(f"{row.name}: {row.problem.what}")
            label_rows(self.rows)
            yield
        finally:
            for row in self.rows:
                if row.variant is not None:
                    row.variant.close()

    def _open(self, row: Row, task: str) -> None:
        self.progress.line(f"opening {row.spec.text}")
        self._start(row)
        if row.variant is None:
            return
        row.opened, row.name = row.variant.opened, row.variant.name
        if task and row.opened["task"] not in (None, task):
            row.fails(MmedgeError(f"is for the task {row.opened['task']}, not {task}", "measure it with its own evaluation set"))
        elif self.settings.ask not in row.opened["asks"]:
            row.fails(_not_learned(self.settings.ask))

    def _start(self, row: Row) -> None:
        try:
            row.variant = Variant(row.spec, self.settings.cpus, self.settings.memory_limit)
            row.load_seconds.append(row.variant.opened["load_seconds"])
        except MmedgeError as error:
            row.fails(error)

    def look(self, force: bool = False) -> None:
        """Record how busy the machine is."""
        self.watch.look([row.variant.pid for row in self.rows if row.variant is not None], force)

    # -------------------------------------------------------------------------------------------- asking

    def request(self, examples: Sequence[Example], batch: int = 1) -> Json:
        """Return a request that asks for answers, `batch` of them together."""
        return {"examples": records(examples), "ask": self.settings.ask, "batch": batch}

    def replies(self, name: str, turn: int, request: Json, energy: EnergyMeter | None = None) -> list[tuple[Row, Json]]:
        """Return every running variant's reply.

        Args:
            name: What the replies are kept under; those of a bench that was killed are not asked for again.
            turn: Index of the variant that goes first.
            request: What all are asked.
            energy: What measures the energy of each reply, which then stands in it.
        """
        found: list[Json] | None = self._journal.get(name) if self._journal is not None else None
        if found is None:
            self._renew()
            self.look()
            by_place: dict[int, Json] = {}
            for offset in range(len(self.rows)):
                place = (turn + offset) % len(self.rows)
                by_place[place] = self._metered(self.rows[place], request, energy)
            found = [by_place[place] for place in range(len(self.rows))]
            self._keep(name, found)
        for row, reply in zip(self.rows, found, strict=True):
            if "problem" in reply and row.problem is None:  # it failed before the bench was killed
                row.fails(MmedgeError(reply["problem"], reply["hint"]))
        return [(row, reply) for row, reply in zip(self.rows, found, strict=True) if "problem" not in reply]

    def _metered(self, row: Row, request: Json, energy: EnergyMeter | None) -> Json:
        if energy is None:
            return row.ask(request)
        energy.start()
        reply = row.ask(request)
        return {**reply, "energy": asdict(energy.stop())}

    def once(self, name: str, measure: Callable[[], Json | None]) -> Json | None:
        """Return what was measured under a name, from the journal where it was measured before; None where that failed."""
        found: Json | None = self._journal.get(name) if self._journal is not None else None
        if found is None:
            self.look()
            found = measure()
            if found is not None:
                self._keep(name, found)
        return found

    def _keep(self, name: str, value: object) -> None:
        if self._journal is not None:
            self._journal.put(name, value)

    # -------------------------------------------------------------------------------------------- processes

    def warm_up(self, questions: Sequence[BenchQuestion]) -> None:
        """Ask some of the questions until it gets no faster."""
        count = self.settings.warmup_questions
        some = (list(questions) * count)[:count]
        for row in self.rows:
            passes: list[float] = []
            while count and row.problem is None and not settled(passes):
                replies = [row.ask(self.request([one.example])) for one in some]
                passes.append(sum(float(reply.get("seconds", 0.0)) for reply in replies))
            row.warmup.append(passes)

    def renew_before_next(self, questions: Sequence[BenchQuestion]) -> None:
        """Replace all processes by new ones, warmed up with these questions, before anything else is asked."""
        self._worn = questions

    def _renew(self) -> None:
        if not self._worn:
            return
        questions, self._worn = self._worn, ()
        self.look(force=True)
        for row in self.running:
            if row.variant is not None:
                row.variant.close()
            self._start(row)
        self.warm_up(questions)
        self.look(force=True)

    def note_memory(self) -> None:
        """Record how much memory each variant uses."""
        for row in self.running:
            reply = row.ask({"memory": True})
            if row.problem is None:
                row.memory.append(reply)


def _not_learned(ask: Ask) -> MmedgeError:
    """Return the error of a student that would only pretend to write what is asked for."""
    if ask == "rationale":
        return MmedgeError(
            "--ask rationale: this student learned no rationales",
            "leave it out, or distil from chains of thought: a teacher, and method.rationales: true",
        )
    return MmedgeError(
        f"--ask {ask}: this student did not learn to judge its answers",
        "bench its bundles, which know how probable an answer is, or distil with method.self_evaluation: true",
    )


def records(examples: Sequence[Example]) -> list[Json]:
    """Return questions as a worker reads them."""
    before = [[[turn.role, turn.text] for turn in one.turns] for one in examples]
    return [
        {"id": one.id, "question": one.question, "choices": list(one.choices), "turns": turns}
        for one, turns in zip(examples, before, strict=True)
    ]
