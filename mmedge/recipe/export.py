"""Export: which precisions, and how close they must be to the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmedge.sections import Positive, Section


class ExportSection(Section):
    """Which precisions to write, who writes the graphs, and how close they must be to the student.

    `bnb-int8` and `bnb-nf4` are no graphs but torch students rounded by bitsandbytes, for small GPUs. `graphs`: `fused` are
    mmedge's own (T5, and Llama-type decoders), `optimum` is any architecture that optimum knows; `auto` takes fused ones where
    there are any. `max_accuracy_drop` is in points, on `verify_questions` validation questions (all by default); matrices that
    cost more stay in finer numbers. `trim_vocab` keeps only the pieces that the task needs.
    """

    precisions: tuple[Literal["fp32", "fp16", "int8", "int4", "bnb-int8", "bnb-nf4"], ...] = ("fp32", "int8")
    graphs: Literal["auto", "fused", "optimum"] = "auto"
    verify_questions: Positive | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0)] = 1.0
    trim_vocab: bool = False
