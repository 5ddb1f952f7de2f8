"""The bigger model behind a server: asked a few questions at once, and left alone for a while when it fails.

    Cascade(Endpoint("https://api.example.org/v1", "big-model", "BIG_KEY", timeout=20, attempts=2))

What it cannot answer, the student's own answer stands in for; so a dead or slow bigger model costs clients little.
"""

from __future__ import annotations

import threading
import time

from mmedge.errors import MmedgeError
from mmedge.runtime.escalation import BiggerModel, EscalatedAnswer
from mmedge.tasks.base import Example
from mmedge.tasks.forms import AnswerForm

_FAILURES = 3  # in a row, after which it is left alone


class Cascade:
    """A bigger model that cannot hold up a server.

    Args:
        bigger: The model.
        at_once: Questions that are in flight; further ones are not asked.
        rest: Seconds that it is left alone after several failures in a row.
    """

    def __init__(self, bigger: BiggerModel, at_once: int = 8, rest: float = 10.0) -> None:
        self._bigger, self._rest = bigger, rest
        self._free = threading.Semaphore(at_once)
        self._at_once = at_once
        self._failures, self._until = 0, 0.0

    @property
    def name(self) -> str:
        return self._bigger.name

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        """Answer one question.

        Raises:
            MmedgeError: It could not be reached, has failed lately, or answers as many questions as it may.
        """
        if time.monotonic() < self._until:
            raise MmedgeError(f"{self.name} failed {_FAILURES} times in a row and is left alone for {self._rest:g} s")
        if not self._free.acquire(blocking=False):
            raise MmedgeError(f"{self.name} is being asked {self._at_once} questions already")
        try:
            found = self._bigger.ask(example, form)
        except MmedgeError:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._until = time.monotonic() + self._rest
            raise
        finally:
            self._free.release()
        self._failures = 0
        return found
