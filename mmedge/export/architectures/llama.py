"""Llama-type decoders: Llama, SmolLM2, TinyLlama, Mistral, Qwen 2, 2.5 and 3. Reads their configs; `decoder` writes the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderShape, decoder_only, head_width_of
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# transformers' defaults for what a config leaves out
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    kind = refuse_unless(config, "model_type", None, *MODEL_TYPES)
    config = {**_DEFAULTS[kind], **config}
    refuse_others(config)
    refuse_unless(config, "hidden_act", "silu", "silu", "swish")
    heads, head_width = int(config["num_attention_heads"]), head_width_of(config)
    attention = Attention(
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        scale=head_width**-0.5,
        rotary=rotary_of(config, head_width),
        norms=("self_attn.q_norm", "self_attn.k_norm") if kind == "qwen3" else (),
    )
    return DecoderShape(
        width=int(config["hidden_size"]),
        mixers=tuple(replace(attention, window=window) for window in _windows(config)),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        positions=longest_text(config, attention.rotary),
    )


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's sliding window."""
    kind, layers, window = config["model_type"], int(config["num_hidden_layers"]), config.get("sliding_window")
    types = config.get("layer_types")
    if types is not None and (unknown := sorted(set(types) - {"full_attention", "sliding_attention"})):
        raise refused("layer_types", unknown[0])
    if kind in ("llama", "mistral"):  # transformers has one window for all layers here, or none
        window = int(window) if window and kind == "mistral" else None
        if types is not None and ("sliding_attention" in types) != (window is not None):
            raise refused("layer_types", "sliding_attention" if window is None else "full_attention")
        if window is not None and types is not None and "full_attention" in types:
            raise refused("layer_types", "full_attention")
        return (window,) * layers
    if not config.get("use_sliding_window") or not window:
        return (None,) * layers
    if types is None:
        types = ["sliding_attention" if index >= int(config["max_window_layers"]) else "" for index in range(layers)]
    return tuple(int(window) if type_ == "sliding_attention" else None for type_ in types)


LLAMA = decoder_only(describe, packed=True)
