"""An engine that many threads ask at once: their rows join while others are written, and leave when they are done.

    engine = JoiningEngine(inner, [inner.rows(16, 512 << 20)])       # generate() from any number of threads

One of the threads that wait runs the steps for all; when its own rows are done, the next one goes on. So who is alone is answered
in its own thread. A row whose caller's `on_token` raises leaves at that step; one whose `check` raises leaves before the next, also
while it is read. Knows no text and no students.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from mmedge.engines.engine import Engine, RowEngine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.engines.rows import put_row
from mmedge.tasks.encoding import Prompt

KEPT = 2  # rows that a lane may have more than another before a conversation leaves it


@dataclass(eq=False)
class _Call:
    """What one thread waits for: texts, or with a limit of 0 the logits behind prompts.

    Attributes:
        check: Raises where nobody waits for it any more.
        left: How many of its rows have not ended.
        turn: Set when it is done, and when its thread is to run the steps.
    """

    prompts: Sequence[Prompt]
    limit: int
    how: Decoding
    check: Callable[[], None]
    found: Generation
    logits: list[Logits | None]
    left: int
    turn: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    failure: BaseException | None = None

    @property
    def done(self) -> bool:
        return not self.left or self.failure is not None

    def look(self) -> None:
        """Fail where nobody waits for it any more."""
        try:
            self.check()
        except BaseException as error:  # raised in the caller's own thread
            self.failure = self.failure or error

    def of_row(self, row: int) -> Decoding:
        """Return how a row is written; what its callback raises is kept for the caller's own thread."""
        tell = self.how.on_token

        def told(_: int, token: int) -> None:
            if tell is not None and self.failure is None:
                try:
                    tell(row, token)
                except BaseException as error:
                    self.failure = error

        return replace(self.how.of_rows([row]), on_token=told if tell else None)


class _Lane:
    """One engine of rows, and the calls that are in it."""

    def __init__(self, engine: RowEngine, told: Callable[[int], None] | None) -> None:
        self._engine, self._told = engine, told
        self._lock = threading.Lock()
        self._new: list[_Call] = []
        self._rows: dict[int, tuple[_Call, int]] = {}
        self._led = False
        self.load = 0  # rows that have not ended

    def run(self, call: _Call) -> None:
        """Return when a call is done; run the steps of all where nobody does."""
        with self._lock:
            self._new.append(call)
            self.load += len(call.prompts)
            call.leads, self._led = not self._led, True
        if not call.leads:
            call.turn.wait()
        if call.leads:
            try:
                while not call.done:
                    self._step()
            finally:
                self._pass_on()

    def _pass_on(self) -> None:
        """Let another call's thread run the steps."""
        with self._lock:
            following = next((one for one, _ in self._rows.values() if not one.done), self._new[0] if self._new else None)
            if following is None:
                self._led = False
                return
            following.leads = True
        following.turn.set()

    def _step(self) -> None:
        """Let new rows join, write a token of all, and tell the calls that are done."""
        try:
            with self._lock:
                joining, self._new = self._new, []
            for call in joining:
                for row, prompt in enumerate(call.prompts):
                    self._rows[self._engine.join(prompt, call.limit, call.of_row(row))] = call, row
            for call in {call for call, _ in self._rows.values()}:
                call.look()
            self._drop_failed()
            if not self._rows:
                return
            written = self._engine.step()
            if self._told is not None and written:
                self._told(len({number for number, _ in written}))
            for number, token in written:
                if token is None and number in self._rows:
                    self._end(number)
            self._drop_failed()
        except BaseException as error:  # of the engine: nobody's rows can go on
            for call, _ in self._rows.values():
                call.failure = call.failure or error
            for number in list(self._rows):
                with suppress(Exception):
                    self._end(number)
            self._rows.clear()

    def _drop_failed(self) -> None:
        for number in [number for number, (call, _) in self._rows.items() if call.failure is not None]:
            self._end(number)

    def _end(self, number: int) -> None:
        """Take a row out, and wake its call's thread where it was the last."""
        call, row = self._rows.pop(number)
        if call.failure is None and not call.limit:
            call.logits[row] = self._engine.last_logits(number)
        put_row(call.found, row, self._engine.leave(number))
        call.left -= 1
        with self._lock:
            self.load -= 1
        if call.done and not call.leads:
            call.turn.set()


class JoiningEngine:
    """Shares one engine between threads.

    Args:
        inner: The engine; several threads may ask it at once.
        lanes: Its engines of rows; each is run by one thread at a time.
        told: Called with the rows of every step.
    """

    def __init__(self, inner: Engine, lanes: Sequence[RowEngine], told: Callable[[int], None] | None = None) -> None:
        self.inner = inner
        self._lanes = [_Lane(lane, told) for lane in lanes]

    def conversation(self) -> Engine:
        return _Conversation(self, _nothing)

    def asked_by(self, check: Callable[[], None]) -> Engine:
        """Return the engine for one caller, for one thread at a time.

        Args:
            check: Called before every step; where it raises, the caller's rows leave, and that is raised to the caller.
        """
        return _Conversation(self, check)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return self.conversation().generate(prompts, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self.conversation().next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self.inner.forced_logits(prompt, target)

    def ask(
        self, prompts: Sequence[Prompt], limit: int, how: Decoding, check: Callable[[], None], before: int | None
    ) -> tuple[_Call, int]:
        """Have rows written in the lane with the fewest, or in the one that has read the beginning of their prompts before.

        Returns:
            The finished call, and the lane.
        """
        least = min(range(len(self._lanes)), key=lambda place: self._lanes[place].load)
        chosen = least
        if before is not None and self._lanes[before].load <= self._lanes[least].load + KEPT:
            chosen = before
        count = len(prompts)
        found = Generation([[] for _ in prompts], 0.0, 0.0, 0, [[] for _ in prompts] if how.scored else [], [False] * count)
        call = _Call(prompts, limit, how, check, found, [None] * count, count)
        if prompts:
            self._lanes[chosen].run(call)
        if call.failure is not None:
            raise call.failure
        return call, chosen


class _Conversation:
    """What one caller asks; it stays in the lane that has read its prompts' beginning."""

    def __init__(self, engine: JoiningEngine, check: Callable[[], None]) -> None:
        self._engine, self._check = engine, check
        self._lane: int | None = None

    def conversation(self) -> Engine:
        return self

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        call, self._lane = self._engine.ask(prompts, max_new_tokens, how, self._check, self._lane)
        return call.found

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        whole = [Prompt(prompt.context, (*prompt.begun, *more)) for prompt in prompts]
        call, self._lane = self._engine.ask(whole, 0, GREEDY, self._check, self._lane)
        return np.stack([one for one in call.logits if one is not None])

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        self._check()
        return self._engine.forced_logits(prompt, target)


def _nothing() -> None:
    """Always wait."""
