"""T5's graphs (T5, T5 v1.1, flan-T5), written straight from config and weights.

    encoder_model.onnx     input_ids, attention_mask → the cross-attention's keys and values of every decoder layer
    decoder_model.onnx     input_ids, wanted, lengths, total, starts, cross keys and values, own past → logits, own present

What makes them fast: attention is one node with the relative position bias as an input, which is looked up in a table by
distance (T5's buckets are computed here, once); the decoder's own attention appends to its cache in place; queries, keys and
values are one linear layer; residual and norm are one `SkipSimplifiedLayerNormalization`; the encoder's states never leave its
graph, since the decoder only needs keys and values. optimum's T5 decoder takes two branches, several hundred nodes and
computes the buckets at every step.

float16 graphs are for CUDA, where `GroupQueryAttention` takes no bias: there the decoder's own attention is in plain operators.
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

from mmedge.engines.onnx.graphs import ROWS_ALIKE
from mmedge.errors import MmedgeError
from mmedge.export.architectures import Architecture
from mmedge.export.architectures.refusal import reader
from mmedge.export.builder import CONTRIB, DataFile, GraphBuilder, Quantizer, WrittenGraphs
from mmedge.export.weights import HEAD, TABLE, Weights, has_own_head

ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"
DATA = "weights.data"
_ACTIVATIONS = {"relu": ("Relu", ""), "gelu_new": ("FastGelu", CONTRIB)}


@dataclass(frozen=True)
class T5Shape:
    """What the graphs need of a T5 config; whether the head is the embedding is known from the weights alone."""

    width: int
    heads: int
    head_width: int
    encoder_layers: int
    decoder_layers: int
    buckets: int
    max_distance: int
    epsilon: float
    activation: str
    gated: bool
    scales_outputs: bool

    @property
    def inner(self) -> int:
        """Width of all heads together; need not be the model's."""
        return self.heads * self.head_width


@reader
def read_shape(config: Mapping[str, Any]) -> T5Shape:
    """Read a T5 config, as 4.57 or 5.x wrote it.

    Raises:
        MmedgeError: It asks for something that the graphs do not implement; the message names it.
    """
    form = str(config.get("feed_forward_proj", "relu"))
    gated, activation = form.startswith("gated-"), form.removeprefix("gated-")
    if gated and activation == "gelu":
        activation = "gelu_new"  # as transformers reads it
    if activation not in _ACTIVATIONS:
        raise MmedgeError(
            f"config.json: feed_forward_proj {form!r} is not implemented by the fused T5 graphs", "set export.graphs to auto"
        )
    if config.get("quantization_config") is not None:
        raise MmedgeError(
            "config.json: quantization_config is not implemented by the fused T5 graphs", "name a model that is not quantized"
        )
    # 4.57 says by `tie_word_embeddings` whether the logits are scaled, 5.x by a word of its own
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings"))
    return T5Shape(
        width=int(config["d_model"]),
        heads=int(config["num_heads"]),
        head_width=int(config["d_kv"]),
        encoder_layers=int(config["num_layers"]),
        decoder_layers=int(config.get("num_decoder_layers") or config["num_layers"]),
        buckets=int(config.get("relative_attention_num_buckets", 32)),
        max_distance=int(config.get("relative_attention_max_distance", 128)),
        epsilon=float(config.get("layer_norm_epsilon", 1e-6)),
        activation=activation,
        gated=gated,
        scales_outputs=scaled is None or bool(scaled),
    )


def bucket(distance: int, buckets: int, max_distance: int, *, bidirectional: bool) -> int:
    """Return the bucket of a relative position (Raffel et al. 2020, section 2.1; exact for near, logarithmic for far).

    Args:
        distance: Position of the key minus position of the query.
        buckets: How many there are.
        max_distance: From here on all share the last one.
        bidirectional: Half of the buckets are for keys behind the query; without, such keys all fall into the first.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # float32, as transformers computes it: a distance on the border between two buckets must fall on the same side
    ratio = np.log(np.float32(distance) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    return first + min(exact + int(ratio * np.float32(buckets - exact)), buckets - 1)


def bias_table(weight: NDArray[np.float32], shape: T5Shape, *, bidirectional: bool) -> NDArray[np.float32]:
    """Return the position bias by distance, (heads, distances).

    Args:
        weight: The learned bias, (buckets, heads).
        shape: The model's shape.
        bidirectional: Distances run from −max_distance to max_distance; without, from 0, the query's own place, to max_distance
            before it.
    """
    farthest = shape.max_distance
    if bidirectional:
        rows = [bucket(d, shape.buckets, farthest, bidirectional=True) for d in range(-farthest, farthest + 1)]
        return np.ascontiguousarray(weight[rows].T)
    rows = [bucket(-d, shape.buckets, farthest, bidirectional=False) for d in range(farthest + 1)]
    return np.ascontiguousarray(weight[rows].T)


def linears(shape: T5Shape, weights: Weights) -> dict[str, tuple[str, ...]]:
    """Return the weights that each linear layer of the graphs multiplies by, below each other, by the layer's name."""
    wi = ("wi_0", "wi_1") if shape.gated else ("wi",)
    found: dict[str, tuple[str, ...]] = {}
    for side, layers in (("encoder", shape.encoder_layers), ("decoder", shape.decoder_layers)):
        for index in range(layers):
            block, name = f"{side}.block.{index}.layer", f"{side}.{index}"
            found[f"{name}.attention.qkv"] = tuple(f"{block}.0.SelfAttention.{part}.weight" for part in "qkv")
            found[f"{name}.attention.o"] = (f"{block}.0.SelfAttention.o.weight",)
            if side == "decoder":
                found[f"{name}.cross.q"] = (f"{block}.1.EncDecAttention.q.weight",)
                found[f"{name}.cross.o"] = (f"{block}.1.EncDecAttention.o.weight",)
            dense = f"{block}.{1 if side == 'encoder' else 2}.DenseReluDense"
            found |= {f"{name}.feed_forward.{part}": (f"{dense}.{part}.weight",) for part in (*wi, "wo")}
    found["cross.kv"] = tuple(
        f"decoder.block.{index}.layer.1.EncDecAttention.{part}.weight" for index in range(shape.decoder_layers) for part in "kv"
    )
    embedding = _embedding_name(weights)
    own = has_own_head(weights, embedding)
    found["head" if own else TABLE] = (HEAD if own else embedding,)
    return found


def write_graphs(shape: T5Shape, weights: Weights, out: Path, quantizer: Quantizer | None = None) -> WrittenGraphs:
    """Write the two graphs of a student, which share one file of weights.

    Args:
        shape: Its shape.
        weights: Its weights.
        out: An existing folder.
        quantizer: How weights are stored; as float32 by default.
    """
    from mmedge.export.plan import t5_plan  # which reads the classes of other architectures

    with DataFile(out / DATA) as data:
        encoder, decoder = (write(shape, weights, data, quantizer) for write in (encoder_graph, decoder_graph))
        encoder.save(out / ENCODER)
        return decoder.save(out / DECODER, t5_plan(shape, _head_name(weights), encoder, decoder))


def _embedding_name(weights: Weights) -> str:
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return next((name for name in names if name in weights), names[0])


def _head_name(weights: Weights) -> str:
    return "head" if has_own_head(weights, _embedding_name(weights)) else TABLE


def _embedding(weights: Weights) -> NDArray[np.float32]:
    return weights[_embedding_name(weights)]


def _projections(weights: Weights, prefix: str, names: str) -> list[NDArray[np.float32]]:
    return [weights[f"{prefix}.{name}.weight"] for name in names]


def _feed_forward(g: GraphBuilder, x: str, weights: Weights, prefix: str, shape: T5Shape, name: str) -> str:
    """Return T5's feed-forward layer."""
    op, domain = _ACTIVATIONS[shape.activation]
    if shape.gated:
        gate, up = (g.linear(x, weights[f"{prefix}.{part}.weight"], f"{name}.{part}") for part in ("wi_0", "wi_1"))
        hidden = g.node("Mul", [g.node(op, [gate], f"{name}.activation", domain), up], f"{name}.gated")
    else:
        hidden = g.node(op, [g.linear(x, weights[f"{prefix}.wi.weight"], f"{name}.wi")], f"{name}.activation", domain)
    return g.linear(hidden, weights[f"{prefix}.wo.weight"], f"{name}.wo")


# -------------------------------------------------------------------------------------------------------- encoder


def encoder_graph(shape: T5Shape, weights: Weights, data: DataFile, quantizer: Quantizer | None = None) -> GraphBuilder:
    """Return the encoder, down to every decoder layer's cross-attention keys and values, (batch, heads, length, width)."""
    g = GraphBuilder("t5_encoder", data, quantizer)
    ids = g.input("input_ids", TensorProto.INT64, ("batch", "length"))
    mask = g.node("Cast", [g.input("attention_mask", TensorProto.INT64, ("batch", "length"))], "mask", to=TensorProto.INT32)
    bias = _encoder_bias(g, ids, shape, weights)
    residual = g.lookup(ids, _embedding(weights), TABLE)
    x = g.norm(residual, weights["encoder.block.0.layer.0.layer_norm.weight"], shape.epsilon, "encoder.0.norm")
    for index in range(shape.encoder_layers):
        x, residual = _encoder_layer(g, x, residual, mask, bias, index, shape, weights)
    _cross_keys_and_values(g, x, shape, weights)
    if g.rows_alike:
        g.notes[ROWS_ALIKE] = "yes"
    return g


def _encoder_bias(g: GraphBuilder, ids: str, shape: T5Shape, weights: Weights) -> str:
    """Return the position bias of the encoder's attention, (1, heads, length, length)."""
    length = g.node("Squeeze", [g.node("Shape", [ids], start=1, end=2), g.integers(0)], "length")
    places = g.node("Range", [g.integer(0), length, g.integer(1)], "places")
    distance = g.node(
        "Sub", [g.node("Unsqueeze", [places, g.integers(0)]), g.node("Unsqueeze", [places, g.integers(1)])], "distance"
    )
    farthest = shape.max_distance
    row = g.node("Add", [g.node("Clip", [distance, g.integer(-farthest), g.integer(farthest)]), g.integer(farthest)], "row")
    learned = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    table = g.constant("encoder.position_bias", bias_table(learned, shape, bidirectional=True)[None])
    return g.node("Gather", [table, row], "bias", axis=2)


def _encoder_layer(
    g: GraphBuilder, x: str, residual: str, mask: str, bias: str, index: int, shape: T5Shape, weights: Weights
) -> tuple[str, str]:
    """Return what goes into the next layer: its norm, and the residual."""
    block, name = f"encoder.block.{index}", f"encoder.{index}"
    parts = _projections(weights, f"{block}.layer.0.SelfAttention", "qkv")
    packed = g.linear(x, np.concatenate(parts), f"{name}.attention.qkv")
    widths = g.integers(*(len(part) for part in parts))
    query, key, value = g.nodes("Split", [packed, widths], 3, f"{name}.attention.qkv.split", axis=-1)
    attended = g.node(
        "MultiHeadAttention",
        [query, key, value, "", mask, bias],
        f"{name}.attention",
        CONTRIB,
        num_heads=shape.heads,
        scale=1.0,  # T5 has no 1/√width: its initial weights contain it
    )
    attended = g.linear(attended, weights[f"{block}.layer.0.SelfAttention.o.weight"], f"{name}.attention.o")
    x, residual = g.add_norm(
        residual, attended, weights[f"{block}.layer.1.layer_norm.weight"], shape.epsilon, f"{name}.feed_forward.norm"
    )
    fed = _feed_forward(g, x, weights, f"{block}.layer.1.DenseReluDense", shape, f"{name}.feed_forward")
    last = index == shape.encoder_layers - 1
    following = "encoder.final_layer_norm" if last else f"encoder.block.{index + 1}.layer.0.layer_norm"
    return g.add_norm(residual, fed, weights[f"{following}.weight"], shape.epsilon, f"encoder.{index + 1}.norm")


def _cross_keys_and_values(g: GraphBuilder, x: str, shape: T5Shape, weights: Weights) -> None:
    """Compute the cross-attention's keys and values of all decoder layers in one linear layer, and declare them as outputs.

    (batch, length, 2 · layers, heads, width) → each (batch, heads, length, width)
    """
    parts = [
        part
        for index in range(shape.decoder_layers)
        for part in _projections(weights, f"decoder.block.{index}.layer.1.EncDecAttention", "kv")
    ]
    packed = g.linear(x, np.concatenate(parts), "cross.kv")
    grouped = g.node("Reshape", [packed, g.integers(0, 0, len(parts) * shape.heads, shape.head_width)], "cross.heads")
    turned = g.node("Transpose", [grouped], "cross.turned", perm=[0, 2, 1, 3])
    split = g.nodes("Split", [turned], len(parts), "cross.split", axis=1, num_outputs=len(parts))
    for index in range(shape.decoder_layers):
        for offset, part in enumerate(("key", "value")):
            name = f"present.{index}.encoder.{part}"
            g.output(split[2 * index + offset], name, ("batch", shape.heads, "length", shape.head_width), g.float_type)


# -------------------------------------------------------------------------------------------------------- decoder


@dataclass(frozen=True)
class _Attending:
    """What the attention of every decoder layer needs.

    Attributes:
        own: Each layer's cached keys and values, (batch, heads, capacity, head width).
        cross: Each layer's cross-attention keys and values, (batch, heads, length, head width).
        mask: Which of the encoder's positions are tokens, (batch, length).
        lengths: Each row's last place.
        total: Places of the longest row.
        bias: Added to the scores of the decoder's own attention, (batch, heads, new, total).
        places: Where new keys and values go in the cache; None where `GroupQueryAttention` puts them there.
    """

    own: list[list[str]]
    cross: list[list[str]]
    mask: str
    lengths: str
    total: str
    bias: str
    places: str | None = None


def decoder_graph(shape: T5Shape, weights: Weights, data: DataFile, quantizer: Quantizer | None = None) -> GraphBuilder:
    """Return the decoder: one graph for the first tokens and for every later one, with a cache that may be empty.

    Rows are padded behind; `starts` holds the place of each row's first new token, `lengths` that of its last.
    """
    g = GraphBuilder("t5_decoder", data, quantizer)
    ids = g.input("input_ids", TensorProto.INT64, ("batch", "new"))
    wanted = g.input("wanted", TensorProto.INT64, ("rows",))
    attending = _attending(g, ids, shape, weights)
    residual = g.lookup(ids, _embedding(weights), TABLE)
    x = g.norm(residual, weights["decoder.block.0.layer.0.layer_norm.weight"], shape.epsilon, "decoder.0.norm")
    for index in range(shape.decoder_layers):
        x, residual = _decoder_layer(g, x, residual, attending, index, shape, weights)
    flat = g.node("Reshape", [x, g.integers(-1, shape.width)], "flat")
    x = g.node("Gather", [flat, wanted], "wanted.states", axis=0)
    name = _head_name(weights)
    head = weights[_embedding_name(weights) if name == TABLE else HEAD]
    g.head(x, head, name, "logits")
    g.declare("logits", ("rows", len(head)))
    return g


def _attending(g: GraphBuilder, ids: str, shape: T5Shape, weights: Weights) -> _Attending:
    """Declare what attention is given, and compute what all layers share."""
    lengths = g.input("lengths", TensorProto.INT32, ("batch",))
    total = g.input("total", TensorProto.INT32, ())
    starts = g.input("starts", TensorProto.INT64, ("batch",))
    mask = g.node("Cast", [g.input("encoder_attention_mask", TensorProto.INT64, ("batch", "length"))], "mask", to=TensorProto.INT32)
    own: list[list[str]] = []
    cross: list[list[str]] = []
    for index in range(shape.decoder_layers):
        for caches, where, size in ((own, "decoder", "capacity"), (cross, "encoder", "length")):
            names = [f"past_key_values.{index}.{where}.{part}" for part in ("key", "value")]
            dimensions = ("batch", shape.heads, size, shape.head_width)
            caches.append([g.input(name, g.float_type, dimensions) for name in names])
    new = g.node("Squeeze", [g.node("Shape", [ids], start=1, end=2), g.integers(0)], "new")
    places = g.node("Range", [g.integer(0), new, g.integer(1)], "places")
    queries = g.node("Add", [g.node("Unsqueeze", [starts, g.integers(1)]), places], "queries")  # (batch, new)
    keys = g.node("Range", [g.integer(0), g.node("Cast", [total], "keys.count", to=TensorProto.INT64), g.integer(1)], "keys")
    distance = g.node("Sub", [g.node("Unsqueeze", [queries, g.integers(2)]), keys], "distance")
    before = g.node("Clip", [distance, g.integer(0), g.integer(shape.max_distance)], "before")  # keys behind are not seen at all
    learned = weights["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    table = g.constant("decoder.position_bias", bias_table(learned, shape, bidirectional=False))
    bias = g.node("Transpose", [g.node("Gather", [table, before], "bias.heads", axis=1)], "bias", perm=[1, 0, 2, 3])
    if g.float_type != TensorProto.FLOAT16:
        return _Attending(own, cross, mask, lengths, total, bias)
    lowest = g.constant("lowest", np.array(np.finfo(np.float16).min, dtype=np.float16))
    unseen = g.node("Unsqueeze", [g.node("Less", [distance, g.integer(0)], "behind"), g.integers(1)], "unseen")
    bias = g.node("Where", [unseen, lowest, bias], "bias.seen")
    return _Attending(own, cross, mask, lengths, total, bias, _cache_places(g, ids, queries, shape))


def _decoder_layer(
    g: GraphBuilder, x: str, residual: str, attending: _Attending, index: int, shape: T5Shape, weights: Weights
) -> tuple[str, str]:
    """Return what goes into the next layer, or into the head: its norm, and the residual."""
    block, name = f"decoder.block.{index}", f"decoder.{index}"
    packed = g.linear(x, np.concatenate(_projections(weights, f"{block}.layer.0.SelfAttention", "qkv")), f"{name}.attention.qkv")
    attended = _self_attention(g, packed, attending, index, shape)
    attended = g.linear(attended, weights[f"{block}.layer.0.SelfAttention.o.weight"], f"{name}.attention.o")
    x, residual = g.add_norm(residual, attended, weights[f"{block}.layer.1.layer_norm.weight"], shape.epsilon, f"{name}.cross.norm")
    query = g.linear(x, weights[f"{block}.layer.1.EncDecAttention.q.weight"], f"{name}.cross.q")
    inputs = [query, *attending.cross[index], "", attending.mask]
    attended = g.node("MultiHeadAttention", inputs, f"{name}.cross", CONTRIB, num_heads=shape.heads, scale=1.0)
    attended = g.linear(attended, weights[f"{block}.layer.1.EncDecAttention.o.weight"], f"{name}.cross.o")
    x, residual = g.add_norm(
        residual, attended, weights[f"{block}.layer.2.layer_norm.weight"], shape.epsilon, f"{name}.feed_forward.norm"
    )
    fed = _feed_forward(g, x, weights, f"{block}.layer.2.DenseReluDense", shape, f"{name}.feed_forward")
    last = index == shape.decoder_layers - 1
    following = weights["decoder.final_layer_norm.weight" if last else f"decoder.block.{index + 1}.layer.0.layer_norm.weight"]
    if last and shape.scales_outputs:
        following = following * np.float32(shape.width**-0.5)  # T5's original form scales what goes into the head
    return g.add_norm(residual, fed, following, shape.epsilon, f"decoder.{index + 1}.norm")


def _self_attention(g: GraphBuilder, packed: str, attending: _Attending, index: int, shape: T5Shape) -> str:
    """Return what a layer's own attention finds, (batch, new, inner), and declare its cache with the new tokens as an output."""
    name, past = f"decoder.{index}.attention", attending.own[index]
    present = [f"present.{index}.decoder.{part}" for part in ("key", "value")]
    if attending.places is None:
        attended, *_ = g.output_names(
            "GroupQueryAttention",
            [packed, "", "", *past, attending.lengths, attending.total, "", "", "", attending.bias],
            [name, *present],
            CONTRIB,
            num_heads=shape.heads,
            kv_num_heads=shape.heads,
            do_rotary=0,
            scale=1.0,
        )
    else:
        attended = _plain_attention(g, packed, past, present, attending.places, attending.total, attending.bias, shape, name)
    for output in present:
        g.declare(output, ("batch", shape.heads, "capacity", shape.head_width), g.float_type)
    return attended


def _cache_places(g: GraphBuilder, ids: str, queries: str, shape: T5Shape) -> str:
    """Return where each new token's keys and values go in the cache, (batch, heads, new, 3): row, head and position."""
    rows = g.node("Squeeze", [g.node("Shape", [ids], start=0, end=1), g.integers(0)], "rows")
    row = g.node("Unsqueeze", [g.node("Range", [g.integer(0), rows, g.integer(1)]), g.integers(1, 2)], "row")  # (batch, 1, 1)
    head = g.constant("heads", np.arange(shape.heads, dtype=np.int64)[None, :, None])
    position = g.node("Unsqueeze", [queries, g.integers(1)], "position")  # (batch, 1, new)
    zeros = g.node("Mul", [g.node("Add", [g.node("Add", [row, head]), position]), g.integer(0)], "zeros")  # (batch, heads, new)
    parts = [g.node("Unsqueeze", [g.node("Add", [zeros, part]), g.integers(3)]) for part in (row, head, position)]
    return g.node("Concat", parts, "cache.places", axis=3)


def _plain_attention(
    g: GraphBuilder, packed: str, past: list[str], present: list[str], places: str, total: str, bias: str, shape: T5Shape, name: str
) -> str:
    """Return the decoder's own attention in ONNX's plain operators; the cache is written in place where present is past.

    Args:
        g: The graph.
        packed: Queries, keys and values, (batch, new, 3 · inner).
        past: Cached keys and values, (batch, heads, capacity, head width) each.
        present: The names of the same, with the new ones.
        places: What `_cache_places` returned.
        total: How many positions the longest row has, with the new ones.
        bias: Added to the scores, (batch, heads, new, total); of keys behind the query, the lowest number.
        shape: The model's shape.
        name: What it is called.
    """
    apart = g.node("Reshape", [packed, g.integers(0, 0, 3 * shape.heads, shape.head_width)], f"{name}.apart")
    turned = g.node("Transpose", [apart], f"{name}.turned", perm=[0, 2, 1, 3])
    query, *new = g.nodes("Split", [turned], 3, f"{name}.split", axis=1, num_outputs=3)
    seen = g.node("Reshape", [g.node("Cast", [total], to=TensorProto.INT64), g.integers(1)], f"{name}.seen")
    kept = []
    for before, added, after in zip(past, new, present, strict=True):
        g.output_names("ScatterND", [before, places, added], [after])
        kept.append(g.node("Slice", [after, g.integers(0), seen, g.integers(2)], f"{after}.seen"))
    keys = g.node("Transpose", [kept[0]], f"{name}.keys", perm=[0, 1, 3, 2])
    scores = g.node("Add", [g.node("MatMul", [query, keys], f"{name}.products"), bias], f"{name}.scores")
    shares = g.node("Softmax", [scores], f"{name}.shares", axis=-1)
    mixed = g.node("Transpose", [g.node("MatMul", [shares, kept[1]], f"{name}.mixed")], f"{name}.turned.back", perm=[0, 2, 1, 3])
    return g.node("Reshape", [mixed, g.integers(0, 0, shape.inner)], name)


T5 = Architecture("encoder-decoder", read_shape, linears, write_graphs, packed=True)
