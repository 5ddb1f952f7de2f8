"""What a student may write, token by token: anything, or one of several texts. Forms add their own constraints.

A well distilled student writes answers of the right form anyway; a constraint guarantees it. Of the tokens that
may follow, the most likely is taken, so an answer that had the right form is the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MissingExtra
from mmedge.tasks.base import Example

Tokens = NDArray[np.int64]


class Constraint(Protocol):
    """What may be written in one row.

    One that knows which tokens must follow also has `forced(written)`, which returns them in order, without the end token; an
    engine reads them together. One that finds out about a single token faster has `permits(written, token)`.
    """

    def allowed(self, written: Sequence[int]) -> Tokens | None:
        """Return the ids of the tokens that may follow, (n,), at least one, the end token among them where it may end; or None
        where anything may."""
        ...


class Constrainer:
    """Makes the constraints of one form for one student; expensive ones are made once. By default there are none."""

    def answer(self, example: Example, limit: int) -> Constraint | None:
        """Return what an answer may be; None where anything may be written.

        Args:
            example: The question.
            limit: The most tokens of an answer.
        """
        return None

    def rationale(self) -> Constraint | None:
        """Return what a rationale may be; None where anything may be written."""
        return None


def refuse_impossible_answers(constrainer: Constrainer, limit: int) -> None:
    """Refuse constraints that no answer of so many tokens meets, before anything is trained or exported for them.

    Raises:
        LimitTooLow: No answer fits within the limit.
        MmedgeError: What answers may be cannot be made a constraint.
    """
    with suppress(MissingExtra):  # a device has it; answers need it, training does not
        constrainer.answer(Example("", ""), limit)


class OneOf:
    """Exactly one of several token sequences, each with its end token.

    Args:
        sequences: The sequences; at least one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._root: dict[int, dict] = {}  # type: ignore[type-arg]  # a tree of its own kind
        for sequence in sequences:
            place = self._root
            for token in sequence:
                place = place.setdefault(token, {})
        if not self._root:
            raise ValueError("there is nothing to choose from")

    def allowed(self, written: Sequence[int]) -> Tokens:
        place = self._behind(written)
        return np.fromiter(place, dtype=np.int64, count=len(place))

    def forced(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that all sequences with this beginning go on with, without the last of a sequence."""
        place, found = self._behind(written), list[int]()
        while len(place) == 1:
            ((token, place),) = place.items()
            found.append(token)
        return found if place else found[:-1]

    def _behind(self, written: Sequence[int]) -> dict[int, dict]:  # type: ignore[type-arg]
        place = self._root
        for token in written:
            place = place[token]
        return place
