"""Sampling a teacher with many requests at once, into a store that is never far behind.

Every reply is in the store before anything depends on it; a killed collection loses what was in flight, and
nothing else. Several collectors may work on one store. This file is the loop that claims, sends and stores; what is sent next is
decided in `waves.py`, how fast in `pace.py`, and what it may cost in `budget.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mmedge.annotations.collection import Collection
from mmedge.annotations.records import RequestRecord, Settled, Spending
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.openai import ChatFailure
from mmedge.progress import Progress
from mmedge.reports.formats import duration
from mmedge.tasks import Example
from mmedge.teachers.base import SampledTeacher
from mmedge.teachers.budget import Budget
from mmedge.teachers.pace import Pace
from mmedge.teachers.plan import CollectionPlan
from mmedge.teachers.prompting import Asking, sha256_messages
from mmedge.teachers.sampling import Reader
from mmedge.teachers.waves import OpenSubject, TeacherRequest, WaveQueue

T = TypeVar("T")

SILENT_SECONDS = 5.0  # after this long without a success, the display says what goes wrong
COMMIT_SECONDS = 0.05  # how long replies wait for others before they are stored together
FAILURES_OF_ONE = 8  # a request that fails this often while others succeed is left for the next run
MAYBE_BILLED = ("timeout", "dropped", "garbage")  # failures after which the endpoint may still charge for what did not arrive


@dataclass(frozen=True)
class CollectionResult:
    """How a collection ended.

    Attributes:
        complete: Whether everything that was asked for is there, or is out of reach.
        stopped: Why it ended early, or empty.
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
    spent: Spending


class Collector:
    """One collection by one process.

    Args:
        store: Where everything goes.
        teacher: Who is asked.
        form: Reads what comes.
        examples: The questions.
        prompts: How they are asked.
        plan: What is collected, within which limits.
        configuration: Number of the description of model, parameters and prompts in the store.
        progress: Where progress is shown.
        name: What is collected, for the progress.
    """

    def __init__(
        self,
        store: AnnotationStore,
        teacher: SampledTeacher,
        form: Reader,
        examples: Sequence[Example],
        prompts: Asking,
        plan: CollectionPlan,
        configuration: int,
        progress: Progress,
        name: str = "annotations",
    ) -> None:
        self._collection, self._teacher, self._plan = Collection(store), teacher, plan
        self._by_id = {example.id: example for example in examples}
        self._configuration, self._progress, self._name = configuration, progress, name
        self._queue = WaveQueue(plan, prompts, teacher, form, self._settle)
        self._budget = Budget(plan.limits, teacher.parallel[1])
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying = 0  # requests that wait for their next attempt
        self._rejected_early: list[OpenSubject] = []  # before anything had succeeded
        self._records: list[tuple[RequestRecord, float]] = []  # with what each might have cost
        self._settled: list[Settled] = []
        self._storing = self._reserving = self._closing = False
        self._nothing_to_claim = False
        self._stopped = ""
        self._failure: MmedgeError | None = None
        self._interrupted = 0
        self._sent = self._postponed = self._advanced = 0
        self._errors: Counter[str] = Counter()

    def run(self) -> CollectionResult:
        """Collect until everything is there, a limit is reached, or the endpoint is lost.

        Raises:
            MmedgeError: The key is wrong, the model unknown, the endpoint out of reach, the store cannot be written; what came
                back until then is stored.
            KeyboardInterrupt: It was interrupted; what was in flight was waited for and is stored.
        """
        plan = self._plan
        self._collection.plan(list(self._by_id), plan.wanted("cot"), plan.wanted("evaluation"))
        total = len(self._by_id) * plan.cots * (1 + plan.evaluations)
        there = total - min(total, self._collection.missing(plan.evaluations))
        thresholds = gc.get_threshold()
        gc.set_threshold(50_000, 20, 50)  # looking for cycles after every 700 objects costs a fifth of the time
        try:
            with self._progress.task(self._name, total=total, done=there) as self._step:
                found = asyncio.run(self._collect())
        finally:
            gc.set_threshold(*thresholds)
        if self._failure is not None:
            raise self._failure
        if self._interrupted:
            raise KeyboardInterrupt
        return found

    # ------------------------------------------------------------------------------------------------ the loop

    async def _collect(self) -> CollectionResult:
        self._loop = asyncio.get_running_loop()
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._wake = asyncio.Event()
        self._pace = Pace(self._teacher.name, self._teacher.parallel, self._plan.patience, time.monotonic())
        collection = self._collection
        self._number = await self._on_disk(collection.join)
        try:
            async with self._teacher:
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
            open_ = await self._on_disk(collection.in_state, "open")
            given_up = await self._on_disk(collection.in_state, "given up")
            spent = await self._on_disk(collection.spent)
        finally:
            with contextlib.suppress(MmedgeError):
                await self._on_disk(collection.leave, self._number)
            self._disk.shutdown()
        self._failure = self._failure or self._pace.all_rejected()
        return CollectionResult(open_ == 0, self._stopped, given_up, self._postponed, self._sent, dict(self._errors), spent)

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something of the store in its own thread: a disk that is slow must not keep answers waiting."""
        return await self._loop.run_in_executor(self._disk, function, *arguments)

    @property
    def _ending(self) -> bool:
        return bool(self._stopped or self._failure or self._interrupted)

    async def _send_forever(self) -> None:
        while True:
            if self._ending:
                if not self._tasks or self._interrupted > 1:
                    return
            else:
                if not self._nothing_to_claim and len(self._queue) < self._pace.room:
                    await self._claim()
                if not self._budget.limited and not self._budget.granted.requests:
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
        """Look once more for work that others left; return whether there is none, and no other collector that might leave some."""
        others = await self._on_disk(self._collection.release_dead, self._number)
        await self._claim()
        busy = others and await self._on_disk(self._collection.claimed_by_others, self._number)
        return not self._queue and not self._unstored and not busy

    async def _claim(self) -> None:
        count = max(4, 2 * self._pace.room) - len(self._queue)  # no more than is soon asked: others may be waiting for work
        claimed = await self._on_disk(self._collection.claim, self._number, count)
        self._nothing_to_claim = len(claimed) < count
        for subject, responses, cot in claimed:
            there = {response.number: response for response in responses}
            self._queue.add(OpenSubject(subject, self._by_id[subject.example_id], cot, there))

    def _settle(self, settled: Settled) -> None:
        subject = settled.subject
        short = subject.wanted - len(settled.annotations)
        self._settled.append(settled)
        self._advanced += subject.wanted + (short * self._plan.evaluations if subject.kind == "cot" else 0)

    def _send(self) -> None:
        """Send as many requests as may be in flight."""
        room = self._pace.room
        if self._ending or self._reserving or time.monotonic() < self._pace.pause_until:
            return
        while len(self._tasks) < room and (job := self._queue.next()) is not None:
            if not self._budget.admits(job.worst):
                if self._unstored or self._tasks:
                    return  # what is in flight may cost less than it could
                self._reserving = True
                self._in_background(self._reserve_or_stop(job.worst))
                return
            self._budget.sent(job.worst)
            self._queue.pop()
            self._sent += 1
            task = self._loop.create_task(self._perform(job))
            self._tasks.add(task)
            task.add_done_callback(self._performed)

    def _performed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._send()
        if len(self._queue) < self._pace.room or self._ending:
            self._wake.set()
        self._ended(task)

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start background work; when it fails, the collection ends."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(_as_mmedge_error(error))

    def _fail(self, error: MmedgeError) -> None:
        self._failure = self._failure or error
        self._wake.set()

    # ---------------------------------------------------------------------------------------------- requests

    async def _perform(self, job: TeacherRequest) -> None:
        request = self._queue.request(job)
        full = len(self._tasks) >= self._pace.room - 1
        started, begun = time.time(), time.monotonic()

        def record(status: str, detail: str = "", **known: Any) -> None:
            row = RequestRecord(
                subject=job.work.subject,
                configuration=self._configuration,
                first=job.first,
                wanted=job.count,
                seed=request.seed,
                prompt_sha256=sha256_messages(job.messages),
                started=started,
                seconds=time.monotonic() - begun,
                status=status,
                detail=detail,
                **known,
            )
            self._records.append((row, job.worst))

        try:
            reply = await self._teacher.sample(request)
        except ChatFailure as failure:
            record(failure.status, failure.detail, **self._maybe_billed(job, failure))
            self._errors[failure.status] += 1
            self._failed(job, failure, begun)
        except MmedgeError as error:
            record("refused", error.what)
            self._errors["refused"] += 1
            self._fail(error)
        else:
            responses = self._queue.answered(job, reply)
            record(
                "ok",
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                tokens_estimated=reply.estimated,
                cost=self._plan.prices.cost(reply.prompt_tokens, reply.completion_tokens),
                responses=responses,
            )
            self._pace.succeeded(full, time.monotonic())
            while self._rejected_early:
                self._queue.give_up(self._rejected_early.pop())

    def _maybe_billed(self, job: TeacherRequest, failure: ChatFailure) -> dict[str, Any]:
        """Return the tokens and the cost, at worst, of a request that the endpoint may have worked on though no answer came."""
        if failure.status not in MAYBE_BILLED or not self._plan.prices.known:
            return {}
        prompt, completion = self._queue.most_tokens(job)
        cost = self._plan.prices.cost(prompt, completion)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "tokens_estimated": True, "cost": cost}

    def _failed(self, job: TeacherRequest, failure: ChatFailure, begun: float) -> None:
        """Decide what becomes of a request that failed: it is tried again, left for the next run, or given up."""
        work, answers_others = job.work, self._pace.successes > 0
        if (error := self._pace.failed(failure, begun, time.monotonic())) is not None:
            self._fail(error)
        if failure.rejected:
            if not answers_others:
                work.closed = True  # the recipe may be at fault, not this question, so nothing is given up
                self._rejected_early.append(work)
            elif not work.closed:
                self._queue.give_up(work)
            return
        job.attempts += 1
        if answers_others and not failure.overloaded and failure.status != "unreachable":
            job.failures += 1
            if job.failures >= FAILURES_OF_ONE and not work.closed:
                self._postponed += 1
                work.closed = True
                self._in_background(self._on_disk(self._collection.postpone, work.subject))
        if not work.closed and self._failure is None:
            self._retrying += 1
            self._loop.call_later(self._pace.delay(failure, job.attempts), self._retry, job)

    def _retry(self, job: TeacherRequest) -> None:
        self._retrying -= 1
        self._queue.retry(job)
        self._wake.set()

    # --------------------------------------------------------------------------------------- store and limits

    async def _commit_forever(self) -> None:
        while not self._closing and self._failure is None:
            if self._records or self._settled:
                await self._commit()
            await asyncio.sleep(COMMIT_SECONDS)

    async def _commit(self) -> None:
        """Store what came back and what was settled; queue what follows from it."""
        records, settled = self._records, self._settled
        if not records and not settled:
            return
        self._records, self._settled, self._storing = [], [], True
        try:
            rows = [record for record, _ in records]
            follow_ups = await self._on_disk(self._collection.record, self._number, rows, settled)
        except Exception as error:
            self._records, self._settled = records + self._records, settled + self._settled
            self._storing = False
            self._fail(_as_mmedge_error(error))
            return
        self._budget.stored(len(records), sum(worst for _, worst in records))
        texts = {
            (annotation.example_id, annotation.sample): annotation.text
            for item in settled
            if item.follow_ups
            for annotation in item.annotations
        }
        for subject in reversed(follow_ups):
            cot = texts[subject.example_id, subject.sample]
            self._queue.add(OpenSubject(subject, self._by_id[subject.example_id], cot), first=True)
        if self._budget.limited:
            await self._reserve()
        self._storing = False
        self._wake.set()

    async def _reserve(self) -> None:
        """Reserve what may be in flight next."""
        job, budget = self._queue.next(), self._budget
        wish = budget.wish(None if job is None else job.worst, self._pace.room)
        budget.granted, budget.spent = await self._on_disk(self._collection.reserve, self._number, wish, budget.allowed)

    async def _reserve_or_stop(self, worst: float) -> None:
        try:
            await self._reserve()
        finally:
            self._reserving = False
        self._stopped = self._budget.exceeded_by(worst)
        self._wake.set()

    async def _beat_forever(self) -> None:
        """Show progress, and mark this collector as alive."""
        beaten = 0.0
        sent, at = 0, time.monotonic()
        rate = 0.0
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            if now - at >= 2:
                rate, sent, at = (self._sent - sent) / (now - at), self._sent, now
            self._show(rate, now)
            self._wake.set()
            if now - beaten >= 1.0:
                beaten = now
                if self._budget.limited:
                    await self._on_disk(self._collection.release_dead, self._number)
                else:
                    await self._reserve()

    def _show(self, rate: float, now: float) -> None:
        advanced, self._advanced = self._advanced, 0
        details: dict[str, object] = {"requests/s": f"{rate:.1f}", "in flight": len(self._tasks)}
        if self._pace.pause_until - now > 1:
            details["waiting, as the endpoint asks,"] = duration(self._pace.pause_until - now)
        if self._errors:
            details["errors"] = sum(self._errors.values())
            if now - self._pace.last_success > SILENT_SECONDS:
                details["the last:"] = self._pace.last_failure
        if self._plan.prices.known:
            details["cost"] = f"{self._budget.spent.cost:.4g}"
        self._step.advance(advanced, **details)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let a first Ctrl-C stop sending and wait for requests in flight, and a second one stop waiting."""
        handled = []
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError):  # on Windows, where a first Ctrl-C ends the waiting too
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
            self._progress.line(
                f"interrupted: waiting for {len(self._tasks)} requests that were sent; press Ctrl-C again to abandon them"
            )
        self._wake.set()


def _as_mmedge_error(error: BaseException) -> MmedgeError:
    if isinstance(error, MmedgeError):
        return error
    return MmedgeError(
        f"{type(error).__name__}: {str(error)[:200]}",
        "everything received so far is stored; this is a bug in mmedge: rerun with --debug and report it",
    )
