"""Which numbers each matrix of a bundle is kept in: the precision's own, but for the exceptions that accuracy asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmedge.export.calibration import Observed
from mmedge.export.quantization.formats import (
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    INT8_OUTPUTS,
    SMALLEST,
    NumberFormat,
    RoundedMatrix,
    round_blocks,
    round_outputs,
)
from mmedge.export.quantization.gptq import round_calibrated

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
FORMATS: dict[Precision, NumberFormat] = {"fp32": FLOAT32, "fp16": FLOAT16, "int8": INT8, "int4": INT4}
HIGHER: dict[str, NumberFormat] = {"int4": INT8, "int8": FLOAT32}  # what a matrix that hurts is kept in instead
MEANT_FOR: dict[Precision, Literal["cpu", "cuda"]] = {"fp32": "cpu", "fp16": "cuda", "int8": "cpu", "int4": "cpu"}
MANY_ROWS = ("encoder.", "cross.kv")  # products of these names always read many rows at once


@dataclass
class Numbers:
    """The rounding of a bundle, as `builder.Rounding` asks for it.

    Attributes:
        precision: The bundle's.
        exceptions: Matrices that are kept in other numbers, by name.
        observed: What went through products on calibration questions, by name; int4 is then rounded by GPTQ.
        ranges: Between which numbers the inputs of an encoder's products lie, by name; those are then rounded to fixed steps.
        written: What was written so far: each matrix's numbers and size, by name.
    """

    precision: Precision
    exceptions: Mapping[str, NumberFormat] = field(default_factory=dict)
    observed: Mapping[str, Observed] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    written: dict[str, tuple[NumberFormat, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def floats(self) -> type[np.float32 | np.float16]:
        """What everything is computed in that is not rounded to few bits."""
        return np.float16 if self.precision == "fp16" else np.float32

    @property
    def steps_alike(self) -> bool:
        """Whether a product gives the same bits for a row, however many rows are read with it: 8-bit `MatMulNBits` does."""
        return self.precision == "int8" and not self.exceptions

    def number_format(self, name: str, shape: tuple[int, ...], *, table: bool = False) -> NumberFormat:
        """Return the numbers of a matrix, (outputs, inputs).

        An encoder's products take one scale for each output: with 30 rows × 128 × 384 `DynamicQuantizeMatMul` takes 27 µs,
        float32 35 µs and `MatMulNBits`, which is made for few rows, 204 µs (Zen 3, one thread).

        Args:
            name: What is computed with it.
            shape: Its shape.
            table: Whether its rows are also looked up, for which blocks must fill them.
        """
        format_ = self.exceptions.get(name, FORMATS[self.precision])
        if format_.bits == 16:
            return format_
        if format_.bits == 32 or min(shape) < SMALLEST:
            return FLOAT32
        if table:
            blocks = [block for block in (format_.block, 32, 16) if shape[1] % block == 0]
            return replace(format_, block=blocks[0]) if blocks else FLOAT32
        return INT8_OUTPUTS if name.startswith(MANY_ROWS) else format_

    def input_range(self, name: str) -> tuple[float, float] | None:
        """Return between which numbers the inputs of a product lie; None where that is not known."""
        return self.ranges.get(name)

    def rounded(self, name: str, weight: NDArray[np.float32], format_: NumberFormat) -> RoundedMatrix:
        """Return a matrix in numbers of few bits."""
        self.written[name] = (format_, weight.shape)
        if not format_.block:
            return round_outputs(weight)
        seen = self.observed.get(name)
        if format_.bits == 4 and seen is not None:
            return round_calibrated(weight, format_, seen.moments)
        return round_blocks(weight, format_)
