"""The layer plan of a decoder: what an engine that interprets plans does, layer by layer, and where its weights lie.

    decoder_plan(shape, weights, g)      → {"version": 1, "file": "weights.data", "matrices": […], "blocks": […], …}; or None

The plan is JSON, part of the manifest, and says the same as the graph beside it. `engines/native` reads it. A decoder that does
what plans have no words for has none, and runs as a graph.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from mmedge.export.architectures.decoder import EMBEDDING, Attention, DecoderShape
from mmedge.export.builder import GraphBuilder, StoredMatrix
from mmedge.export.weights import TABLE, Weights, has_own_head

VERSION = 1
_BITS, _BLOCKS = (8, 4), (16, 32, 64)  # that kernels are there for


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


def _matrix(g: GraphBuilder, name: str) -> dict[str, Any]:
    matrix = g.matrices[name]
    storage = f"int{matrix.format.bits}_blocks"
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
