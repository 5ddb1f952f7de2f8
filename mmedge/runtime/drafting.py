"""Guessing the next tokens from what stands in the prompt and was written before, so that one step verifies several.

A rationale repeats the question's words and numbers, and the phrases of the rationales it was learned from. Where the last
tokens occurred before, those that followed then are guessed (prompt lookup; Saxena 2023, after Leviathan et al. 2023). What is
written never depends on the guesses: a guess is kept only where it is the token that would have been chosen anyway. Whether
and how far to guess depends on how often guesses after so long a match came true, and on what verifying costs on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LONGEST_MATCH = 4  # tokens
MOST = 7  # guesses in one step
_END = -1  # stands between phrases; no token
_PRIOR = {1: (1.0, 2.0), 2: (2.0, 2.0), 3: (4.0, 2.0), 4: (6.0, 2.0)}  # came true, did not: before anything was seen


@dataclass
class StepCosts:
    """What one step costs by how many tokens it reads, measured while it works; shared by all drafts of one decoder.

    Attributes:
        seconds: The time of a step that reads so many tokens; a moving average over steps.
    """

    seconds: dict[int, float] = field(default_factory=dict)

    def saw(self, tokens: int, seconds: float) -> None:
        """Take in one measurement; one that is far beyond what was seen before counts as disturbed, and little."""
        before = self.seconds.get(tokens)
        if before is None:
            self.seconds[tokens] = seconds
        else:
            self.seconds[tokens] = before + 0.1 * (min(seconds, 2 * before) - before)

    def relative(self, tokens: int) -> float:
        """Return the cost of a step that reads so many tokens, in steps that read one."""
        if tokens == 1 or 1 not in self.seconds:
            return 1 + 0.35 * (tokens - 1)
        if tokens in self.seconds:
            return self.seconds[tokens] / self.seconds[1]
        known = [count for count in self.seconds if count > 1]
        slope = sum((self.seconds[count] / self.seconds[1] - 1) / (count - 1) for count in known) / len(known) if known else 0.35
        return 1 + slope * (tokens - 1)


@dataclass
class Luck:
    """How often guesses came true, by how many tokens matched; shared by all drafts of one decoder."""

    counts: dict[int, tuple[float, float]] = field(default_factory=lambda: dict(_PRIOR))

    def share(self, match: int) -> float:
        true, false = self.counts[match]
        return true / (true + false)

    def saw(self, match: int, came_true: int, failed: bool) -> None:
        """Take in one draft: older ones count less and less."""
        true, false = self.counts[match]
        self.counts[match] = (0.97 * true + came_true, 0.97 * false + failed)

    def forget(self, match: int) -> None:
        """Go a little back to what was thought at first, so that guessing is tried again some time."""
        self.counts[match] = (
            0.995 * self.counts[match][0] + 0.005 * _PRIOR[match][0],
            0.995 * self.counts[match][1] + 0.005 * _PRIOR[match][1],
        )


class PhraseBook:
    """Token sequences that texts of one kind contain, by what they begin with.

    Args:
        phrases: The sequences.
    """

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        self.text: list[int] = []
        counts: dict[tuple[int, ...], Counter[int]] = {}
        places: dict[tuple[tuple[int, ...], int], int] = {}
        for phrase in phrases:
            begins = len(self.text)
            self.text += phrase
            self.text.append(_END)
            for place in range(begins + 1, begins + len(phrase)):
                for length in range(1, min(LONGEST_MATCH, place - begins) + 1):
                    key = tuple(self.text[place - length : place])
                    counts.setdefault(key, Counter())[self.text[place]] += 1
                    places[key, self.text[place]] = place
        self._places = {key: places[key, found.most_common(1)[0][0]] for key, found in counts.items()}

    def place(self, key: tuple[int, ...]) -> int | None:
        """Return where in `text` stands what most often follows a sequence of tokens."""
        return self._places.get(key)


class Drafter:
    """Guesses the continuation of one text.

    Args:
        book: Texts of the same kind.
        read: The prompt.
        costs: What verifying costs.
        luck: How often guesses came true.
    """

    def __init__(self, book: PhraseBook, read: Sequence[int], costs: StepCosts, luck: Luck) -> None:
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # what last followed a sequence of tokens
        self._book, self._costs, self._luck = book, costs, luck
        self._match = 0
        self.extend(read)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take in what was written."""
        text, places = self._text, self._places
        for token in tokens:
            place = len(text)
            for length in range(1, min(LONGEST_MATCH, place) + 1):
                places[tuple(text[place - length : place])] = place
            text.append(token)

    def guess(self, most: int) -> list[int]:
        """Return guesses for the tokens that come next, none where guessing would not pay.

        Args:
            most: How many guesses may be right at most.
        """
        for length in range(min(LONGEST_MATCH, len(self._text)), 0, -1):
            key = tuple(self._text[-length:])
            for source, place in ((self._text, self._places.get(key)), (self._book.text, self._book.place(key))):
                if place is None:
                    continue
                follows = source[place : place + min(most, MOST)]
                if _END in follows:
                    follows = follows[: follows.index(_END)]
                self._match = length
                count = self._worthwhile(len(follows), self._luck.share(length))
                if not count:
                    self._luck.forget(length)
                return follows[:count]
        return []

    def _worthwhile(self, available: int, share: float) -> int:
        """Return how many guesses give the most tokens per time."""
        best, best_rate, expected, still_true = 0, 1.03, 1.0, 1.0  # a gain below 3 % is none
        for count in range(1, available + 1):
            still_true *= share
            expected += still_true
            rate = expected / self._costs.relative(count + 1)
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def came_true(self, count: int, of: int) -> None:
        """Say how many of the guesses were right."""
        self._luck.saw(self._match, count, count < of)
