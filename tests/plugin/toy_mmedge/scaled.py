"""An architecture: a Llama whose embeddings are multiplied by 2 when they are looked up, with a head of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from mmedge.export.architectures import Architecture
from mmedge.export.architectures.decoder import DecoderShape
from mmedge.export.architectures.llama import LLAMA
from mmedge.export.builder import Quantizer, WrittenGraphs
from mmedge.export.weights import Weights

EMBEDDING = "model.embed_tokens.weight"


class ToyScaledConfig(transformers.LlamaConfig):  # type: ignore[misc]
    model_type = "toy_scaled"


class _ScaledEmbedding(torch.nn.Embedding):  # type: ignore[misc]
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


class ToyScaledForCausalLM(transformers.LlamaForCausalLM):  # type: ignore[misc]
    config_class = ToyScaledConfig

    def __init__(self, config: ToyScaledConfig) -> None:
        super().__init__(config)
        self.model.embed_tokens = _ScaledEmbedding(config.vocab_size, config.hidden_size)
        self.post_init()


transformers.AutoConfig.register("toy_scaled", ToyScaledConfig)
transformers.AutoModelForCausalLM.register(ToyScaledConfig, ToyScaledForCausalLM)


class _ScaledWeights(Mapping[str, NDArray[np.float32]]):
    """Weights whose embedding is scaled."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        found = self._weights[name]
        return found * np.float32(2) if name == EMBEDDING else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def read_shape(config: Mapping[str, Any]) -> DecoderShape:
    return LLAMA.read_shape({**config, "model_type": "llama"})


def write_graphs(shape: DecoderShape, weights: Weights, out: Path, quantizer: Quantizer | None = None) -> WrittenGraphs:
    return LLAMA.write_graphs(shape, _ScaledWeights(weights), out, quantizer)


ARCHITECTURE = Architecture("decoder-only", read_shape, LLAMA.linears, write_graphs)
