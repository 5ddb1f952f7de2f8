"""Small decoder-only students with random weights, exported in every precision, for tests of the native engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from mmedge.export.graphs import write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.manifest import Bundle
from mmedge.tasks.encoding import SpecialTokens
from tests.bundles import bundle_of

VOCABULARY = 301  # no multiple of what kernels take at once
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": False}),  # with biases
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": 7}),
}
KINDS = tuple(_MODELS)


@dataclass(frozen=True)
class Exported:
    """A student in torch, and its bundle."""

    model: Any
    bundle: Bundle

    def logits(self, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the torch student's logits behind every token, (tokens, vocabulary)."""
        with torch.no_grad():
            found: NDArray[np.float32] = self.model(torch.tensor([tokens])).logits[0].numpy()
        return found


_places: list[TemporaryDirectory[str]] = []


@cache
def exported(kind: str, precision: str) -> Exported:
    """Return a student and its bundle; made once."""
    model, student = _student(kind)
    _places.append(TemporaryDirectory())
    folder = Path(_places[-1].name)
    written = write_fused(student, folder, BundleQuantizer(PRECISIONS[precision]))
    bundle = bundle_of(folder, SpecialTokens(eos=1, pad=0))
    return Exported(model, replace(bundle, manifest=replace(bundle.manifest, plan=written.plan, work=written.work)))


@cache
def _student(kind: str) -> tuple[Any, Path]:
    configuration, of, more = _MODELS[kind]
    torch.manual_seed(0)
    model = of(configuration(**SHAPE | more)).float().eval()
    for parameter in model.parameters():  # norms and biases too
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    _places.append(TemporaryDirectory())
    folder = Path(_places[-1].name)
    model.save_pretrained(folder)
    return model, folder


def sequences(seed: int, count: int, longest: int = 60) -> Iterator[tuple[int, ...]]:
    """Yield random token sequences of random lengths."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield tuple(random.integers(0, VOCABULARY, random.integers(1, longest)).tolist())
