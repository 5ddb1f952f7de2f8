"""Gemma 3's text models (270M, 1B), in the graph that `decoder` writes.

What sets them apart from a Llama: norms multiply by 1 + their weight, and stand behind attention and feed-forward layer too;
queries and keys are normed head by head; looked-up embeddings are multiplied by the root of their width; most layers see a window
of the text with a rotary embedding of their own, every sixth one sees all of it; gates are GELUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderShape, Names, decoder_only, head_width_of
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of

NAMES = Names(
    after_mixer="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)
# transformers' defaults for what a config leaves out
_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    config = {**_DEFAULTS, **config}
    refuse_unless(config, "model_type", None, "gemma3_text")
    refuse_others(config, frozenset({"final_logit_softcapping"}))
    refuse_unless(config, "hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    head_width = head_width_of(config)
    rotary = {kind: rotary_of(config, head_width, described) for kind, described in _described(config).items()}
    width = int(config["hidden_size"])
    return DecoderShape(
        width=width,
        mixers=tuple(
            Attention(
                heads=int(config["num_attention_heads"]),
                kv_heads=int(config["num_key_value_heads"]),
                head_width=head_width,
                scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
                rotary=rotary[kind],
                window=_window(config) if kind == "sliding_attention" else None,
                norms=("self_attn.q_norm", "self_attn.k_norm"),
            )
            for kind in _kinds(config)
        ),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        positions=longest_text(config, *rotary.values()),
        activation="gelu_tanh",
        names=NAMES,
        zero_centred=True,
        embedding_multiplier=width**0.5,
        logits_cap=float(config.get("final_logit_softcapping") or 0.0),
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return whether each layer sees a window or all."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
        layers = range(int(config["num_hidden_layers"]))
        return ["sliding_attention" if (index + 1) % every else "full_attention" for index in layers]
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise refused("layer_types", unknown[0])
    return list(kinds)


def _window(config: Mapping[str, Any]) -> int:
    if not config["sliding_window"]:
        raise refused("sliding_window", config["sliding_window"])
    return int(config["sliding_window"])


def _described(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the descriptions of both rotary embeddings: 4.57 scales that of the layers that see all, and has two bases."""
    described = config.get("rope_parameters") or {}
    whole = {"rope_theta": config.get("rope_theta", 1e6), **(config.get("rope_scaling") or {})}
    window = {"rope_theta": config.get("rope_local_base_freq", 1e4)}
    return {
        "full_attention": {**whole, **(described.get("full_attention") or {})},
        "sliding_attention": {**window, **(described.get("sliding_attention") or {})},
    }


GEMMA3 = decoder_only(describe, packed=True)
