"""An architecture: a Llama whose embeddings are multiplied by 2 when they are looked up, with a head of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.export.architectures import Architecture
from mmedge.export.architectures.llama import LLAMA, LlamaShape
from mmedge.export.builder import Quantizer, WrittenGraphs
from mmedge.export.weights import Weights

EMBEDDING = "model.embed_tokens.weight"


class _Scaled:
    """Weights whose embedding is scaled."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        found = self._weights[name]
        return found * np.float32(2) if name == EMBEDDING else found


def read_shape(config: Mapping[str, Any]) -> LlamaShape:
    return LLAMA.read_shape({**config, "model_type": "llama"})


def write_graphs(shape: LlamaShape, weights: Weights, out: Path, quantizer: Quantizer | None = None) -> WrittenGraphs:
    return LLAMA.write_graphs(shape, _Scaled(weights), out, quantizer)


ARCHITECTURE = Architecture("decoder-only", read_shape, LLAMA.linears, write_graphs)
