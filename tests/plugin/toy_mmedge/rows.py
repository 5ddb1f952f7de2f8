"""An engine whose rows join and leave while it runs: a torch student without a cache, asked through mmedge's own speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmedge.engines import ENGINES
from mmedge.engines.engine import Engine
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, TokenWriter
from mmedge.engines.rows import generate_by_rows
from mmedge.tasks.encoding import Prompt


class RowsOfTorch:
    """Writes one token of every row that is there at each step."""

    def __init__(self, inner: Engine, eos: int) -> None:
        self._inner, self._eos = inner, eos
        self._rows: dict[int, tuple[Prompt, TokenWriter]] = {}
        self._next = 0

    def join(self, prompt: Prompt, max_new_tokens: int, how: Decoding = GREEDY) -> int:
        self._next += 1
        self._rows[self._next] = prompt, TokenWriter(1, how, self._eos, max_new_tokens)
        return self._next

    def step(self) -> Sequence[tuple[int, int | None]]:
        found: list[tuple[int, int | None]] = []
        for number, (prompt, writer) in list(self._rows.items()):
            written = writer.written[0]
            logits = self._inner.next_logits([prompt], written)
            token = int(writer.take(logits, [0])[0])
            found.append((number, None if token == self._eos and len(writer.written[0]) == len(written) else writer.written[0][-1]))
            if found[-1][1] is None:
                self.leave(number)
        return found

    def leave(self, row: int) -> None:
        self._rows.pop(row, None)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return generate_by_rows(self, prompts, max_new_tokens, replace(how, scored=False))

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
