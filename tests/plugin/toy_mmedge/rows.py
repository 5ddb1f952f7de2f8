"""An engine whose rows join and leave while it runs: a torch student without a cache, asked through mmedge's own speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmedge.engines import ENGINES
from mmedge.engines.engine import Engine, RowEngine
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, TokenWriter
from mmedge.engines.rows import generate_by_rows
from mmedge.tasks.encoding import Prompt


class RowsOfTorch:
    """Writes one token of every row that is there at each step."""

    def __init__(self, inner: Engine, eos: int) -> None:
        self._inner, self._eos = inner, eos
        self._rows: dict[int, tuple[Prompt, TokenWriter]] = {}
        self._logits: dict[int, Logits] = {}
        self._next = 0

    def join(self, prompt: Prompt, max_new_tokens: int, how: Decoding = GREEDY) -> int:
        self._next += 1
        self._rows[self._next] = prompt, TokenWriter(1, how, self._eos, max_new_tokens)
        return self._next

    def step(self) -> Sequence[tuple[int, int | None]]:
        found: list[tuple[int, int | None]] = []
        for number, (prompt, writer) in self._rows.items():
            if not writer.open[0]:
                continue  # it has ended and has not been told to leave
            written = writer.written[0]
            before = len(written)
            if not writer.limit:
                self._logits[number], writer.open[0] = self._inner.next_logits([prompt], [])[0], False
            else:
                writer.take(self._inner.next_logits([prompt], written), [0])
            found += [(number, token) for token in written[before:]]
            found += [] if writer.open[0] else [(number, None)]
        return found

    def last_logits(self, row: int) -> Logits:
        return self._logits[row]

    def leave(self, row: int) -> Generation:
        self._logits.pop(row, None)
        return self._rows.pop(row)[1].generation()

    def rows(self, most: int, most_bytes: int) -> RowEngine:
        return RowsOfTorch(self._inner, self._eos)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return generate_by_rows(self, prompts, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self._inner.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self._inner.forced_logits(prompt, target)

    def conversation(self) -> Engine:
        return self


def _open(request: OpenRequest) -> OpenedVariant:
    opened = ENGINES["torch"].open(request)
    engine = RowsOfTorch(opened.speaker.engine, opened.speaker.encoder.special.eos)
    return replace(opened, engine_name="rows", speaker=opened.speaker.on(engine))


ENTRY = EngineEntry("rows", "a student", _open)
