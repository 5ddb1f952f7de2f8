"""Precisions: what `mmedge export --int8` and its like write. Adding one takes one entry, and packing code for a new bit width.

    PRECISIONS["int4"].folder      bundle-int4
    list(PRECISIONS)               the names, for recipes and the command line

An installed package adds one by an entry point `precisions.NAME` whose value is a `Precision`. Imports nothing heavy: recipes and
the command line read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmedge.export.quantization.formats import FLOAT16, FLOAT32, INT2, INT4, INT8, INT8_OUTPUTS, WeightFormat
from mmedge.registry import Registry


@dataclass(frozen=True)
class Precision:
    """One way to export a student.

    Attributes:
        name: What recipes, the command line and folders call it; that of its entry in the registry.
        description: One line for help texts.
        weights: How linear layers and tables are stored.
        artifact: `bundle`: ONNX graphs. `student`: a torch student in Hugging Face format, quantized by bitsandbytes.
        device: What it is meant for.
        arithmetic: What linear layers are computed in.
        least_agreement: The share of answer tokens for which it must choose what the student chooses; None for a precision that
            must give the same answers, with logits within float32's rounding.
        finer: The precision whose format a layer gets that costs too much accuracy; None where there is no finer one.
        calibrated: Whether weights are quantized by GPTQ, where there are calibration questions.
        batch_invariant: Whether its linear layers give a token the same bits, however many tokens are read with it.
        recovers: Whether weights learn their scales from the student in any case, unless that is switched off.
        costs_of: The precision by whose quantization errors layers are ranked; its own by default.
    """

    name: str
    description: str
    weights: WeightFormat
    artifact: Literal["bundle", "student"] = "bundle"
    device: Literal["cpu", "cuda"] = "cpu"
    arithmetic: Literal["float32", "int8"] = "float32"
    least_agreement: float | None = None
    finer: str | None = None
    calibrated: bool = False
    batch_invariant: bool = False
    recovers: bool = False
    costs_of: str | None = None

    @property
    def finer_weights(self) -> WeightFormat | None:
        """The format of layers that cost too much accuracy; None where there is no finer one."""
        return PRECISIONS[self.finer].weights if self.finer else None

    @property
    def folder(self) -> str:
        """The folder that export writes."""
        return f"{self.artifact}-{self.name}"


FP32 = Precision("fp32", "ONNX in float32, as exact as the student.", FLOAT32)
FP16 = Precision("fp16", "ONNX in float16, for GPUs.", FLOAT16, device="cuda", least_agreement=0.99)
INT8_PRECISION = Precision(
    "int8",
    "ONNX with weights in int8, for CPUs.",
    INT8,
    arithmetic="int8",
    least_agreement=0.95,
    finer="fp32",
    batch_invariant=True,  # 8-bit `MatMulNBits` is; 4-bit ones have other kernels for one token than for several
)
INT4_PRECISION = Precision(
    "int4",
    "ONNX with weights in int4, for CPUs with little memory.",
    INT4,
    arithmetic="int8",
    least_agreement=0.90,
    finer="int8",
    calibrated=True,
)
INT2_PRECISION = Precision(
    "int2",
    "ONNX with weights in int2 whose scales are learned from the student, for the smallest files; tables in int4.",
    INT2,
    arithmetic="int8",
    least_agreement=0.80,
    finer="int4",
    calibrated=True,
    recovers=True,
)
BNB_INT8 = Precision(
    "bnb-int8",
    "A torch student with weights in int8 by bitsandbytes, for small GPUs.",
    INT8_OUTPUTS,
    artifact="student",
    device="cuda",
    least_agreement=0.95,
    finer="fp16",
    costs_of="int8",
)
BNB_NF4 = Precision(
    "bnb-nf4",
    "A torch student with weights in 4-bit NormalFloat by bitsandbytes, for small GPUs.",
    WeightFormat(4, 64),
    artifact="student",
    device="cuda",
    least_agreement=0.90,
    finer="fp16",
    costs_of="int4",
)

PRECISIONS: Registry[Precision] = Registry(
    "precisions",
    {
        "fp32": f"{__name__}:FP32",
        "fp16": f"{__name__}:FP16",
        "int8": f"{__name__}:INT8_PRECISION",
        "int4": f"{__name__}:INT4_PRECISION",
        "int2": f"{__name__}:INT2_PRECISION",
        "bnb-int8": f"{__name__}:BNB_INT8",
        "bnb-nf4": f"{__name__}:BNB_NF4",
    },
)
