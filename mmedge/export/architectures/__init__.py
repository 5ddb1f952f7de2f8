"""Architectures whose graphs mmedge writes itself, by `model_type`. Adding one takes one file in this folder and one line here.

    architecture = ARCHITECTURES["llama"]
    shape = architecture.read_shape(config)
    architecture.write_graphs(shape, weights, folder, quantizer)

An installed package adds one by an entry point `architectures.MODEL_TYPE` whose value is an `Architecture`.

What engines expect of the graphs
---------------------------------
A decoder (`model.onnx`; of an encoder-decoder `decoder_model.onnx`) takes, for prompt and later steps alike,

    input_ids             (batch, new) int64      padded behind
    wanted                (rows) int64            positions in the flat (batch · new) whose logits are wanted
    lengths               (batch) int32           each row's last place in its cache, counting the new tokens
    total                 () int32                places of the longest row
    starts                (batch) int64           each row's first new place, where the graph asks for it
    past_key_values.*     (batch, heads, capacity, width)      an attention cache, written in place

and gives `logits` (rows, vocabulary) in float32 and `present.*` for every `past_key_values.*`. An encoder (`encoder_model.onnx`)
takes `input_ids` and `attention_mask`, (batch, length), and gives the cross-attention's `present.*.encoder.*`, which the decoder
takes with `encoder_attention_mask`. Where `GraphBuilder.batch_invariant` holds, attention is kept so too: see `decoder` for its two
inputs more, `attended` and `kept`.

A state that is not an attention cache (a recurrence, a convolution's last inputs) goes by another name:

    past_states.NAME      (batch, …)              what was read so far; zeros before anything was
    present_states.NAME   the same shape          with the new tokens
    counts                (batch) int32           how many of each row's new tokens are tokens; the rest is padding

It has no positions, so an engine cannot rewind it. Such a graph therefore leaves a row's state exactly as it was after
the row's last token (padding must not reach it), and an engine keeps a copy where it may have to rewind: before a draft, at the
end of a shared prefix. Rows are picked, dropped and duplicated along the first axis, as those of caches are.
`WrittenGraphs.states` and the manifest's `states` list name, shape without the batch, and dtype. Bundles with states do not draft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmedge.registry import Registry
from mmedge.tasks.encoding import Family

if TYPE_CHECKING:
    from mmedge.export.builder import Quantizer, WrittenGraphs
    from mmedge.export.weights import Weights

S = TypeVar("S")


@dataclass(frozen=True)
class Architecture(Generic[S]):
    """How one kind of model becomes graphs.

    Attributes:
        family: Which kind of student it is.
        read_shape: Reads a config; raises MmedgeError for what the graphs do not implement, by name.
        linears: For shape and weights, the names of the weights that each linear layer of the graphs multiplies by, below each
            other, by the layer's name; a table that is looked up in and multiplied by goes by `weights.TABLE`.
        write_graphs: Writes the graphs that `manifest.GRAPHS` names into an existing folder; `TrimmedWeights` are weights as well.
        packed: Whether `students.packed` computes it exactly, so that training needs no padding.
        describe: `read_shape` without the limits of ONNX Runtime, for whoever writes no graphs; the same by default.
    """

    family: Family
    read_shape: Callable[[Mapping[str, Any]], S]
    linears: Callable[[S, Weights], dict[str, tuple[str, ...]]]
    write_graphs: Callable[[S, Weights, Path, Quantizer | None], WrittenGraphs]
    packed: bool = False
    describe: Callable[[Mapping[str, Any]], S] | None = None


_LLAMA = "mmedge.export.architectures.llama:LLAMA"
_GRANITE = "mmedge.export.architectures.granite:GRANITE"
ARCHITECTURES: Registry[Architecture[Any]] = Registry(
    "architectures",
    {
        "t5": "mmedge.export.architectures.t5:T5",
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "gemma3_text": "mmedge.export.architectures.gemma3:GEMMA3",
        "smollm3": "mmedge.export.architectures.smollm3:SMOLLM3",
        "phi3": "mmedge.export.architectures.phi3:PHI3",
        "granite": _GRANITE,
        "granitemoehybrid": _GRANITE,
        "lfm2": "mmedge.export.architectures.lfm2:LFM2",
        "qwen3_5_text": "mmedge.export.architectures.qwen3_5:QWEN3_5",
    },
)
