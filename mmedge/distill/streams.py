"""Lessons in tokens, step by step: which lessons a step learns, in an order that seed, stage and epoch alone decide."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmedge.distill.lessons import Lesson, Segment, Target
from mmedge.distill.objectives import Objective
from mmedge.errors import MmedgeError
from mmedge.students.encoded import EncodedLesson, EncodedSegment, EncodedTarget
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.prompts import Context

VERDICT_REST = 0.1  # the weight of a verdict's other tokens, its end among them, as a share of the one that tells it apart

Group = tuple[EncodedLesson, ...]  # lessons that go through the model together: one, or as many as the objective says


@dataclass(frozen=True)
class LessonStream:
    """What a stage learns from one objective.

    Attributes:
        name: The objective's, for errors.
        objective: Writes the lessons and adds up their losses.
        batch: How many lessons a step takes.
        share: The weight of its loss in the step's.
        prefix: Stands in front of the names of its losses in the log.
    """

    name: str
    objective: Objective
    batch: int
    share: float
    prefix: str = ""

    def factors(self, totals: dict[str, float]) -> dict[str, float]:
        """Return what each part's sum is multiplied by in the step's loss; a part without any leaves its weight to the others."""
        weights = self.objective.weights()
        present = {part: weight for part, weight in weights.items() if totals[part] > 0}
        whole = sum(present.values()) or 1.0
        return {part: self.share * (present[part] / whole / totals[part] if part in present else 0.0) for part in weights}


def epoch_order(count: int, seed: int, stage: str, epoch: int) -> list[int]:
    """Return a shuffled order of `count` lessons that depends on seed, stage and epoch alone."""
    order = list(range(count))
    random.Random(f"{seed}/{stage}/{epoch}").shuffle(order)
    return order


class EncodedStream:
    """A stream's lessons by step, each encoded once.

    Args:
        stream: What is learned.
        encoder: The student's prompts.
        max_target_tokens: Longer targets are cut.
        seed: The recipe's seed.
        name: Decides with the seed in which order lessons come.

    Raises:
        MmedgeError: It has no lessons, or not a whole number of groups.
    """

    def __init__(self, stream: LessonStream, encoder: PromptEncoder, max_target_tokens: int, seed: int, name: str) -> None:
        self.stream, self._encoder, self._limit, self._seed, self._name = stream, encoder, max_target_tokens, seed, name
        self._size = stream.objective.group
        self._epoch = -1
        self._lessons: Sequence[Lesson] = ()
        self._order: list[int] = []
        self._encoded: dict[Lesson, EncodedLesson] = {}
        lessons = len(stream.objective.lessons(0))
        if lessons % self._size:
            raise MmedgeError(f"objective {stream.name}: its {lessons} lessons cannot be divided into groups of {self._size}")
        if not lessons:
            raise MmedgeError(
                f"{name.partition('/')[0]}: nothing to learn for the objective {stream.name}",
                "check that the annotations match the task's questions",
            )
        self._count = lessons // self._size
        self._per_step = max(1, round(stream.batch / self._size))
        self.per_epoch = math.ceil(self._count / self._per_step)

    def batch(self, step: int) -> list[Group]:
        """Return the lessons of a step, from 0; every step has as many: an epoch's last ones are followed by the next's first."""
        found: list[Group] = []
        while len(found) < self._per_step:
            epoch, place = divmod(step * self._per_step + len(found), self._count)
            if epoch != self._epoch:
                self._epoch, self._lessons = epoch, self.stream.objective.lessons(epoch)
                self._order = epoch_order(self._count, self._seed, self._name, epoch)
            chosen = self._order[place : place + self._per_step - len(found)]
            found += [tuple(map(self._encode, self._group(self._lessons, number))) for number in chosen]
        return found

    def _group(self, lessons: Sequence[Lesson], number: int) -> Sequence[Lesson]:
        return lessons[number * self._size : (number + 1) * self._size]

    def _encode(self, lesson: Lesson) -> EncodedLesson:
        if lesson not in self._encoded:
            self._encoded[lesson] = encode_lesson(lesson, self._encoder, self._limit)
        return self._encoded[lesson]

    # ----------------------------------------------------------------------------------------- the reference pass

    def distinct(self, steps: int) -> list[EncodedLesson]:
        """Return every lesson of the epochs that so many steps visit, once, always in the same order."""
        for epoch in range(math.ceil(steps * self._per_step / self._count)):
            for lesson in self.stream.objective.lessons(epoch):
                self._encode(lesson)
        return list(self._encoded.values())

    def refer(self, values: Sequence[float]) -> None:
        """Give every target of what `distinct` returned its log-probability under the weights that the stage begins with."""
        rest: Iterator[float] = iter(values)
        for lesson, encoded in self._encoded.items():
            self._encoded[lesson] = replace(encoded, reference=tuple(next(rest) for _ in encoded.targets))


def encode_lesson(lesson: Lesson, encoder: PromptEncoder, max_target_tokens: int) -> EncodedLesson:
    """Turn a lesson into tokens."""
    targets = tuple(_encode_target(target, lesson.context, encoder, max_target_tokens) for target in lesson.targets)
    return EncodedLesson(encoder.context(lesson.context), targets)


def _encode_target(target: Target, context: Context, encoder: PromptEncoder, max_target_tokens: int) -> EncodedTarget:
    """Return a target in tokens; its last segment has the end token, and all of it is cut at the limit."""
    segments: list[EncodedSegment] = []
    room = max_target_tokens
    for left, segment in zip(reversed(range(len(target.segments))), target.segments, strict=True):
        ids = encoder.target(segment.text, room + (left > 0))
        if left:
            ids = [token for token in ids if token != encoder.special.eos][:room]
        segments += _encoded_segments(segment, ids, encoder)
        room -= len(ids)
    return EncodedTarget(target.kind, encoder.begun(target.kind, context, target.control), tuple(segments))


def _encoded_segments(segment: Segment, ids: Sequence[int], encoder: PromptEncoder) -> list[EncodedSegment]:
    """Return a text in tokens; of a verdict, the token that tells it apart, which is all that is ever read, apart from the rest."""
    whole = EncodedSegment(tuple(ids), segment.weight, segment.part, segment.expected)
    if segment.differs_from:
        place = _first_difference(ids, [encoder.target(text, len(ids)) for text in segment.differs_from])
        read = replace(whole, weight=0.0, expected=None)
        pieces = [replace(read, ids=whole.ids[:place]), replace(whole, ids=whole.ids[place : place + 1])]
        return [one for one in (*pieces, replace(read, ids=whole.ids[place + 1 :])) if one.ids]
    if not segment.verdict:
        return [whole]
    place = len(encoder.verdict_tokens()[0])
    expected = segment.weight if segment.expected is None else segment.expected
    rest = replace(whole, weight=segment.weight * VERDICT_REST, expected=expected * VERDICT_REST)
    cut = (
        replace(rest, ids=whole.ids[:place]),
        replace(whole, ids=whole.ids[place : place + 1]),
        replace(rest, ids=whole.ids[place + 1 :]),
    )
    return [one for one in cut if one.ids]


def _first_difference(ids: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """Return the place of the first token that no other sequence with the same beginning goes on with."""
    place, left = 0, [list(one) for one in others]
    while place < len(ids) and (left := [one for one in left if one[place : place + 1] == [ids[place]]]):
        place += 1
    return place
