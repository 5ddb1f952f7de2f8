"""What an engine is: something that turns token ids into token ids. It knows no text, no tokenizer, no task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.tasks.encoding import Prompt


class Engine(Protocol):
    """Something that continues token sequences."""

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        ...

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits after each prompt followed by `more`, (prompts, vocabulary)."""
        ...

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        ...

    def conversation(self) -> Engine:
        """Return an engine that remembers what its prompts share from call to call; for one thread at a time."""
        ...


class RowEngine(Protocol):
    """An engine whose rows join and leave while it runs, for serving many at once; for one thread at a time."""

    def join(self, prompt: Prompt, max_new_tokens: int, how: Decoding = GREEDY) -> int:
        """Begin a row and return its number; `how` is for this row alone. It is read at coming steps, when there is room.

        With a limit of 0 nothing is written: the row ends when it is read, and `last_logits` says what follows it.
        """
        ...

    def step(self) -> Sequence[tuple[int, int | None]]:
        """Write at least one token of every row that is read; return numbers and tokens, and None after the last of a row."""
        ...

    def last_logits(self, row: int) -> Logits:
        """Return the logits behind an ended row that was joined with a limit of 0, (vocabulary,)."""
        ...

    def leave(self, row: int) -> Generation:
        """Drop a row, whether it has ended or not, and return what it has written."""
        ...


@runtime_checkable
class HasRows(Protocol):
    """An engine that can be shared by many at once, row by row."""

    def rows(self, most: int, most_bytes: int) -> RowEngine | None:
        """Return an engine of rows, with a cache of its own; None where this variant has none.

        Args:
            most: Rows that are written at once; further ones wait.
            most_bytes: Memory of the cache.
        """
        ...
