"""Asking a teacher for thousands of texts at once: claims, waves, retries, limits, and a store that is never behind for long.

Everything that came back is in the store before anything depends on it; a killed collection has lost what was in flight, and
nothing else. Several collectors may work on one store. How many calls are in flight adapts: one more for each that succeeds,
until the endpoint shows that it is overloaded; then fewer, and as long as it asks for, none. Money is kept the careful way: what
is in flight counts with what it may cost at most, until the bill for it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.store import AnnotationStore, Draw, RequestRecord, Reservation, Settled, Subject
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.reports.formats import duration
from mmedge.tasks import Example, Task
from mmedge.teachers.asking import AskingFailed, Call, Reply, Writer
from mmedge.teachers.prompting import Message, Prompts, sha256_messages
from mmedge.teachers.sampling import outcome, runs_of, seed_for, standing

T = TypeVar("T")

SILENT_SECONDS = 5.0  # after so long without a success the display says what goes wrong
COMMIT_SECONDS = 0.05  # how long what came back waits for company before it is stored
FIRST_RETRY, LONGEST_RETRY = 0.5, 60.0  # seconds until a call that failed is tried again
FAILURES_OF_ONE = 8  # a call that fails so often while others succeed is left for the next run
FAILURES_AT_FIRST = 5  # so many failures in a row before anything ever succeeded end the collection
REJECTIONS_AT_FIRST = 5
MAYBE_BILLED = ("timeout", "dropped", "garbage")  # failures after which the endpoint may ask money for what did not arrive
UNLIMITED = 10**15


@dataclass(frozen=True)
class Asked:
    """What is collected, and within which limits.

    Attributes:
        cots: Chains of thought per question.
        evaluations: Self-evaluations per chain of thought.
        attempts: How many texts may be drawn for each that is wanted, at most.
        cot_tokens: The longest chain of thought.
        evaluation_tokens: The longest evaluation.
        seed: Where all seeds come from.
        per_request: How many texts one request asks for at most; None for as many as are needed.
        prices: Cost of a million tokens read, and written.
        max_cost: The most that the store's bill may come to, or None.
        max_requests: The most requests, or None.
        patience: Seconds without one success until the collection gives up.
    """

    cots: int
    evaluations: int
    attempts: float
    cot_tokens: int
    evaluation_tokens: int
    seed: int = 0
    per_request: int | None = None
    prices: tuple[float, float] = (0.0, 0.0)
    max_cost: float | None = None
    max_requests: int | None = None
    patience: float = 600.0

    def draws(self, kind: str) -> int:
        """Return how many texts may be drawn for a subject."""
        wanted = self.cots if kind == "cot" else self.evaluations
        return max(wanted, round(wanted * self.attempts))

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what a request costs."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6


@dataclass(frozen=True)
class Collected:
    """How a collection ended.

    Attributes:
        complete: Whether everything that was asked for is there, or cannot be had.
        stopped: Why it ended before, or empty.
        given_up: Subjects with fewer annotations than wanted.
        postponed: Subjects that failed too often and are left for the next run.
        requests: Requests sent by this collector.
        errors: Those of them that failed, by what happened.
        spent: What all collections of the store have sent and spent.
    """

    complete: bool
    stopped: str
    given_up: int
    postponed: int
    requests: int
    errors: dict[str, int]
    spent: Reservation


class Window:
    """How many calls may be in flight, by what became of those before."""

    def __init__(self, first: int, most: int) -> None:
        self.limit = float(min(first, most))
        self._most = most
        self._growing = True  # doubles until the first sign of overload
        self._cut = 0.0

    def succeeded(self, full: bool) -> None:
        """Note a success; `full` says whether the window was used up, without which it proves nothing."""
        if full:
            self.limit = min(self._most, self.limit + (1.0 if self._growing else 1.0 / self.limit))

    def overloaded(self, started: float, now: float) -> None:
        """Note a sign of overload by a call that was started at `started`; one cut answers all calls that were in flight then."""
        if started >= self._cut:
            self.limit = max(1.0, self.limit * 0.7)
            self._growing = False
            self._cut = now


@dataclass(slots=True)
class _Work:
    """A claimed subject and what is known of it."""

    subject: Subject
    example: Example
    cot: str  # the text that is judged, for evaluations
    draws: dict[int, Draw]
    pending: int = 0  # draws that are asked for and have not come
    closed: bool = False  # settled, or left for the next run


@dataclass(slots=True)
class _Job:
    """One request to send, and what it may cost at worst."""

    work: _Work
    first: int
    count: int
    messages: tuple[Message, ...] = ()
    worst: float = 0.0
    attempts: int = 0  # that failed
    failures: int = 0  # that failed although the endpoint answers others


class Collector:
    """One collection by one process.

    Args:
        store: Where everything goes.
        writer: Who is asked.
        task: Reads what comes.
        examples: The questions.
        prompts: How they are asked.
        asked: What is collected, within which limits.
        configuration: Number of the description of model, parameters and prompts in the store.
        progress: Where progress is shown.
    """

    def __init__(
        self,
        store: AnnotationStore,
        writer: Writer,
        task: Task,
        examples: Sequence[Example],
        prompts: Prompts,
        asked: Asked,
        configuration: int,
        progress: Progress,
    ) -> None:
        self._store, self._writer, self._task, self._prompts, self._asked = store, writer, task, prompts, asked
        self._by_id = {example.id: example for example in examples}
        self._configuration, self._progress = configuration, progress
        self._limited = asked.max_requests is not None or asked.max_cost is not None
        self._limits = Reservation(
            UNLIMITED if asked.max_requests is None else asked.max_requests,
            float(UNLIMITED) if asked.max_cost is None else asked.max_cost,
        )
        self._per_request = asked.per_request
        self._window = Window(*writer.parallel)
        self._queue: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying = 0  # jobs that wait for their next attempt
        self._pause_until = 0.0
        self._exposed_requests, self._exposed_cost = 0, 0.0  # in flight, or not stored yet, at worst
        self._granted = Reservation(0, 0.0)
        self._rejected_early: list[_Work] = []  # before anything had succeeded
        self._dearest = 0.0  # the most that a request seen so far may cost
        self._records: list[tuple[RequestRecord, float]] = []
        self._settled: list[Settled] = []
        self._storing = self._reserving = self._closing = False
        self._nothing_to_claim = False
        self._stopped = self._last_rejection = self._last_failure = ""
        self._failure: MmedgeError | None = None
        self._interrupted = 0
        self._sent = self._succeeded = self._rejected = self._postponed = self._failures_in_a_row = 0
        self._errors: Counter[str] = Counter()
        self._advanced = 0
        self._spent = Reservation(0, 0.0)

    def run(self) -> Collected:
        """Collect until everything is there, a limit is reached, or the endpoint is lost.

        Raises:
            MmedgeError: The key is wrong, the model unknown, the endpoint out of reach, the store cannot be written; what came
                back until then is stored.
            KeyboardInterrupt: It was interrupted; what was in flight was waited for and is stored.
        """
        asked = self._asked
        self._store.plan(list(self._by_id), asked.cots, asked.draws("cot"), asked.evaluations, asked.draws("evaluation"))
        total = len(self._by_id) * asked.cots * (1 + asked.evaluations)
        there = total - min(total, self._to_come())
        with self._progress.task("annotations", total=total, done=there) as self._step:
            return run_event_loop(self._collect())

    def _to_come(self) -> int:
        """Return how many annotations are to come: those of open subjects, and the evaluations that will follow from them."""
        query = (
            "SELECT COALESCE(SUM(CASE kind WHEN 'cot' THEN wanted * ? ELSE wanted END), 0) FROM subjects "
            "WHERE state = 'open' AND example_id IN chosen"
        )
        return int(self._store.query(query, (1 + self._asked.evaluations,))[0][0])

    # ------------------------------------------------------------------------------------------------ the loop

    async def _collect(self) -> Collected:
        self._loop = asyncio.get_running_loop()
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._wake = asyncio.Event()
        self._last_success = time.monotonic()
        self._number = await self._on_disk(self._store.join)
        try:
            async with self._writer:
                with self._signals():
                    committing = self._in_background(self._commit_forever())
                    beating = self._in_background(self._beat_forever())
                    try:
                        await self._send_forever()
                    finally:
                        self._closing = True
                        for task in (*self._tasks, beating):
                            task.cancel()
                        await asyncio.gather(*self._tasks, committing, beating, return_exceptions=True)
            await self._commit()  # once more, if the store failed: there may be room again
            open_, _ = await self._on_disk(self._store.open_work)
            given_up = await self._on_disk(self._store.given_up)
            self._spent = await self._on_disk(self._store.spent)
        finally:
            with contextlib.suppress(MmedgeError):
                await self._on_disk(self._store.leave, self._number)
            self._disk.shutdown()
        if self._failure is None and self._rejected and not self._succeeded:
            self._failure = self._all_rejected()
        if self._failure is not None:
            raise self._failure
        if self._interrupted:
            raise KeyboardInterrupt
        return Collected(open_ == 0, self._stopped, given_up, self._postponed, self._sent, dict(self._errors), self._spent)

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something of the store in its own thread: a disk that is slow must not keep answers waiting."""
        return await self._loop.run_in_executor(self._disk, lambda: function(*arguments))

    @property
    def _ending(self) -> bool:
        return bool(self._stopped or self._failure or self._interrupted)

    async def _send_forever(self) -> None:
        while True:
            if self._ending:
                if not self._tasks or self._interrupted > 1:
                    return
            else:
                if not self._nothing_to_claim and len(self._queue) < self._room():
                    await self._claim()
                if not self._limited and not self._granted.requests:
                    await self._reserve()  # before anything is sent
                self._send()
                if not (self._queue or self._tasks or self._retrying or self._unstored) and await self._is_finished():
                    return
            self._wake.clear()
            await self._wake.wait()  # `_beat_forever` sets it four times a second in any case

    @property
    def _unstored(self) -> bool:
        return bool(self._records or self._settled or self._storing)

    async def _is_finished(self) -> bool:
        """Look once more for work that others left; return whether there is none, and nobody who might leave some."""
        others = await self._on_disk(self._store.bury_dead, self._number)
        await self._claim()
        busy = others and await self._on_disk(self._store.claimed_by_others, self._number)
        return not self._queue and not self._unstored and not busy

    def _send(self) -> None:
        """Send as many requests as may be in flight."""
        room = self._room()
        if self._ending or self._reserving or time.monotonic() < self._pause_until:
            return
        while self._queue and len(self._tasks) < room:
            job = self._queue[0]
            if job.work.closed:
                self._queue.popleft()
                continue
            if self._per_request is not None and job.count > self._per_request:  # queued before that was known
                rest = _Job(job.work, job.first + self._per_request, job.count - self._per_request)
                job.count = self._per_request
                self._queue.insert(1, rest)
                job.worst, job.messages = 0.0, ()
            if not job.messages:
                self._word(job)
            requests, cost = self._exposed_requests + 1, self._exposed_cost + job.worst
            if self._limited and (requests > self._granted.requests or cost > self._granted.cost):
                if self._unstored or self._tasks:
                    return  # what is in flight may cost less than it could
                self._reserving = True
                self._in_background(self._reserve_or_stop(job))
                return
            self._exposed_requests, self._exposed_cost = requests, cost
            self._queue.popleft()
            self._sent += 1
            task = self._loop.create_task(self._perform(job))
            self._tasks.add(task)
            task.add_done_callback(self._performed)

    def _room(self) -> int:
        """Return how many may be in flight: one alone until the endpoint has shown that it answers."""
        return int(self._window.limit) if self._succeeded else 1

    def _word(self, job: _Job) -> None:
        work = job.work
        cot = work.subject.kind == "cot"
        job.messages = self._prompts.about_question(work.example) if cot else self._prompts.about_cot(work.example, work.cot)
        if self._limited or any(self._asked.prices):
            job.worst = self._asked.cost(self._writer.tokens(job.messages), job.count * self._longest(work))

    def _longest(self, work: _Work) -> int:
        return self._asked.cot_tokens if work.subject.kind == "cot" else self._asked.evaluation_tokens

    def _performed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._send()
        if len(self._queue) < self._room() or self._ending:
            self._wake.set()
        self._ended(task)

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start work that nobody waits for; when it fails, the collection ends."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(_as_mmedge_error(error))

    def _fail(self, error: MmedgeError) -> None:
        self._failure = self._failure or error
        self._wake.set()

    # ------------------------------------------------------------------------------------------------- work

    async def _claim(self) -> None:
        count = max(4, 2 * self._room()) - len(self._queue)  # no more than is soon asked: others may be waiting for work
        claimed = await self._on_disk(self._claimed, count)
        self._nothing_to_claim = len(claimed) < count
        for subject, draws, cot in claimed:
            self._take(_Work(subject, self._by_id[subject.example_id], cot, {draw.draw: draw for draw in draws}))

    def _claimed(self, count: int) -> list[tuple[Subject, tuple[Draw, ...], str]]:
        found = []
        for subject, draws in self._store.claim(self._number, count):
            cot = ""
            if subject.kind == "evaluation":
                place = (subject.example_id, subject.sample)
                query = "SELECT text FROM annotations WHERE example_id = ? AND kind = 'cot' AND sample = ?"
                cot = self._store.query(query, place)[0][0]
            found.append((subject, draws, cot))
        return found

    def _take(self, work: _Work, first: bool = False) -> None:
        """Queue what a subject still needs, or settle it where it needs nothing more."""
        subject = work.subject
        now = standing(subject.wanted, subject.draws, work.draws, distinct=subject.kind == "cot")
        work.pending = len(now.missing)
        if not now.missing:
            self._settle(work, now.accepted, now.became)
            return
        jobs = []
        for start, count in runs_of(now.missing):
            step = self._per_request or count
            jobs += [_Job(work, at, min(step, start + count - at)) for at in range(start, start + count, step)]
        if first:
            self._queue.extendleft(reversed(jobs))
        else:
            self._queue.extend(jobs)

    def _settle(self, work: _Work, accepted: Sequence[int], became: tuple[tuple[int, str], ...]) -> None:
        subject, asked = work.subject, self._asked
        cot = subject.kind == "cot"
        work.closed = True
        annotations = tuple(
            Annotation(
                example_id=subject.example_id,
                kind="cot" if cot else "evaluation",
                sample=number if cot else subject.sample,
                evaluation=0 if cot else number,
                text=work.draws[draw].text,
                verdict=None,
                teacher=self._writer.name,
                origin=f"draw {draw}",
            )
            for number, draw in enumerate(accepted)
        )
        follow_ups: tuple[Subject, ...] = ()
        if cot and asked.evaluations:
            most = asked.draws("evaluation")
            follow_ups = tuple(
                Subject(0, subject.example_id, "evaluation", annotation.sample, asked.evaluations, most)
                for annotation in annotations[: asked.cots]
            )
        state = "done" if len(accepted) >= subject.wanted else "given up"
        self._settled.append(Settled(subject, state, annotations, became, follow_ups))
        short = subject.wanted - len(accepted)
        self._advanced += subject.wanted + (short * asked.evaluations if cot else 0)

    # ---------------------------------------------------------------------------------------------- requests

    async def _perform(self, job: _Job) -> None:
        subject = job.work.subject
        seed = seed_for(self._asked.seed, subject.example_id, subject.kind, subject.sample, job.first)
        call = Call(job.messages, job.count, seed, self._longest(job.work))
        full = len(self._tasks) >= self._room() - 1
        started, begun = time.time(), time.monotonic()

        def record(status: str, detail: str = "", **known: Any) -> None:
            row = RequestRecord(
                subject=subject,
                configuration=self._configuration,
                first_draw=job.first,
                wanted=job.count,
                seed=seed,
                prompt_sha256=sha256_messages(job.messages),
                started=started,
                seconds=time.monotonic() - begun,
                status=status,
                detail=detail,
                **known,
            )
            self._records.append((row, job.worst))

        try:
            reply = await self._writer.write(call)
        except AskingFailed as failed:
            record(failed.status, failed.detail, **self._maybe_billed(job, failed))
            self._errors[failed.status] += 1
            self._failed(job, failed, begun)
        except MmedgeError as error:
            record("refused", error.what)
            self._errors["refused"] += 1
            self._fail(error)
        else:
            draws = self._read(job, reply)
            record(
                "ok",
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                tokens_estimated=reply.estimated,
                cost=self._asked.cost(reply.prompt_tokens, reply.completion_tokens),
                draws=draws,
            )
            self._succeeded += 1
            self._failures_in_a_row = 0
            while self._rejected_early:
                self._give_up(self._rejected_early.pop())
            self._last_success = time.monotonic()
            self._window.succeeded(full)
            self._answered(job, draws)

    def _maybe_billed(self, job: _Job, failed: AskingFailed) -> dict[str, Any]:
        """Return the tokens and the cost, at worst, of a request that the endpoint may have worked on though no answer came."""
        if failed.status not in MAYBE_BILLED or not any(self._asked.prices):
            return {}
        prompt, completion = self._writer.tokens(job.messages), job.count * self._longest(job.work)
        cost = self._asked.cost(prompt, completion)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "tokens_estimated": True, "cost": cost}

    def _read(self, job: _Job, reply: Reply) -> tuple[Draw, ...]:
        work = job.work
        return tuple(
            Draw(
                job.first + index,
                text.finish,
                outcome(text.text, text.finish, work.subject.kind, self._task, work.example),
                text.text,
            )
            for index, text in enumerate(reply.texts[: job.count])
        )

    def _answered(self, job: _Job, draws: Sequence[Draw]) -> None:
        work = job.work
        if len(draws) < job.count and self._per_request is None:
            self._per_request = max(1, len(draws))  # it does not know `n`
        for draw in draws:
            work.draws[draw.draw] = draw
        work.pending -= len(draws)
        if work.closed:
            return
        step = self._per_request or job.count
        end = job.first + job.count
        for at in range(job.first + len(draws), end, step):
            self._queue.appendleft(_Job(work, at, min(step, end - at)))
        if not work.pending:  # a wave is judged when all of it is there
            self._take(work, first=True)

    def _failed(self, job: _Job, failed: AskingFailed, begun: float) -> None:
        now = time.monotonic()
        self._last_failure = f"{failed.status} ({failed.detail[:60]})"
        if failed.rejected:
            self._rejected += 1
            self._last_rejection = failed.detail
            if not self._succeeded and self._rejected >= REJECTIONS_AT_FIRST:
                self._fail(self._all_rejected())
            if not self._succeeded:
                job.work.closed = True  # it may be the recipe's fault, and not this question's: nothing is given up for it
                self._rejected_early.append(job.work)
            elif not job.work.closed:
                self._give_up(job.work)
            return
        if failed.overloaded:
            self._window.overloaded(begun, now)
        if failed.retry_after is not None:
            self._pause_until = max(self._pause_until, now + failed.retry_after)
        self._failures_in_a_row += 1
        if not self._succeeded and failed.status in _HOPELESS and self._failures_in_a_row >= FAILURES_AT_FIRST:
            self._fail(MmedgeError(f"{self._writer.name}: {failed.detail} ({failed.status})", _HOPELESS[failed.status]))
            return
        if now - self._last_success > self._asked.patience:
            self._fail(
                MmedgeError(
                    f"{self._writer.name}: no answer for {duration(now - self._last_success)}; the last failure: {failed}",
                    "what came before is stored; run the same command again when the endpoint answers",
                )
            )
            return
        job.attempts += 1
        if not failed.overloaded and failed.status != "unreachable" and self._succeeded:
            job.failures += 1
            if job.failures >= FAILURES_OF_ONE and not job.work.closed:
                self._postponed += 1
                job.work.closed = True
                self._in_background(self._on_disk(self._store.postpone, job.work.subject))
            if job.work.closed:
                return
        wait = failed.retry_after
        if wait is None:
            # short where the endpoint answers others, longer and longer where it answers nobody
            doublings = max(min(job.attempts - 1, 2), min(self._failures_in_a_row // self._room(), 7))
            wait = min(LONGEST_RETRY, FIRST_RETRY * 2**doublings) * (0.5 + random.random())
        else:
            wait += random.random() * min(1.0, wait)
        self._retrying += 1
        self._loop.call_later(wait, self._retry, job)

    def _give_up(self, work: _Work) -> None:
        """Settle a subject with what it has."""
        subject = work.subject
        now = standing(subject.wanted, subject.draws, work.draws, distinct=subject.kind == "cot")
        self._settle(work, now.accepted, now.became)

    def _all_rejected(self) -> MmedgeError:
        what = f"{self._writer.name} rejects every request: {self._last_rejection}"
        return MmedgeError(what, "check the teacher's section in the recipe")

    def _retry(self, job: _Job) -> None:
        self._retrying -= 1
        self._queue.appendleft(job)
        self._wake.set()

    # --------------------------------------------------------------------------------------- store and limits

    async def _commit_forever(self) -> None:
        while not self._closing and self._failure is None:
            if self._records or self._settled:
                await self._commit()
            await asyncio.sleep(COMMIT_SECONDS)

    async def _commit(self) -> None:
        records, settled = self._records, self._settled
        if not records and not settled:
            return
        self._records, self._settled, self._storing = [], [], True
        try:
            follow_ups = await self._on_disk(self._store.record, self._number, [record for record, _ in records], settled)
        except Exception as error:
            self._records, self._settled = records + self._records, settled + self._settled
            self._storing = False
            self._fail(_as_mmedge_error(error))
            return
        worst = sum(worst for _, worst in records)
        self._exposed_requests -= len(records)
        self._exposed_cost = max(0.0, self._exposed_cost - worst)
        # what was spent is no longer granted; how much is left is asked below
        self._granted = Reservation(self._granted.requests - len(records), self._granted.cost - worst)
        texts = {
            (annotation.example_id, annotation.sample): annotation.text
            for item in settled
            if item.follow_ups
            for annotation in item.annotations
        }
        for subject in reversed(follow_ups):
            work = _Work(subject, self._by_id[subject.example_id], texts[subject.example_id, subject.sample], {})
            self._take(work, first=True)
        if self._limited:
            await self._reserve()
        self._storing = False
        self._wake.set()

    async def _reserve(self, job: _Job | None = None) -> None:
        """Reserve what may be in flight next; without limits this only says what a kill may leave unbilled."""
        job = job or (self._queue[0] if self._queue else None)
        if job is not None and not job.messages:
            self._word(job)
        self._dearest = max(self._dearest, job.worst if job is not None else 0.0)
        if self._limited:
            each = job.worst if job is not None else 0.0
            more = max(1, self._room() - self._exposed_requests) if self._queue else 0
        else:  # as many as may ever be in flight: nobody waits for what is reserved
            each, more = self._dearest, self._writer.parallel[1]
        wanted = Reservation(self._exposed_requests + more, self._exposed_cost + 1.5 * each * more)
        granted, self._spent = await self._on_disk(
            self._store.reserve, self._number, wanted, self._limits if self._limited else None
        )
        self._granted = granted

    async def _reserve_or_stop(self, job: _Job) -> None:
        try:
            await self._reserve(job)
        except MmedgeError as error:
            self._fail(error)
            return
        finally:
            self._reserving = False
        if self._granted.requests < 1:
            self._stopped = f"--max-requests {self._limits.requests}"
        elif self._granted.cost < job.worst:
            self._stopped = f"--max-cost {self._limits.cost:g}"
        self._wake.set()

    async def _beat_forever(self) -> None:
        """Show progress, and show that this collector lives."""
        beaten = 0.0
        sent, at = 0, time.monotonic()
        rate = 0.0
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            if now - at >= 2:
                rate, sent, at = (self._sent - sent) / (now - at), self._sent, now
            advanced, self._advanced = self._advanced, 0
            details: dict[str, object] = {"requests/s": f"{rate:.1f}", "in flight": len(self._tasks)}
            if self._pause_until - now > 1:
                details["waiting, as the endpoint asks,"] = duration(self._pause_until - now)
            if self._errors:
                details["errors"] = sum(self._errors.values())
                if now - self._last_success > SILENT_SECONDS:
                    details["the last:"] = self._last_failure
            if any(self._asked.prices):
                details["cost"] = f"{self._spent.cost:.4g}"
            self._step.advance(advanced, **details)
            self._wake.set()
            if now - beaten >= 1.0:
                beaten = now
                try:
                    if not self._limited:
                        await self._reserve()
                    else:
                        await self._on_disk(self._store.bury_dead, self._number)
                except MmedgeError as error:
                    self._fail(error)
                    return

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let a first Ctrl-C end the sending and wait for what was sent, and a second one end the waiting."""
        handled = []
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self._interrupt)
                handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                self._loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        self._interrupted += 1
        if self._interrupted == 1 and self._tasks:
            self._progress.line(f"interrupted: waiting for {len(self._tasks)} requests that were sent; again to leave them")
        self._wake.set()


def _as_mmedge_error(error: BaseException) -> MmedgeError:
    if isinstance(error, MmedgeError):
        return error
    return MmedgeError(f"{type(error).__name__}: {str(error)[:200]}", "what came before is stored; this is a defect of mmedge")


_HOPELESS = {
    "unreachable": "is the server running, and teacher.base_url right? Run the same command again when it answers",
    "garbage": "does teacher.base_url name an OpenAI-compatible endpoint? Most end in /v1",
}


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on uvloop where that is installed."""
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    thresholds = gc.get_threshold()
    gc.freeze()  # what is there stays: looking at it again and again for garbage costs a tenth of the time
    gc.set_threshold(50_000, 20, 50)
    try:
        return loop.run_until_complete(main)
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        try:
            loop.run_until_complete(_end_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _end_all() -> None:
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
