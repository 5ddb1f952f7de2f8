"""Choosing tokens, greedily or by sampling, within the task's answer form, until the end: the same for every engine.

Works on token ids alone; knows no text, no tokenizer, no task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Constraint, Tokens

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        temperature: Sampling temperature; 0 takes the most likely token.
        top_p: Only the most likely tokens whose probabilities sum up to this are sampled (Holtzman et al. 2020).
        seeds: One for each sampled row: a row's text depends on its own seed alone, not on the batch.
        constraints: What each row may write; anything where empty or None.
        scored: Keep the log-probability of each token that was written, under the student as it is (no temperature, no constraint).
        stop: Called with what a row has written after each token; returning True ends the row.
        on_token: Called with row and token as they come.
        draft: Several tokens are guessed from what was read and written before and verified in one step: the same tokens, sooner.
            Only a single row, chosen greedily, is drafted for.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = ()
    constraints: tuple[Constraint | None, ...] = ()
    scored: bool = False
    stop: Callable[[Sequence[int]], bool] | None = None
    on_token: Callable[[int, int], None] | None = None
    draft: bool = False

    def of_rows(self, rows: Sequence[int]) -> Decoding:
        """Return the same for some of the rows."""
        tell = self.on_token

        def told(row: int, token: int) -> None:
            if tell:
                tell(rows[row], token)

        return replace(
            self,
            seeds=tuple(self.seeds[row] for row in rows) if self.seeds else (),
            constraints=tuple(self.constraints[row] for row in rows) if self.constraints else (),
            on_token=told if tell else None,
        )


GREEDY = Decoding()


@dataclass
class Generation:
    """What was written after each prompt.

    Attributes:
        tokens: New tokens of each row, without the end token.
        time_to_first_token: Seconds from the call to the first token (prompt read included).
        seconds: Seconds of the whole call.
        steps: How many times the decoder ran, prompts included.
        log_probabilities: Of each row's tokens, the end token's last where it ended by itself; empty unless asked for.
        ended: Whether each row ended by itself, not at the limit.
    """

    tokens: list[list[int]]
    time_to_first_token: float
    seconds: float
    steps: int
    log_probabilities: list[list[float]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)


class TokenWriter:
    """Chooses the tokens of a batch, row by row, and records them.

    Args:
        rows: How many.
        how: How tokens are chosen.
        eos: The end token.
        limit: The most tokens of any row.
    """

    def __init__(self, rows: int, how: Decoding, eos: int, limit: int) -> None:
        self._how, self._eos, self.limit = how, eos, limit
        self.written: list[list[int]] = [[] for _ in range(rows)]
        self._log: list[list[float]] = [[] for _ in range(rows)]
        self._ended = [False] * rows
        self.open = np.ones(rows, dtype=bool)
        self._random = [np.random.default_rng(seed) for seed in how.seeds] if how.temperature else []
        self._drawn = how.temperature > 0
        self._started = time.perf_counter()
        self._first = 0.0
        self.steps = 0

    def take(self, logits: Logits, rows: Sequence[int] | Tokens) -> Tokens:
        """Choose the next token of some rows.

        Args:
            logits: (rows, vocabulary).
            rows: Which ones these are.

        Returns:
            (rows,), the end token's id for rows that end, or have ended before.
        """
        chosen: Tokens = logits.argmax(-1).astype(np.int64)
        if self._drawn or self._how.constraints:
            for place, row in enumerate(rows):
                if self.open[row]:
                    chosen[place] = self._choose(logits[place], int(row), int(chosen[place]))
        if self._how.scored:
            self._score(logits, chosen, rows)
        if not self._first:
            self._first = time.perf_counter() - self._started
        places = range(len(chosen))
        for place, row, token in zip(places, np.asarray(rows).tolist(), chosen.tolist(), strict=True):
            if self.open[row]:
                self._put(row, token)
            if not self.open[row]:
                chosen[place] = self._eos
        return chosen

    def _score(self, logits: Logits, chosen: Tokens, rows: Sequence[int] | Tokens) -> None:
        """Keep the log-probabilities of the tokens chosen in open rows.

        Raises:
            MmedgeError: There are none, since a logit is not a number.
        """
        picked = logits[np.arange(len(chosen)), chosen]
        top = logits.max(-1)
        found = picked - top - np.log(np.exp(logits - top[:, None]).sum(-1))
        for row, value in zip(rows, found.tolist(), strict=True):
            if self.open[row]:
                if math.isnan(value):
                    raise MmedgeError("the student's logits are not numbers: its weights are damaged", "export the student again")
                self._log[row].append(value)

    def _put(self, row: int, token: int) -> None:
        if token == self._eos:
            self._ended[row], self.open[row] = True, False
            return
        self.written[row].append(token)
        if self._how.on_token:
            self._how.on_token(row, token)
        if self._how.stop and self._how.stop(self.written[row]):
            self._ended[row], self.open[row] = True, False
        elif len(self.written[row]) >= self.limit:
            self.open[row] = False

    def _choose(self, logits: Logits, row: int, likeliest: int) -> int:
        """Return a row's token where it is sampled or constrained."""
        how, constraint = self._how, self._how.constraints[row] if self._how.constraints else None
        permits = None if self._drawn else getattr(constraint, "permits", None)
        if permits is not None and permits(self.written[row], likeliest):
            return likeliest
        ids = None if constraint is None else constraint.allowed(self.written[row])
        if ids is None and not self._drawn:
            return likeliest
        found = logits if ids is None else logits[ids]
        place = _draw(found / how.temperature, how.top_p, self._random[row]) if self._drawn else int(found.argmax())
        return place if ids is None else int(ids[place])

    @property
    def forces(self) -> bool:
        """Whether some row's constraint knows tokens that must follow."""
        return any(hasattr(constraint, "forced") for constraint in self._how.constraints)

    def forced(self, row: int) -> list[int]:
        """Return the tokens that must follow in a row, as far as its constraint knows them."""
        known = getattr(self._how.constraints[row], "forced", None) if self._how.constraints else None
        return list(known(self.written[row])) if known is not None else []

    def generation(self) -> Generation:
        """Return what was written."""
        scores = self._log if self._how.scored else []
        seconds = time.perf_counter() - self._started
        return Generation(self.written, self._first, seconds, self.steps, scores, self._ended)


def _draw(logits: Logits, top_p: float, random: np.random.Generator) -> int:
    """Sample an index by its probability, by inversion in the order of the ids, so that one random number decides."""
    shares = np.exp((logits - logits.max()).astype(np.float64))
    shares /= shares.sum()
    if top_p < 1:
        order = np.argsort(-shares, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1]
        nucleus = np.zeros_like(shares)
        nucleus[kept] = shares[kept]
        shares = nucleus / nucleus.sum()
    place = int(np.searchsorted(np.cumsum(shares), random.random(), side="right"))
    return min(place, int(np.flatnonzero(shares)[-1]))  # rounding may leave the sum below the random number


def decode(
    first: Callable[[], Logits],
    step: Callable[[Tokens], Logits],
    rows: int,
    eos: int,
    pad: int,
    limit: int,
    how: Decoding = GREEDY,
) -> Generation:
    """Run the loop over a whole batch: `first` reads the prompts, `step` takes the (rows,) tokens just written."""
    writer = TokenWriter(rows, how, eos, limit)
    everyone = np.arange(rows)
    logits = first()
    while True:
        writer.steps += 1
        tokens = writer.take(logits, everyone)
        if not writer.open.any():
            return writer.generation()
        logits = step(np.where(writer.open, tokens, pad))


def by_beginning(
    generate: Callable[[Sequence[Prompt], int, Decoding], Generation],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    how: Decoding = GREEDY,
) -> Generation:
    """Generate for prompts of an encoder-decoder whose beginnings may be of unequal length: those of one length together.

    A decoder's padding would have to be masked at every later step; only evaluations' rationales have unequal beginnings.
    """
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(len(prompt.begun), []).append(row)
    if len(rows) == 1:
        return generate(prompts, max_new_tokens, how)
    whole = Generation([[] for _ in prompts], 0.0, 0.0, 0, [[] for _ in prompts] if how.scored else [], [False for _ in prompts])
    first: float | None = None
    for group in rows.values():
        found = generate([prompts[row] for row in group], max_new_tokens, how.of_rows(group))
        first = found.time_to_first_token if first is None else first
        whole.seconds, whole.steps = whole.seconds + found.seconds, whole.steps + found.steps
        for place, row in enumerate(group):
            whole.tokens[row], whole.ended[row] = found.tokens[place], found.ended[place]
            if how.scored:
                whole.log_probabilities[row] = found.log_probabilities[place]
    whole.time_to_first_token = first or 0.0
    return whole


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tokens, Tokens]:
    """Return ids and mask, each (rows, longest), padded on the left."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return ids, mask


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tokens, Tokens]:
    """Return ids (rows, longest), padded on the right, and how many tokens each row has, (rows,)."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, np.array([len(row) for row in rows], dtype=np.int64)
