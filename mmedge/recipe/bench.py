"""Bench: how much to measure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmedge.sections import Positive, Section, Threads


class BenchSection(Section):
    """How much `mmedge bench RUN` and `mmedge quickstart` measure; the command line overrides it."""

    questions: Positive | None = Field(default=None, description="Questions of each test split. Default: all.")
    warmup_questions: Positive = Field(default=5, description="Questions of one warm-up pass, repeated until it gets no faster.")
    verdicts: Annotated[int, Field(ge=0)] = Field(default=100, description="Held-out chains of thought that each variant judges.")
    threads: Threads | None = Field(
        default=None, description="Threads of each variant. Default: what a bundle asks for, else all usable cores."
    )
