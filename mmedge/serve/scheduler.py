"""Who is answered next: a bounded queue, fair between clients, and the threads that ask the students.

    scheduler = Scheduler(workers=16, waiting=256)
    job = scheduler.submit("10.0.0.7", lambda job: student.answered(…))
    job.done.result()

Clients take turns: one that sends a thousand requests delays nobody else by more than one of its own. A job that is given up
before it began is dropped; one that has begun is told by `Job.check`, which it calls for every token.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class Full(Exception):
    """As many jobs wait as may."""


class GivenUp(Exception):
    """Nobody waits for the job any more."""


@dataclass
class Job:
    """One request that waits or is answered.

    Attributes:
        client: Whose it is.
        work: What a worker does.
        done: Its result.
        queued: When it came, on the monotonic clock.
        began: When a worker took it; 0 before.
    """

    client: str
    work: Callable[[Job], Any]
    done: Future[Any] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)
    began: float = 0.0
    _given_up: bool = False

    def give_up(self) -> None:
        """Say that nobody waits for it any more."""
        self._given_up = True
        self.done.cancel()

    def check(self) -> None:
        """Raise GivenUp where nobody waits for it any more."""
        if self._given_up:
            raise GivenUp


class Scheduler:
    """Runs jobs in threads of its own.

    Args:
        workers: How many jobs at once.
        waiting: How many may wait.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self._most = waiting
        self._turns: deque[str] = deque()  # clients with waiting jobs, the next one first
        self._jobs: dict[str, deque[Job]] = {}
        self._count = 0
        self._running = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, name=f"worker {n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._count

    @property
    def running(self) -> int:
        """How many jobs are being worked on."""
        return self._running

    def submit(self, client: str, work: Callable[[Job], Any]) -> Job:
        """Add a job.

        Raises:
            Full: Too many wait.
        """
        job = Job(client, work)
        with self._changed:
            idle = len(self._threads) - self._running
            if self._count - idle >= self._most or self._stopped:
                raise Full
            if client not in self._jobs:
                self._jobs[client] = deque()
                self._turns.append(client)
            self._jobs[client].append(job)
            self._count += 1
            self._changed.notify()
        return job

    def stop(self) -> None:
        """Let the threads end when nothing waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._turns:
                if self._stopped:
                    return None
                self._changed.wait()
            client = self._turns.popleft()
            jobs = self._jobs[client]
            job = jobs.popleft()
            if jobs:
                self._turns.append(client)
            else:
                del self._jobs[client]
            self._count -= 1
            self._running += 1
            return job

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                if job.done.set_running_or_notify_cancel():
                    job.began = time.monotonic()
                    try:
                        job.done.set_result(job.work(job))
                    except BaseException as error:  # raised to whoever waits for it
                        job.done.set_exception(error)
            finally:
                with self._changed:
                    self._running -= 1
            del job  # and with it the bundle that it asked, which may have been replaced when the next one comes
