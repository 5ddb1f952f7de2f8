"""Export: which precisions, and how close they must be to the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmedge.sections import NameOf, Positive, Section


class ExportSection(Section):
    """Which precisions to write, who writes the graphs, and how close they must be to the student."""

    precisions: tuple[Annotated[str, NameOf("mmedge.export.quantization.precisions:PRECISIONS")], ...] = Field(
        default=("fp32", "int8"),
        description="What to write: fp32, fp16, int8 and int4 are ONNX bundles, bnb-int8 and bnb-nf4 torch students quantized by "
        "bitsandbytes, for small GPUs; installed packages may add others.",
    )
    graphs: Literal["auto", "fused", "transformers", "optimum"] = Field(
        default="auto",
        description="Who writes ONNX graphs: fused, which are mmedge's own (T5, and Llama-type decoders); transformers, whose "
        "exporter knows other decoder-only models; or optimum, in an environment of its own. auto takes the first that can.",
    )
    verify_questions: Positive | None = Field(
        default=None, description="Validation questions on which exports are compared with the student. Default: all."
    )
    max_accuracy_drop: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="Percentage points of accuracy on validation questions that an export may lose, though one answer always may "
        "where the right answers' probability holds; layers that cost more are kept in a finer format.",
    )
    recover: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether quantized layers learn their scales from the float student, on texts that it writes itself: always,"
        " never, or where int4 and int2 would lose too much accuracy.",
    )
    recover_minutes: Annotated[float, Field(gt=0)] = Field(default=30.0, description="The longest that this may take.")
    int8_cache: bool = Field(
        default=False,
        description="Let the native engine keep keys and values in int8 instead of float16, in quantized bundles whose accuracy "
        "holds with it; ONNX Runtime keeps float32.",
    )
    trim_vocab: bool = Field(default=False, description="Keep only the tokens that the task needs.")
