"""Writing one row several tokens a step, where the next ones are known, since nothing else may follow, or can be guessed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmedge.engines.drafting import EMPTY, Drafter, HitRates, PhraseTable, StepCosts
from mmedge.engines.generation import TokenWriter
from mmedge.engines.reading import Reading

ONLY = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class Drafting:
    """What the drafts of one decoder share.

    Attributes:
        table: Phrases of the texts that the student has learned.
        costs: What verifying costs.
        hit_rates: How often guesses were right.
    """

    table: PhraseTable
    costs: StepCosts
    hit_rates: HitRates


class Ahead:
    """Reads ahead in one row.

    Args:
        shared: What the drafts of the decoder share.
        read: The prompt, where tokens may be guessed; None where only known ones are read ahead.
        limit: The most tokens that are written.
    """

    def __init__(self, shared: Drafting, read: Sequence[int] | None, limit: int) -> None:
        self._costs, self._limit, self._guesses = shared.costs, limit, read is not None
        self._drafter = Drafter(EMPTY if read is None else shared.table, read or (), shared.costs, shared.hit_rates)

    def saw(self, token: int) -> None:
        """Say which token is read next, where another step than this object's reads it."""
        self._drafter.extend([token])

    def step(self, writer: TokenWriter, reading: Reading, row: list[int], token: int) -> int:
        """Read a token and what is known or guessed to follow it, and write as far as that was right.

        Args:
            writer: Of the only row.
            reading: What it has read.
            row: The tokens that it has read, which are added to.
            token: The last one that was written, not read yet.

        Returns:
            The last token that was written now.
        """
        self.saw(token)
        most = self._limit - len(writer.written[0]) - 1
        guesses = known = writer.forced(0)[:most]
        if self._guesses and not known:
            guesses = self._drafter.guess(most)
        started = time.perf_counter()
        read = [token, *guesses]
        if guesses:
            ids = np.array([read], dtype=np.int64)
            logits = reading.read(ids, np.array([len(read)]), np.arange(len(read)))
        else:
            logits = reading.step(np.array([token]))
        self._costs.saw(len(read), time.perf_counter() - started)
        writer.steps += 1
        right = 0
        while True:
            token = int(writer.take(logits[right : right + 1], ONLY)[0])
            if not writer.open[0] or right == len(guesses) or token != guesses[right]:
                break
            right += 1
        row += read[: right + 1]
        reading.rewind(len(row))
        self._drafter.extend(guesses[:right])
        if guesses and not known:
            self._drafter.came_true(right)
        return token
