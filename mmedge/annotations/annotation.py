"""What a teacher is: something that writes chains of thought, and evaluations of them, as raw text.

    {"example_id": "svamp-train-0000", "kind": "cot", "sample": 0, "evaluation": 0, "text": "Luke scored 84 points after …",
     "verdict": None, "teacher": "palm-540b", "origin": "teacher_cots.jsonl:1"}

A teacher works on many questions at a time and yields annotations in any order, so that one that waits for a network or fills
a GPU can have as many in flight as it likes. It never parses: raw text goes to the store, and meaning is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mmedge.tasks import Example


@dataclass(frozen=True)
class Annotation:
    """One chain of thought or self-evaluation, as the teacher wrote it.

    Attributes:
        example_id: Which question it is about.
        kind: `cot` or `evaluation`.
        sample: The number of the chain of thought, from 0.
        evaluation: The number of the self-evaluation of that chain of thought, from 0; 0 for a chain of thought.
        text: The raw text.
        verdict: The verdict where the teacher gave it apart from the text, raw; else None.
        teacher: Who wrote it.
        origin: Where it comes from, such as file and line, or a seed.
    """

    example_id: str
    kind: Literal["cot", "evaluation"]
    sample: int
    evaluation: int
    text: str
    verdict: str | None
    teacher: str
    origin: str


class Teacher(Protocol):
    """A source of annotations."""

    def fingerprint(self) -> str:
        """Return a hash of everything that decides what this teacher writes."""
        ...

    def chains_of_thought(self, examples: Sequence[Example]) -> Iterator[Annotation]:
        """Yield m chains of thought for every example, in any order.

        Raises:
            MmedgeError: The teacher cannot be reached or its record is broken.
        """
        ...

    def self_evaluations(self, cots: Sequence[tuple[Example, Annotation]]) -> Iterator[Annotation]:
        """Yield n self-evaluations for every chain of thought, in any order."""
        ...
