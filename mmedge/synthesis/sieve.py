"""Which new questions are taken: those that are unlike the training questions, the test questions and each other.

Texts are looked at in the order of their briefs. What was taken stays taken, and what is refused once would be refused again, so a
collection that is continued keeps its questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from mmedge.errors import MmedgeError
from mmedge.synthesis.similarity import SimilarTexts, words_of
from mmedge.tasks import Example, Splits
from mmedge.tasks.synthesized import NewQuestion

LIKE_SEED, LIKE_TEST, LIKE_NEW = "like a training question", "like a test question", "like another new one"
ENOUGH = "more than wanted"


class Sieve:
    """Takes new questions.

    Args:
        splits: The task's own questions.
        threshold: From which similarity on two questions count as the same.
        shares: How many of each kind are wanted; under an empty name, of all kinds that have no share of their own.
        taken: The questions that were taken before.
    """

    def __init__(self, splits: Splits, threshold: float, shares: dict[str, int], taken: Sequence[NewQuestion] = ()) -> None:
        tests = dict(splits.tests) | {"validation": splits.validation}
        common = [_whole(example) for example in (*splits.train[:2000], *chain(*tests.values()))]
        self._seeds, self._tests, self._new = (SimilarTexts(threshold, common[:4000]) for _ in range(3))
        for example in splits.train:
            self._seeds.add(_whole(example), example.id)
        for examples in tests.values():
            for example in examples:
                self._tests.add(_whole(example), example.id)
        self._shares = shares
        self.taken: list[NewQuestion] = []
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        for question in taken:
            self._take(question)

    def offer(self, question: NewQuestion) -> bool:
        """Take a question, or count why not; return whether it was taken."""
        share = self._share_of(question)
        if self.counts[share] >= self._shares.get(share, 0):
            self.refused[ENOUGH] += 1
            return False
        text = _text(question.question, question.choices)
        for reason, texts in ((LIKE_TEST, self._tests), (LIKE_SEED, self._seeds), (LIKE_NEW, self._new)):
            if texts.nearest(text) is not None:
                self.refused[reason] += 1
                return False
        self._take(question)
        return True

    def like_test(self, example: Example) -> bool:
        """Whether a question is similar to a test or validation question."""
        return self._tests.nearest(_whole(example)) is not None

    def missing(self) -> dict[str, int]:
        """Return how many questions of each kind are still wanted; kinds that have enough are left out."""
        found = {kind: share - self.counts[kind] for kind, share in self._shares.items()}
        return {kind: count for kind, count in found.items() if count > 0}

    def _take(self, question: NewQuestion) -> None:
        self._new.add(_text(question.question, question.choices), question.id)
        self.taken.append(question)
        self.counts[self._share_of(question)] += 1

    def _share_of(self, question: NewQuestion) -> str:
        return question.kind if question.kind in self._shares else ""


def check_seeds(splits: Splits) -> None:
    """Refuse training questions that are test or validation questions word by word.

    Raises:
        MmedgeError: There is one; the message names both.
    """
    named = dict(splits.tests) | {"validation": splits.validation}
    held_out = {words_of(_whole(example)): (name, example) for name, examples in named.items() for example in examples}
    for example in splits.train:
        if same := held_out.get(words_of(_whole(example))):
            name, other = same
            raise MmedgeError(
                f"the training question {example.id!r:.60} is also the question {other.id!r:.60} of the split {name!r}",
                "leave it out of one: new questions would be written after a question that measures the student",
            )


def unlike_tests(examples: Sequence[Example], splits: Splits, threshold: float) -> tuple[Example, ...]:
    """Return the questions that are not similar to a test question: those that a teacher may be shown."""
    sieve = Sieve(Splits((), splits.tests, splits.validation), threshold, {})
    return tuple(each for each in examples if not sieve.like_test(each))


def _whole(example: Example) -> str:
    """Return all texts of a question, what was said before it included."""
    return " ".join((*(turn.text for turn in example.turns), _text(example.question, example.choices)))


def _text(question: str, choices: Sequence[str]) -> str:
    return " ".join((question, *choices))
