"""An engine that many threads ask at once: what waits while it is busy is written together, in one batch.

    engine = BatchingEngine(inner, workers=2)       # generate() from any number of threads

Who comes while nothing waits is answered at once, in its own thread, with what its conversation remembers. A row whose caller's
`on_token` raises leaves at that token. Knows no text and no students.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.tasks.encoding import Prompt


@dataclass(eq=False)
class _BatchCall:
    """One call of `generate` that waits or is written."""

    prompts: Sequence[Prompt]
    limit: int
    how: Decoding
    conversation: Engine
    turn: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    found: Generation | None = None
    failure: BaseException | None = None

    def suits(self, other: _BatchCall) -> bool:
        """Whether both can be written in one batch."""
        mine, its = self.how, other.how
        same = (self.limit, mine.temperature, mine.top_p, mine.scored) == (other.limit, its.temperature, its.top_p, its.scored)
        return same and mine.stop is None and its.stop is None

    def result(self) -> Generation:
        if self.failure is not None:
            raise self.failure
        assert self.found is not None
        return self.found


class BatchingEngine:
    """Shares one engine between threads.

    Args:
        inner: The engine; several threads may ask it at once.
        workers: Batches that are written at once.
        most: Rows of a batch.
        told: Called with the rows of every batch.
    """

    def __init__(self, inner: Engine, workers: int, most: int = 16, told: Callable[[int], None] | None = None) -> None:
        self.inner = inner
        self._workers, self._most, self._told = workers, most, told
        self._lock = threading.Lock()
        self._waiting: list[_BatchCall] = []
        self._active = 0

    def conversation(self) -> Engine:
        return _BatchConversation(self)

    def asked_by(self, check: Callable[[], None]) -> Engine:
        """Return the engine for one caller, for one thread at a time.

        Args:
            check: Called before anything is read and for every token; where it raises, the caller's rows leave, and that is raised.
        """
        return _BatchConversation(self, check)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return self.conversation().generate(prompts, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self.inner.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self.inner.forced_logits(prompt, target)

    def write(self, call: _BatchCall) -> Generation:
        """Write what a call asks for, with others that wait, or wait for another call to do so."""
        with self._lock:
            call.leads = self._active < self._workers
            self._active += call.leads
            if not call.leads:
                self._waiting.append(call)
        if not call.leads:
            call.turn.wait()
        if not call.leads:
            return call.result()
        try:
            self._run(self._together(call))
        finally:
            self._pass_on()
        return call.result()

    def _together(self, first: _BatchCall) -> list[_BatchCall]:
        """Return a call and those that wait and suit it, the oldest first."""
        with self._lock:
            batch, rows = [first], len(first.prompts)
            for other in list(self._waiting):
                if not other.leads and first.suits(other) and rows + len(other.prompts) <= self._most:
                    self._waiting.remove(other)
                    batch.append(other)
                    rows += len(other.prompts)
            return batch

    def _pass_on(self) -> None:
        """Let the oldest call that waits be written next."""
        with self._lock:
            if not self._waiting:
                self._active -= 1
                return
            following = self._waiting.pop(0)
            following.leads = True
        following.turn.set()

    def _run(self, batch: list[_BatchCall]) -> None:
        if self._told is not None:
            self._told(sum(len(call.prompts) for call in batch))
        try:
            if len(batch) == 1:
                (call,) = batch
                call.found = call.conversation.generate(call.prompts, call.limit, call.how)
                return
            self._merged(batch)
        except BaseException as error:
            for call in batch:
                call.failure = call.failure or error
        finally:
            for call in batch[1:]:
                call.turn.set()

    def _merged(self, batch: list[_BatchCall]) -> None:
        """Write several calls in one batch."""
        owners = [(call, row) for call in batch for row in range(len(call.prompts))]
        last = 0

        def on_token(row: int, token: int) -> None:
            nonlocal last
            last = row
            call, own = owners[row]
            if call.how.on_token is not None and call.failure is None:
                try:
                    call.how.on_token(own, token)
                except BaseException as error:  # raised in the caller's own thread
                    call.failure = error

        def gone(_: Sequence[int]) -> bool:
            return owners[last][0].failure is not None  # asked right after on_token, of the same row

        constraints = [call.how.constraints[row] if call.how.constraints else None for call, row in owners]
        how = replace(
            batch[0].how,
            seeds=tuple(seed for call in batch for seed in call.how.seeds),
            constraints=tuple(constraints) if any(one is not None for one in constraints) else (),
            on_token=on_token,
            stop=gone,
            draft=False,
        )
        whole = self.inner.generate([prompt for call in batch for prompt in call.prompts], batch[0].limit, how)
        first = 0
        for call in batch:
            rows = slice(first, first + len(call.prompts))
            first = rows.stop
            call.found = replace(
                whole, tokens=whole.tokens[rows], log_probabilities=whole.log_probabilities[rows], ended=whole.ended[rows]
            )


class _BatchConversation:
    """What one caller has asked so far; remembered while it is written alone."""

    def __init__(self, engine: BatchingEngine, check: Callable[[], None] | None = None) -> None:
        self._engine, self._check = engine, check
        self._own = engine.inner.conversation()

    def conversation(self) -> Engine:
        return self

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return self._engine.write(_BatchCall(prompts, max_new_tokens, self._checked(how), self._own))

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        self._checked(GREEDY)
        return self._own.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        self._checked(GREEDY)
        return self._own.forced_logits(prompt, target)

    def _checked(self, how: Decoding) -> Decoding:
        """Check, and return how rows are written that are checked at every token."""
        check, tell = self._check, how.on_token
        if check is None:
            return how
        check()

        def told(row: int, token: int) -> None:
            check()
            if tell is not None:
                tell(row, token)

        return replace(how, on_token=told)
