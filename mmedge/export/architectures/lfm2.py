"""LFM2 (350M, 700M, 1.2B), in the graph that `decoder` writes: short gated convolutions, and attention in every third layer or so.

A convolution sees its token and the few before it; what it keeps between calls is these few inputs (`past_states.N.convolution`),
which cannot be rewound: bundles do not draft, and engines keep a copy of the state where they may have to go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmedge.export.architectures.decoder import Attention, DecoderGraph, DecoderShape, Mixer, Names, decoder_only, head_width_of
from mmedge.export.architectures.recurrent import causal_convolution
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of

NAMES = Names(
    before_mixer="operator_norm",
    before_feed_forward="ffn_norm",
    gate_up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    last="model.embedding_norm",
)
# transformers' defaults for what a config leaves out
_DEFAULTS = {"num_attention_heads": 32, "num_key_value_heads": 8, "norm_eps": 1e-5, "conv_L_cache": 3, "rope_theta": 1e6}


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution over time, channel by channel: C · conv(B · x), where B, C and x are linear in what is read.

    Attributes:
        width: Of what is read, and of each of the three.
        taps: How many tokens it sees, its own among them.
    """

    width: int
    taps: int
    output: str = "conv.out_proj"
    name = "convolution"
    recurrent = True
    least_runtime = ""

    @property
    def inner(self) -> int:
        """The width of what it gives."""
        return self.width

    def linears(self) -> dict[str, tuple[str, ...]]:
        """Return B, C and x, which are one linear layer."""
        return {"in": ("conv.in_proj",)}

    def write(self, decoder: DecoderGraph, x: str, index: int) -> str:
        """Add its nodes, and return its gated output, (batch, new, width)."""
        g, prefix, name = decoder.g, f"model.layers.{index}.conv", f"layers.{index}.{self.name}"
        packed = decoder.linear(x, f"{prefix}.in_proj", f"{name}.in")
        before, after, value = g.nodes("Split", [packed], 3, f"{name}.split", axis=-1, num_outputs=3)
        gated = g.node("Mul", [before, value], f"{name}.gated")
        kernel, bias = decoder.weights[f"{prefix}.conv.weight"], decoder.weights.get(f"{prefix}.conv.bias")
        seen = causal_convolution(decoder, gated, kernel[:, 0], f"{index}.convolution", name, bias)
        return g.node("Mul", [after, seen], name)


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 4.57 or 5.x or Liquid AI wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    config = {**_DEFAULTS, **config}
    refuse_unless(config, "model_type", None, "lfm2")
    refuse_others(config)
    head_width, width = head_width_of(config), int(config["hidden_size"])
    attention = Attention(
        heads=int(config["num_attention_heads"]),
        kv_heads=int(config["num_key_value_heads"]),
        head_width=head_width,
        scale=head_width**-0.5,
        rotary=rotary_of(config, head_width),
        norms=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        output="self_attn.out_proj",
    )
    convolution = ShortConvolution(width, int(config["conv_L_cache"]))
    mixers: tuple[Mixer, ...] = tuple(attention if kind == "full_attention" else convolution for kind in _kinds(config))
    return DecoderShape(
        width=width,
        mixers=mixers,
        epsilon=float(config["norm_eps"]),
        positions=longest_text(config, attention.rotary),
        names=NAMES,
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return what each layer is."""
    kinds, layers = config.get("layer_types"), range(int(config["num_hidden_layers"]))
    if kinds is None:
        attending = config.get("full_attn_idxs")
        return ["full_attention" if attending is None or index in attending else "conv" for index in layers]
    if unknown := sorted(set(kinds) - {"full_attention", "conv"}):
        raise refused("layer_types", unknown[0])
    return list(kinds)


LFM2 = decoder_only(describe)
