"""What tasks are made of: examples, chains of thought, self-evaluations, and why a text could not be read.

An example of SVAMP, as every task holds it:

    Example(id="svamp-train-0000", question="Luke scored 84 points after playing 2 rounds …", label="84 / 2")
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a self-evaluation concludes about a chain of thought."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNCERTAIN = "uncertain"


class Unparsed(StrEnum):
    """Why a teacher's text could not be read."""

    EMPTY = "empty"
    NO_ANSWER = "no answer found"
    AMBIGUOUS = "more than one answer"
    TRUNCATED = "cut off"
    INVALID = "not a valid answer"
    NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        id: Unique over all splits of the task.
        question: The text that is asked, without choices.
        label: The human label in the task's canonical form, or None.
        choices: The texts to choose from, in order; empty where the answer is open.
    """

    id: str
    question: str
    label: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChainOfThought:
    """A rationale and the pseudo-label that it ends in, as parsed from the teacher's text."""

    rationale: str
    pseudo_label: str


@dataclass(frozen=True)
class SelfEvaluation:
    """The judgement of one chain of thought: a rationale and a verdict."""

    rationale: str
    verdict: Verdict
