"""Lessons in tokens: a context and the targets after it, in segments that count alike.

    EncodedLesson(context, (EncodedTarget("predict", begun, (EncodedSegment(ids, 1.0, "answer"),)),))

What a lesson teaches is known to `distill`, and what becomes of its tokens in a student to `passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from mmedge.tasks.encoding import Family
from mmedge.tasks.prompts import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
IGNORED = -100


@dataclass(frozen=True)
class EncodedSegment:
    """Consecutive tokens of a target that count alike.

    Attributes:
        ids: The tokens.
        weight: How much each counts; tokens of weight 0 are read, and not learned.
        part: The part of the loss that they belong to.
        expected: The weight that the part's sum is divided by; their own where None.
    """

    ids: tuple[int, ...]
    weight: float
    part: str
    expected: float | None = None

    @property
    def total(self) -> float:
        """What they add to the number that their part of the loss is divided by."""
        return (self.weight if self.expected is None else self.expected) * len(self.ids)


@dataclass(frozen=True)
class EncodedTarget:
    """One target in tokens.

    Attributes:
        kind: Its task word, which says whether it is short or long.
        begun: The tokens in front of it, which are read but not learned.
        segments: Its tokens, in order.
    """

    kind: Kind
    begun: tuple[int, ...]
    segments: tuple[EncodedSegment, ...]

    @cached_property
    def read(self) -> tuple[int, ...]:
        """The tokens that go through the model: all but the last, which is only predicted."""
        return self.begun + tuple(token for segment in self.segments for token in segment.ids)[:-1]

    @cached_property
    def labels(self) -> list[int]:
        """What each token of `read` predicts."""
        learned = [token if segment.weight else IGNORED for segment in self.segments for token in segment.ids]
        return [IGNORED] * (len(self.begun) - 1) + learned


@dataclass(frozen=True)
class EncodedLesson:
    """One lesson in tokens.

    Attributes:
        context: What is read first.
        targets: What is learned after it.
        reference: The log-probability of each target under the weights that a stage begins with; empty where nobody needs it.
    """

    context: tuple[int, ...]
    targets: tuple[EncodedTarget, ...]
    reference: tuple[float, ...] = ()

    @cached_property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return len(self.context) + sum(len(target.read) for target in self.targets)


def padded_tokens(lessons: Sequence[EncodedLesson], family: Family, *, branches: bool = True) -> int:
    """Return how many tokens one pass over some lessons computes, padding included.

    A decoder-only student reads a lesson as one row, or each target as one where it has no branches. An encoder-decoder reads
    contexts, short and long targets as three blocks.
    """
    if not branches:
        rows = [len(lesson.context) + len(target.read) for lesson in lessons for target in lesson.targets]
        return len(rows) * max(rows, default=0)
    if family == "decoder-only":
        return len(lessons) * max(lesson.tokens for lesson in lessons)
    padded = len(lessons) * max(len(lesson.context) for lesson in lessons)
    for kind in KINDS:
        lengths = [len(target.read) for lesson in lessons for target in lesson.targets if target.kind == kind]
        padded += len(lengths) * max(lengths, default=0)
    return padded


@dataclass(frozen=True)
class LearnedSegment:
    """A segment that is learned, and where it stands: the places of its lesson and its target in the pass."""

    lesson: int
    target: int
    weight: float
    part: str


def learned_segments(lessons: Sequence[EncodedLesson]) -> list[LearnedSegment]:
    """Return the segments of some lessons that are learned, in order; targets are counted through all lessons."""
    found, place = [], -1
    for number, lesson in enumerate(lessons):
        for target in lesson.targets:
            place += 1
            found += [LearnedSegment(number, place, one.weight, one.part) for one in target.segments if one.weight and one.ids]
    return found
