"""Decoding of ONNX graphs with a KV cache that never leaves the runtime.

Graphs are those that mmedge writes (`model.onnx`, decoder-only, or `encoder_model.onnx`, which gives the cross-attention's keys
and values, and `decoder_model.onnx`, which takes them; their own cache is written in place), or those that optimum writes:
`model.onnx`, or `encoder_model.onnx` and `decoder_model_merged.onnx`, whose `use_cache_branch` chooses between reading the
encoder's states and its cached keys. Those that mmedge writes keep what was read from call to call. Works on
token ids alone; knows no text, no tokenizer, no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from mmedge.bundle import Bundle
from mmedge.engines.ahead import Drafting
from mmedge.engines.conversation import Conversing
from mmedge.engines.drafting import EMPTY, FILE_NAME, HitRates, PhraseTable, StepCosts
from mmedge.engines.engine import Engine, RowEngine
from mmedge.engines.generation import (
    GREEDY,
    Decoding,
    Generation,
    Logits,
    by_beginning,
    decode,
    left_padded,
    right_padded,
)
from mmedge.engines.onnx.graphs import Device, FusedReading, Graph, Place, bound, check_runtime, choose_device
from mmedge.engines.onnx.slots import FILLED_UP_TO, FusedSlots
from mmedge.engines.slotted import SPARE, SlottedRows
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Tokens

ENCODED_TOGETHER = 16  # contexts; what goes between layers then stays near the processor


class DecoderOnlyEngine:
    """Decodes `model.onnx`."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self._graph = Graph(bundle.graph("decoder"), threads, device, bundle.held)
        self._special = bundle.manifest.special_tokens

    def _run(
        self, ids: Tokens, mask: Tokens, positions: Tokens, past: dict[str, ort.OrtValue]
    ) -> tuple[Logits, dict[str, ort.OrtValue]]:
        feeds = {"input_ids": bound(ids), "attention_mask": bound(mask), "position_ids": bound(positions), **past}
        found = self._graph.run(feeds, self._graph.outputs)
        logits: Logits = found.pop("logits").numpy()
        return logits, {name.replace("present", "past_key_values"): value for name, value in found.items()}

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        ids, mask = left_padded([prompt.context + prompt.begun for prompt in prompts], self._special.pad)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        state: dict[str, Any] = {"mask": mask, "last": positions[:, -1:]}

        def first() -> Logits:
            logits, state["past"] = self._run(ids, mask, positions, self._graph.empty_past(len(prompts), 0))
            return logits[:, -1]

        def step(tokens: Tokens) -> Logits:
            state["mask"] = np.concatenate([state["mask"], np.ones((len(prompts), 1), dtype=np.int64)], axis=1)
            state["last"] = state["last"] + 1
            logits, state["past"] = self._run(tokens[:, None], state["mask"], state["last"], state["past"])
            return logits[:, -1]

        return decode(first, step, len(prompts), self._special.eos, self._special.pad, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        ids, mask = left_padded([(*prompt.context, *prompt.begun, *more) for prompt in prompts], self._special.pad)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        return self._run(ids, mask, positions, self._graph.empty_past(len(prompts), 0))[0][:, -1]

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        ids = np.array([[*prompt.context, *prompt.begun, *target[:-1]]], dtype=np.int64)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        logits = self._run(ids, np.ones_like(ids), positions, self._graph.empty_past(1, 0))[0]
        return logits[0, -len(target) :]

    def conversation(self) -> Engine:
        return self  # these graphs remember nothing between calls


class FusedEngine(Conversing, ABC):
    """Decodes a decoder as mmedge writes it; subclasses say what it is given at the beginning."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self.decoder = Graph(bundle.graph("decoder"), threads, device, bundle.held)
        self.special = bundle.manifest.special_tokens
        table = bundle.folder / FILE_NAME
        self.drafting = Drafting(PhraseTable.load(table) if table.is_file() else EMPTY, StepCosts(), HitRates())
        self.reads_ahead = (self.decoder.rows_alike or self.decoder.steps_alike) and not self.decoder.states  # to the same bits
        # export writes one where drafts pay and change nothing; recurrent states cannot be rewound
        self.drafts = table.is_file() and not self.decoder.states

    @property
    def held_names(self) -> Sequence[str]:
        """The inputs of the decoder that `held` returns, but for the mask."""
        return ()

    @abstractmethod
    def held(self, prompts: Sequence[Prompt]) -> dict[str, ort.OrtValue]:
        """Return what the decoder is given at every step for these prompts' contexts."""

    @abstractmethod
    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens that the decoder reads of a prompt."""

    @property
    def rewinds(self) -> bool:
        """Whether what its decoder has read can be rewound."""
        return not self.decoder.states

    def reading(self, rows: int, capacity: int, held: Mapping[str, Any]) -> FusedReading:
        """Return rows of which nothing was read."""
        return FusedReading(self.decoder, rows, capacity, dict(held))

    def rows(self, most: int, most_bytes: int) -> RowEngine | None:
        """See `HasRows`; a graph on another device, or with recurrent states, has none."""
        if not self.decoder.shares_memory or self.decoder.states:
            return None
        return SlottedRows(self, FusedSlots(self.decoder, self.held_names, most + SPARE, most_bytes), most)


class FusedDecoderOnlyEngine(FusedEngine):
    """Decodes `model.onnx` as mmedge writes it."""

    def held(self, prompts: Sequence[Prompt]) -> dict[str, ort.OrtValue]:
        return {}

    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        return (*prompt.context, *prompt.begun)


class FusedEncoderDecoderEngine(FusedEngine):
    """Decodes `encoder_model.onnx` and `decoder_model.onnx` as mmedge writes them."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        super().__init__(bundle, threads, device)
        self._encoder = Graph(bundle.graph("encoder"), threads, device, bundle.held)
        self._held = [name.replace("present", "past_key_values") for name in self._encoder.outputs]

    @property
    def held_names(self) -> Sequence[str]:
        return self._held

    def held(self, prompts: Sequence[Prompt]) -> dict[str, ort.OrtValue]:
        """Encode contexts so that the result of one does not depend on the others.

        All are filled up behind, to a multiple of `FILLED_UP_TO` tokens, so that sums over them are made in the same order
        however wide the batch is. Where rows do not affect each other (`rows_alike`), contexts of the same width are read at
        once: same width, same kernels, same bits. Else activations share one scale, and each is read alone, as it is.
        """
        counts = [len(prompt.context) for prompt in prompts]
        filled = [-(-count // FILLED_UP_TO) * FILLED_UP_TO for count in counts]
        total = max(filled)
        ids = np.full((len(prompts), total), self.special.pad, dtype=np.int64)
        mask = np.zeros((len(prompts), total), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : counts[row]], mask[row, : counts[row]] = prompt.context, 1
        alike = self._encoder.rows_alike
        groups = _same(filled, ENCODED_TOGETHER) if alike else [[row] for row in range(len(prompts))]
        whole: dict[str, Any] = {}
        for rows in groups:
            width = (filled if alike else counts)[rows[0]]
            some = {"input_ids": bound(ids[rows, :width]), "attention_mask": bound(mask[rows, :width])}
            found = dict(zip(self._held, self._encoder.run(some, self._encoder.outputs).values(), strict=True))
            if len(groups) == 1 and width == total:
                return {"encoder_attention_mask": self.decoder.placed(mask), **found}
            for name, value in found.items():
                part = value.numpy()
                if name not in whole:
                    whole[name] = self.decoder.scratch.zeros((len(prompts), part.shape[1], total, part.shape[3]), part.dtype)
                whole[name][rows, :, :width] = part
        return {name: self.decoder.placed(value) for name, value in ({"encoder_attention_mask": mask} | whole).items()}

    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        return prompt.begun


def _same(values: Sequence[int], most: int) -> list[list[int]]:
    """Return the places of equal values together, at most so many in a list."""
    found: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        found.setdefault(value, []).append(place)
    return [places[first : first + most] for places in found.values() for first in range(0, len(places), most)]


class EncoderDecoderEngine:
    """Decodes `encoder_model.onnx` and `decoder_model_merged.onnx` as optimum writes them."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self._encoder = Graph(bundle.graph("encoder"), threads, device, bundle.held)
        self._decoder = Graph(bundle.graph("decoder"), threads, device, bundle.held)
        self._special = bundle.manifest.special_tokens

    def _encode(self, prompts: Sequence[Prompt]) -> dict[str, ort.OrtValue]:
        ids, mask = left_padded([prompt.context for prompt in prompts], self._special.pad)
        held = bound(mask)
        states = self._encoder.run({"input_ids": bound(ids), "attention_mask": held}, self._encoder.outputs)
        return {"encoder_hidden_states": states["last_hidden_state"], "encoder_attention_mask": held}

    def _read(self, encoded: dict[str, ort.OrtValue], ids: Tokens) -> dict[str, ort.OrtValue]:
        """Run the branch without a cache: it computes the keys and values of the encoder's states, once."""
        feeds = {
            **encoded,
            **self._decoder.empty_past(len(ids), 1),
            "input_ids": bound(ids),
            "use_cache_branch": bound(np.array([False])),
        }
        return self._decoder.run(feeds, self._decoder.outputs)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return by_beginning(self._generate, prompts, max_new_tokens, how)

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding) -> Generation:
        cache_branch = bound(np.array([True]))
        growing = [name for name in self._decoder.outputs if ".decoder." in name]
        state: dict[str, ort.OrtValue] = {}

        def keep(found: dict[str, ort.OrtValue]) -> Logits:
            logits: Logits = found.pop("logits").numpy()
            state.update({name.replace("present", "past_key_values"): value for name, value in found.items()})
            return logits[:, -1]

        def first() -> Logits:
            encoded = self._encode(prompts)
            state.update(encoded)
            return keep(self._read(encoded, np.array([prompt.begun for prompt in prompts], dtype=np.int64)))

        def step(tokens: Tokens) -> Logits:
            feeds = {**state, "input_ids": bound(tokens[:, None]), "use_cache_branch": cache_branch}
            return keep(self._decoder.run(feeds, ["logits", *growing]))

        return decode(first, step, len(prompts), self._special.eos, self._special.pad, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        ids, counts = right_padded([(*prompt.begun, *more) for prompt in prompts], self._special.pad)
        logits: Logits = self._read(self._encode(prompts), ids)["logits"].numpy()
        return logits[np.arange(len(ids)), counts - 1]

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        ids = np.array([[*prompt.begun, *target[:-1]]], dtype=np.int64)
        logits: Logits = self._read(self._encode([prompt]), ids)["logits"].numpy()
        return logits[0, -len(target) :]

    def conversation(self) -> Engine:
        return self  # these graphs remember nothing between calls


def open_engine(bundle: Bundle, threads: int | None = None, device: Device = "auto") -> Engine:
    """Open the graphs of a bundle.

    Args:
        bundle: A checked bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all of the process's cores.
        device: Where they run; `auto` takes a CUDA device where there is one and the bundle is meant for it.

    Raises:
        MmedgeError: CUDA is asked for and cannot be had.
    """
    stated = bundle.manifest
    check_runtime(stated.least_runtime, bundle.folder)
    threads, place = threads or stated.threads, choose_device(device, stated.device)
    if stated.family == "decoder-only":
        if stated.graphs == "fused":
            return FusedDecoderOnlyEngine(bundle, threads, place)
        return DecoderOnlyEngine(bundle, threads, place)
    if stated.graphs == "fused":
        return FusedEncoderDecoderEngine(bundle, threads, place)
    return EncoderDecoderEngine(bundle, threads, place)
