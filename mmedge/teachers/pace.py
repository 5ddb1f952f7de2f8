"""How fast a teacher is asked: how many requests may be in flight, when a failed one is retried, and when to give up.

One request goes first; then one more for each that succeeds, until the endpoint shows that it is overloaded; then fewer, and
none while it asks to wait. Pure arithmetic: callers bring the clock.
"""

from __future__ import annotations

import random

from mmedge.errors import MmedgeError
from mmedge.openai import ChatFailure
from mmedge.reports.formats import duration

FIRST_RETRY, LONGEST_RETRY = 0.5, 60.0  # seconds until a request that failed is tried again
FAILURES_AT_FIRST = 5  # this many failures in a row before any success end the collection
REJECTIONS_AT_FIRST = 5
_HOPELESS = {
    "unreachable": "is the server running, and teacher.base_url right? Run the same command again when it answers",
    "garbage": "does teacher.base_url name an OpenAI-compatible endpoint? Most end in /v1",
}


class Window:
    """How many requests may be in flight, by how earlier ones ended.

    Args:
        first: Initial limit.
        most: Upper limit.
    """

    def __init__(self, first: int, most: int) -> None:
        self.limit = float(min(first, most))
        self._most = most
        self._growing = True  # doubles until the first sign of overload
        self._cut = 0.0

    def succeeded(self, full: bool) -> None:
        """Record a success; `full` says whether the window was used up, otherwise it proves nothing."""
        if full:
            self.limit = min(self._most, self.limit + (1.0 if self._growing else 1.0 / self.limit))

    def overloaded(self, started: float, now: float) -> None:
        """Note a sign of overload by a request sent at `started`; one cut answers all requests that were in flight then."""
        if started >= self._cut:
            self.limit = max(1.0, self.limit * 0.7)
            self._growing = False
            self._cut = now


class Pace:
    """What is known about how a teacher answers.

    Args:
        name: The teacher's, for errors.
        parallel: How many requests at a time it takes at first, and at most.
        patience: Seconds without one success until it is given up.
        now: The time; a monotonic clock's, as in all methods.
    """

    def __init__(self, name: str, parallel: tuple[int, int], patience: float, now: float) -> None:
        self._name, self._patience = name, patience
        self._window = Window(*parallel)
        self._failures_in_a_row = self._rejections = 0
        self._last_rejection = self.last_failure = ""
        self.successes = 0
        self.last_success = now
        self.pause_until = 0.0

    @property
    def room(self) -> int:
        """How many may be in flight: one alone until the endpoint has shown that it answers."""
        return int(self._window.limit) if self.successes else 1

    def succeeded(self, full: bool, now: float) -> None:
        """Note a success; `full` says whether there was no room for another request beside it."""
        self.successes += 1
        self._failures_in_a_row = 0
        self.last_success = now
        self._window.succeeded(full)

    def failed(self, failure: ChatFailure, started: float, now: float) -> MmedgeError | None:
        """Note a failure of a request sent at `started`; return the error that ends the collection if it is hopeless."""
        self.last_failure = f"{failure.status} ({failure.detail[:60]})"
        if failure.rejected:
            self._rejections += 1
            self._last_rejection = failure.detail
            return self.all_rejected() if self._rejections >= REJECTIONS_AT_FIRST else None
        self._failures_in_a_row += 1
        if failure.overloaded:
            self._window.overloaded(started, now)
        if failure.retry_after is not None:
            self.pause_until = max(self.pause_until, now + failure.retry_after)
        if not self.successes and failure.status in _HOPELESS and self._failures_in_a_row >= FAILURES_AT_FIRST:
            return MmedgeError(f"{self._name}: {failure.detail} ({failure.status})", _HOPELESS[failure.status])
        silent = now - self.last_success
        if silent > self._patience:
            return MmedgeError(
                f"{self._name}: no answer for {duration(silent)}; the last failure: {failure}",
                "everything received so far is stored; run the same command again when the endpoint answers",
            )
        return None

    def all_rejected(self) -> MmedgeError | None:
        """Return the error for a teacher that rejected every request, or None if it did not."""
        if self.successes or not self._rejections:
            return None
        return MmedgeError(
            f"{self._name} rejects every request: {self._last_rejection}", "check the teacher's section in the recipe"
        )

    def delay(self, failure: ChatFailure, attempts: int) -> float:
        """Return after how many seconds a request that failed `attempts` times is tried again."""
        if failure.retry_after is not None:
            return failure.retry_after + random.random() * min(1.0, failure.retry_after)
        # short while other requests succeed, longer and longer while none does
        doublings = max(min(attempts - 1, 2), min(self._failures_in_a_row // self.room, 7))
        return min(LONGEST_RETRY, FIRST_RETRY * 2.0**doublings) * (0.5 + random.random())
