"""Guessing the next tokens, so that one step verifies several: the same text, sooner.

A rationale repeats the question's words and numbers (prompt lookup; Saxena 2023), and the phrases of the rationales that it was
learned from: `PhraseTable` holds what most often followed up to five tokens there. A guess is kept only where it is the token
that is chosen anyway (speculative decoding; Leviathan et al. 2023). Whether and how far to guess depends on how often such guesses
were right, and on what verifying costs on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError

LONGEST = 5  # tokens of context
MOST = 5  # guesses in one step
MOST_ENTRIES = 60_000  # of a table: some 800 kB
FILE_NAME = "drafts.npz"
_COPIES = (5, 4, 3, 2)  # how many tokens must match for what followed them to be copied
_COPIED = {5: 0.75, 4: 0.7, 3: 0.6, 2: 0.45}  # initial estimate of how often that is right
_WEIGHT = 6.0  # how many guesses the initial estimate counts as
_NONE = -1


def _hash(tokens: Sequence[int]) -> int:
    """Return a 64-bit hash of some tokens; the same on every machine."""
    found = len(tokens)
    for token in tokens:
        found = (found * 0x9E3779B97F4A7C15 + token + 1) & 0xFFFFFFFFFFFFFFFF
        found ^= found >> 29
    return found


@dataclass(frozen=True)
class PhraseTable:
    """What most often follows some tokens in texts of one kind.

    Attributes:
        contexts: (n, 5), each context's tokens at the right, -1 where it is shorter.
        following: (n,), the token that follows most often.
        shares: (n,), how often it does, from 0 to 255.
    """

    contexts: NDArray[np.int32]
    following: NDArray[np.int32]
    shares: NDArray[np.uint8]

    def __post_init__(self) -> None:
        rows = [tuple(token for token in row if token != _NONE) for row in self.contexts.tolist()]
        hashes = np.array([_hash(row) for row in rows], dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        object.__setattr__(self, "_hashes", hashes[order])
        object.__setattr__(self, "_order", order)

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], most: int = MOST_ENTRIES) -> PhraseTable:
        """Count what follows what.

        Args:
            texts: Token sequences, each with what it begins behind, such as a task word, and its end token.
            most: The most entries: those that save most steps are kept.
        """
        counts: dict[tuple[int, ...], Counter[int]] = {}
        for text in texts:
            tokens = list(text)
            for place in range(1, len(tokens)):
                for length in range(1, min(LONGEST, place) + 1):
                    counts.setdefault(tuple(tokens[place - length : place]), Counter())[tokens[place]] += 1
        found: dict[tuple[int, ...], tuple[int, float, float]] = {}
        for context in sorted(counts, key=len):
            (token, count), total = counts[context].most_common(1)[0], counts[context].total()
            share = count / (total + 0.5)
            shorter = found.get(context[1:])
            if total < 2 or (shorter is not None and shorter[0] == token and shorter[1] >= share):
                continue  # seen once, or already predicted by the shorter context
            found[context] = token, share, count * share
        kept = sorted(found.items(), key=lambda item: (-item[1][2], item[0]))[:most]
        contexts = np.full((len(kept), LONGEST), _NONE, dtype=np.int32)
        for row, (context, _) in enumerate(kept):
            contexts[row, LONGEST - len(context) :] = context
        following = np.array([token for _, (token, _, _) in kept], dtype=np.int32)
        shares = np.array([round(255 * share) for _, (_, share, _) in kept], dtype=np.uint8)
        return cls(contexts, following, shares)

    def renumbered(self, new: Mapping[int, int]) -> PhraseTable:
        """Return the table for a vocabulary whose tokens have other ids; entries with a dropped token are left out."""
        table = {_NONE: _NONE, **new}
        rows = [
            row
            for row, (context, token) in enumerate(zip(self.contexts.tolist(), self.following.tolist(), strict=True))
            if token in table and all(piece in table for piece in context)
        ]
        contexts = np.array([[table[piece] for piece in self.contexts[row].tolist()] for row in rows], dtype=np.int32)
        following = np.array([table[int(self.following[row])] for row in rows], dtype=np.int32)
        return PhraseTable(contexts.reshape(-1, LONGEST), following, self.shares[rows])

    def save(self, path: Path) -> None:
        """Write it, compressed."""
        with open(path, "wb") as file:
            np.savez_compressed(file, contexts=self.contexts, following=self.following, shares=self.shares)

    @classmethod
    def load(cls, path: Path) -> PhraseTable:
        """Read what `save` wrote.

        Raises:
            MmedgeError: It is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                contexts, following, shares = file["contexts"], file["following"], file["shares"]
        except Exception as error:  # numpy and zipfile raise many types for a broken file
            raise MmedgeError(f"cannot read {path}: {str(error)[:200]}", "export the student again") from error
        if contexts.shape != (len(following), LONGEST) or shares.shape != following.shape:
            raise MmedgeError(f"{path} is not a phrase table", "export the student again")
        return cls(contexts.astype(np.int32), following.astype(np.int32), shares.astype(np.uint8))

    def guess(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """Return the token that most often follows the longest context that is known, and how often; None where none is."""
        hashes: NDArray[np.uint64] = self._hashes  # type: ignore[attr-defined]
        for length in range(min(LONGEST, len(tokens)), 0, -1):
            wanted = np.uint64(_hash(tokens[len(tokens) - length :]))
            place = int(hashes.searchsorted(wanted))
            if place < len(hashes) and hashes[place] == wanted:
                row = int(self._order[place])  # type: ignore[attr-defined]
                return int(self.following[row]), int(self.shares[row]) / 255
        return None


EMPTY = PhraseTable(np.empty((0, LONGEST), np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))


@dataclass
class StepCosts:
    """The cost of a step by how many tokens it reads, measured while it runs; shared by all drafts of one decoder.

    Attributes:
        seconds: The time of a step that reads so many tokens; a moving average over steps.
    """

    seconds: dict[int, float] = field(default_factory=dict)

    def saw(self, tokens: int, seconds: float) -> None:
        """Add one measurement; one far beyond the earlier ones counts as disturbed, and weighs little."""
        before = self.seconds.get(tokens)
        if before is None:
            self.seconds[tokens] = seconds
        else:
            self.seconds[tokens] = before + 0.1 * (min(seconds, 2 * before) - before)

    def relative(self, tokens: int) -> float:
        """Return the cost of a step that reads so many tokens, in steps that read one."""
        if tokens == 1 or 1 not in self.seconds:
            return 1 + 0.25 * (tokens - 1)
        if tokens in self.seconds:
            return max(1.0, self.seconds[tokens] / self.seconds[1])
        known = [count for count in self.seconds if count > 1]
        slope = sum((self.seconds[count] / self.seconds[1] - 1) / (count - 1) for count in known) / len(known) if known else 0.25
        return 1 + max(0.05, slope) * (tokens - 1)


@dataclass
class HitRates:
    """How often guesses of one kind were right; shared by all drafts of one decoder.

    Attributes:
        counts: By kind: how many were right and how many were not, older ones counting less.
    """

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def share(self, kind: str, thought: float) -> float:
        """Return how often guesses of a kind are right, from the initial estimate and what was seen."""
        true, false = self.counts.get(kind, (0.0, 0.0))
        return (true + _WEIGHT * thought) / (true + false + _WEIGHT)

    def add(self, kind: str, right: bool) -> None:
        """Add one guess."""
        true, false = self.counts.get(kind, (0.0, 0.0))
        self.counts[kind] = (0.98 * true + right, 0.98 * false + (not right))

    def decay(self, kind: str) -> None:
        """Move a little back to the initial estimate, so that a kind that did not pay is tried again some time."""
        true, false = self.counts.get(kind, (0.0, 0.0))
        self.counts[kind] = (0.998 * true, 0.998 * false)


class Drafter:
    """Guesses the continuation of one text.

    Args:
        table: Phrases of texts of the same kind.
        read: The prompt.
        costs: What verifying costs.
        hit_rates: How often guesses were right.
    """

    def __init__(self, table: PhraseTable, read: Sequence[int], costs: StepCosts, hit_rates: HitRates) -> None:
        self._table, self._costs, self._hit_rates = table, costs, hit_rates
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # what last followed some tokens
        self._kinds: list[str] = []  # of the guesses made
        self.extend(read)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add what was written."""
        text, places = self._text, self._places
        for token in tokens:
            place = len(text)
            for length in _COPIES:
                if length <= place:
                    places[tuple(text[place - length : place])] = place
            text.append(token)

    def _next(self, ahead: Sequence[int]) -> tuple[int, str, float] | None:
        """Return the most likely token after the text and the guesses so far, its kind, and its probability."""
        last = [*self._text[-LONGEST:], *ahead][-LONGEST:]
        best: tuple[int, str, float] | None = None
        known = self._table.guess(last)
        if known is not None:
            token, thought = known
            kind = f"phrase {int(10 * thought)}"
            best = token, kind, self._hit_rates.share(kind, thought)
        for length in _COPIES:
            place = self._places.get(tuple(last[len(last) - length :])) if length <= len(last) else None
            if place is not None:
                kind = f"copy {length}"
                share = self._hit_rates.share(kind, _COPIED[length])
                if best is None or share > best[2]:
                    best = self._text[place], kind, share
                break
        return best

    def guess(self, most: int) -> list[int]:
        """Return guesses for the next tokens; none where guessing would not pay.

        Args:
            most: The most guesses that can be right.
        """
        guesses: list[int] = []
        kinds: list[str] = []
        worth, best_rate, expected, still_true = 0, 1.03, 1.0, 1.0  # a gain below 3 % is not worth it
        while len(guesses) < min(most, MOST):
            found = self._next(guesses)
            if found is None:
                break
            token, kind, share = found
            guesses.append(token)
            kinds.append(kind)
            still_true *= share
            expected += still_true
            rate = expected / self._costs.relative(len(guesses) + 1)
            if rate > best_rate:
                worth, best_rate = len(guesses), rate
            if still_true < 0.2:
                break
        if not worth and kinds:
            self._hit_rates.decay(kinds[0])
        self._kinds = kinds[:worth]
        return guesses[:worth]

    def came_true(self, count: int) -> None:
        """Record how many of the guesses were right."""
        for place, kind in enumerate(self._kinds[: count + 1]):
            self._hit_rates.add(kind, place < count)
