"""`mmedge bench`: the same questions to every variant, interleaved, each in a process of its own.

Every question goes to each variant in turn before the next one comes, in rotating order, so that a machine that slows down
slows all of them. Scenarios, after MLPerf (Reddi et al. 2020):

    single      one question at a time; as many rounds as the precision that is asked for takes
    offline     all questions at once: answers a second over batch sizes
    server      questions that arrive at random moments: which rate keeps p99 within a bound
    accuracy    the whole test set

Accuracies are on the same questions; every sample is kept in the JSON, whose schema is `schema.json` beside this file. A variant
that cannot be opened, or that does not fit, is a row that says so.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmedge.bench.ceilings import Arithmetic, Ceilings, Work, decoding_work, measure_ceilings
from mmedge.bench.energy import EnergyMeter
from mmedge.bench.process import Variant
from mmedge.bench.timing import differs, mean_rate, precise, quantile, ratio, settled
from mmedge.bench.watch import Watch
from mmedge.engines.variants import ASKS, Ask, VariantSpec, find_variants, form_of
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.reports.formats import size
from mmedge.statistics import auroc, balanced_accuracy, calibration_error, percentile, proportion
from mmedge.storage import Journal, Json, iterate_jsonl, sha256_file, sha256_json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, EvaluationSet, HeldOutCot, read_evaluation_set, read_example

Scenario = Literal["single", "offline", "server", "accuracy"]
SCENARIOS: tuple[Scenario, ...] = ("single", "offline", "server", "accuracy")
FORMAT = "mmedge-bench/3"
OFFLINE_LEAST = 32  # questions of a block of the offline scenario, at least
TOGETHER = 16  # questions of one request where only accuracy is measured, and of one batch on GPUs
PROBES = 7  # rates that the server scenario tries for each variant
PERCENTILES = (50, 90, 99)
GRAPHS = ("decoder_model_merged.onnx", "decoder_model.onnx", "model.onnx")  # the one of these that decodes
INT8_ARITHMETIC = ("int8", "int4")  # precisions whose graphs multiply 8-bit numbers


@dataclass(frozen=True)
class BenchSettings:
    """How much to measure.

    Attributes:
        questions: How many questions of each test split; None for all.
        warmup_questions: Questions of one pass of warm-up; passes are repeated until they get no faster (see `timing.settled`).
        verdicts: How many held-out chains of thought are judged.
        threads: Threads of each variant; by default what a bundle asks for, or else all of the process's cores.
        scenarios: What is measured.
        ask: What is asked for: the answer, with a rationale, or with the best confidence there is.
        timed: How many of the questions, evenly spread, are asked one at a time in each round; None for all.
        rounds: How often these are asked, each time of new processes.
        precision: Rounds are repeated until half the 95 % intervals of medians and ratios are at most this share; None for not.
        max_rounds: How many rounds at most.
        batches: Batch sizes of the offline scenario.
        offline_rounds: How often each batch size is measured.
        latency_bound: Seconds that p99 must keep in the server scenario.
        server_seconds: About how long one rate is tried.
        cpus: Processors that each variant may use; None for all of this process's.
        memory_limit: Bytes of memory that each variant may use; None for no limit.
        sweep_threads: Each variant is measured with each of these numbers of threads.
    """

    questions: int | None = None
    warmup_questions: int = 5
    verdicts: int = 100
    threads: int | None = None
    scenarios: tuple[Scenario, ...] = ("single", "accuracy")
    ask: Ask = "answer"
    timed: int | None = None
    rounds: int = 1
    precision: float | None = None
    max_rounds: int = 50
    batches: tuple[int, ...] = (1, 8, 32)
    offline_rounds: int = 4
    latency_bound: float = 0.2
    server_seconds: float = 10.0
    cpus: int | None = None
    memory_limit: int | None = None
    sweep_threads: tuple[int, ...] = ()


def read_choices(scenarios: str, ask: str) -> dict[str, Any]:
    """Return the settings that a command line says in words.

    Raises:
        MmedgeError: It says something else.
    """
    wanted = [name.strip() for name in scenarios.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        raise MmedgeError(f"no such scenario: {unknown[0]}", f"choose among {', '.join(SCENARIOS)}")
    if not wanted:
        raise MmedgeError("no scenario is named", f"choose among {', '.join(SCENARIOS)}")
    if ask not in ASKS:
        raise MmedgeError(f"--ask {ask}: no such thing to ask for", f"choose among {', '.join(ASKS)}")
    return {"scenarios": tuple(name for name in SCENARIOS if name in wanted), "ask": ask}


def first_folder(places: Sequence[str]) -> Path:
    """Return where the report goes when nobody says: beside the first variant that there is.

    Raises:
        MmedgeError: There is none.
    """
    problem = MmedgeError("no variant is named", "name a run, a student folder or a bundle")
    for number, place in enumerate(places):
        try:
            return find_variants(place)[0].place.resolve().parent
        except MmedgeError as error:
            problem = problem if number else error
    raise problem


@dataclass
class _Row:
    """A variant and what it did so far."""

    spec: VariantSpec
    name: str = ""
    variant: Variant | None = None
    problem: MmedgeError | None = None
    opened: Json = field(default_factory=dict)
    warmup: list[list[float]] = field(default_factory=list)  # of each of its processes, seconds of each pass
    load_seconds: list[float] = field(default_factory=list)  # of each of its processes
    single: list[list[Json]] = field(default_factory=list)  # (rounds, questions)
    timed: list[str] = field(default_factory=list)  # split and id of each of those questions
    said: dict[str, list[Json]] = field(default_factory=dict)  # by split: text, confidence, withheld
    verdicts: list[str | None] = field(default_factory=list)  # None where its engine tells no logits
    offline: dict[int, list[Json]] = field(default_factory=dict)
    server: list[Json] = field(default_factory=list)
    memory: list[Json] = field(default_factory=list)
    peak: int = 0

    def fails(self, error: MmedgeError) -> None:
        """Note that nothing more is to be had from it."""
        self.problem = error
        if self.variant is not None:
            self.variant.close()
            self.variant = None

    def ask(self, request: Json) -> Json:
        """Ask it, if it still runs; what it replies may be a problem."""
        if self.problem is None:
            assert self.variant is not None
            try:
                return self.variant.ask(request)
            except MmedgeError as error:
                self.fails(error)
        assert self.problem is not None
        return {"problem": self.problem.what, "hint": self.problem.hint}


@dataclass(frozen=True)
class _Asked:
    """One question, with its place in the test set."""

    split: str
    number: int
    example: Example


def bench(
    places: Sequence[Path | str],
    settings: BenchSettings,
    progress: Progress,
    evaluation: Path | None = None,
    journal: Path | None = None,
    energy: EnergyMeter | None = None,
) -> dict[str, Any]:
    """Measure variants on the same questions.

    Args:
        places: Runs, student folders, bundles, or `KIND:PLACE`; see `variants.py`.
        settings: How much to measure.
        progress: Where progress is shown.
        evaluation: The evaluation set, or JSON lines of questions with labels; the set beside the first variant by default.
        journal: Where answers are kept until all are there, so that a bench that was killed continues; the caller removes it
            when the report is written. Memory is that of the processes that finished.
        energy: What measures energy in the offline scenario; None for nothing.

    Returns:
        The report as a JSON-able value; `report.py` renders it.

    Raises:
        MmedgeError: No variant can be measured, or there are no questions.
    """
    rows = _rows(places, settings)
    specs = [row.spec for row in rows if row.problem is None]
    if not specs:
        raise _first_problem(rows)
    source = evaluation or specs[0].place.resolve().parent / FILE_NAME
    questions = _questions(source, specs)
    whole = questions.tests()
    splits = {split: examples[: settings.questions] for split, examples in whole.items()}
    asked = [_Asked(split, place, one) for split, examples in splits.items() for place, one in enumerate(examples)]
    if not asked:
        raise MmedgeError("the evaluation set has no test questions")
    cots = next(iter(questions.cots.values()), ())[: settings.verdicts]
    kept = Journal(journal, _key(rows, settings, source)) if journal else None
    if kept is not None and len(kept):
        progress.line(f"continues: {len(kept)} answers and verdicts are there already")
    continued = len(kept) if kept is not None else 0
    session = _Session(rows, settings, progress, kept, energy)
    try:
        session.open(questions.task)
        session.measure(asked, cots)
    finally:
        session.close()
    if all(row.problem for row in rows):
        raise _first_problem(rows)
    return _report(rows, settings, questions, splits, whole, cots, session, continued)


def _first_problem(rows: Sequence[_Row]) -> MmedgeError:
    first = rows[0].problem
    assert first is not None
    if len(rows) == 1:
        return first
    problems = "; ".join(dict.fromkeys(row.problem.what for row in rows if row.problem))
    return MmedgeError(f"none of {len(rows)} variants could be measured: {problems[:400]}", first.hint)


def _rows(places: Sequence[Path | str], settings: BenchSettings) -> list[_Row]:
    rows: list[_Row] = []
    for place in places:
        try:
            specs = find_variants(place)
        except MmedgeError as error:
            rows.append(_Row(VariantSpec("unknown", Path(place)), str(place), problem=error))
            continue
        threads: Sequence[int | None] = settings.sweep_threads or (settings.threads,)
        rows += [_Row(VariantSpec(spec.kind, spec.place, count)) for spec in specs for count in threads]
    return list({row.spec: row for row in rows}.values())


def _questions(source: Path, specs: Sequence[VariantSpec]) -> EvaluationSet:
    """Read an evaluation set, or plain JSON lines of questions with labels, judged by the answer form of the first bundle.

    Raises:
        MmedgeError: It is neither, or no bundle says how answers are judged.
    """
    if not source.is_file():
        return read_evaluation_set(source)
    _, first = next(iterate_jsonl(source), (0, {"kind": "empty"}))
    if "kind" in first:
        return read_evaluation_set(source)
    found = next((form for spec in specs if (form := form_of(spec)) is not None), None)
    if found is None:
        raise MmedgeError(f"{source} does not say how answers are judged", "name a bundle first: it says so")
    examples = tuple(read_example(record, source, number) for number, record in iterate_jsonl(source))
    return EvaluationSet("", found, {source.stem: examples}, {})


def _key(rows: Sequence[_Row], settings: BenchSettings, evaluation: Path) -> str:
    """Return the hash of everything that the answers of a bench depend on: variants, settings, questions, machine."""

    def files(place: Path) -> dict[str, str]:
        if place.is_file():
            return {place.name: sha256_file(place)}
        if not place.is_dir():
            return {}
        return {path.name: sha256_file(path) for path in sorted(place.iterdir()) if path.suffix in (".json", ".safetensors")}

    variants = [[row.spec.to_json(), files(row.spec.place)] for row in rows]
    return sha256_json({"variants": variants, "settings": asdict(settings), "questions": sha256_file(evaluation), "on": machine()})


def _records(examples: Sequence[Example]) -> list[Json]:
    return [{"id": one.id, "question": one.question, "choices": list(one.choices)} for one in examples]


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """Return so many of the items, evenly spread, the first among them."""
    if count is None or count >= len(items):
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


class _Session:
    """The variants' processes while they are measured."""

    def __init__(
        self,
        rows: Sequence[_Row],
        settings: BenchSettings,
        progress: Progress,
        kept: Journal | None,
        energy: EnergyMeter | None,
    ) -> None:
        self._rows, self._settings, self._progress, self._kept, self._energy = rows, settings, progress, kept, energy
        self.watch = Watch()
        self.reached: bool | None = None  # whether the precision that was asked for was reached
        self._worn: Sequence[_Asked] = ()  # where new processes are due before anything is asked: what warms them up

    # -------------------------------------------------------------------------------------------- processes

    def open(self, task: str) -> None:
        """Open every variant; what cannot be opened is noted with it."""
        for row in self._rows:
            if row.problem is not None:
                continue
            # questions alone say no task: the first variant that does says it for all
            task = task or next((str(one.opened["task"]) for one in self._rows if one.opened.get("task")), "")
            self._progress.line(f"opening {row.spec.text}")
            try:
                row.variant = Variant(row.spec, self._settings.cpus, self._settings.memory_limit)
            except MmedgeError as error:
                row.fails(error)
                continue
            row.opened, row.name = row.variant.opened, row.variant.name
            row.load_seconds.append(row.opened["load_seconds"])
            if task and row.opened["task"] not in (None, task):
                row.fails(MmedgeError(f"answers {row.opened['task']}, not {task}", "bench it with its own evaluation set"))
        for row in self._rows:
            if row.problem is not None:
                self._progress.line(f"{row.spec.text}: {row.problem.what}")
        _name(self._rows)

    def close(self) -> None:
        """End all processes."""
        for row in self._rows:
            if row.variant is not None:
                row.variant.close()
        if self._kept is not None:
            self._kept.close()

    def _look(self, force: bool = False) -> None:
        self.watch.look([row.variant.pid for row in self._rows if row.variant is not None], force)

    def _replies(self, name: str, turn: int, request: Json, energy: EnergyMeter | None = None) -> list[Json | None]:
        """Return every variant's reply, in the variants' order; asked in turn from `turn` on, unless kept.

        None where a variant has failed. What energy a reply took stands in it.
        """
        found: list[Json] | None = self._kept.get(name) if self._kept is not None else None
        if found is None:
            self._renew()
            self._look()
            replies: dict[int, Json] = {}
            for offset in range(len(self._rows)):
                index = (turn + offset) % len(self._rows)
                if energy is not None:
                    energy.start()
                replies[index] = self._rows[index].ask(request)
                if energy is not None:
                    replies[index]["energy"] = asdict(energy.stop())
            found = [replies[index] for index in range(len(self._rows))]
            if self._kept is not None:
                self._kept.put(name, found)
        for row, reply in zip(self._rows, found, strict=True):
            if "problem" in reply and row.problem is None:  # it failed before the bench was killed
                row.fails(MmedgeError(reply["problem"], reply["hint"]))
        return [None if "problem" in reply else reply for reply in found]

    def _renew(self) -> None:
        """Put new processes, warmed up, in the place of those that have done their round."""
        if not self._worn:
            return
        timed, self._worn = self._worn, ()
        self._look(force=True)
        for row in self._rows:
            if row.problem is None and row.variant is not None:
                row.variant.close()
                try:
                    row.variant = Variant(row.spec, self._settings.cpus, self._settings.memory_limit)
                    row.load_seconds.append(row.variant.opened["load_seconds"])
                except MmedgeError as error:
                    row.fails(error)
        self._warm_up(timed)
        self._look(force=True)

    # -------------------------------------------------------------------------------------------- scenarios

    def measure(self, asked: Sequence[_Asked], cots: Sequence[HeldOutCot]) -> None:
        """Go through all scenarios."""
        settings = self._settings
        timed = spread(asked, settings.timed)
        self._warm_up(timed)
        self._look(force=True)
        if "single" in settings.scenarios:
            self._single(timed)
        if "accuracy" in settings.scenarios and ("single" not in settings.scenarios or len(timed) < len(asked)):
            self._accuracy(asked)
        self._verdicts(cots)
        self._note_memory()
        if "offline" in settings.scenarios:
            self._offline(asked)
        if "server" in settings.scenarios:
            self._server(timed)
        self._look(force=True)
        self._note_memory()

    def _request(self, examples: Sequence[Example], batch: int = 1) -> Json:
        return {"examples": _records(examples), "ask": self._settings.ask, "batch": batch}

    def _warm_up(self, timed: Sequence[_Asked]) -> None:
        count = self._settings.warmup_questions
        some = (list(timed) * count)[:count]
        for row in self._rows:
            passes: list[float] = []
            while count and row.problem is None and not settled(passes):
                replies = [row.ask(self._request([one.example])) for one in some]
                passes.append(sum(float(reply.get("seconds", 0.0)) for reply in replies))
            row.warmup.append(passes)

    def _single(self, timed: Sequence[_Asked]) -> None:
        settings = self._settings
        done = 0
        with self._progress.task("answers", total=None if settings.precision else len(timed) * settings.rounds) as step:
            while True:
                for row in self._rows:
                    row.single.append([])
                    row.timed = [f"{one.split}/{one.example.id}" for one in timed]
                for place, one in enumerate(timed):
                    turn = done * len(timed) + place + 1
                    replies = self._replies(f"{one.split}/{one.number}/{done}", turn, self._request([one.example]))
                    for row, reply in zip(self._rows, replies, strict=True):
                        if reply is None:
                            continue
                        row.single[-1].append(reply)
                        if not done:
                            row.said.setdefault(one.split, []).append(_said(one, reply, 0))
                    step.advance(1)
                done += 1
                self._note_memory()
                if done >= settings.rounds:
                    if settings.precision is None:
                        return
                    tables = [seconds_of(row.single) for row in self._rows if row.problem is None]
                    self.reached = precise(tables, settings.precision)
                    if self.reached or done >= settings.max_rounds or not tables:
                        return
                self._worn = timed

    def _accuracy(self, asked: Sequence[_Asked]) -> None:
        for row in self._rows:
            row.said.clear()
        # one by one, as on a device, unless no CPU is measured: a batch would need more memory than what it is asked for
        batch = 1 if any(row.problem is None and row.opened["device"] == "cpu" for row in self._rows) else TOGETHER
        with self._progress.task("accuracy", total=len(asked)) as step:
            for start in range(0, len(asked), TOGETHER):
                some = asked[start : start + TOGETHER]
                request = self._request([one.example for one in some], batch)
                for row, reply in zip(self._rows, self._replies(f"accuracy/{start}", start, request), strict=True):
                    if reply is not None:
                        for place, one in enumerate(some):
                            row.said.setdefault(one.split, []).append(_said(one, reply, place))
                step.advance(len(some))

    def _verdicts(self, cots: Sequence[HeldOutCot]) -> None:
        with self._progress.task("verdicts", total=len(cots)) as step:
            for number, held in enumerate(cots):
                cot = {"rationale": held.cot.rationale, "pseudo_label": held.cot.pseudo_label}
                request = {"examples": _records([held.example]), "cot": cot}
                for row, reply in zip(self._rows, self._replies(f"verdict/{number}", 0, request), strict=True):
                    if reply is not None:
                        row.verdicts.append(reply["verdict"])
                step.advance(1)

    def _offline(self, asked: Sequence[_Asked]) -> None:
        settings = self._settings
        largest = max(settings.batches)
        count = largest * math.ceil(OFFLINE_LEAST / largest)
        some = [one.example for one in spread(asked, count)]
        work = (some * math.ceil(count / len(some)))[:count]
        with self._progress.task("offline", total=settings.offline_rounds * len(settings.batches)) as step:
            for number in range(settings.offline_rounds):
                for batch in settings.batches:
                    request = self._request(work, batch)
                    replies = self._replies(f"offline/{batch}/{number}", number, request, self._energy)
                    for row, reply in zip(self._rows, replies, strict=True):
                        if reply is not None:
                            block = {"answers": len(work), "seconds": reply["seconds"], "tokens": reply["tokens"]}
                            row.offline.setdefault(batch, []).append({**block, "energy": reply.get("energy")})
                    step.advance(1)
        self._note_memory()

    def _server(self, timed: Sequence[_Asked]) -> None:
        with self._progress.task("server", total=PROBES * len(self._rows)) as step:
            examples = [one.example for one in timed][:256]
            searches = [self._hold_bound(place, row, examples) for place, row in enumerate(self._rows) if row.problem is None]
            for _ in range(PROBES):  # in turns, so that what slows the machine for a while slows no variant alone
                for search in searches:
                    next(search, None)
                    step.advance(1)

    def _hold_bound(self, place: int, row: _Row, examples: Sequence[Example]) -> Iterator[None]:
        """Raise the rate until p99 breaks its bound, then halve what is not known; one probe at a time."""
        settings = self._settings
        warm = row.ask(self._request(examples[:8]))
        if "seconds" not in warm:
            return
        low, high = 0.0, math.inf
        rate = 0.5 * min(8, len(examples)) / float(warm["seconds"])
        for number in range(PROBES):
            arrivals = poisson_arrivals(rate, settings.server_seconds, seed=number)
            wish = {"arrivals": arrivals, "give_up_seconds": 20 * settings.latency_bound}
            name = f"server/{place}/{number}"
            found: Json | None = self._kept.get(name) if self._kept is not None else None
            if found is None:
                self._look()
                found = row.ask({"examples": _records(examples), "ask": settings.ask, "serve": wish})
                if "problem" in found:
                    return
                found = {"rate": rate, **_probe(found, len(arrivals), settings.latency_bound)}
                if self._kept is not None:
                    self._kept.put(name, found)
            row.server.append(found)
            low, high = (found["rate"], high) if found["held"] else (low, found["rate"])
            rate = 1.5 * low if high == math.inf else (low + high) / 2
            yield

    def _note_memory(self) -> None:
        for row in self._rows:
            if row.problem is None:
                reply = row.ask({"memory": True})
                if row.problem is None:
                    row.memory.append(reply)


def poisson_arrivals(rate: float, seconds: float, seed: int, least: int = 20, most: int = 2000) -> list[float]:
    """Return the moments, in seconds, at which questions arrive independently of each other.

    Args:
        rate: A second.
        seconds: For about how long.
        seed: Of the moments.
        least: At least so many, however long that takes.
        most: At most so many.
    """
    rng = random.Random(seed)
    moments: list[float] = []
    now = 0.0
    while len(moments) < most and (now < seconds or len(moments) < least):
        now += rng.expovariate(rate)
        moments.append(now)
    return moments


def _probe(reply: Json, wanted: int, bound: float) -> Json:
    latencies = reply["latencies"]
    p99 = percentile(latencies, 99)
    return {
        "arrivals": wanted,
        "answered": len(latencies),
        "held": len(latencies) == wanted and p99 <= bound,
        **{f"p{p}_ms": 1000 * percentile(latencies, p) for p in PERCENTILES},
        "answers_per_second": len(latencies) / reply["seconds"],
        "latencies": [round(value, 6) for value in latencies],
    }


def _said(one: _Asked, reply: Json, place: int) -> Json:
    return {
        "example": one.example,
        "text": reply["texts"][place],
        "confidence": reply["confidences"][place],
        "withheld": reply["withheld"][place],
    }


def seconds_of(rounds: Sequence[Sequence[Json]]) -> list[list[float]]:
    """Return the seconds of some rounds of replies, (rounds, questions)."""
    return [[reply["seconds"] for reply in one] for one in rounds]


def _apart(places: Sequence[Path]) -> dict[Path, str]:
    """Return as many of each place's last folders as tell them all apart."""
    whole = {place: place.resolve().parts for place in places}
    for count in range(1, max(map(len, whole.values()))):
        found = {place: "/".join(parts[-count:]) for place, parts in whole.items()}
        if len(set(found.values())) == len(found):
            return found
    return {place: str(place) for place in places}


def _name(rows: Sequence[_Row]) -> None:
    """Give every row a name of its own: engine and precision, and what else tells it apart."""
    for row in rows:
        row.name = row.name or row.spec.text

    def several(name: str) -> list[_Row]:
        return [row for row in rows if row.name == name]

    for name in {row.name for row in rows}:
        same = several(name)
        if len(same) > 1 and len({row.spec.place for row in same}) > 1:
            shown = _apart([row.spec.place for row in same])
            for row in same:
                row.name += f" ({shown[row.spec.place]})"
    for name in {row.name for row in rows}:
        if len(same := several(name)) > 1:
            for row in same:
                count = row.spec.threads or row.opened.get("threads", "?")
                row.name += f", {count} thread{'' if count == 1 else 's'}"


# ------------------------------------------------------------------------------------------------------ report


def _report(
    rows: Sequence[_Row],
    settings: BenchSettings,
    questions: EvaluationSet,
    splits: dict[str, tuple[Example, ...]],
    whole: dict[str, tuple[Example, ...]],
    cots: Sequence[HeldOutCot],
    session: _Session,
    continued: int,
) -> dict[str, Any]:
    measured = [row for row in rows if row.problem is None]
    base = measured[0]
    spoken = {split: len(base.said.get(split, [])) for split in splits}
    timed = [row for row in measured if row.single and row.opened["device"] == "cpu"]
    ceilings = {count: measure_ceilings(count) for count in sorted({_processors(row, settings) for row in timed})}
    watched = asdict(session.watch.summary())
    return {
        "format": FORMAT,
        "task": questions.task or base.opened["task"] or next(iter(splits)),
        "questions": {split: spoken[split] for split in splits},
        "questions_in_set": {split: len(examples) for split, examples in whole.items()},
        "ask": settings.ask,
        "scenarios": list(settings.scenarios),
        "settings": json.loads(json.dumps(asdict(settings))),
        "precision_reached": session.reached,
        "continued": continued,
        "machine": machine(),
        "watch": watched,
        "noisy": watched["noisy"],
        "ceilings": [found.to_json() for found in ceilings.values()],
        "batch": 1,
        "variants": [_failed(row) if row.problem else _summary(row, base, settings, questions, cots, ceilings) for row in rows],
    }


def _identity(row: _Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "folder": row.spec.place.name,
        "kind": row.spec.kind,
        "place": str(row.spec.place),
    }


def _failed(row: _Row) -> dict[str, Any]:
    assert row.problem is not None
    return {**_identity(row), "problem": row.problem.what, "hint": row.problem.hint}


def _summary(
    row: _Row,
    base: _Row,
    settings: BenchSettings,
    questions: EvaluationSet,
    cots: Sequence[HeldOutCot],
    ceilings: dict[int, Ceilings],
) -> dict[str, Any]:
    times = _times(row, base)
    judged = [(verdict == "correct", held.correct) for verdict, held in zip(row.verdicts, cots, strict=True) if verdict is not None]
    says_correct, actual = [says for says, _ in judged], [truth for _, truth in judged]
    right = {split: _right(said, questions) for split, said in row.said.items()}
    resident = [float(look["resident_memory_bytes"]) for look in row.memory]
    return {
        **_identity(row),
        "problem": None,
        "engine": row.opened["engine"],
        "precision": row.opened["precision"],
        "device": row.opened["device"],
        "threads": row.opened["threads"],
        "cpus": settings.cpus,
        "memory_limit": None if settings.memory_limit is None else size(settings.memory_limit),
        "answer_accuracy": {
            split: proportion([one for one in outcomes if one is not None]).to_json() for split, outcomes in right.items()
        },
        "withheld": sum(one["withheld"] for said in row.said.values() for one in said),
        "confidence": _confidence(row, right) if settings.ask == "confidence" else None,
        "verdict_accuracy": proportion([s == a for s, a in zip(says_correct, actual, strict=True)]).to_json(),
        "verdict_balanced_accuracy": balanced_accuracy(says_correct, actual),
        "verdict_always_correct": proportion(actual).to_json(),
        **times,
        "reached": _reached(row, times["inter_token_latency_ms"], ceilings.get(_processors(row, settings))),
        "offline": [_throughput(batch, blocks) for batch, blocks in row.offline.items()],
        "server": _held(row, settings) if row.server else None,
        "load_seconds": percentile(row.load_seconds, 50),
        "peak_memory_bytes": max(look["peak_memory_bytes"] for look in row.memory),
        "steady_memory_bytes": int(percentile(resident, 50)),
        "bytes_on_disk": row.opened["bytes_on_disk"],
        "samples": {
            **_single_samples(row),
            "warmup_passes": [[round(value, 6) for value in passes] for passes in row.warmup],
            "load_seconds": row.load_seconds,
            "resident_memory_bytes": [int(value) for value in resident],
            "ids": {split: [one["example"].id for one in said] for split, said in row.said.items()},
            "answers": {split: [one["text"] for one in said] for split, said in row.said.items()},
            "confidences": {split: [one["confidence"] for one in said] for split, said in row.said.items()},
            "correct": right,
        },
    }


def _right(said: Sequence[Json], questions: EvaluationSet) -> list[bool | None]:
    """Return whether each answer is right; None where no label says so."""
    return [
        None if one["example"].label is None else questions.form.agrees(one["text"], one["example"].label, one["example"].choices)
        for one in said
    ]


def _confidence(row: _Row, right: dict[str, list[bool | None]]) -> dict[str, Any] | None:
    pairs = [
        (float(one["confidence"]), bool(truth))
        for split, said in row.said.items()
        for one, truth in zip(said, right[split], strict=True)
        if truth is not None and one["confidence"] is not None
    ]
    if not pairs:
        return None
    values, truths = [value for value, _ in pairs], [truth for _, truth in pairs]
    return {"questions": len(pairs), "calibration_error": calibration_error(values, truths), "auroc": auroc(values, truths)}


def _times(row: _Row, base: _Row) -> dict[str, Any]:
    """Return what one question at a time took; nothing where the single scenario was not measured."""
    if not row.single:
        nothing = ("latency_ms", "ratio_to_first", "time_to_first_token_ms", "inter_token_latency_ms", "tokens_per_second")
        return dict.fromkeys(nothing)
    table = seconds_of(row.single)
    seconds = [value for one in table for value in one]
    first = [reply["time_to_first_token"] for one in row.single for reply in one]
    per_token = [reply["decode_seconds"] / reply["decode_steps"] for one in row.single for reply in one if reply["decode_steps"]]
    decode = percentile(per_token, 50) if per_token else None
    latency: dict[str, Any] = {"count": len(seconds), "rounds": len(table)}
    for p in PERCENTILES:
        found = quantile(table, p)
        latency |= {f"p{p}": 1000 * found.value, f"p{p}_interval_95": [1000 * found.low, 1000 * found.high]}
    against = None
    if row is not base:
        other = seconds_of(base.single)
        against = {**ratio(table, other).to_json(), "differs": differs(table, other)}
    return {
        "latency_ms": latency,
        "ratio_to_first": against,
        "time_to_first_token_ms": {f"p{p}": 1000 * percentile(first, p) for p in PERCENTILES},
        "inter_token_latency_ms": None if decode is None else 1000 * decode,
        "tokens_per_second": None if not decode else 1 / decode,
    }


def _processors(row: _Row, settings: BenchSettings) -> int:
    """Return how many processors a variant computes on at once."""
    threads = int(row.opened["threads"])
    return min(threads, settings.cpus or threads)


def _work(row: _Row) -> Work | None:
    """Return what a variant does with its weights for one token; None where it does not show them."""
    if row.opened.get("work") is not None:
        return Work(**row.opened["work"])
    graph = next((path for name in GRAPHS if (path := row.spec.place / name).is_file()), None)
    if graph is None:
        return None
    try:
        return decoding_work(graph)
    except MmedgeError:
        return None


def _reached(row: _Row, token_ms: float | None, ceilings: Ceilings | None) -> Json | None:
    """Return what shares of the machine's ceilings decoding reached; None where either is not known."""
    if token_ms is None or ceilings is None or row.opened["device"] != "cpu" or (work := _work(row)) is None:
        return None
    kind: Arithmetic = "int8" if row.opened["precision"] in INT8_ARITHMETIC else "float32"
    return {
        "weight_bytes_per_token": work.bytes,
        "operations_per_token": work.operations,
        "bandwidth_share": ceilings.share_of_bandwidth(work.bytes, token_ms / 1000),
        "arithmetic_share": ceilings.share_of_arithmetic(work.operations, token_ms / 1000, kind),
        "arithmetic": kind,
    }


def _single_samples(row: _Row) -> dict[str, Any]:
    replies = [(number, place, reply) for number, one in enumerate(row.single) for place, reply in enumerate(one)]
    return {
        "round": [number for number, _, _ in replies],
        "question": [place for _, place, _ in replies],
        "timed_questions": row.timed,
        **{
            name: [round(reply[name], 6) for _, _, reply in replies]
            for name in ("seconds", "time_to_first_token", "decode_seconds", "decode_steps", "tokens")
        },
    }


def _throughput(batch: int, blocks: Sequence[Json]) -> dict[str, Any]:
    rates = [block["answers"] / block["seconds"] for block in blocks]
    return {
        "batch": batch,
        "answers_per_second": mean_rate(rates).to_json(),
        "tokens_per_second": percentile([block["tokens"] / block["seconds"] for block in blocks], 50),
        "joules_per_answer": _joules(blocks),
        "blocks": list(blocks),
    }


def _joules(blocks: Sequence[Json]) -> float | None:
    """Return the energy of one answer, the median over blocks; None where it was not metered."""
    found = [
        block["energy"]["total_joules"] / block["answers"]
        for block in blocks
        if block.get("energy") and block["energy"]["total_joules"] is not None
    ]
    return percentile(found, 50) if found else None


def _held(row: _Row, settings: BenchSettings) -> dict[str, Any]:
    held = [probe["rate"] for probe in row.server if probe["held"]]
    return {
        "latency_bound_ms": 1000 * settings.latency_bound,
        "answers_per_second": max(held) if held else None,
        "probes": row.server,
    }
