"""Quantizing a matrix to few bits, block by block or output by output, and packing its codes.

Blocks lie along the input: each has a scale of its own (Dettmers et al. 2022, "The case for 4-bit precision"), so that one
outlier spoils 32 weights and not a row. ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized` read the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmedge.export.quantization.formats import INT8_OUTPUTS, WeightFormat

_SHRUNK = np.linspace(0.70, 1.0, 13)  # shares of the full range that are tried as a block's scale
_ROWS_AT_ONCE = 1 << 22  # weights quantized at a time, so that memory stays small


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix in few bits.

    Attributes:
        format: How they are stored.
        width: Inputs; the last block is padded with zeros.
        codes: Unsigned, (outputs, blocks, block · bits / 8), the low bits first; without blocks signed, (outputs, inputs).
        scales: (outputs, blocks), or (outputs,) without blocks.
        zeros: Zero points, (outputs, ⌈blocks · bits / 8⌉), packed as codes are; None where zero is the middle of the codes.
    """

    format: WeightFormat
    width: int
    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None = None

    def rows(self, kept: Sequence[int]) -> QuantizedMatrix:
        """Return some of its rows."""
        places = list(kept)
        zeros = None if self.zeros is None else self.zeros[places]
        return replace(self, codes=self.codes[places], scales=self.scales[places], zeros=zeros)

    def dequantized(self) -> NDArray[np.float32]:
        """Return the matrix that the codes stand for, (outputs, inputs)."""
        if not self.format.block:
            return self.codes.astype(np.float32) * self.scales[:, None]
        bits = self.format.bits
        codes = unpack(self.codes.view(np.uint8), bits).reshape(len(self.codes), self.scales.shape[1], self.format.block)
        zeros: NDArray[np.float32] | float = float(1 << (bits - 1))
        if self.zeros is not None:
            zeros = unpack(self.zeros, bits)[:, : self.scales.shape[1], None].astype(np.float32)
        values = (codes.astype(np.float32) - zeros) * self.scales[:, :, None]
        return np.ascontiguousarray(values.reshape(len(codes), -1)[:, : self.width])


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes of 8, 4, 2 or 1 bits packed along the last axis, the first in the low bits; a last byte is padded with zeros."""
    each = 8 // bits
    if missing := -codes.shape[-1] % each:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), dtype=np.uint8)], axis=-1)
    packed = codes[..., 0::each]
    for place in range(1, each):
        packed = (packed | (codes[..., place::each] << (place * bits))).astype(np.uint8)
    return np.ascontiguousarray(packed)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the codes of packed bytes, (…, bytes · 8 / bits)."""
    mask = (1 << bits) - 1
    codes = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return np.stack(codes, axis=-1).reshape(*packed.shape[:-1], -1)


def blocks_of(weight: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Return (rows, blocks, block) of a matrix (rows, width), padded with zeros."""
    rows, width = weight.shape
    count = -(-width // block)
    if width == count * block:
        return weight.reshape(rows, count, block)
    padded = np.zeros((rows, count * block), dtype=np.float32)
    padded[:, :width] = weight
    return padded.reshape(rows, count, block)


def as_float16(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales rounded to float16, except those that it cannot hold precisely enough."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    size = np.abs(scales)
    near = np.abs(halves - scales) <= 2.0**-11 * np.maximum(size, size.mean())
    return np.where(near, halves, scales).astype(np.float32)


def block_scales(
    grouped: NDArray[np.float32], format_: WeightFormat, importance: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale and zero point of every block, (…, blocks) each.

    In 4 bits, the scale is the one of several shares of the full range with the least squared error, where each weight counts
    as much as `importance` says: cutting the largest weights a little leaves finer steps for the others.

    Args:
        grouped: (…, blocks, block).
        format_: How weights are stored.
        importance: (blocks, block), the mean square of each input; all count the same by default.
    """
    bits = format_.bits
    top, middle = (1 << bits) - 1, float(1 << (bits - 1))
    if bits == 8 and format_.symmetric:
        scales = as_float16((np.abs(grouped).max(axis=-1) / 127).astype(np.float32))
        return scales, np.full(scales.shape, middle, dtype=np.float32)
    if format_.symmetric:  # the largest weight, whatever its sign, is the lowest code: all codes are used
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        full, low = largest / -middle, np.zeros_like(largest)
    else:
        low = np.minimum(grouped.min(axis=-1), 0)
        full = (np.maximum(grouped.max(axis=-1), 0) - low) / top
    best_scale, best_zero, least = full, np.full(full.shape, middle, dtype=np.float32), np.full(full.shape, np.inf)
    for share in _SHRUNK:
        scale = as_float16((full * share).astype(np.float32))
        safe = np.where(scale == 0, 1, scale)
        zero = np.full(full.shape, middle, dtype=np.float32)
        if not format_.symmetric:
            zero = np.clip(np.rint(-low * share / safe), 0, top).astype(np.float32)
        codes = np.clip(np.rint(grouped / safe[..., None]) + zero[..., None], 0, top)
        errors = ((codes - zero[..., None]) * scale[..., None] - grouped) ** 2
        error = (errors if importance is None else errors * importance).sum(axis=-1)
        better = error < least
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        least = np.where(better, error, least)
    return best_scale.astype(np.float32), best_zero.astype(np.float32)


def quantize_blocks(
    weight: NDArray[np.float32], format_: WeightFormat, importance: NDArray[np.float32] | None = None
) -> QuantizedMatrix:
    """Quantize a matrix to the nearest codes, block by block.

    Args:
        weight: (outputs, inputs).
        format_: How they are stored; with blocks.
        importance: (inputs,), the mean square of each input, where it is known.
    """
    width = weight.shape[1]
    weights = None if importance is None else blocks_of(importance[None], format_.block)[0]
    rows = max(1, _ROWS_AT_ONCE // max(1, width))
    parts = []
    for first in range(0, len(weight), rows):
        grouped = blocks_of(weight[first : first + rows], format_.block)
        scales, zeros = block_scales(grouped, format_, weights)
        safe = np.where(scales == 0, 1, scales)[..., None]
        low = 1 if format_.bits == 8 and format_.symmetric else 0
        codes = np.clip(np.rint(grouped / safe) + zeros[..., None], low, (1 << format_.bits) - 1)
        parts.append((codes.astype(np.uint8), scales, zeros.astype(np.uint8)))
    codes, scales, zeros = (np.concatenate([part[index] for part in parts]) for index in range(3))
    return assembled(codes.astype(np.uint8), scales, zeros.astype(np.uint8), format_, width)


def assembled(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8], format_: WeightFormat, width: int
) -> QuantizedMatrix:
    """Return a matrix of codes (outputs, blocks, block), scales and zero points (outputs, blocks), packed."""
    kept = None if format_.symmetric else pack(zeros, format_.bits)
    return QuantizedMatrix(format_, width, pack(codes, format_.bits), scales, kept)


def quantize_outputs(weight: NDArray[np.float32]) -> QuantizedMatrix:
    """Quantize the rows of a matrix (outputs, inputs) to 7 bits, from -63 to 63, one scale each.

    Where products of int8 are added in pairs in 16 bits (AVX2 without VNNI), 8 bits would overflow.
    """
    scales = (np.abs(weight).max(axis=1) / 63).astype(np.float32)
    codes = np.rint(weight / np.where(scales == 0, 1, scales)[:, None])
    return QuantizedMatrix(INT8_OUTPUTS, weight.shape[1], codes.astype(np.int8), scales)
