"""The graph of Llama-type decoders (Llama, SmolLM2, TinyLlama, Mistral, Qwen 2, 2.5 and 3), from config and weights.

    model.onnx   input_ids (batch, new), wanted (rows), lengths (batch), total (), own past → logits (rows, vocabulary), present

One `GroupQueryAttention` per layer rotates queries and keys, appends to the cache in place, and attends; queries, keys and values
are one linear layer; residual and norm are one node. Ten nodes per layer, against the two hundred and forty of
a traced graph. Behind the last attention only the `wanted` positions go on: whoever needs the last one pays for one.

Rows are padded behind. `lengths` holds each row's last place, so that padding is neither seen nor counted, and a row's cache
is contiguous whatever its neighbours are.

Where linear layers give a token the same bits however many tokens are read with it, attention must too, so that drafts can be
verified exactly: it has other kernels for one token than for several. Such graphs have two inputs more: `attended` says which of
the new tokens attention is given, `kept` which of what it returns goes on. A single token is given twice, and kept once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from mmedge.errors import MmedgeError
from mmedge.export.architectures import Architecture
from mmedge.export.builder import CONTRIB, DataFile, GraphBuilder, Quantizer, WrittenGraphs
from mmedge.export.weights import HEAD, TABLE, Weights, has_own_head

DECODER = "model.onnx"
DATA = "weights.data"
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
POSITIONS = 4096  # the longest text that the graph reads, unless the model itself reads less
EMBEDDING = "model.embed_tokens.weight"
_ACTIVATIONS = ("silu", "swish")
# transformers' defaults for what a config leaves out
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}
# settings that change what is computed, and the value with which they change nothing
_NEUTRAL: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "partial_rotary_factor": 1.0,
    "num_local_experts": None,
    "num_experts": None,
    "quantization_config": None,
    "alibi": False,
}


@dataclass(frozen=True)
class LlamaShape:
    """What the graph needs of a config.

    Attributes:
        width: Of the states between layers.
        layers: How many.
        heads: Query heads.
        kv_heads: Heads of keys and values; as many as `heads`, or fewer (grouped queries).
        head_width: Of one head.
        epsilon: Of the norms.
        window: How many positions back a token sees in each layer; None for all.
        norms_heads: Whether queries and keys are normed, head by head (Qwen 3).
        frequencies: Of the rotary embedding, (head_width / 2,).
        positions: The longest text.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    window: tuple[int | None, ...]
    norms_heads: bool
    frequencies: tuple[float, ...]
    positions: int


def read_shape(config: Mapping[str, Any]) -> LlamaShape:
    """Read a config, as transformers 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graph does not implement; the message names it.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise _refused("model_type", kind)
    config = {**_DEFAULTS[str(kind)], **config}
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral) not in (neutral, None):
            raise _refused(name, config[name])
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise _refused("hidden_act", activation)
    heads = int(config["num_attention_heads"])
    head_width = int(config.get("head_dim") or config["hidden_size"] // heads)
    if head_width % 16:  # the head sizes that ONNX Runtime can rotate
        raise _refused("head_dim", head_width)
    longest = int(config.get("max_position_embeddings") or POSITIONS)
    return LlamaShape(
        width=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        window=_windows(config),
        norms_heads=kind == "qwen3",
        frequencies=tuple(_frequencies(config, head_width).tolist()),
        positions=min(longest, POSITIONS),
    )


def _refused(name: str, value: Any) -> MmedgeError:
    return MmedgeError(f"config.json: {name} {value!r} is not implemented by the fused graphs", "set export.graphs to auto")


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's sliding window."""
    kind, layers, window = config["model_type"], int(config["num_hidden_layers"]), config.get("sliding_window")
    types = config.get("layer_types")
    if types is not None and (unknown := sorted(set(types) - {"full_attention", "sliding_attention"})):
        raise _refused("layer_types", unknown[0])
    if kind in ("llama", "mistral"):  # transformers has one window for all layers here, or none
        window = int(window) if window and kind == "mistral" else None
        if types is not None and ("sliding_attention" in types) != (window is not None):
            raise _refused("layer_types", "sliding_attention" if window is None else "full_attention")
        if window is not None and types is not None and "full_attention" in types:
            raise _refused("layer_types", "full_attention")
        return (window,) * layers
    if not config.get("use_sliding_window") or not window:
        return (None,) * layers
    if types is None:
        types = ["sliding_attention" if index >= int(config["max_window_layers"]) else "" for index in range(layers)]
    return tuple(int(window) if type_ == "sliding_attention" else None for type_ in types)


def _frequencies(config: Mapping[str, Any], head_width: int) -> NDArray[np.float64]:
    """Return the rotary embedding's frequencies (Su et al. 2021), scaled as `rope_scaling` (4.57) or `rope_parameters` (5.x) says.

    `llama3` stretches wavelengths that are longer than the original context, leaves short ones, and goes smoothly from one to
    the other between (Llama 3.1's release).
    """
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if different := sorted(name for name, value in scaling.items() if isinstance(value, dict)):
        raise _refused("rope_parameters", different[0])
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if float(scaling.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _refused("partial_rotary_factor", scaling["partial_rotary_factor"])
    frequencies: NDArray[np.float64] = base ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        original = float(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
        factor = float(scaling["factor"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = original * frequencies / (2 * math.pi)  # of each frequency within the original context
        share = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - share) * frequencies / factor + share * frequencies
    raise _refused("rope_scaling", kind)


def linears(shape: LlamaShape, weights: Weights) -> dict[str, tuple[str, ...]]:
    """Return the weights that each linear layer of the graph multiplies by, below each other, by the layer's name."""
    found: dict[str, tuple[str, ...]] = {}
    for index in range(shape.layers):
        prefix, name = f"model.layers.{index}", f"layers.{index}"
        found[f"{name}.attention.qkv"] = tuple(f"{prefix}.self_attn.{part}_proj.weight" for part in "qkv")
        found[f"{name}.attention.o"] = (f"{prefix}.self_attn.o_proj.weight",)
        for part in ("gate", "up", "down"):
            found[f"{name}.feed_forward.{part}"] = (f"{prefix}.mlp.{part}_proj.weight",)
    own = has_own_head(weights, EMBEDDING)
    found["head" if own else TABLE] = (HEAD if own else EMBEDDING,)
    return found


def write_graphs(shape: LlamaShape, weights: Weights, out: Path, quantizer: Quantizer | None = None) -> WrittenGraphs:
    """Write the graph of a student.

    Args:
        shape: Its shape.
        weights: Its weights.
        out: An existing folder.
        quantizer: How weights are stored; as float32 by default.
    """
    with DataFile(out / DATA) as data:
        return decoder_graph(shape, weights, data, quantizer).save(out / DECODER)


def decoder_graph(shape: LlamaShape, weights: Weights, data: DataFile, quantizer: Quantizer | None = None) -> GraphBuilder:
    """Return the graph: one for the prompt and for every later step, with a cache that may be empty."""
    g = GraphBuilder("llama_decoder", data, quantizer)
    ids = g.input("input_ids", TensorProto.INT64, ("batch", "new"))
    wanted = g.input("wanted", TensorProto.INT64, ("rows",))
    lengths = g.input("lengths", TensorProto.INT32, ("batch",))
    total = g.input("total", TensorProto.INT32, ())
    chosen = [g.input(name, TensorProto.INT64, (f"n_{name}",)) for name in ("attended", "kept")] if g.batch_invariant else []
    past = [
        [g.input(f"past_key_values.{i}.{part}", g.float_type, ("batch", shape.kv_heads, "capacity", shape.head_width))
         for part in ("key", "value")]
        for i in range(shape.layers)
    ]  # fmt: skip
    angles = np.arange(shape.positions, dtype=np.float64)[:, None] * np.array(shape.frequencies)[None]
    turns = [g.constant(f"rotary.{name}", turn(angles).astype(np.float32)) for name, turn in (("cos", np.cos), ("sin", np.sin))]

    embedding = weights[EMBEDDING]
    residual = g.lookup(ids, embedding, TABLE)
    vocabulary = len(embedding)
    del embedding
    x = g.norm(residual, weights["model.layers.0.input_layernorm.weight"], shape.epsilon, "layers.0.norm")
    for index in range(shape.layers):
        prefix, name, last = f"model.layers.{index}", f"layers.{index}", index == shape.layers - 1
        attended = _attention(g, x, shape, weights, index, past[index], [lengths, total, *turns], chosen)
        if last:
            residual = _wanted(g, residual, wanted, shape.width)
            attended = _wanted(g, attended, wanted, shape.heads * shape.head_width)
        attended = g.linear(
            attended,
            weights[f"{prefix}.self_attn.o_proj.weight"],
            f"{name}.attention.o",
            weights.get(f"{prefix}.self_attn.o_proj.bias"),
        )
        x, residual = g.add_norm(
            residual, attended, weights[f"{prefix}.post_attention_layernorm.weight"], shape.epsilon, f"{name}.feed_forward.norm"
        )
        fed = _feed_forward(g, x, weights, f"{prefix}.mlp", f"{name}.feed_forward")
        following = weights["model.norm.weight" if last else f"model.layers.{index + 1}.input_layernorm.weight"]
        x, residual = g.add_norm(residual, fed, following, shape.epsilon, "norm" if last else f"layers.{index + 1}.norm")
    untied = has_own_head(weights, EMBEDDING)
    g.head(x, weights[HEAD if untied else EMBEDDING], "head" if untied else TABLE, "logits")
    g.declare("logits", ("rows", vocabulary))
    return g


def _wanted(g: GraphBuilder, x: str, wanted: str, width: int) -> str:
    """Return rows of x, (batch, new, width), by their places in (batch · new)."""
    flat = g.node("Reshape", [x, g.integers(-1, width)], f"{x}.flat")
    return g.node("Gather", [flat, wanted], f"{x}.wanted", axis=0)


def _attention(
    g: GraphBuilder,
    x: str,
    shape: LlamaShape,
    weights: Weights,
    index: int,
    past: list[str],
    places: list[str],
    chosen: list[str],
) -> str:
    """Return what a layer's heads attend to, (batch, new, heads · width)."""
    prefix, name = f"model.layers.{index}.self_attn", f"layers.{index}.attention"
    parts = ("q_proj", "k_proj", "v_proj")
    matrix = np.concatenate([weights[f"{prefix}.{part}.weight"] for part in parts])
    bias = None
    if f"{prefix}.q_proj.bias" in weights:
        bias = np.concatenate([weights[f"{prefix}.{part}.bias"] for part in parts])
    packed = g.linear(x, matrix, f"{name}.qkv", bias)
    if chosen:
        packed = g.node("Gather", [packed, chosen[0]], f"{name}.given", axis=1)
    queries, keys, values = packed, "", ""
    if shape.norms_heads:
        widths = [shape.heads * shape.head_width, *[shape.kv_heads * shape.head_width] * 2]
        queries, keys, values = g.nodes("Split", [packed, g.integers(*widths)], 3, f"{name}.split", axis=-1)
        queries = _head_norm(g, queries, shape.heads, shape, weights[f"{prefix}.q_norm.weight"], f"{name}.queries")
        keys = _head_norm(g, keys, shape.kv_heads, shape, weights[f"{prefix}.k_norm.weight"], f"{name}.keys")
    window = shape.window[index]
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    attended, *_ = g.output_names(
        "GroupQueryAttention",
        [queries, keys, values, *past, *places],
        [name, *present],
        CONTRIB,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
        local_window_size=-1 if window is None else window,
        scale=shape.head_width**-0.5,
    )
    for output in present:
        g.declare(output, ("batch", shape.kv_heads, "capacity", shape.head_width), g.float_type)
    return g.node("Gather", [attended, chosen[1]], f"{name}.kept", axis=1) if chosen else attended


def _head_norm(g: GraphBuilder, x: str, heads: int, shape: LlamaShape, weight: NDArray[np.float32], name: str) -> str:
    """Return x with every head normalized separately."""
    apart = g.node("Reshape", [x, g.integers(0, 0, heads, shape.head_width)], f"{name}.apart")
    normed = g.norm(apart, weight, shape.epsilon, f"{name}.norm")
    return g.node("Reshape", [normed, g.integers(0, 0, heads * shape.head_width)], f"{name}.together")


def _feed_forward(g: GraphBuilder, x: str, weights: Weights, prefix: str, name: str) -> str:
    """Return the gated feed-forward layer (SwiGLU, Shazeer 2020).

    Gate and up are two linear layers: one of both would have to be split, which costs a copy and saves no node.
    """
    gate, up = (
        g.linear(x, weights[f"{prefix}.{part}_proj.weight"], f"{name}.{part}", weights.get(f"{prefix}.{part}_proj.bias"))
        for part in ("gate", "up")
    )
    opened = g.node("QuickGelu", [gate], f"{name}.silu", CONTRIB, alpha=1.0)  # x · sigmoid(x): SiLU in one node
    hidden = g.node("Mul", [opened, up], f"{name}.gated")
    return g.linear(hidden, weights[f"{prefix}.down_proj.weight"], f"{name}.down", weights.get(f"{prefix}.down_proj.bias"))


LLAMA = Architecture("decoder-only", read_shape, linears, write_graphs, packed=True)
