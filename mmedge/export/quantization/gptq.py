"""GPTQ (Frantar et al. 2023): quantizing a matrix column by column, each error corrected in the columns that are left.

Which errors matter is in the second moments of what the matrix is multiplied by. Scales are chosen before, block by block, so
that columns can be taken in the order of how much they matter, whatever block they are in ("static groups").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmedge.export.quantization.blocks import QuantizedMatrix, assembled, block_scales, blocks_of
from mmedge.export.quantization.formats import WeightFormat

DAMPING = 0.01  # of the mean second moment, added to all: nearly constant inputs must not blow up the inverse
_ROWS = 4096  # outputs quantized at a time
_COLUMNS = 128  # after which the remaining columns are corrected in one matrix product


def quantize_calibrated(weight: NDArray[np.float32], format_: WeightFormat, moments: NDArray[np.float32]) -> QuantizedMatrix:
    """Quantize a matrix so that its outputs change least for inputs like those seen.

    Args:
        weight: (outputs, inputs).
        format_: How weights are stored; with blocks.
        moments: (inputs, inputs), the mean of x · xᵀ.

    Returns:
        The quantized matrix.
    """
    width = weight.shape[1]
    second = moments.astype(np.float64)
    unseen = np.diag(second) <= 0
    second[unseen, unseen] = 1.0
    seen = np.diag(second).astype(np.float32)
    importance = blocks_of(np.where(unseen, 0, seen)[None].astype(np.float32) + 1e-12, format_.block)[0]
    order = np.argsort(-np.diag(second))
    damped = second[order][:, order] + DAMPING * float(np.diag(second).mean()) * np.eye(width)
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # upper: what is left after each column
    # each output is quantized by itself, so that a head with many takes no more memory than a linear layer
    parts = [
        _quantized_rows(weight[first : first + _ROWS], format_, importance, order, inverse, unseen)
        for first in range(0, len(weight), _ROWS)
    ]
    blocks, scales, zeros = (np.concatenate([part[index] for part in parts]) for index in range(3))
    return assembled(blocks, scales, zeros.astype(np.uint8), format_, width)


def _quantized_rows(
    weight: NDArray[np.float32],
    format_: WeightFormat,
    importance: NDArray[np.float32],
    order: NDArray[np.intp],
    inverse: NDArray[np.float32],
    unseen: NDArray[np.bool_],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return codes (rows, blocks, block), scales and zero points (rows, blocks) of some rows.

    Args:
        weight: (rows, inputs).
        format_: How weights are stored.
        importance: (blocks, block), the mean square of each input.
        order: (inputs,), in which order they are taken.
        inverse: (inputs, inputs), the Cholesky factor of the inverse moments, in that order.
        unseen: (inputs,), whether an input was always zero.
    """
    rows, width = weight.shape
    scales, zeros = block_scales(blocks_of(weight, format_.block), format_, importance)
    left = np.ascontiguousarray(weight[:, order].T)  # (inputs, outputs): a column of the weight is a row here
    left[unseen[order]] = 0
    codes = np.zeros((width, rows), dtype=np.uint8)
    low = 1 if format_.bits == 8 and format_.symmetric else 0
    top = (1 << format_.bits) - 1
    safe = np.where(scales == 0, 1, scales)
    for first in range(0, width, _COLUMNS):
        last = min(first + _COLUMNS, width)
        errors = np.empty((last - first, rows), dtype=np.float32)
        for place in range(first, last):
            block = int(order[place]) // format_.block
            scale, zero = safe[:, block], zeros[:, block]
            column = left[place]
            code = np.clip(np.rint(column / scale) + zero, low, top)
            codes[place] = code
            error = (column - (code - zero) * scales[:, block]) / inverse[place, place]
            errors[place - first] = error
            if place + 1 < last:
                left[place + 1 : last] -= inverse[place, place + 1 : last, None] * error[None]
        if last < width:
            left[last:] -= inverse[first:last, last:].T @ errors
    back = np.empty_like(codes)
    back[order] = codes
    count = scales.shape[1]
    padded = np.full((count * format_.block, rows), 1 << (format_.bits - 1), dtype=np.uint8)
    padded[:width] = back
    return np.ascontiguousarray(padded.T).reshape(rows, count, format_.block), scales, zeros
