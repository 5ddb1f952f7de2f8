"""The layer plan of a student: what an engine that interprets plans does, layer by layer, and where its weights lie.

    decoder_plan(shape, weights, g)      → {"version": 1, "file": "weights.data", "matrices": […], "blocks": […], …}; or None
    t5_plan(shape, head, encoder, decoder)  → the same with an encoder, version 2

The plan is JSON, part of the manifest, and says the same as the graph beside it. `engines/native` reads it. A decoder that does
what plans have no words for has none, and runs as a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from mmedge.export.architectures.decoder import EMBEDDING, Attention, DecoderShape
from mmedge.export.builder import GraphBuilder, StoredMatrix
from mmedge.export.quantization.formats import INT8_OUTPUTS
from mmedge.export.weights import TABLE, Weights, has_own_head

if TYPE_CHECKING:
    from mmedge.export.architectures.t5 import T5Shape

VERSION, VERSION_WITH_ENCODER = 1, 2
_BITS, _BLOCKS = (8, 4), (16, 32, 64)  # that kernels are there for
CROSS = "cross.kv"
T5_POSITIONS = 8192  # T5 has no limit of its own; the bias that distances give is spread out over as many as a text has


def decoder_plan(shape: DecoderShape, weights: Weights, g: GraphBuilder) -> dict[str, Any] | None:
    """Return the layer plan of a decoder whose graph has been written; None where a plan cannot say what it does.

    Args:
        shape: What the config says.
        weights: The student's.
        g: The graph; small weights that plans refer to are written to its data file.
    """
    attentions = [mixer for mixer in shape.mixers if type(mixer) is Attention]
    if len(attentions) != len(shape.mixers) or not _has_words(shape, attentions[0]) or g.float_type != TensorProto.FLOAT:
        return None
    first = attentions[0]
    if any((a.heads, a.kv_heads, a.head_width, a.scale, a.rotary) != _common(first) for a in attentions):
        return None
    head = "head" if has_own_head(weights, EMBEDDING) else TABLE
    names = [TABLE, *([head] if head != TABLE else [])]
    parts = ("attention.qkv", "attention.o", "feed_forward.gate", "feed_forward.up", "feed_forward.down")
    names += [f"layers.{index}.{part}" for index in range(len(attentions)) for part in parts]
    if any(name not in g.matrices or not _has_kernel(g.matrices[name]) for name in names):
        return None
    places = {name: place for place, name in enumerate(names)}
    return {
        "version": VERSION,
        "file": g.data_name,
        "width": shape.width,
        "heads": first.heads,
        "kv_heads": first.kv_heads,
        "head_width": first.head_width,
        "vocabulary": g.matrices[TABLE].outputs,
        "positions": shape.positions,
        "epsilon": shape.epsilon,
        "attention_scale": first.scale,
        "table": places[TABLE],
        "head": places[head],
        "norm": g.floats_place("norm.weight"),
        "cosines": g.floats_place("rotary.cos"),
        "sines": g.floats_place("rotary.sin"),
        "matrices": [_matrix(g, name) for name in names],
        "blocks": [block for index, mixer in enumerate(attentions) for block in _blocks(g, places, index, mixer)],
    }


def _common(attention: Attention) -> tuple[Any, ...]:
    """Return what all layers of a plan have in common."""
    a = attention
    return a.heads, a.kv_heads, a.head_width, a.scale, a.rotary


def _has_words(shape: DecoderShape, attention: Attention) -> bool:
    """Whether plans can say all of a decoder's shape."""
    plain = shape.activation == "silu" and shape.embedding_multiplier == 1 and shape.logits_cap == 0
    names = shape.names
    plain = plain and len(names.gate_up) == 2 and names.after_mixer is None and names.after_feed_forward is None
    rotary = attention.rotary
    whole = rotary is not None and 2 * len(rotary.frequencies) == attention.head_width
    return plain and whole


def _has_kernel(matrix: StoredMatrix) -> bool:
    return matrix.format.bits == 32 or (matrix.format.bits in _BITS and matrix.format.block in _BLOCKS)


def t5_plan(shape: T5Shape, head: str, encoder: GraphBuilder, decoder: GraphBuilder) -> dict[str, Any] | None:
    """Return the layer plan of a T5 whose two graphs have been written; None where a plan cannot say what it does.

    Args:
        shape: What the config says.
        head: The name of the matrix that gives logits.
        encoder: Its encoder's graph.
        decoder: Its decoder's graph, whose weights are in the same file.
    """
    matrices = {**encoder.matrices, **decoder.matrices}
    sides = (("encoder", encoder, shape.encoder_layers), ("decoder", decoder, shape.decoder_layers))
    wanted = [TABLE, head, CROSS, *(name for side, _, layers in sides for name in _t5_linears(shape, side, layers))]
    known = all(name in matrices and (_has_kernel(matrices[name]) or matrices[name].format == INT8_OUTPUTS) for name in wanted)
    if not known or decoder.float_type != TensorProto.FLOAT or shape.head_width % 16:
        return None
    places = {name: place for place, name in enumerate(dict.fromkeys(wanted))}
    (_, _, layers), (_, _, depth) = sides
    return {
        "version": VERSION_WITH_ENCODER,
        "file": decoder.data_name,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.heads,
        "head_width": shape.head_width,
        "vocabulary": matrices[TABLE].outputs,
        "positions": T5_POSITIONS,
        "epsilon": shape.epsilon,
        "attention_scale": 1.0,
        "table": places[TABLE],
        "head": places[head],
        "norm": decoder.floats_place(f"decoder.{depth}.norm.weight"),
        "cosines": None,
        "sines": None,
        "matrices": [_matrix(encoder if name in encoder.matrices else decoder, name) for name in places],
        "blocks": [block for index in range(depth) for block in _t5_blocks(shape, decoder, places, "decoder", index)],
        "encoder": {
            "blocks": [block for index in range(layers) for block in _t5_blocks(shape, encoder, places, "encoder", index)],
            "norm": encoder.floats_place(f"encoder.{layers}.norm.weight"),
            "cross": places[CROSS],
            "farthest": shape.max_distance,
            "bias": encoder.floats_place("encoder.position_bias"),
            "decoder_bias": decoder.floats_place("decoder.position_bias"),
        },
    }


def _t5_linears(shape: T5Shape, side: str, layers: int) -> list[str]:
    """Return the names of a side's linear layers."""
    cross = ("cross.q", "cross.o") if side == "decoder" else ()
    wi = ("wi_0", "wi_1") if shape.gated else ("wi",)
    parts = ("attention.qkv", "attention.o", *cross, *(f"feed_forward.{part}" for part in (*wi, "wo")))
    return [f"{side}.{index}.{part}" for index in range(layers) for part in parts]


def _t5_blocks(shape: T5Shape, g: GraphBuilder, places: dict[str, int], side: str, index: int) -> list[dict[str, Any]]:
    """Return the sublayers of a layer, two in the encoder and three in the decoder."""
    name = f"{side}.{index}"

    def attention(kind: str, first: str, out: str, norm: str) -> dict[str, Any]:
        where = {"first": places[f"{name}.{first}"], "out": places[f"{name}.{out}"]}
        return {"kind": kind, **where, "norm": g.floats_place(f"{name}.{norm}.weight")}

    found = [attention("self_attention", "attention.qkv", "attention.o", "norm")]
    if side == "decoder":
        found.append(attention("cross_attention", "cross.q", "cross.o", "cross.norm"))
    wi = ("wi_0", "wi_1") if shape.gated else ("wi",)
    fed = {key: places[f"{name}.feed_forward.{part}"] for key, part in zip(("first", "second"), wi, strict=False)}
    return [
        *found,
        {
            "kind": "feed_forward",
            "activation": "gelu" if shape.activation == "gelu_new" else shape.activation,
            **fed,
            "out": places[f"{name}.feed_forward.wo"],
            "norm": g.floats_place(f"{name}.feed_forward.norm.weight"),
        },
    ]


def _matrix(g: GraphBuilder, name: str) -> dict[str, Any]:
    matrix = g.matrices[name]
    storage = f"int{matrix.format.bits}_blocks" if matrix.format.block else "int8_columns"
    if matrix.format.is_float:
        storage = "float32_columns" if matrix.columns else "float32_rows"
    return {
        "name": name,
        "storage": storage,
        "block": 0 if matrix.format.is_float else matrix.format.block,
        "scale_type": "float16" if matrix.scales.endswith(".half_scales") else "float32",
        "outputs": matrix.outputs,
        "inputs": matrix.inputs,
        "codes": g.data_place(matrix.codes),
        "scales": g.data_place(matrix.scales) if matrix.scales else None,
        "bias": g.floats_place(matrix.bias) if matrix.bias else None,
    }


def _blocks(g: GraphBuilder, places: dict[str, int], index: int, attention: Attention) -> list[dict[str, Any]]:
    """Return the two sublayers of a layer."""
    name = f"layers.{index}"
    norms = [g.floats_place(f"{name}.attention.{part}.norm.weight") if attention.norms else None for part in ("queries", "keys")]
    return [
        {
            "kind": "self_attention",
            "window": attention.window or 0,
            "first": places[f"{name}.attention.qkv"],
            "out": places[f"{name}.attention.o"],
            "norm": g.floats_place(f"{name}.norm.weight"),
            "query_norm": norms[0],
            "key_norm": norms[1],
        },
        {
            "kind": "feed_forward",
            "first": places[f"{name}.feed_forward.gate"],
            "second": places[f"{name}.feed_forward.up"],
            "out": places[f"{name}.feed_forward.down"],
            "norm": g.floats_place(f"{name}.feed_forward.norm.weight"),
        },
    ]
