"""The graph that all decoder-only architectures share, as one forward pass over layers that each say what they are.

    model.onnx   input_ids (batch, new), wanted (rows), lengths (batch), total (), own past → logits (rows, vocabulary), present

A layer is a mixer, which lets tokens see earlier ones, and a gated feed-forward layer, with norms around both. The mixer that
nearly all have is `Attention`; an architecture brings another one as a class of the same two methods. What a config says becomes a
`DecoderShape`; nothing here reads a config.

One `GroupQueryAttention` per layer rotates queries and keys, appends to the cache in place, and attends; queries, keys and values
are one linear layer; residual and norm are one node. Ten nodes per layer, against the two hundred and forty of
a traced graph. Behind the last mixer only the `wanted` positions go on: whoever needs the last one pays for one.

Factors cost nothing where a weight can take them: those of residuals are in the linear layers' weights, that of the logits is in
the last norm's.

Rows are padded behind. `lengths` holds each row's last place, so that padding is neither seen nor counted, and a row's cache
is contiguous whatever its neighbours are.

Where linear layers give a token the same bits however many tokens are read with it, attention must too, so that drafts can be
verified exactly: it has other kernels for one token than for several. Such graphs have two inputs more: `attended` says which of
the new tokens attention is given, `kept` which of what it returns goes on. A single token is given twice, and kept once. Graphs
with recurrent states do not draft, and have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from mmedge.export.architectures import Architecture
from mmedge.export.architectures.refusal import reader, refused
from mmedge.export.architectures.rotary import Rotary, table
from mmedge.export.builder import CONTRIB, PAST_STATES, DataFile, GraphBuilder, Quantizer, WrittenGraphs
from mmedge.export.weights import HEAD, TABLE, Weights, has_own_head

DECODER = "model.onnx"
DATA = "weights.data"
EMBEDDING = "model.embed_tokens.weight"
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls its weights, without `.weight`; those of a layer below `model.layers.N`.

    Attributes:
        before_mixer: The norm of what the mixer reads.
        after_mixer: The norm of what the mixer gives, where there is one.
        before_feed_forward: The norm of what the feed-forward layer reads.
        after_feed_forward: The norm of what the feed-forward layer gives, where there is one.
        gate_up: The linear layers of gate and up, or one of both, gate first.
        down: The feed-forward layer's output.
        last: The norm behind all layers.
    """

    before_mixer: str = "input_layernorm"
    after_mixer: str | None = None
    before_feed_forward: str = "post_attention_layernorm"
    after_feed_forward: str | None = None
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    last: str = "model.norm"


class Mixer(Protocol):
    """How a layer's tokens see earlier ones."""

    @property
    def name(self) -> str:
        """What its nodes and linear layers are called after."""
        ...

    @property
    def inner(self) -> int:
        """The width of what it gives to its output's linear layer."""
        ...

    @property
    def output(self) -> str:
        """What a checkpoint calls that linear layer, below the layer."""
        ...

    @property
    def recurrent(self) -> bool:
        """Whether it keeps a state that cannot be rewound."""
        ...

    @property
    def least_runtime(self) -> str:
        """The oldest ONNX Runtime that has its operators; empty for the oldest that mmedge supports."""
        ...

    def linears(self) -> dict[str, tuple[str, ...]]:
        """Return its linear layers but the output's: the weights that each multiplies by, below the layer, by its name."""
        ...

    def write(self, decoder: DecoderGraph, x: str, index: int) -> str:
        """Add its nodes, and return what goes into the output's linear layer, (batch, new, inner).

        Args:
            decoder: The graph, and what all layers share.
            x: What is read, (batch, new, width).
            index: The layer's.
        """
        ...


@dataclass(frozen=True)
class DecoderShape:
    """What the graph needs of a config; whether the head is the embedding is known from the weights alone.

    Attributes:
        width: Of the states between layers.
        mixers: Those of the layers, the first one first.
        epsilon: Of the norms.
        positions: The longest text.
        activation: Of the feed-forward layers' gates.
        names: What the checkpoint calls its weights.
        zero_centred: Whether norms multiply by 1 + their weight.
        embedding_multiplier: What looked-up embeddings are multiplied by.
        residual_multiplier: What is added to the residual is multiplied by it.
        logits_divisor: What logits are divided by.
        logits_cap: Logits are cap · tanh(logits / cap); 0 for as they are.
    """

    width: int
    mixers: tuple[Mixer, ...]
    epsilon: float
    positions: int
    activation: Activation = "silu"
    names: Names = Names()
    zero_centred: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    logits_cap: float = 0.0

    @property
    def recurrent(self) -> bool:
        """Whether a layer keeps a state that cannot be rewound."""
        return any(mixer.recurrent for mixer in self.mixers)


def head_width_of(config: Mapping[str, Any]) -> int:
    """Return the width of one head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def decoder_only(describe: Callable[[Mapping[str, Any]], DecoderShape], *, packed: bool = False) -> Architecture[DecoderShape]:
    """Return the architecture whose configs a function reads.

    Args:
        describe: Returns what a config says; raises MmedgeError for what the forward pass does not implement, by name.
        packed: Whether all its mixers are `Attention`, which `students.packed` computes.
    """

    read = reader(describe)

    def read_shape(config: Mapping[str, Any]) -> DecoderShape:
        return _runnable(read(config))

    return Architecture("decoder-only", read_shape, linears, write_graphs, packed, read)


def _runnable(shape: DecoderShape) -> DecoderShape:
    """Return a shape that ONNX Runtime's attention computes: it turns heads, and parts of heads, of whole sixteens.

    Raises:
        MmedgeError: It does not.
    """
    for mixer in shape.mixers:
        if isinstance(mixer, Attention):
            if mixer.head_width % 16:
                raise refused("head_dim", mixer.head_width)
            turned = 2 * len(mixer.rotary.frequencies) if mixer.rotary else 0
            if turned % 16:
                raise refused("partial_rotary_factor", turned / mixer.head_width)
    return shape


def linears(shape: DecoderShape, weights: Weights) -> dict[str, tuple[str, ...]]:
    """Return the weights that each linear layer of the graph multiplies by, below each other, by the layer's name."""
    found: dict[str, tuple[str, ...]] = {}
    names = shape.names
    for index, mixer in enumerate(shape.mixers):
        own = {f"{mixer.name}.{name}": parts for name, parts in mixer.linears().items()}
        own[f"{mixer.name}.o"] = (mixer.output,)
        if len(names.gate_up) == 1:
            own["feed_forward.gate_up"] = names.gate_up
        else:
            own |= {f"feed_forward.{part}": (name,) for part, name in zip(("gate", "up"), names.gate_up, strict=True)}
        own["feed_forward.down"] = (names.down,)
        for name, parts in own.items():
            found[f"layers.{index}.{name}"] = tuple(f"model.layers.{index}.{part}.weight" for part in parts)
    own_head = has_own_head(weights, EMBEDDING)
    found["head" if own_head else TABLE] = (HEAD if own_head else EMBEDDING,)
    return found


def write_graphs(shape: DecoderShape, weights: Weights, out: Path, quantizer: Quantizer | None = None) -> WrittenGraphs:
    """Write the graph of a student.

    Args:
        shape: Its shape.
        weights: Its weights.
        out: An existing folder.
        quantizer: How weights are stored; as float32 by default.
    """
    from mmedge.export.plan import decoder_plan  # which reads the classes of this file

    with DataFile(out / DATA) as data:
        g = DecoderGraph(shape, weights, data, quantizer).write()
        written = g.save(out / DECODER, decoder_plan(shape, weights, g))
    return replace(written, least_runtime=max(mixer.least_runtime for mixer in shape.mixers))


@dataclass
class DecoderGraph:
    """The graph while it is written: one for the prompt and for every later step, with a cache that may be empty.

    Attributes:
        shape: The student's.
        weights: Its weights.
        data: Where they go.
        quantizer: How they are stored; as float32 by default.
    """

    shape: DecoderShape
    weights: Weights
    data: DataFile
    quantizer: Quantizer | None = None
    _turns: dict[Rotary, list[str]] = field(default_factory=dict)
    _once: dict[str, str] = field(default_factory=dict)

    @cached_property
    def g(self) -> GraphBuilder:
        """The graph."""
        return GraphBuilder("decoder", self.data, self.quantizer)

    @cached_property
    def ids(self) -> str:
        """The tokens, (batch, new)."""
        return self.g.input("input_ids", TensorProto.INT64, ("batch", "new"))

    @cached_property
    def wanted(self) -> str:
        """Places in the flat (batch · new) whose logits are wanted, (rows,)."""
        return self.g.input("wanted", TensorProto.INT64, ("rows",))

    @cached_property
    def lengths(self) -> list[str]:
        """Each row's last place in its cache, (batch,), and the places of the longest row."""
        return [self.g.input("lengths", TensorProto.INT32, ("batch",)), self.g.input("total", TensorProto.INT32, ())]

    @cached_property
    def chosen(self) -> list[str]:
        """Which of the new tokens attention is given, and which of what it returns goes on; nothing where that is all."""
        if not self.g.batch_invariant or self.shape.recurrent:
            return []
        return [self.g.input(name, TensorProto.INT64, (f"n_{name}",)) for name in ("attended", "kept")]

    @cached_property
    def counts(self) -> str:
        """How many of each row's new tokens are tokens, (batch,)."""
        return self.g.input("counts", TensorProto.INT32, ("batch",))

    def write(self) -> GraphBuilder:
        """Write the forward pass."""
        g, shape, names = self.g, self.shape, self.shape.names
        embedding = self.weights[EMBEDDING]
        residual = g.lookup(self.ids, embedding, TABLE)
        vocabulary = len(embedding)
        del embedding
        if shape.embedding_multiplier != 1:
            residual = g.node(
                "Mul", [residual, self.number("embedding.multiplier", shape.embedding_multiplier)], "embedding.scaled"
            )
        x = g.norm(residual, self.norm_weight(f"model.layers.0.{names.before_mixer}"), shape.epsilon, "layers.0.norm")
        for index, mixer in enumerate(shape.mixers):
            prefix, name, last = f"model.layers.{index}", f"layers.{index}", index == len(shape.mixers) - 1
            mixed = mixer.write(self, x, index)
            if last:
                residual, mixed = self._wanted_rows(residual, shape.width), self._wanted_rows(mixed, mixer.inner)
            mixed = self.linear(mixed, f"{prefix}.{mixer.output}", f"{name}.{mixer.name}.o", shape.residual_multiplier)
            if names.after_mixer:
                weight = self.norm_weight(f"{prefix}.{names.after_mixer}")
                mixed = g.norm(mixed, weight, shape.epsilon, f"{name}.{mixer.name}.norm_after")
            weight = self.norm_weight(f"{prefix}.{names.before_feed_forward}")
            x, residual = g.add_norm(residual, mixed, weight, shape.epsilon, f"{name}.feed_forward.norm")
            fed = self._feed_forward(x, prefix, f"{name}.feed_forward")
            if names.after_feed_forward:
                weight = self.norm_weight(f"{prefix}.{names.after_feed_forward}")
                fed = g.norm(fed, weight, shape.epsilon, f"{name}.feed_forward.norm_after")
            following = f"model.layers.{index + 1}.{names.before_mixer}"
            weight = self.norm_weight(names.last) / np.float32(shape.logits_divisor) if last else self.norm_weight(following)
            x, residual = g.add_norm(residual, fed, weight, shape.epsilon, "norm" if last else f"layers.{index + 1}.norm")
        self._head(x, vocabulary)
        return g

    def _head(self, x: str, vocabulary: int) -> None:
        g, cap = self.g, self.shape.logits_cap
        untied = has_own_head(self.weights, EMBEDDING)
        weight, name = self.weights[HEAD if untied else EMBEDDING], "head" if untied else TABLE
        if not cap:
            g.head(x, weight, name, "logits")
        else:
            number = g.constant("logits.cap", np.array(cap, np.float32), exact=True)
            logits = g.node("Div", [g.head(x, weight, name, "logits.uncapped"), number], "logits.divided")
            g.output_names("Mul", [g.node("Tanh", [logits], "logits.tanh"), number], ["logits"])
        g.declare("logits", ("rows", vocabulary))

    def _feed_forward(self, x: str, prefix: str, name: str) -> str:
        """Return the gated feed-forward layer (Shazeer 2020).

        Gate and up are two linear layers where the checkpoint has two: one of both would have to be split, which costs a copy
        and saves no node.
        """
        g, names = self.g, self.shape.names
        if len(names.gate_up) == 1:
            both = self.linear(x, f"{prefix}.{names.gate_up[0]}", f"{name}.gate_up")
            gate, up = g.nodes("Split", [both], 2, f"{name}.split", axis=-1, num_outputs=2)
        else:
            gate, up = (
                self.linear(x, f"{prefix}.{part}", f"{name}.{called}")
                for part, called in zip(names.gate_up, ("gate", "up"), strict=True)
            )
        opened = self.silu(gate, name) if self.shape.activation == "silu" else self._gelu(gate, name)
        hidden = g.node("Mul", [opened, up], f"{name}.gated")
        return self.linear(hidden, f"{prefix}.{names.down}", f"{name}.down", self.shape.residual_multiplier)

    def silu(self, x: str, name: str) -> str:
        """Return x · sigmoid(x), in one node."""
        return self.g.node("QuickGelu", [x], f"{name}.silu", CONTRIB, alpha=1.0)

    def _gelu(self, x: str, name: str) -> str:
        """Return the GELU by its tanh approximation (Hendrycks and Gimpel 2016)."""
        return self.g.node("Gelu", [x], f"{name}.gelu", approximate="tanh")

    # ------------------------------------------------------------------------------------------ for all mixers

    def norm_weight(self, name: str) -> NDArray[np.float32]:
        """Return what a norm multiplies by."""
        weight = self.weights[f"{name}.weight"]
        return weight + np.float32(1) if self.shape.zero_centred else weight

    def number(self, name: str, value: float) -> str:
        """Return a constant in what the graph computes in."""
        return self.g.constant(name, np.array(value, np.float32))

    def linear(self, x: str, weight: str, name: str, multiplier: float = 1.0) -> str:
        """Return a linear layer of a checkpoint, with its bias where it has one.

        Args:
            x: (…, inputs).
            weight: What the checkpoint calls it, without `.weight`.
            name: What it computes.
            multiplier: What its result is multiplied by.
        """
        matrix, bias = self.weights[f"{weight}.weight"], self.weights.get(f"{weight}.bias")
        if multiplier != 1:
            matrix = matrix * np.float32(multiplier)
            bias = None if bias is None else bias * np.float32(multiplier)
        return self.g.linear(x, matrix, name, bias)

    def joined(self, x: str, weights: list[str], name: str) -> str:
        """Return several linear layers of the same input as one, their results side by side."""
        matrix = np.concatenate([self.weights[f"{weight}.weight"] for weight in weights])
        biases = [self.weights[f"{weight}.bias"] for weight in weights if f"{weight}.bias" in self.weights]
        return self.g.linear(x, matrix, name, np.concatenate(biases) if biases else None)

    def head_norm(self, x: str, weight: str, heads: int, head_width: int, name: str) -> str:
        """Return x, (batch, new, heads · head_width), with every head normalized separately."""
        apart = self.g.node("Reshape", [x, self.g.integers(0, 0, heads, head_width)], f"{name}.apart")
        normed = self.g.norm(apart, self.norm_weight(weight), self.shape.epsilon, f"{name}.norm")
        return self.g.node("Reshape", [normed, self.g.integers(0, 0, heads * head_width)], f"{name}.together")

    def turns(self, rotary: Rotary) -> list[str]:
        """Return a rotary embedding's cosines and sines."""
        if rotary not in self._turns:
            name = f"rotary.{len(self._turns)}" if self._turns else "rotary"
            pair = zip(("cos", "sin"), table(rotary, self.shape.positions), strict=True)
            self._turns[rotary] = [self.g.constant(f"{name}.{turn}", values) for turn, values in pair]
        return self._turns[rotary]

    def state(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a recurrent state as it was before the new tokens, (batch, *shape)."""
        return self.g.input(f"{PAST_STATES}{name}", self.g.float_type, ("batch", *shape))

    def once(self, key: str, write: Callable[[], str]) -> str:
        """Return a value that several layers need, written by the first of them."""
        if key not in self._once:
            self._once[key] = write()
        return self._once[key]

    def _wanted_rows(self, x: str, width: int) -> str:
        """Return rows of x, (batch, new, width), by their places in (batch · new)."""
        flat = self.g.node("Reshape", [x, self.g.integers(-1, width)], f"{x}.flat")
        return self.g.node("Gather", [flat, self.wanted], f"{x}.wanted", axis=0)


@dataclass(frozen=True)
class Attention:
    """Attention of grouped queries (Ainslie et al. 2023), with a cache that grows in place.

    Attributes:
        heads: Query heads.
        kv_heads: Heads of keys and values; as many as `heads`, or fewer.
        head_width: Of one head.
        scale: What scores are multiplied by.
        rotary: How queries and keys are turned; None for not at all.
        window: How many positions back a token sees; None for all.
        norms: What the norms of queries and keys, head by head, are called; nothing where there are none.
        parts: What the linear layers of queries, keys and values are called, or one of all.
        output: What the output's linear layer is called.
    """

    heads: int
    kv_heads: int
    head_width: int
    scale: float
    rotary: Rotary | None
    window: int | None = None
    norms: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    name = "attention"
    recurrent = False
    least_runtime = ""

    @property
    def inner(self) -> int:
        """The width of all heads together; need not be the model's."""
        return self.heads * self.head_width

    def linears(self) -> dict[str, tuple[str, ...]]:
        """Return queries, keys and values, which are one linear layer."""
        return {"qkv": self.parts}

    def write(self, decoder: DecoderGraph, x: str, index: int) -> str:
        """Add its nodes, and return what the heads attend to, (batch, new, heads · head_width)."""
        prefix, name = f"model.layers.{index}", f"layers.{index}.{self.name}"
        packed = decoder.joined(x, [f"{prefix}.{part}" for part in self.parts], f"{name}.qkv")
        return self.attend(decoder, packed, index)

    def attend(self, decoder: DecoderGraph, packed: str, index: int) -> str:
        """Return what the heads attend to, for queries, keys and values side by side, (batch, new, …)."""
        g, prefix, name = decoder.g, f"model.layers.{index}", f"layers.{index}.{self.name}"
        past = [
            g.input(f"past_key_values.{index}.{part}", g.float_type, ("batch", self.kv_heads, "capacity", self.head_width))
            for part in ("key", "value")
        ]
        if decoder.chosen:
            packed = g.node("Gather", [packed, decoder.chosen[0]], f"{name}.given", axis=1)
        queries, keys, values = packed, "", ""
        if self.norms:
            widths = [self.inner, *[self.kv_heads * self.head_width] * 2]
            queries, keys, values = g.nodes("Split", [packed, g.integers(*widths)], 3, f"{name}.split", axis=-1)
            of_queries, of_keys = (f"{prefix}.{norm}" for norm in self.norms)
            queries = decoder.head_norm(queries, of_queries, self.heads, self.head_width, f"{name}.queries")
            keys = decoder.head_norm(keys, of_keys, self.kv_heads, self.head_width, f"{name}.keys")
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        attended, *_ = g.output_names(
            "GroupQueryAttention",
            [queries, keys, values, *past, *decoder.lengths, *(decoder.turns(self.rotary) if self.rotary else ())],
            [name, *present],
            CONTRIB,
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            do_rotary=int(self.rotary is not None),
            rotary_interleaved=0,
            local_window_size=-1 if self.window is None else self.window,
            scale=self.scale,
        )
        for output in present:
            g.declare(output, ("batch", self.kv_heads, "capacity", self.head_width), g.float_type)
        return g.node("Gather", [attended, decoder.chosen[1]], f"{name}.kept", axis=1) if decoder.chosen else attended
