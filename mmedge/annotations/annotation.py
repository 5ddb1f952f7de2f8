"""An annotation: a chain of thought or a self-evaluation, raw, with who wrote it.

    {"example_id": "svamp-train-0000", "kind": "cot", "sample": 0, "evaluation": 0, "text": "Luke scored 84 points after …",
     "verdict": None, "teacher": "palm-540b", "origin": "teacher_cots.jsonl:1"}

Nothing is parsed when it is written: raw text goes to the store, and meaning is read from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
