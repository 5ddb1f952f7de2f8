"""Lessons as text: what one visit to a question, or to one chain of thought, teaches.

    context   Luke scored 84 points …                  one context is read once for all targets after it
    targets   predict: 84 / 2                          each a branch of its own, which does not see the others
              explain: Luke scored 84 points in …

A target is mostly one text. Where one text follows another in the same branch, it has several segments, each with its
weight; a segment of weight 0 is read and not learned. Knows no tokens: an objective writes lessons, `streams` encodes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmedge.tasks.prompts import Context, Kind


@dataclass(frozen=True)
class Segment:
    """A text of a target.

    Attributes:
        text: The text.
        weight: How much each of its tokens counts; 0 for what is read and not learned.
        part: The part of the objective's loss that it belongs to.
        expected: What its weight is on average, which the part's sum is divided by; the weight itself where None. Without it a
            batch that happens to have texts of small weight alone would count as much as any other.
        verdict: Whether it is a verdict, of which only the token that tells it apart counts fully.
        differs_from: Texts; only the first token that none of them goes on with is learned, and the others are read.
    """

    text: str
    weight: float
    part: str
    expected: float | None = None
    verdict: bool = False
    differs_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What is written after a task word.

    Attributes:
        kind: The task word.
        segments: Its texts, in order.
        control: The word after the task word; that of the student's prompts where None.
    """

    kind: Kind
    segments: tuple[Segment, ...]
    control: str | None = None

    @classmethod
    def of(cls, kind: Kind, text: str, weight: float = 1.0) -> Target:
        """Return a target of one text, whose part of the loss is called as its task word is."""
        return cls(kind, (Segment(text, weight, kind),))

    @classmethod
    def verdict(cls, text: str, weight: float, expected: float) -> Target:
        """Return a verdict after `predict:`, whose weight differs from what such a verdict weighs on average."""
        return cls("predict", (Segment(text, weight, "predict", expected, verdict=True),))


@dataclass(frozen=True)
class Lesson:
    """A context and everything that is learned from it in one visit."""

    context: Context
    targets: tuple[Target, ...]


def by_share(texts: Sequence[str], kind: Kind) -> list[Target]:
    """Return a target for each distinct text, weighted by how often it occurs; the weights sum to 1."""
    return [Target.of(kind, text, count / len(texts)) for text, count in Counter(texts).items()]
