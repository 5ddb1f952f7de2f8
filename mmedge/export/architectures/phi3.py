"""Phi 3, 3.5 and 4 mini, in the graph that `decoder` writes: a Llama with packed weights and a rotary embedding of its own.

Queries, keys and values are one matrix, gate and up are another. The rotary embedding may turn only a part of a head, and stretches
every frequency by a factor of its own (LongRoPE): one set of factors for texts within the original context, another for longer
ones. The graph reads texts within it, which for all published models is as long as any graph of mmedge reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderShape, Names, decoder_only, head_width_of
from mmedge.export.architectures.refusal import refuse_others, refuse_unless
from mmedge.export.architectures.rotary import longest_text, rotary_of

NAMES = Names(gate_up=("mlp.gate_up_proj",))


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    refuse_unless(config, "model_type", None, "phi3")
    refuse_others(config, frozenset({"partial_rotary_factor"}))
    refuse_unless(config, "hidden_act", "silu", "silu", "swish")
    heads, head_width = int(config.get("num_attention_heads", 32)), head_width_of(config)
    described = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = described.get("rope_type") or described.get("type")
    if kind in ("su", "yarn"):  # what LongRoPE was called before it had a name; transformers reads both as longrope here
        described["rope_type"] = "longrope"
    window = config.get("sliding_window")
    attention = Attention(
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        scale=head_width**-0.5,
        rotary=rotary_of({"original_max_position_embeddings": 4096, **config}, head_width, described, partial=1.0),
        window=int(window) if window else None,
        parts=("self_attn.qkv_proj",),
    )
    return DecoderShape(
        width=int(config["hidden_size"]),
        mixers=(attention,) * int(config["num_hidden_layers"]),
        epsilon=float(config.get("rms_norm_eps", 1e-5)),
        positions=longest_text(config, attention.rotary),
        names=NAMES,
    )


PHI3 = decoder_only(describe, packed=True)
