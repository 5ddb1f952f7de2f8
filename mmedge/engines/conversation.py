"""What one caller has asked an engine so far, kept in the decoder's cache: each call reads what differs from the one before.

Which tokens are read, and when, is decided here for every engine whose decoder keeps a cache that can be rewound; the engine
computes logits. Knows token ids alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmedge.engines.ahead import ONLY, Ahead, Drafting
from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, TokenWriter, right_padded
from mmedge.engines.reading import Reading
from mmedge.tasks.encoding import Prompt, SpecialTokens

STEPPED = 4  # a batch whose rows have at most so many tokens more to read takes them one by one, and nothing is read twice
LEAVES = 0.75  # a batch is made smaller when no more than this share of its rows still writes


class CachedEngine(Protocol):
    """An engine whose decoder keeps what it has read."""

    @property
    def special(self) -> SpecialTokens:
        """The end token, and what batches are padded with."""
        ...

    @property
    def drafting(self) -> Drafting:
        """What the drafts of its decoder share."""
        ...

    @property
    def reads_ahead(self) -> bool:
        """Whether several tokens read at once give the bits that they give one by one."""
        ...

    @property
    def drafts(self) -> bool:
        """Whether its texts are drafted where a call allows it."""
        ...

    @property
    def rewinds(self) -> bool:
        """Whether what its decoder has read can be rewound."""
        ...

    def held(self, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
        """Return what the decoder is given at every step for these prompts' contexts."""
        ...

    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens that the decoder reads of a prompt."""
        ...

    def reading(self, rows: int, capacity: int, held: Mapping[str, Any]) -> Reading:
        """Return rows of which nothing was read."""
        ...


class Conversation:
    """What one batch of contexts has been asked so far, kept in the decoder's cache.

    Each call says its whole prompts; of these only what differs from the call before is read. Contexts that are the same in
    several rows, as for several samples, are read once.

    Args:
        engine: Whose decoder reads.
    """

    def __init__(self, engine: CachedEngine) -> None:
        self._engine = engine
        self._contexts: list[tuple[int, ...]] = []
        self._read: list[list[int]] = []  # what the cache holds of each row
        self._reading: Reading | None = None
        self._saved: tuple[list[tuple[int, ...]], Any] | None = None  # contexts, and the states behind them that no rewinding gives
        self._logits: Logits = np.empty((0, 0), dtype=np.float32)  # behind what was read last

    def conversation(self) -> Engine:
        return self

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        writer = TokenWriter(len(prompts), how, self._engine.special.eos, max_new_tokens)
        logits = self._last_logits(prompts, room=max_new_tokens)
        assert self._reading is not None
        writer.steps += 1
        drafted = how.draft and self._engine.drafts and not how.temperature
        if len(prompts) == 1 and (drafted or (writer.forces and self._engine.reads_ahead)):
            self._read_ahead(writer, logits, prompts[0], max_new_tokens, drafted)
            return writer.generation()
        reading, rows = self._reading, np.arange(len(prompts))
        while True:
            tokens = writer.take(logits, rows)
            still = writer.open[rows]
            if not still.any():
                return writer.generation()
            if still.sum() <= LEAVES * len(rows):
                kept = np.flatnonzero(still)
                reading, rows, tokens = reading.rows(kept, reading.capacity), rows[kept], tokens[kept]
            elif reading is self._reading:
                for row, token in zip(rows, tokens, strict=True):
                    self._read[row].append(int(token))
            logits = reading.step(tokens)
            writer.steps += 1

    def _read_ahead(self, writer: TokenWriter, logits: Logits, prompt: Prompt, limit: int, drafted: bool) -> None:
        """Write one row, several tokens a step where they are known or can be guessed."""
        reading, (row,) = self._reading, self._read
        assert reading is not None
        ahead = Ahead(self._engine.drafting, (*prompt.context, *prompt.begun) if drafted else None, limit)
        token = int(writer.take(logits, ONLY)[0])
        while writer.open[0]:
            token = ahead.step(writer, reading, row, token)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return np.array(self._last_logits([Prompt(prompt.context, (*prompt.begun, *more)) for prompt in prompts]))

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        engine = self._engine
        ids = np.array([(*engine.sequence(prompt), *target[:-1])], dtype=np.int64)
        reading = engine.reading(1, ids.shape[1], engine.held([prompt]))
        width = ids.shape[1]
        return np.array(reading.read(ids, np.array([width]), np.arange(width - len(target), width)))

    def _last_logits(self, prompts: Sequence[Prompt], room: int = 0) -> Logits:
        """Read what was not read before of the prompts; return the logits after each, (rows, vocabulary), until the next call.

        Args:
            prompts: One for each row.
            room: How many tokens may follow.
        """
        engine = self._engine
        sequences = [engine.sequence(prompt) for prompt in prompts]
        contexts = [prompt.context for prompt in prompts]
        capacity = max(map(len, sequences)) + room
        reading, before = self._reading, self._read
        # a decoder-only student's context is the beginning of its sequence, so another context may share a beginning too
        same = reading is not None and len(prompts) == len(before) and (contexts == self._contexts or not reading.held)
        self._contexts, self._read = contexts, [list(sequence) for sequence in sequences]
        if reading is not None and same:
            shared = [_shared(old, new) for old, new in zip(before, sequences, strict=True)]
            kept = reading.rewinds or self._all_follow(shared, sequences)
            if not kept and self._saved is not None and self._saved[0] == contexts and self._branches(prompts):
                reading.back(self._saved[1])
                shared, kept = [len(context) for context in contexts], True
            new = max(len(sequence) - count for sequence, count in zip(sequences, shared, strict=True))
            if kept and (len(prompts) == 1 or (new <= STEPPED and all(len(sequence) >= new for sequence in sequences))):
                if reading.capacity < capacity:
                    reading = reading.rows(np.arange(len(prompts)), capacity)
                return self._continued(reading, sequences, new)
        if reading is not None and same and reading.rewinds:
            self._reading = self._fresh(sequences, capacity, reading.held)
        else:
            self._reading = None  # its memory is given back first
            self._reading = self._fresh_of(prompts, sequences, capacity)
        return self._logits

    def _all_follow(self, shared: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> bool:
        """Whether every sequence goes on behind all that was read of it, by as many tokens as the others: nothing is rewound."""
        assert self._reading is not None
        new = {len(sequence) - count for sequence, count in zip(sequences, shared, strict=True)}
        return len(new) == 1 and list(shared) == self._reading.lengths.tolist()

    def _branches(self, prompts: Sequence[Prompt]) -> bool:
        """Whether prompts are read in two parts, so that others of the same contexts may follow states that cannot be rewound."""
        begun = {len(prompt.begun) for prompt in prompts}
        short = len(prompts) == 1 or max(begun) <= STEPPED
        return not self._engine.rewinds and len(begun) == 1 and begun != {0} and short and all(p.context for p in prompts)

    def _continued(self, reading: Reading, sequences: Sequence[tuple[int, ...]], new: int) -> Logits:
        """Rewind what differs and read the last `new` tokens of each sequence."""
        self._reading = reading
        reading.rewind(np.array([len(sequence) - new for sequence in sequences]))
        last = np.array([sequence[len(sequence) - new :] for sequence in sequences], dtype=np.int64)
        if len(sequences) == 1:
            return reading.read(last, np.array([new]), np.array([new - 1]))
        for place in range(new):
            logits = reading.step(last[:, place])
        return logits

    def _fresh_of(self, prompts: Sequence[Prompt], sequences: Sequence[tuple[int, ...]], capacity: int) -> Reading:
        """Read whole prompts, those that are the same in several rows once."""
        self._saved = None
        if self._branches(prompts):
            self._reading = self._once(prompts, [prompt.context for prompt in prompts], capacity)
            self._saved = [prompt.context for prompt in prompts], self._reading.saved()
            self._logits = self._continued(self._reading, sequences, len(prompts[0].begun))
            return self._reading
        return self._once(prompts, sequences, capacity)

    def _once(self, prompts: Sequence[Prompt], sequences: Sequence[tuple[int, ...]], capacity: int) -> Reading:
        """Read the beginnings of prompts, those that are the same in several rows once."""
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        places = [
            alike.setdefault((prompt.context, sequence), len(alike)) for prompt, sequence in zip(prompts, sequences, strict=True)
        ]
        firsts = [places.index(place) for place in range(len(alike))]
        held = self._engine.held([prompts[row] for row in firsts])
        reading = self._fresh([sequences[row] for row in firsts], capacity, held)
        if len(firsts) == len(prompts):
            return reading
        self._logits = np.array(self._logits[places])
        return reading.rows(np.array(places), capacity)

    def _fresh(self, sequences: Sequence[tuple[int, ...]], capacity: int, held: Mapping[str, Any]) -> Reading:
        engine = self._engine
        ids, counts = right_padded(sequences, engine.special.pad)
        reading = engine.reading(len(ids), capacity, held)
        self._logits = reading.read(ids, counts, np.arange(len(ids), dtype=np.int64) * ids.shape[1] + counts - 1)
        return reading


def _shared(old: Sequence[int], new: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common, one less than the new one has at most: its last is read."""
    most = min(len(old), len(new) - 1)
    return next((place for place in range(most) if old[place] != new[place]), most)


class Conversing:
    """A `CachedEngine` that is asked without a conversation: every call begins one of its own."""

    def conversation(self: CachedEngine) -> Conversation:
        """Return a new conversation."""
        return Conversation(self)

    def generate(self: CachedEngine, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt."""
        return Conversation(self).generate(prompts, max_new_tokens, how)

    def next_logits(self: CachedEngine, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        return Conversation(self).next_logits(prompts, more)

    def forced_logits(self: CachedEngine, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        return Conversation(self).forced_logits(prompt, target)
