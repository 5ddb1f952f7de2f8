"""The layer plan of a student: what an engine that interprets plans does, layer by layer, and where its weights lie.

    decoder_plan(shape, weights, g)      → {"version": 1, "file": "weights.data", "matrices": […], "blocks": […], …}; or None
    t5_plan(shape, head, encoder, decoder)  → the same with an encoder, version 2

The plan is JSON, part of the manifest, and says the same as the graph beside it. `engines/native` reads it. A decoder that does
what plans have no words for has none, and runs as a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from mmedge.export.architectures.decoder import EMBEDDING, Attention, DecoderShape, Mixer
from mmedge.export.architectures.lfm2 import ShortConvolution
from mmedge.export.architectures.qwen3_5 import GatedAttention, GatedDelta
from mmedge.export.builder import GraphBuilder, StoredMatrix
from mmedge.export.quantization.formats import INT8_OUTPUTS
from mmedge.export.weights import TABLE, Weights, has_own_head

if TYPE_CHECKING:
    from mmedge.export.architectures.t5 import T5Shape

VERSION, VERSION_WITH_ENCODER, VERSION_WITH_LAYERS, VERSION_WITH_STATES = 1, 2, 3, 4
_BITS, _BLOCKS = (8, 4), (16, 32, 64)  # that kernels are there for
CHANNELS, TAPS = 16, 16  # a convolution's channels are computed by so many, and it sees so many tokens at most
CROSS = "cross.kv"
T5_POSITIONS = 8192  # T5 has no limit of its own; the bias that distances give is spread out over as many as a text has


def decoder_plan(shape: DecoderShape, weights: Weights, g: GraphBuilder) -> dict[str, Any] | None:
    """Return the layer plan of a decoder whose graph has been written; None where a plan cannot say what it does.

    Args:
        shape: What the config says.
        weights: The student's.
        g: The graph; small weights that plans refer to are written to its data file.
    """
    attentions = [mixer for mixer in shape.mixers if isinstance(mixer, Attention)]
    if not attentions or shape.logits_cap or g.float_type != TensorProto.FLOAT:
        return None
    first = attentions[0]
    known = all(_has_words(mixer, shape) for mixer in shape.mixers)
    if not known or any(_common(attention) != _common(first) for attention in attentions):
        return None
    head = "head" if has_own_head(weights, EMBEDDING) else TABLE
    names = [TABLE, *([head] if head != TABLE else [])]
    packed = len(shape.names.gate_up) == 1
    opening = ("feed_forward.gate_up",) if packed else ("feed_forward.gate", "feed_forward.up")
    for index, mixer in enumerate(shape.mixers):
        own = (f"{mixer.name}.{part}" for part in (*mixer.linears(), "o"))
        names += [f"layers.{index}.{part}" for part in (*own, *opening, "feed_forward.down")]
    if any(name not in g.matrices or not _has_kernel(g.matrices[name]) for name in names):
        return None
    matrices = [part for name in names for part in _matrices(g, name)]
    places = {matrix["name"]: place for place, matrix in enumerate(matrices)}
    plain = _is_plain(shape)
    turns = (g.floats_place("rotary.cos"), g.floats_place("rotary.sin")) if plain else (None, None)
    return {
        "version": VERSION_WITH_STATES if shape.recurrent else VERSION if plain else VERSION_WITH_LAYERS,
        "file": g.data_name,
        "width": shape.width,
        "heads": first.heads,
        "kv_heads": first.kv_heads,
        "head_width": first.head_width,
        "vocabulary": g.matrices[TABLE].outputs,
        "positions": shape.positions,
        "epsilon": shape.epsilon,
        "attention_scale": first.scale,
        **({} if plain else {"embedding_multiplier": shape.embedding_multiplier}),
        "table": places[TABLE],
        "head": places[head],
        "norm": g.floats_place("norm.weight"),
        "cosines": turns[0],
        "sines": turns[1],
        "matrices": matrices,
        "blocks": [
            block
            for index, mixer in enumerate(shape.mixers)
            for block in _blocks(shape, weights, g, places, index, mixer, plain=plain)
        ],
    }


def _has_words(mixer: Mixer, shape: DecoderShape) -> bool:
    """Whether a plan can say what a mixer does: of these very classes, since others of their kind may do more."""
    if type(mixer) is GatedDelta and mixer.epsilon == shape.epsilon:
        return mixer.channels % CHANNELS == 0 and mixer.taps <= TAPS
    if type(mixer) is ShortConvolution:
        return mixer.width % CHANNELS == 0 and mixer.taps <= TAPS
    return type(mixer) in (Attention, GatedAttention)


def _is_plain(shape: DecoderShape) -> bool:
    """Whether version 1 says all: attentions that turn all of every head alike, without norms behind them, and no factors."""
    attentions = [mixer for mixer in shape.mixers if isinstance(mixer, Attention)]
    rotary = attentions[0].rotary
    alike = rotary is not None and all(isinstance(mixer, Attention) and mixer.rotary == rotary for mixer in shape.mixers)
    whole = rotary is not None and 2 * len(rotary.frequencies) == attentions[0].head_width
    after = shape.names.after_mixer is None and shape.names.after_feed_forward is None
    return alike and whole and after and shape.activation == "silu" and shape.embedding_multiplier == 1


def _common(attention: Attention) -> tuple[Any, ...]:
    """Return what all layers of a plan have in common."""
    return attention.heads, attention.kv_heads, attention.head_width, attention.scale


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


def _matrices(g: GraphBuilder, name: str) -> list[dict[str, Any]]:
    """Return a matrix, or the two that one of gate and up consists of."""
    whole = _matrix(g, name)
    if not name.endswith(".gate_up"):
        return [whole]
    outputs, inputs, format_ = whole["outputs"] // 2, whole["inputs"], g.matrices[name].format
    if format_.is_float:
        codes, scales = 4 * outputs, 0
    else:
        blocks = -(-inputs // format_.block)
        codes = outputs * blocks * format_.block * format_.bits // 8
        scales = outputs * blocks * (2 if whole["scale_type"] == "float16" else 4)
    stride = {"stride": whole["outputs"]} if whole["storage"] == "float32_columns" else {}
    return [
        {
            **whole,
            **stride,
            "name": f"{name.removesuffix('gate_up')}{part}",
            "outputs": outputs,
            "codes": whole["codes"] + place * codes,
            "scales": None if whole["scales"] is None else whole["scales"] + place * scales,
            "bias": None if whole["bias"] is None else whole["bias"] + 4 * place * outputs,
        }
        for place, part in enumerate(("gate", "up"))
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


def _blocks(
    shape: DecoderShape, weights: Weights, g: GraphBuilder, places: dict[str, int], index: int, mixer: Mixer, *, plain: bool
) -> list[dict[str, Any]]:
    """Return the two sublayers of a layer."""
    name = f"layers.{index}"
    mixed = {
        **_mixer(shape, weights, g, index, mixer, plain=plain),
        **{key: places[f"{name}.{mixer.name}.{part}"] for key, part in zip(("first", "second"), mixer.linears(), strict=False)},
        "out": places[f"{name}.{mixer.name}.o"],
        "norm": g.floats_place(f"{name}.norm.weight"),
    }
    fed = {
        "kind": "feed_forward",
        "first": places[f"{name}.feed_forward.gate"],
        "second": places[f"{name}.feed_forward.up"],
        "out": places[f"{name}.feed_forward.down"],
        "norm": g.floats_place(f"{name}.feed_forward.norm.weight"),
    }
    if plain:
        return [mixed, fed]
    fed["activation"] = "gelu" if shape.activation == "gelu_tanh" else shape.activation
    if shape.names.after_mixer:
        mixed["after_norm"] = g.floats_place(f"{name}.{mixer.name}.norm_after.weight")
    if shape.names.after_feed_forward:
        fed["after_norm"] = g.floats_place(f"{name}.feed_forward.norm_after.weight")
    return [mixed, fed]


def _mixer(shape: DecoderShape, weights: Weights, g: GraphBuilder, index: int, mixer: Mixer, *, plain: bool) -> dict[str, Any]:
    """Return what a mixer is beside its linear layers."""
    if isinstance(mixer, Attention):
        return _attention(shape, g, index, mixer, plain=plain)
    name = f"layers.{index}.{mixer.name}"
    if isinstance(mixer, GatedDelta):
        return {"kind": "gated_delta", **_convolution(g, f"{name}.convolution", mixer.taps), **_delta(g, name, mixer)}
    assert isinstance(mixer, ShortConvolution)  # `_has_words` knows no others
    bias = f"model.layers.{index}.conv.conv.bias" in weights
    return {"kind": "convolution", **_convolution(g, name, mixer.taps, bias=bias)}


def _attention(shape: DecoderShape, g: GraphBuilder, index: int, attention: Attention, *, plain: bool) -> dict[str, Any]:
    """Return what an attention is beside its linear layers."""
    name = f"layers.{index}.{attention.name}"
    norms = [g.floats_place(f"{name}.{part}.norm.weight") if attention.norms else None for part in ("queries", "keys")]
    found = {"kind": "self_attention", "window": attention.window or 0, "query_norm": norms[0], "key_norm": norms[1]}
    if plain:
        return found
    if isinstance(attention, GatedAttention):
        found["gated"] = 1
    if attention.rotary is None:
        return {**found, "rotary_width": 0}
    rotaries = list(dict.fromkeys(mixer.rotary for mixer in shape.mixers if isinstance(mixer, Attention) and mixer.rotary))
    place = rotaries.index(attention.rotary)
    called = f"rotary.{place}" if place else "rotary"
    turns = {key: g.floats_place(f"{called}.{short}") for key, short in (("cosines", "cos"), ("sines", "sin"))}
    return {**found, **turns, "rotary_width": 2 * len(attention.rotary.frequencies)}


def _delta(g: GraphBuilder, name: str, delta: GatedDelta) -> dict[str, Any]:
    """Return what a gated delta layer is beside its linear layers and its convolution."""
    return {
        "key_heads": delta.key_heads,
        "value_heads": delta.value_heads,
        "key_width": delta.key_width,
        "value_width": delta.value_width,
        "head_norm": g.floats_place(f"{name}.norm.weight"),
        "step_bias": g.floats_place(f"{name}.step.bias"),
        "slope": g.floats_place(f"{name}.slope"),
    }


def _convolution(g: GraphBuilder, name: str, taps: int, *, bias: bool = False) -> dict[str, Any]:
    """Return where a convolution's taps lie, the last one that for the token itself, and its bias."""
    return {
        "taps": [g.floats_place(f"{name}.kernel.{tap}") for tap in range(taps)],
        "kernel_bias": g.floats_place(f"{name}.bias") if bias else None,
    }
