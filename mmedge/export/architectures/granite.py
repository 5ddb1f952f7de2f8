"""Granite 3 and the dense models of Granite 4, in the graph that `decoder` writes: a Llama with four multipliers.

Embeddings, scores, what is added to the residual, and logits are multiplied by what the config says. Granite 4 calls its
feed-forward layer `shared_mlp`, in which gate and up are one matrix, since its larger models have experts and Mamba layers beside
it; those are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderShape, Names, decoder_only, head_width_of
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of

NAMES = {
    "granite": Names(),
    "granitemoehybrid": Names(gate_up=("shared_mlp.input_linear",), down="shared_mlp.output_linear"),
}
_IMPLEMENTED = frozenset(
    {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "num_local_experts"}
)


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    kind = refuse_unless(config, "model_type", None, *NAMES)
    refuse_unless(config, "num_local_experts", 8 if kind == "granitemoehybrid" else 0, 0, None)
    if kind == "granitemoehybrid":
        kinds = set(config.get("layer_types") or config.get("layers_block_type") or ["mamba"])
        if others := sorted(kinds - {"attention", "full_attention"}):
            raise refused("layer_types", others[0])
        refuse_unless(config, "position_embedding_type", None, "rope", "nope", None)
    refuse_others(config, _IMPLEMENTED)
    refuse_unless(config, "hidden_act", "silu", "silu", "swish")
    heads, head_width = int(config.get("num_attention_heads", 32)), head_width_of(config)
    turns = kind == "granite" or config.get("position_embedding_type") == "rope"
    attention = Attention(
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        scale=float(config.get("attention_multiplier", 1.0)),
        rotary=rotary_of(config, head_width) if turns else None,
    )
    return DecoderShape(
        width=int(config["hidden_size"]),
        mixers=(attention,) * int(config["num_hidden_layers"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        positions=longest_text(config, attention.rotary),
        names=NAMES[kind],
        embedding_multiplier=float(config.get("embedding_multiplier", 1.0)),
        residual_multiplier=float(config.get("residual_multiplier", 1.0)),
        logits_divisor=float(config.get("logits_scaling", 1.0)),
    )


GRANITE = decoder_only(describe, packed=True)
