"""How a step's lessons are cut into passes, and shared out among processes. It changes memory and speed, never the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmedge.distill.streams import Group
from mmedge.students.encoded import EncodedLesson, padded_tokens
from mmedge.tasks.encoding import Family


def flattened(groups: Sequence[Group]) -> list[EncodedLesson]:
    """Return the lessons of some groups."""
    return [lesson for group in groups for lesson in group]


def tokens_of(group: Iterable[EncodedLesson]) -> int:
    """Return how many tokens a group's lessons have."""
    return sum(lesson.tokens for lesson in group)


def share_out(groups: Sequence[Group], count: int) -> list[list[Group]]:
    """Share groups out among processes so that each has about as many tokens: the longest first, back and forth."""
    if count == 1:
        return [list(groups)]
    shares: list[list[Group]] = [[] for _ in range(count)]
    for place, group in enumerate(sorted(groups, key=lambda one: -tokens_of(one))):
        turn, position = divmod(place, count)
        shares[position if turn % 2 == 0 else count - 1 - position].append(group)
    return shares


def micro_batches(
    groups: Sequence[Group], family: Family, max_tokens: int, pass_cost: int, *, packed: bool = False, branches: bool = True
) -> list[list[Group]]:
    """Cut a batch into passes of similar length so that the least is computed, padding and passes counted.

    On SVAMP with SmolLM2 a batch of 16 in one pass was 30 to 70 % padding; cut so, it is under 10 %, and 108 tokens/s became
    138 to 155.

    Args:
        groups: The batch.
        family: How lessons are padded.
        max_tokens: No pass has more padded tokens, unless it is a single group.
        pass_cost: What one more pass costs, in tokens.
        packed: Padding is laid out but not computed: it counts for `max_tokens` alone.
        branches: Whether a lesson's targets share its context, as they do but for recurrent students.
    """
    ordered = sorted(groups, key=tokens_of)
    cheapest = [0.0] + [float("inf")] * len(ordered)  # of the first n groups
    cut = [0] * (len(ordered) + 1)
    for start in range(len(ordered)):
        for end in range(start + 1, len(ordered) + 1):
            lessons = flattened(ordered[start:end])
            padded = padded_tokens(lessons, family, branches=branches)
            if padded > max_tokens and end > start + 1:
                break
            computed = sum(lesson.tokens for lesson in lessons) if packed else padded
            if cheapest[start] + computed + pass_cost < cheapest[end]:
                cheapest[end], cut[end] = cheapest[start] + computed + pass_cost, start
    passes: list[list[Group]] = []
    end = len(ordered)
    while end:
        passes.append(ordered[cut[end] : end])
        end = cut[end]
    return passes[::-1]
