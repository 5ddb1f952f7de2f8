"""What an engine is: something that turns token ids into token ids. It knows no text, no tokenizer, no task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    """An engine whose rows join and leave while it runs, for serving many at once; see `rows.generate_by_rows`."""

    def join(self, prompt: Prompt, max_new_tokens: int, how: Decoding = GREEDY) -> int:
        """Begin a row and return its number; it is read at the next step, and `how` is for this row alone."""
        ...

    def step(self) -> Sequence[tuple[int, int | None]]:
        """Write one token of every row: return its number and the token, None where it ends."""
        ...

    def leave(self, row: int) -> None:
        """Drop a row; does nothing for one that has ended or does not exist."""
        ...
