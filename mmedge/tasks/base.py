"""What tasks are made of: examples, chains of thought, self-evaluations, and why a text could not be read.

An example of SVAMP, as every task holds it, and one that ends a dialogue:

    Example(id="svamp-train-0000", question="Luke scored 84 points after playing 2 rounds …", label="84 / 2")
    Example(id="7", question="and the kitchen too", label="lights; room: kitchen", turns=(
        Turn("user", "lights on in the hall"), Turn("assistant", "lights; room: hall")))
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal

LONGEST_TEXT = 1_000_000  # tokens that a student or a teacher may be asked to read or write
Role = Literal["system", "user", "assistant", "tool"]


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
class Turn:
    """What was said before a question.

    Attributes:
        role: Who said it; `system` only of the first turn.
        text: In one paragraph; an earlier answer as the student would write it.
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        id: Unique over all splits of the task.
        question: The text that is asked, without choices; of a dialogue, the last message.
        label: The human label in the task's canonical form, or None.
        choices: The texts to choose from, in order; empty where the answer is open.
        turns: What was said before, oldest first; empty where the question stands alone.
        dialogue: The dialogue that the question is a part of; questions of one dialogue are never split. Empty where it is alone.
        out_of_scope: Whether no answer of the task is right, so that the student ought to withhold its own.
    """

    id: str
    question: str
    label: str | None = None
    choices: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    dialogue: str = ""
    out_of_scope: bool = False

    def __repr__(self) -> str:  # hashes of what was made before there were dialogues come from it
        newer = ("turns", "dialogue", "out_of_scope")
        shown = [one for one in fields(self) if one.name not in newer or getattr(self, one.name)]
        return f"Example({', '.join(f'{one.name}={getattr(self, one.name)!r}' for one in shown)})"


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
