"""Weight formats: the dtype a matrix is stored in, and which of its weights share a scale. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 32  # the finest block that is fast on every CPU; finer blocks follow outliers better
SMALLEST = 32  # matrices with fewer rows or columns stay in float32: there is nothing to gain


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is stored.

    Attributes:
        bits: 32 for float32, 16 for float16, fewer for integers: 8, 4, or what `blocks.pack` packs.
        block: Weights along the input that share a scale; 0 for one scale per output.
        symmetric: Whether zero has a fixed code; otherwise each block also has a zero point.
    """

    bits: int
    block: int = BLOCK
    symmetric: bool = True

    def __str__(self) -> str:
        return f"float{self.bits}" if self.is_float else f"int{self.bits}"

    @property
    def is_float(self) -> bool:
        """Whether weights are stored as they are, and not as codes and scales."""
        return self.bits >= 16


FLOAT32 = WeightFormat(32)
FLOAT16 = WeightFormat(16)
INT8 = WeightFormat(8, 64)
INT4 = WeightFormat(4)
INT2 = WeightFormat(2)
INT8_OUTPUTS = WeightFormat(8, 0)  # for `DynamicQuantizeMatMul`
