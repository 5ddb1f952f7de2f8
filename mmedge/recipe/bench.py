"""Bench: how much to measure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmedge.sections import Positive, Section


class BenchSection(Section):
    """How much to measure."""

    questions: Positive | None = None
    warmup_questions: Positive = 5
    verdicts: Annotated[int, Field(ge=0)] = 100
    threads: Positive | None = None
