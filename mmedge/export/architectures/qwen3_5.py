"""Qwen 3.5's dense text models, in the graph that `decoder` writes: gated delta layers, and gated attention in every fourth layer.

A gated delta layer (Yang et al. 2024, Gated Delta Networks) carries a matrix per head from token to token: it decays, and what it
says of a key is moved towards the new value. ONNX Runtime computes it in one node, `LinearAttention`, from version 1.32 on. Neither
that state nor the short convolution's in front of it can be rewound: bundles do not draft.

The embedding of positions is that of the images' models, whose three axes are one for text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmedge.export.architectures.decoder import Attention, DecoderGraph, DecoderShape, Mixer, decoder_only, head_width_of
from mmedge.export.architectures.recurrent import causal_convolution, is_token
from mmedge.export.architectures.refusal import refuse_others, refuse_unless, refused
from mmedge.export.architectures.rotary import longest_text, rotary_of
from mmedge.export.builder import CONTRIB

# transformers' defaults for what a config leaves out
_DEFAULTS = {
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


@dataclass(frozen=True)
class GatedAttention(Attention):
    """Attention whose result is multiplied by gates; a head's queries and gates stand below each other in one matrix."""

    def write(self, decoder: DecoderGraph, x: str, index: int) -> str:
        """Add its nodes, and return the gated result, (batch, new, heads · head_width)."""
        g, name = decoder.g, f"layers.{index}.{self.name}"
        matrices, biases = [], []
        for part in self.parts:
            prefix = f"model.layers.{index}.{part}"
            matrices.append(decoder.weights[f"{prefix}.weight"])
            biases += [decoder.weights[f"{prefix}.bias"]] if f"{prefix}.bias" in decoder.weights else []
        queries, gates = self._apart(matrices[0])
        bias = None
        if biases:
            of_queries, of_gates = self._apart(biases[0])
            bias = np.concatenate([of_queries, *biases[1:], of_gates])
        packed = g.linear(x, np.concatenate([queries, *matrices[1:], gates]), f"{name}.qkv", bias)
        widths = g.integers(self.inner + 2 * self.kv_heads * self.head_width, self.inner)
        packed, gate = g.nodes("Split", [packed, widths], 2, f"{name}.gates", axis=-1)
        opened = g.node("Sigmoid", [gate], f"{name}.opened")
        return g.node("Mul", [self.attend(decoder, packed, index), opened], f"{name}.gated")

    def _apart(self, rows: Any) -> tuple[Any, Any]:
        """Return the rows of queries and those of gates."""
        apart = rows.reshape(self.heads, 2, self.head_width, *rows.shape[1:])
        return apart[:, 0].reshape(self.inner, *rows.shape[1:]), apart[:, 1].reshape(self.inner, *rows.shape[1:])


@dataclass(frozen=True)
class GatedDelta:
    """A gated delta layer.

    Attributes:
        key_heads: Heads of queries and keys; each serves as many heads of values that follow each other.
        value_heads: Heads of values.
        key_width: Of a head of queries and of keys.
        value_width: Of a head of values.
        taps: How many tokens the convolution in front sees.
        epsilon: Of the norm behind.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int
    epsilon: float
    output: str = "linear_attn.out_proj"
    name = "delta"
    recurrent = True
    least_runtime = "1.32"

    @property
    def inner(self) -> int:
        """The width of all heads of values together."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """Of what is convolved: queries, keys and values."""
        return 2 * self.key_heads * self.key_width + self.inner

    def linears(self) -> dict[str, tuple[str, ...]]:
        """Return what the convolution reads with the output's gates, and what decides decay and update."""
        return {
            "in": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
            "rates": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
        }

    def write(self, decoder: DecoderGraph, x: str, index: int) -> str:
        """Add its nodes, and return its gated output, (batch, new, value heads · value width)."""
        g, prefix, name = decoder.g, f"model.layers.{index}.linear_attn", f"layers.{index}.{self.name}"
        keys = self.key_heads * self.key_width
        packed = decoder.joined(x, [f"{prefix}.in_proj_qkv", f"{prefix}.in_proj_z"], f"{name}.in")
        packed, gate = g.nodes("Split", [packed, g.integers(self.channels, self.inner)], 2, f"{name}.split", axis=-1)
        kernel = decoder.weights[f"{prefix}.conv1d.weight"][:, 0]
        seen = causal_convolution(decoder, packed, kernel, f"{index}.convolution", f"{name}.convolution")
        seen = decoder.silu(seen, f"{name}.convolution")
        query, key, value = g.nodes("Split", [seen, g.integers(keys, keys, self.inner)], 3, f"{name}.qkv", axis=-1)
        decay, update = self._rates(decoder, x, prefix, name)
        state = decoder.state(f"{index}.delta", (self.value_heads, self.key_width, self.value_width))
        present = f"present_states.{index}.delta"
        attended, _ = g.output_names(
            "LinearAttention",
            [self._unit(decoder, query, f"{name}.query"), self._unit(decoder, key, f"{name}.key"), value, state, decay, update],
            [f"{name}.attended", present],
            CONTRIB,
            q_num_heads=self.value_heads,
            kv_num_heads=self.value_heads,
            update_rule="gated_delta",
            scale=self.key_width**-0.5,
        )
        g.declare(present, ("batch", self.value_heads, self.key_width, self.value_width), g.float_type)
        apart = g.node("Reshape", [attended, g.integers(0, 0, self.value_heads, self.value_width)], f"{name}.apart")
        normed = g.norm(apart, decoder.weights[f"{prefix}.norm.weight"], self.epsilon, f"{name}.norm")
        together = g.node("Reshape", [normed, g.integers(0, 0, self.inner)], f"{name}.together")
        return g.node("Mul", [together, decoder.silu(gate, f"{name}.gate")], name)

    def _rates(self, decoder: DecoderGraph, x: str, prefix: str, name: str) -> tuple[str, str]:
        """Return the decay's logarithm and the update's rate, (batch, new, value heads), both 0 where there is no token."""
        g, read = decoder.g, is_token(decoder)
        rates = decoder.joined(x, [f"{prefix}.in_proj_b", f"{prefix}.in_proj_a"], f"{name}.rates")
        update, step = g.nodes("Split", [rates], 2, f"{name}.rates.split", axis=-1, num_outputs=2)
        update = g.node("Mul", [g.node("Sigmoid", [update], f"{name}.update.open"), read], f"{name}.update")
        step = g.node("Add", [step, g.constant(f"{name}.step.bias", decoder.weights[f"{prefix}.dt_bias"])], f"{name}.step.biased")
        slope = g.constant(f"{name}.slope", -np.exp(decoder.weights[f"{prefix}.A_log"]))
        decay = g.node("Mul", [g.node("Softplus", [step], f"{name}.step"), slope], f"{name}.decay.all")
        return g.node("Mul", [decay, read], f"{name}.decay"), update

    def _unit(self, decoder: DecoderGraph, x: str, name: str) -> str:
        """Return queries or keys with every head of length 1, one for each head of values.

        x / √(Σ x² + ε) is the root-mean-square norm with ε / width, times width^-½.
        """
        g, repeats = decoder.g, self.value_heads // self.key_heads
        apart = g.node("Reshape", [x, g.integers(0, 0, self.key_heads, self.key_width)], f"{name}.apart")
        weight = np.full(self.key_width, self.key_width**-0.5, np.float32)
        unit = g.norm(apart, weight, 1e-6 / self.key_width, f"{name}.unit")
        if repeats > 1:
            unit = g.node("Unsqueeze", [unit, g.integers(3)], f"{name}.shared")
            unit = g.node("Expand", [unit, g.integers(1, 1, 1, repeats, 1)], f"{name}.repeated")
        return g.node("Reshape", [unit, g.integers(0, 0, self.value_heads * self.key_width)], name)


def describe(config: Mapping[str, Any]) -> DecoderShape:
    """Read a config, as transformers 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    config = {**_DEFAULTS, **config}
    refuse_unless(config, "model_type", None, "qwen3_5_text")
    refuse_others(config, frozenset({"partial_rotary_factor"}))
    refuse_unless(config, "hidden_act", "silu", "silu", "swish")
    refuse_unless(config, "attn_output_gate", True, True)
    head_width, epsilon = head_width_of(config), float(config.get("rms_norm_eps", 1e-6))
    attention = GatedAttention(
        heads=int(config["num_attention_heads"]),
        kv_heads=int(config["num_key_value_heads"]),
        head_width=head_width,
        scale=head_width**-0.5,
        rotary=rotary_of(config, head_width, partial=0.25),
        norms=("self_attn.q_norm", "self_attn.k_norm"),
    )
    delta = GatedDelta(
        key_heads=int(config["linear_num_key_heads"]),
        value_heads=int(config["linear_num_value_heads"]),
        key_width=int(config["linear_key_head_dim"]),
        value_width=int(config["linear_value_head_dim"]),
        taps=int(config["linear_conv_kernel_dim"]),
        epsilon=epsilon,
    )
    mixers: tuple[Mixer, ...] = tuple(attention if kind == "full_attention" else delta for kind in _kinds(config))
    return DecoderShape(
        width=int(config["hidden_size"]),
        mixers=mixers,
        epsilon=epsilon,
        positions=longest_text(config, attention.rotary),
        zero_centred=True,
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return what each layer is."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = int(config.get("full_attention_interval") or 4)
        return [
            "linear_attention" if (index + 1) % every else "full_attention" for index in range(int(config["num_hidden_layers"]))
        ]
    if unknown := sorted(set(kinds) - {"full_attention", "linear_attention"}):
        raise refused("layer_types", unknown[0])
    return list(kinds)


QWEN3_5 = decoder_only(describe)
