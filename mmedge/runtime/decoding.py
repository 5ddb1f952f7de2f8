"""Greedy decoding of ONNX graphs with a KV cache that never leaves the runtime.

The present keys and values that one step gives are bound as the next step's past: they are handed over, not copied, and only
the logits of a step come to Python. Works on token ids alone; knows no text, no tokenizer, no task.

Graphs are those that mmedge writes (`model.onnx`, decoder-only, or `encoder_model.onnx`, which gives the cross-attention's keys
and values, and `decoder_model.onnx`, which takes them; their own cache grows in place), or those that optimum writes:
`model.onnx`, or `encoder_model.onnx` and `decoder_model_merged.onnx`, whose `use_cache_branch` chooses between reading the
encoder's states and its cached keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mmedge.errors import MmedgeError
from mmedge.runtime.bundle import Bundle
from mmedge.tasks.encoding import Prompt

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Generation:
    """What was written behind each prompt.

    Attributes:
        tokens: New tokens of each row, without the end token.
        time_to_first_token: Seconds from the call to the first token (prompt read included).
        seconds: Seconds of the whole call.
        steps: How many decoding steps were taken, the first included.
    """

    tokens: list[list[int]]
    time_to_first_token: float
    seconds: float
    steps: int


class Engine(Protocol):
    """Something that continues token sequences; bundles and torch students both are."""

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Generation:
        """Continue each prompt greedily until its end token or the limit."""
        ...

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        ...

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        ...


def greedy(
    first: Callable[[], Logits], step: Callable[[NDArray[np.int64]], Logits], rows: int, eos: int, pad: int, limit: int
) -> Generation:
    """Run the greedy loop: `first` reads the prompts, `step` takes the (rows,) tokens just written."""
    started = time.perf_counter()
    written: list[list[int]] = [[] for _ in range(rows)]
    open_ = np.ones(rows, dtype=bool)
    logits = first()
    first_token = 0.0
    steps = 0
    while True:
        steps += 1
        tokens = np.where(open_, logits.argmax(-1), pad)
        if steps == 1:
            first_token = time.perf_counter() - started
        open_ &= tokens != eos
        for row in np.flatnonzero(open_):
            written[row].append(int(tokens[row]))
        if not open_.any() or steps >= limit:
            break
        logits = step(tokens.astype(np.int64))
    return Generation(written, first_token, time.perf_counter() - started, steps)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and mask, each (rows, longest), padding in front."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return ids, mask


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids (rows, longest), padding behind, and how many tokens each row has, (rows,)."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, np.array([len(row) for row in rows], dtype=np.int64)


def by_beginning(
    generate: Callable[[Sequence[Prompt], int], Generation], prompts: Sequence[Prompt], max_new_tokens: int
) -> Generation:
    """Generate for prompts of an encoder-decoder whose beginnings may be of unequal length: those of one length together.

    A decoder's padding would have to be masked at every later step; only evaluations' rationales have unequal beginnings.
    """
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(len(prompt.begun), []).append(row)
    if len(rows) == 1:
        return generate(prompts, max_new_tokens)
    tokens: list[list[int]] = [[] for _ in prompts]
    first, seconds, steps = [], 0.0, 0
    for group in rows.values():
        found = generate([prompts[row] for row in group], max_new_tokens)
        for row, written in zip(group, found.tokens, strict=True):
            tokens[row] = written
        first.append(seconds + found.time_to_first_token)
        seconds, steps = seconds + found.seconds, steps + found.steps
    return Generation(tokens, first[0], seconds, steps)


def open_session(path: Path, threads: int | None) -> ort.InferenceSession:
    """Open a graph on the CPU.

    Raises:
        MmedgeError: ONNX Runtime cannot read it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, which share no public base
        raise MmedgeError(f"ONNX Runtime cannot open {path}: {str(error)[:200]}", "export the student again") from error


def _value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


class _Graph:
    """A session with the names and shapes of its cache."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self.session = open_session(path, threads)
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.past = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.vocabulary = next((item.shape[-1] for item in self.session.get_outputs() if item.name == "logits"), 0)

    def empty_past(self, rows: int, length: int) -> dict[str, ort.OrtValue]:
        """Return a cache of `length` zero positions."""
        values = {}
        for name in self.past:
            shape = self.inputs[name].shape
            heads, width = shape[1], shape[3]
            values[name] = _value(np.zeros((rows, heads, length, width), dtype=np.float32))
        return values

    def run(self, feeds: dict[str, ort.OrtValue], wanted: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Run once; inputs are bound where they lie, outputs stay in the runtime."""
        binding = self.session.io_binding()
        for name, value in feeds.items():
            if name in self.inputs:
                binding.bind_ortvalue_input(name, value)
        for name in wanted:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return dict(zip(wanted, binding.get_outputs(), strict=True))


class DecoderOnlyEngine:
    """Decodes `model.onnx`."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._graph = _Graph(bundle.graph("decoder"), threads)
        self._special = bundle.special

    def _run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], positions: NDArray[np.int64], past: dict[str, ort.OrtValue]
    ) -> tuple[Logits, dict[str, ort.OrtValue]]:
        feeds = {"input_ids": _value(ids), "attention_mask": _value(mask), "position_ids": _value(positions), **past}
        found = self._graph.run(feeds, self._graph.outputs)
        logits: Logits = found.pop("logits").numpy()
        return logits, {name.replace("present", "past_key_values"): value for name, value in found.items()}

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Generation:
        ids, mask = left_padded([prompt.context + prompt.begun for prompt in prompts], self._special.pad)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        state: dict[str, Any] = {"mask": mask, "last": positions[:, -1:]}

        def first() -> Logits:
            logits, state["past"] = self._run(ids, mask, positions, self._graph.empty_past(len(prompts), 0))
            return logits[:, -1]

        def step(tokens: NDArray[np.int64]) -> Logits:
            state["mask"] = np.concatenate([state["mask"], np.ones((len(prompts), 1), dtype=np.int64)], axis=1)
            state["last"] = state["last"] + 1
            logits, state["past"] = self._run(tokens[:, None], state["mask"], state["last"], state["past"])
            return logits[:, -1]

        return greedy(first, step, len(prompts), self._special.eos, self._special.pad, max_new_tokens)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        ids, mask = left_padded([(*prompt.context, *prompt.begun, *more) for prompt in prompts], self._special.pad)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        return self._run(ids, mask, positions, self._graph.empty_past(len(prompts), 0))[0][:, -1]

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        ids = np.array([[*prompt.context, *prompt.begun, *target[:-1]]], dtype=np.int64)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        logits = self._run(ids, np.ones_like(ids), positions, self._graph.empty_past(1, 0))[0]
        return logits[0, -len(target) :]


class _Reading:
    """A batch of token sequences that a fused decoder has read so far, their cache in one place from first to last.

    Args:
        graph: The decoder.
        rows: Sequences.
        capacity: The most tokens of any.
        held: Inputs that stay the same.
    """

    def __init__(self, graph: _Graph, rows: int, capacity: int, held: dict[str, ort.OrtValue] | None = None) -> None:
        self._session = graph.session
        self._binding = graph.session.io_binding()
        self._lengths = np.zeros(rows, dtype=np.int64)
        self._names = [name for name in ("input_ids", "wanted", "lengths", "total", "starts") if name in graph.inputs]
        held = held or {}
        for name, value in held.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in graph.past:
            if name not in held:
                _, heads, _, width = graph.inputs[name].shape
                cache = _value(np.zeros((rows, heads, capacity, width), dtype=np.float32))
                self._binding.bind_ortvalue_input(name, cache)
                self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        self._vocabulary = graph.vocabulary
        self._steps = False  # whether what is bound is one token for each row

    def read(self, ids: NDArray[np.int64], counts: NDArray[np.int64], wanted: NDArray[np.int64]) -> Logits:
        """Read more tokens: at the beginning, or one for each row, or several for a single row.

        Args:
            ids: (rows, new), padded behind.
            counts: (rows,), how many of each row's are tokens.
            wanted: (n,), whose logits are wanted: places in the flat (rows · new).

        Returns:
            (n, vocabulary), in memory that is the reading's own: to be copied by whoever outlives it or its next call.
        """
        starts, self._lengths = self._lengths, self._lengths + counts
        fed: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "wanted": wanted,
            "lengths": (self._lengths - 1).astype(np.int32),
            "total": np.array(self._lengths.max(), dtype=np.int32),
            "starts": starts,
        }
        self._seen = self._bind({name: fed[name] for name in self._names}, len(wanted))
        self._steps = False
        self._session.run_with_iobinding(self._binding)
        return self._logits

    def step(self, tokens: NDArray[np.int64]) -> Logits:
        """Read one token of each row, (rows,), and return the logits behind it, (rows, vocabulary), until the next call."""
        if not self._steps:
            rows = np.arange(len(tokens), dtype=np.int64)
            logits = self.read(tokens[:, None], np.ones_like(rows), rows)
            self._steps = True
            return logits
        self._lengths += 1  # from here on everything is written where the runtime reads it
        seen = self._seen
        seen["input_ids"][:, 0] = tokens
        seen["lengths"] += 1
        seen["total"] += 1
        if "starts" in seen:
            seen["starts"] += 1
        self._session.run_with_iobinding(self._binding)
        return self._logits

    def _bind(self, fed: dict[str, NDArray[Any]], wanted: int) -> dict[str, NDArray[Any]]:
        """Bind inputs and a place for the logits, and return what is bound as arrays in the same memory."""
        self._held_values = {name: _value(array) for name, array in fed.items()}
        for name, value in self._held_values.items():
            self._binding.bind_ortvalue_input(name, value)
        # a place of its own: asking the binding for its outputs would wrap the whole cache, half a millisecond a step
        logits = _value(np.empty((wanted, self._vocabulary), dtype=np.float32))
        self._binding.bind_ortvalue_output("logits", logits)
        self._held_values["logits"] = logits
        self._logits: Logits = logits.numpy()
        return {name: value.numpy() for name, value in self._held_values.items() if name in fed}


class _FusedEngine:
    """Decodes a decoder as mmedge writes it; subclasses say what it is given at the beginning."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._decoder = _Graph(bundle.graph("decoder"), threads)
        self._special = bundle.special

    def _begin(
        self, prompts: Sequence[Prompt], more: Sequence[int] = (), room: int = 0
    ) -> tuple[_Reading, NDArray[np.int64], NDArray[np.int64]]:
        """Return a reading with room for `room` tokens more, and the tokens that it reads first: (rows, longest), and how many."""
        raise NotImplementedError

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Generation:
        rows = np.arange(len(prompts), dtype=np.int64)
        state: dict[str, _Reading] = {}

        def first() -> Logits:
            state["reading"], ids, counts = self._begin(prompts, room=max_new_tokens)
            return state["reading"].read(ids, counts, rows * ids.shape[1] + counts - 1)

        return greedy(
            first, lambda tokens: state["reading"].step(tokens), len(prompts), self._special.eos, self._special.pad, max_new_tokens
        )

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        reading, ids, counts = self._begin(prompts, more)
        return np.array(reading.read(ids, counts, np.arange(len(ids), dtype=np.int64) * ids.shape[1] + counts - 1))

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        reading, ids, counts = self._begin([prompt], target[:-1])
        return np.array(reading.read(ids, counts, np.arange(ids.shape[1] - len(target), ids.shape[1], dtype=np.int64)))


class FusedDecoderOnlyEngine(_FusedEngine):
    """Decodes `model.onnx` as mmedge writes it."""

    def _begin(
        self, prompts: Sequence[Prompt], more: Sequence[int] = (), room: int = 0
    ) -> tuple[_Reading, NDArray[np.int64], NDArray[np.int64]]:
        ids, counts = right_padded([(*prompt.context, *prompt.begun, *more) for prompt in prompts], self._special.pad)
        return _Reading(self._decoder, len(ids), ids.shape[1] + room), ids, counts


class FusedEncoderDecoderEngine(_FusedEngine):
    """Decodes `encoder_model.onnx` and `decoder_model.onnx` as mmedge writes them."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle, threads)
        self._encoder = _Graph(bundle.graph("encoder"), threads)

    def _begin(
        self, prompts: Sequence[Prompt], more: Sequence[int] = (), room: int = 0
    ) -> tuple[_Reading, NDArray[np.int64], NDArray[np.int64]]:
        contexts, mask = left_padded([prompt.context for prompt in prompts], self._special.pad)
        seen = _value(mask)
        cross = self._encoder.run({"input_ids": _value(contexts), "attention_mask": seen}, self._encoder.outputs)
        held = {"encoder_attention_mask": seen} | {
            name.replace("present", "past_key_values"): value for name, value in cross.items()
        }
        ids, counts = right_padded([(*prompt.begun, *more) for prompt in prompts], self._special.pad)
        return _Reading(self._decoder, len(ids), ids.shape[1] + room, held), ids, counts


class EncoderDecoderEngine:
    """Decodes `encoder_model.onnx` and `decoder_model_merged.onnx` as optimum writes them."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._encoder = _Graph(bundle.graph("encoder"), threads)
        self._decoder = _Graph(bundle.graph("decoder"), threads)
        self._special = bundle.special

    def _encode(self, prompts: Sequence[Prompt]) -> dict[str, ort.OrtValue]:
        ids, mask = left_padded([prompt.context for prompt in prompts], self._special.pad)
        held = _value(mask)
        states = self._encoder.run({"input_ids": _value(ids), "attention_mask": held}, self._encoder.outputs)
        return {"encoder_hidden_states": states["last_hidden_state"], "encoder_attention_mask": held}

    def _read(self, encoded: dict[str, ort.OrtValue], ids: NDArray[np.int64]) -> dict[str, ort.OrtValue]:
        """Run the branch without a cache: it computes the keys and values of the encoder's states, once."""
        feeds = {
            **encoded,
            **self._decoder.empty_past(len(ids), 1),
            "input_ids": _value(ids),
            "use_cache_branch": _value(np.array([False])),
        }
        return self._decoder.run(feeds, self._decoder.outputs)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Generation:
        return by_beginning(self._generate, prompts, max_new_tokens)

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Generation:
        cache_branch = _value(np.array([True]))
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

        def step(tokens: NDArray[np.int64]) -> Logits:
            feeds = {**state, "input_ids": _value(tokens[:, None]), "use_cache_branch": cache_branch}
            return keep(self._decoder.run(feeds, ["logits", *growing]))

        return greedy(first, step, len(prompts), self._special.eos, self._special.pad, max_new_tokens)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        ids, counts = right_padded([(*prompt.begun, *more) for prompt in prompts], self._special.pad)
        logits: Logits = self._read(self._encode(prompts), ids)["logits"].numpy()
        return logits[np.arange(len(ids)), counts - 1]

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        ids = np.array([[*prompt.begun, *target[:-1]]], dtype=np.int64)
        logits: Logits = self._read(self._encode([prompt]), ids)["logits"].numpy()
        return logits[0, -len(target) :]


def open_engine(bundle: Bundle, threads: int | None = None) -> Engine:
    """Open the graphs of a bundle.

    Args:
        bundle: A checked bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all of the process's cores.
    """
    threads = threads or bundle.threads
    if bundle.family == "decoder-only":
        return FusedDecoderOnlyEngine(bundle, threads) if bundle.graphs == "fused" else DecoderOnlyEngine(bundle, threads)
    if bundle.graphs == "fused":
        return FusedEncoderDecoderEngine(bundle, threads)
    return EncoderDecoderEngine(bundle, threads)
