"""The synthesis section of a recipe: new questions that the teacher writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmedge.sections import PathText, Positive, Section, Share, TokenLimit

MOST = 100_000  # new questions of a run
STYLES = (
    "plain and short",
    "one full, polite sentence",
    "casual, as in a chat message",
    "as spoken, with a filler word or two",
    "terse, with as few words as possible",
    "formal",
    "indirect: it says what is needed rather than what to do",
    "with an everyday detail that changes nothing",
    "by somebody who is in a hurry",
    "with unusual names and values",
)


class SynthesisSection(Section):
    """What `mmedge synthesize` asks the teacher for: new questions, which join the training questions."""

    count: Positive = Field(
        default=400, le=MOST, description="New questions, balanced over labels or functions where the form has them."
    )
    file: PathText | None = Field(
        default=None,
        description="JSON lines of new questions that join the training questions, such as another run's. Default: "
        "`synthesized.jsonl` of the run, where `mmedge synthesize` writes them.",
    )
    shown: Positive = Field(default=3, description="Training questions that one request shows, in rotation.")
    similarity: Annotated[Share, Field(gt=0)] = Field(
        default=0.7,
        description="A new question is refused if the Jaccard similarity of its character trigrams with those of a training "
        "question, a test or validation question, or another new one is at least this.",
    )
    agree: bool = Field(
        default=True,
        description="Whether a new question is learned only where its answer is of the label or function that it was written for; "
        "nothing is known about the others but that the teacher contradicts itself.",
    )
    attempts: Annotated[float, Field(ge=1)] = Field(
        default=3.0, description="How many questions of each label or function may be requested for each one that is wanted."
    )
    styles: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=STYLES, min_length=1, description="How questions are worded, in words for the teacher; they take turns."
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Sampling temperature, in place of the teacher's own; 0 repeats itself."
    )
    max_tokens: TokenLimit = Field(default=256, description="Longest text of the teacher, in tokens.")
    prompt: PathText | None = Field(
        default=None,
        description="Template of your own; `mmedge synthesize RECIPE --copy-prompts FOLDER` writes the built-in one to start from.",
    )
    seed: int = Field(default=0, description="Random seed of which labels, arguments, styles and lengths are asked for.")
