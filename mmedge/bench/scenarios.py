"""The scenarios, after MLPerf's (Reddi et al. 2020), and how a scheduler measures them.

    single      one question at a time; as many rounds as the precision that is asked for takes
    accuracy    the whole test set
    offline     all questions at once: answers a second over batch sizes
    server      questions that arrive at random moments: which rate keeps p99 within a bound

Each records what it measured in the rows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from mmedge.bench.energy import EnergyMeter
from mmedge.bench.scheduler import BenchQuestion, Row, Said, VariantScheduler, records
from mmedge.bench.timing import precise
from mmedge.statistics import percentile
from mmedge.storage import Json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import HeldOutCot

OFFLINE_LEAST = 32  # questions of a block of the offline scenario, at least
TOGETHER = 16  # questions of one request where only accuracy is measured, and of one batch on GPUs
PROBES = 7  # rates that the server scenario tries for each variant
PERCENTILES = (50, 90, 99)


def measure(
    scheduler: VariantScheduler, questions: Sequence[BenchQuestion], cots: Sequence[HeldOutCot], energy: EnergyMeter | None
) -> bool | None:
    """Go through all scenarios.

    Returns:
        Whether the precision that was asked for was reached; None where none was.
    """
    settings, reached = scheduler.settings, None
    timed = spread(questions, settings.timed)
    scheduler.warm_up(timed)
    scheduler.look(force=True)
    if "single" in settings.scenarios:
        reached = _single(scheduler, timed)
    if "accuracy" in settings.scenarios and ("single" not in settings.scenarios or len(timed) < len(questions)):
        _accuracy(scheduler, questions)
    _verdicts(scheduler, cots)
    scheduler.note_memory()
    if "offline" in settings.scenarios:
        _offline(scheduler, questions, energy)
    if "server" in settings.scenarios:
        _server(scheduler, timed)
    scheduler.look(force=True)
    scheduler.note_memory()
    return reached


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """Return this many of the items, evenly spread, the first among them."""
    if count is None or count >= len(items):
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def seconds_of(rounds: Sequence[Sequence[Json]]) -> list[list[float]]:
    """Return the seconds of some rounds of replies, (rounds, questions)."""
    return [[reply["seconds"] for reply in one] for one in rounds]


# ------------------------------------------------------------------------------------------------------ one at a time


def _single(scheduler: VariantScheduler, timed: Sequence[BenchQuestion]) -> bool | None:
    """Ask round after round, each of new processes; return whether the wanted precision was reached."""
    settings = scheduler.settings
    done = 0
    total = None if settings.precision else len(timed) * settings.rounds
    with scheduler.progress.task("answers", total=total) as step:
        while True:
            for row in scheduler.rows:
                row.single.append([])
                row.timed = [f"{one.split}/{one.example.id}" for one in timed]
            for place, one in enumerate(timed):
                turn = done * len(timed) + place + 1
                request = scheduler.request([one.example])
                for row, reply in scheduler.replies(f"{one.split}/{one.number}/{done}", turn, request):
                    row.single[-1].append(reply)
                    if not done:
                        row.said.setdefault(one.split, []).append(Said.of(one, reply))
                step.advance(1)
            done += 1
            scheduler.note_memory()
            if done >= settings.rounds:
                if settings.precision is None:
                    return None
                tables = [seconds_of(row.single) for row in scheduler.running]
                reached = precise(tables, settings.precision)
                if reached or done >= settings.max_rounds or not tables:
                    return reached
            scheduler.renew_before_next(timed)


def _accuracy(scheduler: VariantScheduler, questions: Sequence[BenchQuestion]) -> None:
    for row in scheduler.rows:
        row.said.clear()
    # one by one, as on a device, unless no CPU is measured: a batch would need more memory than what it is asked for
    batch = 1 if any(row.opened["device"] == "cpu" for row in scheduler.running) else TOGETHER
    with scheduler.progress.task("accuracy", total=len(questions)) as step:
        for start in range(0, len(questions), TOGETHER):
            some = questions[start : start + TOGETHER]
            request = scheduler.request([one.example for one in some], batch)
            for row, reply in scheduler.replies(f"accuracy/{start}", start, request):
                for place, one in enumerate(some):
                    row.said.setdefault(one.split, []).append(Said.of(one, reply, place))
            step.advance(len(some))


def _verdicts(scheduler: VariantScheduler, cots: Sequence[HeldOutCot]) -> None:
    with scheduler.progress.task("verdicts", total=len(cots)) as step:
        for number, held in enumerate(cots):
            cot = {"rationale": held.cot.rationale, "pseudo_label": held.cot.pseudo_label}
            request = {"examples": records([held.example]), "cot": cot}
            for row, reply in scheduler.replies(f"verdict/{number}", 0, request):
                row.verdicts.append(reply["verdict"])
            step.advance(1)


# ------------------------------------------------------------------------------------------------------ offline


def _offline(scheduler: VariantScheduler, questions: Sequence[BenchQuestion], energy: EnergyMeter | None) -> None:
    settings = scheduler.settings
    largest = max(settings.batches)
    count = largest * math.ceil(OFFLINE_LEAST / largest)
    some = [one.example for one in spread(questions, count)]
    work = (some * math.ceil(count / len(some)))[:count]
    with scheduler.progress.task("offline", total=settings.offline_rounds * len(settings.batches)) as step:
        for number in range(settings.offline_rounds):
            for batch in settings.batches:
                request = scheduler.request(work, batch)
                for row, reply in scheduler.replies(f"offline/{batch}/{number}", number, request, energy):
                    block = {"answers": len(work), **{name: reply.get(name) for name in ("seconds", "tokens", "energy")}}
                    row.offline.setdefault(batch, []).append(block)
                step.advance(1)
    scheduler.note_memory()


# ------------------------------------------------------------------------------------------------------ server


def _server(scheduler: VariantScheduler, timed: Sequence[BenchQuestion]) -> None:
    with scheduler.progress.task("server", total=PROBES * len(scheduler.rows)) as step:
        examples = [one.example for one in timed][:256]
        searches = [_hold_bound(scheduler, place, row, examples) for place, row in enumerate(scheduler.rows) if row.problem is None]
        for _ in range(PROBES):  # in turns, so that what slows the machine for a while slows no variant alone
            for search in searches:
                next(search, None)
                step.advance(1)


def _hold_bound(scheduler: VariantScheduler, place: int, row: Row, examples: Sequence[Example]) -> Iterator[None]:
    """Raise the rate until p99 breaks its bound, then halve what is not known; one probe at a time."""
    settings = scheduler.settings
    warm = row.ask(scheduler.request(examples[:8]))
    if "seconds" not in warm:
        return
    low, high = 0.0, math.inf
    rate = 0.5 * min(8, len(examples)) / float(warm["seconds"])

    def probe(number: int, rate: float) -> Json | None:
        arrivals = poisson_arrivals(rate, settings.server_seconds, seed=number)
        wish = {"arrivals": arrivals, "give_up_seconds": 20 * settings.latency_bound}
        reply = row.ask({"examples": records(examples), "ask": settings.ask, "serve": wish})
        return None if "problem" in reply else {"rate": rate, **_probed(reply, len(arrivals), settings.latency_bound)}

    for number in range(PROBES):
        found = scheduler.once(f"server/{place}/{number}", lambda number=number, rate=rate: probe(number, rate))  # type: ignore[misc]
        if found is None:
            return
        row.server.append(found)
        low, high = (found["rate"], high) if found["held"] else (low, found["rate"])
        rate = 1.5 * low if high == math.inf else (low + high) / 2
        yield


def poisson_arrivals(rate: float, seconds: float, seed: int, least: int = 20, most: int = 2000) -> list[float]:
    """Return the moments, in seconds, at which questions arrive independently of each other.

    Args:
        rate: Arrivals a second.
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


def _probed(reply: Json, wanted: int, bound: float) -> Json:
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
