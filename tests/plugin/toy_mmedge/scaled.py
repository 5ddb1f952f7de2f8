"""An architecture: a Llama whose embeddings are multiplied by 2 when they are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers

from mmedge.export.architectures.decoder import DecoderShape, decoder_only
from mmedge.export.architectures.llama import describe as describe_llama


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


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config; whatever a Llama's graph does not implement is refused there."""
    return replace(describe_llama({**config, "model_type": "llama"}), embedding_multiplier=2.0)


ARCHITECTURE = decoder_only(describe, packed=True)
