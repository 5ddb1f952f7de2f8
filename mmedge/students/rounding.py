"""Quantization known in training: layers multiply by rounded weights, and gradients pass through to the weights behind them.

    rounding = Rounding(model, "int4")     linear layers and tables compute with rounded weights from now on
    rounding.refresh()                     after each change of the weights
    rounding.settle()                      the rounded weights become the weights, so that export finds the same codes

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): forward rounded, backward as if it were not. Blocks and codes
are those of `export.quantization`, with the whole range of each block as its scale: its largest weight has the lowest code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding, linear

from mmedge.export.quantization.formats import INT4, SMALLEST, WeightFormat
from mmedge.export.quantization.precisions import PRECISIONS


def rounded(weight: torch.Tensor, format_: WeightFormat) -> torch.Tensor:
    """Return a matrix rounded to the nearest codes of its blocks.

    Args:
        weight: (outputs, inputs).
        format_: In blocks, and symmetric.
    """
    outputs, width = weight.shape
    missing = -width % format_.block
    padded = torch.nn.functional.pad(weight, (0, missing)) if missing else weight
    blocks = padded.reshape(outputs, -1, format_.block)
    middle = float(1 << (format_.bits - 1))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = _as_float16(largest / -middle)
    codes = (blocks / scales.where(scales != 0, 1)).round().clamp(-middle, middle - 1)
    return (codes * scales).reshape(outputs, -1)[:, :width]


def _as_float16(scales: torch.Tensor) -> torch.Tensor:
    """Return scales rounded to float16, except those that it cannot hold precisely enough."""
    halves, size = scales.half().to(scales.dtype), scales.abs()
    near = (halves - scales).abs() <= 2.0**-11 * size.maximum(size.mean())
    return halves.where(near, scales)


class Rounding:
    """Lets a model compute with rounded weights.

    Args:
        model: Changed in place; its parameters stay what they are, and are trained.
        precision: `int4` or `int2`; tables are in int4 either way.
    """

    def __init__(self, model: Any, precision: str) -> None:
        weights = PRECISIONS[precision].weights
        self._modules: list[tuple[Any, WeightFormat]] = []
        tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
        finer = _in_eight_bits(model)
        for module in model.modules():
            if id(module) in finer:
                continue
            table = isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and id(module.weight) in tables
            if (table or isinstance(module, torch.nn.Linear)) and min(module.weight.shape) >= SMALLEST:
                self._modules.append((module, INT4 if table else weights))
        self.refresh()
        for module, _ in self._modules:
            module.forward = partial(_FORWARD[isinstance(module, torch.nn.Embedding)], module)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def refresh(self) -> None:
        """Round the weights as they are now."""
        found: dict[int, torch.Tensor] = {}
        for module, format_ in self._modules:
            if id(module.weight) not in found:
                found[id(module.weight)] = rounded(module.weight, format_) - module.weight
            module.to_rounded = found[id(module.weight)]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def settle(self) -> None:
        """Make the rounded weights the model's, and let it compute as it did."""
        settled: set[int] = set()
        for module, format_ in self._modules:
            if id(module.weight) not in settled:
                settled.add(id(module.weight))
                module.weight.copy_(rounded(module.weight, format_))
            del module.forward, module.to_rounded
        self._modules = []


def _in_eight_bits(model: Any) -> set[int]:
    """Return the modules that every precision of few bits writes in 8: those of an encoder, and what reads its states."""
    if not model.config.is_encoder_decoder:
        return set()
    read = [block.layer[1].EncDecAttention for block in model.get_decoder().block]
    kept = [*model.get_encoder().block.modules(), *(module for one in read for module in (one.k, one.v))]
    return set(map(id, kept))


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight + module.to_rounded, module.bias)


def _embedding(module: Any, ids: torch.Tensor) -> torch.Tensor:
    return embedding(ids, module.weight + module.to_rounded, module.padding_idx)


_FORWARD: dict[bool, Callable[..., torch.Tensor]] = {False: _linear, True: _embedding}
