"""Rows of a decoder that join and leave while it runs, in the slots of a cache.

    rows = SlottedRows(engine, slots, most=16)
    number = rows.join(prompt, 40)
    rows.step()        [(number, 84)]

At a step, every row that writes is given one token in one run. Who joins is read in the same run where the bits allow it, or else
beforehand: so many tokens at a time that the others are not held up for long, and from where another prompt with the same beginning
has been read. A row that is alone is read and written as in a conversation, several tokens a step where they are known. For one
thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from mmedge.engines.ahead import ONLY, Ahead
from mmedge.engines.conversation import STEPPED, CachedEngine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, TokenWriter
from mmedge.engines.slots import Slot, Slots
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Tokens

READ_BETWEEN = 64  # tokens that are read between two steps of rows that write
READ_AT_ONCE = 256  # where no row writes yet
ENCODED_BETWEEN, ENCODED_AT_ONCE = 256, 2048  # tokens of contexts, likewise; one context at least
SPARE = 4  # slots beyond the rows, so that what one has read stays for a while
COPIED = 8  # tokens that two prompts must have in common for them to be copied rather than read
_ABSENT = -1


@dataclass(eq=False)
class _Row:
    """One row.

    Attributes:
        number: What its owner calls it.
        prompt: What it reads.
        sequence: The tokens that the decoder reads of it.
        limit: The most tokens that it writes; 0 where only logits are wanted.
        writer: Chooses its tokens.
        unread: Tokens to be read before the next one is chosen.
        ahead: Reads ahead while the row is alone; None where that is not possible.
        token: The last one written.
        encoded: What its context was encoded to with others, and its place there, until it has a slot.
        slot: What it holds of the cache; None while it waits.
        logits: Behind all of it, where they are wanted.
    """

    number: int
    prompt: Prompt
    sequence: tuple[int, ...]
    limit: int
    writer: TokenWriter
    ahead: Ahead | None
    unread: deque[int] = field(default_factory=deque)
    token: int = _ABSENT
    encoded: tuple[Mapping[str, Any], int] | None = None
    slot: Slot | None = None
    logits: Logits | None = None


class SlottedRows:
    """See `RowEngine`.

    Args:
        engine: Whose decoder reads; where that cannot be rewound, a prompt goes on behind whole texts alone.
        slots: Its cache; at least `most` of them, and better `SPARE` more.
        most: Rows that are written at once.
    """

    def __init__(self, engine: CachedEngine, slots: Slots, most: int) -> None:
        self._engine, self._slots, self._most = engine, slots, most
        self._waiting: deque[_Row] = deque()  # without a slot
        self._reading: _Row | None = None  # in the slot behind those that write
        self._writing: list[_Row] = []  # in the first slots, in this order
        self._all: dict[int, _Row] = {}
        self._numbers = self._clock = 0
        self._written: list[tuple[int, int | None]] = []  # at this step

    def join(self, prompt: Prompt, max_new_tokens: int, how: Decoding = GREEDY) -> int:
        engine, self._numbers = self._engine, self._numbers + 1
        writer = TokenWriter(1, how, engine.special.eos, max_new_tokens)
        drafted = how.draft and engine.drafts and not how.temperature
        ahead = None
        if max_new_tokens and (drafted or (writer.forces and engine.reads_ahead)):
            ahead = Ahead(engine.drafting, (*prompt.context, *prompt.begun) if drafted else None, max_new_tokens)
        row = _Row(self._numbers, prompt, engine.sequence(prompt), max_new_tokens, writer, ahead)
        self._all[row.number] = row
        self._waiting.append(row)
        return row.number

    def step(self) -> Sequence[tuple[int, int | None]]:
        self._written = []
        try:
            if self._slots.hold_contexts:
                self._encode(ENCODED_BETWEEN if self._writing else ENCODED_AT_ONCE)
            if len(self._all) == 1 and self._waiting and not self._slots.hold_contexts:
                self._read_alone()
            elif self._slots.mixes:
                self._read_and_write()
            elif self._slots.hold_contexts:
                while self._read_begun():
                    pass
                self._write()
            else:
                self._read_some()
                self._write()
        except BaseException:
            self._slots.forget()  # whoever comes next reads anew
            raise
        return self._written

    def last_logits(self, row: int) -> Logits:
        logits = self._all[row].logits
        assert logits is not None
        return logits

    def leave(self, row: int) -> Generation:
        found = self._all.pop(row)
        if found in self._waiting:
            self._waiting.remove(found)
        self._release(found)
        return found.writer.generation()

    # ------------------------------------------------------------------------------------------------------- slots

    def _release(self, row: _Row) -> None:
        """Free a row's slot; what it holds stays for a while."""
        if row.slot is None:
            return
        self._clock += 1
        row.slot.used, row.slot = self._clock, None
        if row is self._reading:
            self._reading = None
            return
        place, last = self._writing.index(row), len(self._writing) - 1
        self._slots.swap(place, last)
        self._writing[place] = self._writing[last]
        self._writing.pop()
        if self._reading is not None:
            self._slots.swap(last, last + 1)

    def _admit(self) -> bool:
        """Give the first that waits the slot behind those that write; return whether it has one."""
        place, row = len(self._writing), self._waiting[0]
        width = self._slots.width_of(row.prompt.context)
        needed = len(row.sequence) + row.limit
        if place >= self._most or not self._slots.fits(place, needed, width):
            return False
        self._slots.prepare(place, needed, width)
        self._waiting.popleft()
        source, shared = self._best(row)
        if source is not None and source >= place:
            self._slots.swap(source, place)
        else:
            self._slots.swap(min(range(place, len(self._slots)), key=lambda one: self._slots.slots[one].used), place)
            if source is None:
                self._slots.clear(place)
            else:
                self._slots.copy(source, place, shared)
        row.slot = self._slots.slots[place]
        del row.slot.tokens[shared:]
        row.unread = deque(row.sequence[shared:])
        if row.encoded is not None:
            if row.slot.context != row.prompt.context:
                self._slots.put(place, row.prompt.context, *row.encoded)
            row.encoded = None
        self._reading = row
        return True

    def _best(self, row: _Row) -> tuple[int | None, int]:
        """Return the slot that holds most of what a row reads, and how many tokens of it; None where it is not worth it."""
        best, most, writing = None, 0, len(self._writing)
        for place, slot in enumerate(self._slots.slots):
            if self._slots.hold_contexts and slot.context != row.prompt.context:
                continue
            shared = self._shared(slot, row)
            free = place >= writing
            worth = shared + self._slots.hold_contexts * len(row.prompt.context) - (0 if free else COPIED)
            if worth > most:
                best, most = place, worth
        return (None, 0) if best is None else (best, self._shared(self._slots.slots[best], row))

    def _shared(self, slot: Slot, row: _Row) -> int:
        """Return how many tokens of a slot a row may go on behind."""
        shared = _shared(slot.tokens, row.sequence)
        return shared if self._engine.rewinds or shared == len(slot.tokens) else 0

    # ----------------------------------------------------------------------------------------------------- reading

    def _read_alone(self) -> None:
        """Read the only row there is, whole, and let it write its first token."""
        (row,) = self._waiting
        there = self._admit()
        assert there  # one row always has room
        logits = self._read(row, len(row.unread))
        self._begin_writing()
        self._take(row, logits)

    def _read_some(self) -> None:
        """Read of those that wait as much as those that write can wait for."""
        left = READ_BETWEEN if self._writing else READ_AT_ONCE
        while self._reading is not None or (self._waiting and self._admit()):
            row = self._reading
            assert row is not None
            if len(row.unread) > STEPPED:
                if left <= 0:
                    return
                count = min(left, len(row.unread) - 1)
                self._read(row, count)
                left -= count
            if len(row.unread) <= STEPPED:
                self._begin_writing()

    def _read_begun(self) -> bool:
        """Read what some of those that wait begin with, together, and let each write its first token; return whether any did.

        The decoder of an encoder-decoder reads a few tokens. Read at once, from the first, with others that read as many, they
        give the very bits that they give alone.
        """
        first, rows = len(self._writing), list[_Row]()
        while self._waiting and self._is_encoded(self._waiting[0]):
            if rows and len(rows[0].sequence) != len(self._waiting[0].sequence):
                break
            if not self._admit():
                break
            assert self._reading is not None and self._reading.slot is not None
            rows.append(self._reading)
            del self._reading.slot.tokens[:]
            self._reading.unread.clear()
            self._begin_writing()
        if not rows:
            return False
        ids = np.array([row.sequence for row in rows], dtype=np.int64)
        count, width = ids.shape
        wanted = np.arange(count, dtype=np.int64) * width + width - 1
        logits = self._slots.reading(first, count).read(ids, np.full(count, width, dtype=np.int64), wanted)
        for row in rows:
            assert row.slot is not None
            row.slot.tokens += row.sequence
        for place, row in enumerate(rows):
            self._take(row, logits[place : place + 1])
        return True

    def _is_encoded(self, row: _Row) -> bool:
        """Whether what a row's context is encoded to is at hand."""
        if not self._slots.hold_contexts or row.encoded is not None:
            return True
        return any(slot.context == row.prompt.context for slot in self._slots.slots)

    def _encode(self, tokens: int) -> None:
        """Encode contexts of those that wait and have room, about so many tokens, at least one."""
        room, missing = self._most - len(self._writing), dict[tuple[int, ...], list[_Row]]()
        for row in islice(self._waiting, max(0, room)):
            if not self._is_encoded(row) and tokens > 0:
                tokens -= 0 if row.prompt.context in missing else len(row.prompt.context)
                missing.setdefault(row.prompt.context, []).append(row)
        if missing:
            found = self._engine.held([rows[0].prompt for rows in missing.values()])
            for place, rows in enumerate(missing.values()):
                for row in rows:
                    row.encoded = found, place

    def _begin_writing(self) -> None:
        row, self._reading = self._reading, None
        assert row is not None
        self._writing.append(row)

    def _read(self, row: _Row, count: int) -> Logits:
        """Read more of the row behind those that write; return the logits behind it, (1, vocabulary)."""
        assert row.slot is not None
        tokens = [row.unread.popleft() for _ in range(count)]
        reading = self._slots.reading(len(self._writing), 1)
        logits = reading.read(np.array([tokens], dtype=np.int64), np.array([count]), np.array([count - 1]))
        row.slot.tokens += tokens
        return logits

    # ----------------------------------------------------------------------------------------------------- writing

    def _read_and_write(self) -> None:
        """Let every row that writes read its token, and those that wait as much as the others can wait for, in one run."""
        if len(self._all) == 1 and self._writing:
            self._write()
            return
        left = READ_BETWEEN if self._writing else READ_AT_ONCE
        parts = [(row, [row.token]) for row in self._writing]  # in the order of their slots
        writing = len(parts)
        while left > 0 and (self._reading is not None or (self._may_join([row for row, _ in parts[writing:]]) and self._admit())):
            row = self._reading
            assert row is not None
            parts.append((row, [row.unread.popleft() for _ in range(min(left, len(row.unread)))]))
            left -= len(parts[-1][1])
            if not row.unread:
                self._begin_writing()
        if not parts:
            return
        counts = np.array([len(tokens) for _, tokens in parts], dtype=np.int64)
        ids = np.zeros((len(parts), counts.max()), dtype=np.int64)
        for place, (_, tokens) in enumerate(parts):
            ids[place, : len(tokens)] = tokens
        ready = [place for place, (row, _) in enumerate(parts) if not row.unread]
        wanted = np.array([place * ids.shape[1] + counts[place] - 1 for place in ready], dtype=np.int64)
        logits = self._slots.reading(0, len(parts)).read(ids, counts, wanted)
        for place, (row, tokens) in enumerate(parts):  # before a row leaves and others change places
            assert row.slot is not None
            row.slot.tokens += tokens
            if row.ahead is not None and place < writing:
                row.ahead.saw(row.token)
        for number, place in enumerate(ready):
            self._take(parts[place][0], logits[number : number + 1])

    def _may_join(self, joining: Sequence[_Row]) -> bool:
        """Whether the first that waits is read in the same run as others that join.

        Not where it begins as one of them does: then it is copied at the next step rather than read twice.
        """
        if not self._waiting or not self._is_encoded(self._waiting[0]):
            return False
        if not self._engine.rewinds:
            return True  # nothing is copied of one that has read on
        row = self._waiting[0]
        shared = max((_shared(other.sequence, row.sequence) for other in joining), default=0)
        return shared < COPIED or shared < self._best(row)[1] + COPIED

    def _write(self) -> None:
        """Let every row that writes read one token, and choose the next."""
        rows = list(self._writing)
        if not rows:
            return
        if len(rows) == 1 and rows[0].ahead is not None and not rows[0].unread and len(self._all) == 1:
            self._write_ahead(rows[0], rows[0].ahead)
            return
        tokens = np.array([row.unread.popleft() if row.unread else row.token for row in rows], dtype=np.int64)
        logits = self._slots.reading(0, len(rows)).step(tokens)
        for row, token in zip(rows, tokens.tolist(), strict=True):  # before a row leaves and others change places
            assert row.slot is not None
            row.slot.tokens.append(token)
            if row.ahead is not None and token == row.token:
                row.ahead.saw(token)
        for place, row in enumerate(rows):
            if not row.unread:
                self._take(row, logits[place : place + 1])

    def _write_ahead(self, row: _Row, ahead: Ahead) -> None:
        assert row.slot is not None
        before = len(row.writer.written[0])
        row.token = ahead.step(row.writer, self._slots.reading(0, 1), row.slot.tokens, row.token)
        self._tell(row, before)

    def _take(self, row: _Row, logits: Logits) -> None:
        """Let a row choose its next token, or keep the logits where they are all that is wanted."""
        if not row.limit:
            row.logits = np.array(logits[0])
            self._written.append((row.number, None))
            self._release(row)
            return
        before = len(row.writer.written[0])
        row.writer.steps += 1
        row.token = int(row.writer.take(logits, ONLY)[0])
        self._tell(row, before)

    def _tell(self, row: _Row, before: int) -> None:
        """Report what a row wrote at this step."""
        self._written += [(row.number, token) for token in row.writer.written[0][before:]]
        if not row.writer.open[0]:
            self._written.append((row.number, None))
            self._release(row)


def _shared(held: Sequence[int], wanted: Sequence[int] | Tokens) -> int:
    """Return how many tokens two sequences begin with in common; the last of what is wanted is read in any case."""
    most = min(len(held), len(wanted) - 1)
    return next((place for place in range(most) if held[place] != wanted[place]), most)
