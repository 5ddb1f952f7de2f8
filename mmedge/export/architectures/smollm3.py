"""SmolLM3, in the graph that `decoder` writes: a Llama of which every fourth layer does not turn queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderShape, decoder_only, head_width_of
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of

# transformers' defaults for what a config leaves out
_DEFAULTS = {"num_attention_heads": 16, "num_key_value_heads": 4, "rope_theta": 2e6}


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    config = {**_DEFAULTS, **config}
    refuse_unless(config, "model_type", None, "smollm3")
    refuse_others(config)
    refuse_unless(config, "hidden_act", "silu", "silu", "swish")
    heads, head_width = int(config["num_attention_heads"]), head_width_of(config)
    turned = Attention(
        heads=heads,
        kv_heads=int(config["num_key_value_heads"] or heads),
        head_width=head_width,
        scale=head_width**-0.5,
        rotary=rotary_of(config, head_width),
    )
    return DecoderShape(
        width=int(config["hidden_size"]),
        mixers=tuple(
            replace(turned, rotary=turned.rotary if turns else None, window=window)
            for turns, window in zip(_turns(config), _windows(config), strict=True)
        ),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        positions=longest_text(config, turned.rotary),
    )


def _turns(config: Mapping[str, Any]) -> list[bool]:
    """Return whether each layer turns queries and keys."""
    layers = int(config["num_hidden_layers"])
    stated = config.get("no_rope_layers")  # in spite of its name, 1 where a layer has a rotary embedding
    if stated is not None:
        return [bool(turns) for turns in stated[:layers]]
    every = int(config.get("no_rope_layer_interval") or 4)
    return [bool((index + 1) % every) for index in range(layers)]


def _windows(config: Mapping[str, Any]) -> list[int | None]:
    """Return each layer's sliding window: where windows are used at all, in layers that do not turn, unless the config says."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is None:
        return [None if turns or not window else int(window) for turns in _turns(config)]
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise refused("layer_types", unknown[0])
    if "sliding_attention" in kinds and not window:
        raise refused("layer_types", "sliding_attention")
    return [int(window) if window and kind == "sliding_attention" else None for kind in kinds]


SMOLLM3 = decoder_only(describe, packed=True)
