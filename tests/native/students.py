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

from mmedge.bundle import Bundle
from mmedge.export.graphs import write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.students import dialects
from mmedge.tasks.encoding import SpecialTokens
from tests.bundles import bundle_of
from tests.export.published import CONFIGS, small

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
    "gemma3": (  # norms behind layers, two rotary embeddings, windows, gates that are GELUs
        transformers.Gemma3TextConfig,
        transformers.Gemma3ForCausalLM,
        {"head_dim": 32, "num_hidden_layers": 6, "sliding_window": 7, "query_pre_attn_scalar": 32},
    ),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, {"num_hidden_layers": 4, "pad_token_id": 0}),
    "phi3": (  # gate and up in one, a rotary embedding of half a head
        transformers.Phi3Config,
        transformers.Phi3ForCausalLM,
        {"head_dim": 32, "hidden_size": 192, "partial_rotary_factor": 0.5, "pad_token_id": 0},
    ),
    "granite": (
        transformers.GraniteConfig,
        transformers.GraniteForCausalLM,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
}
if dialects.MAJOR >= 5:  # 4.57 writes other names
    _MODELS["lfm2"] = (  # convolutions before, between and behind attention, with biases; states of two tokens
        transformers.Lfm2Config,
        transformers.Lfm2ForCausalLM,
        {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4, "conv_bias": True,
         "block_auto_adjust_ff_dim": False},
    )  # fmt: skip
    _MODELS["qwen3_5"] = (  # heads of odd widths, of which two share one of keys, behind the last attention too
        transformers.Qwen3_5TextConfig,
        transformers.Qwen3_5ForCausalLM,
        {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 64, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 20, "linear_value_head_dim": 44, "tie_word_embeddings": True},
    )  # fmt: skip
KINDS = tuple(_MODELS)
RECURRENT = tuple(kind for kind in ("lfm2", "qwen3_5") if kind in KINDS)
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 96,
    "d_kv": 16,
    "d_ff": 200,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "initializer_factor": 0.5,  # logits as large as those of a trained student
}
_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_v1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_model": 112},
}
ENCODER_DECODERS = tuple(_ENCODER_DECODERS)


@dataclass(frozen=True)
class Exported:
    """A student in torch, and its bundle."""

    model: Any
    bundle: Bundle

    def logits(self, tokens: tuple[int, ...], context: tuple[int, ...] = ()) -> NDArray[np.float32]:
        """Return the torch student's logits behind every token, (tokens, vocabulary); an encoder-decoder reads a context."""
        with torch.no_grad():
            ids = torch.tensor([tokens])
            found = self.model(torch.tensor([context]), decoder_input_ids=ids) if context else self.model(ids)
            logits: NDArray[np.float32] = found.logits[0].numpy()
        return logits


_places: list[TemporaryDirectory[str]] = []


@cache
def exported(kind: str, precision: str) -> Exported:
    """Return a student and its bundle, made once.

    Args:
        kind: One of `KINDS` or `ENCODER_DECODERS`, or a published model, whose config is taken at a small size.
        precision: How its weights are stored.
    """
    model, student = _student(kind)
    _places.append(TemporaryDirectory())
    folder = Path(_places[-1].name)
    written = write_fused(student, folder, BundleQuantizer(PRECISIONS[precision]))
    bundle = bundle_of(folder, SpecialTokens(eos=1, pad=0), "encoder-decoder" if kind in _ENCODER_DECODERS else "decoder-only")
    return Exported(model, replace(bundle, manifest=replace(bundle.manifest, plan=written.plan, work=written.work)))


def with_cache(bundle: Bundle, kept_in: str) -> Bundle:
    """Return a bundle whose keys and values are kept in float32, float16 or int8."""
    plan = bundle.manifest.plan
    assert plan is not None
    return replace(bundle, manifest=replace(bundle.manifest, plan={**plan, "cache": kept_in}))


@cache
def _student(kind: str) -> tuple[Any, Path]:
    torch.manual_seed(0)
    if kind in _ENCODER_DECODERS:
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5 | _ENCODER_DECODERS[kind])).float().eval()
    elif kind in _MODELS:
        configuration, of, more = _MODELS[kind]
        model = of(configuration(**SHAPE | more)).float().eval()
    else:
        config = transformers.AutoConfig.for_model(**{**small(CONFIGS[kind]), "vocab_size": VOCABULARY})
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
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
