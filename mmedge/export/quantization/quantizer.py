"""How each matrix of a bundle is stored: in the precision's own format, except for those that are kept finer for accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmedge.export.calibration import Observed
from mmedge.export.quantization.blocks import QuantizedMatrix, quantize_blocks, quantize_outputs
from mmedge.export.quantization.formats import FLOAT32, INT8_OUTPUTS, SMALLEST, WeightFormat
from mmedge.export.quantization.gptq import quantize_calibrated
from mmedge.export.quantization.precisions import Precision

MANY_ROWS = ("encoder.", "cross.kv")  # linear layers of these names always read many rows at once


def hash_of(weight: NDArray[np.float32]) -> str:
    """Return a hash of a matrix."""
    return hashlib.sha256(np.ascontiguousarray(weight).data).hexdigest()


@dataclass
class BundleQuantizer:
    """The quantizer of a bundle, as `builder.Quantizer` asks for it.

    Attributes:
        precision: The bundle's.
        exceptions: Matrices that are stored otherwise, by name.
        observed: What went through linear layers on calibration questions, by name, for GPTQ.
        ranges: The range of the inputs of an encoder's linear layers, by name; these are then quantized with static scales.
        recovered: Matrices whose scales were learned, by name, each with the hash of the float matrix that it stands for.
        written: What was written so far: each matrix's format and shape, by name.
    """

    precision: Precision
    exceptions: Mapping[str, WeightFormat] = field(default_factory=dict)
    observed: Mapping[str, Observed] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    recovered: Mapping[str, tuple[str, QuantizedMatrix]] = field(default_factory=dict)
    written: dict[str, tuple[WeightFormat, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def float_dtype(self) -> type[np.float32 | np.float16]:
        """The dtype of everything that is not quantized."""
        return np.float16 if self.precision.weights.bits == 16 else np.float32

    @property
    def batch_invariant(self) -> bool:
        """Whether every linear layer gives a token the same bits, however many tokens are read with it."""
        return self.precision.batch_invariant and not self.exceptions

    def weight_format(self, name: str, shape: tuple[int, ...], *, table: bool = False) -> WeightFormat:
        """Return how a matrix, (outputs, inputs), is stored.

        An encoder's linear layers take one scale per output: with 30 rows × 128 × 384 `DynamicQuantizeMatMul` takes 27 µs,
        float32 35 µs and `MatMulNBits`, which is made for few rows, 204 µs (Zen 3, one thread).

        Args:
            name: The matrix's name.
            shape: Its shape.
            table: Whether its rows are also looked up, for which blocks must fill them.
        """
        format_ = self.exceptions.get(name, self.precision.weights)
        if format_.bits == 16:
            return format_
        if format_.is_float or min(shape) < SMALLEST:
            return FLOAT32
        if table:
            format_ = replace(format_, bits=max(format_.bits, 4))  # `GatherBlockQuantized` has no 2 bits
            blocks = [block for block in (format_.block, 32, 16) if shape[1] % block == 0]
            return replace(format_, block=blocks[0]) if blocks else FLOAT32
        return INT8_OUTPUTS if name.startswith(MANY_ROWS) else format_

    def input_range(self, name: str) -> tuple[float, float] | None:
        """Return the range of a linear layer's inputs; None where it is not known."""
        return self.ranges.get(name)

    def quantize(self, name: str, weight: NDArray[np.float32], format_: WeightFormat) -> QuantizedMatrix:
        """Return a quantized matrix, (outputs, inputs)."""
        self.written[name] = (format_, weight.shape)
        if name in self.recovered:
            stands_for, matrix = self.recovered[name]
            if matrix.format == format_ and stands_for == hash_of(weight):
                return matrix
        if not format_.block:
            return quantize_outputs(weight)
        seen = self.observed.get(name)
        if self.precision.calibrated and format_.bits == self.precision.weights.bits and seen is not None:
            return quantize_calibrated(weight, format_, seen.moments)
        return quantize_blocks(weight, format_)
