"""A problem of the embedded task, whatever grammar wrote it: its text, and the operations that solve it."""

from __future__ import annotations

from dataclasses import dataclass

from mmedge.tasks.expressions import Expression, leaf, operation

DISTRACTOR_SHARE = 0.2


@dataclass(frozen=True)
class SolutionStep:
    """One operation of the solution; an operand that is the result of the step before is None."""

    operator: str
    left: int | None
    right: int | None
    part: str


@dataclass(frozen=True)
class Problem:
    """A generated problem with everything that a teacher needs to explain it.

    Attributes:
        text: The question.
        steps: The operations that solve it, in order; one or two.
        thing: What is counted, in the plural.
        person: Whose it is.
        distractor: The number that is not needed, or None.
        patterns: The ids of its sentence patterns (version 2).
    """

    text: str
    steps: tuple[SolutionStep, ...]
    thing: str
    person: str
    distractor: int | None
    patterns: tuple[str, ...] = ()

    @property
    def expression(self) -> Expression:
        """The solution in the problem's own numbers."""
        return solve(self.steps)


def solve(steps: tuple[SolutionStep, ...]) -> Expression:
    """Return the expression that a chain of steps computes."""
    result = leaf(0)
    for step in steps:
        left = result if step.left is None else leaf(step.left)
        right = result if step.right is None else leaf(step.right)
        result = operation(step.operator, left, right)
    return result
