"""Decoding of ONNX graphs with a KV cache that never leaves the runtime.

Graphs are those that mmedge writes (`model.onnx`, decoder-only, or `encoder_model.onnx`, which gives the cross-attention's keys
and values, and `decoder_model.onnx`, which takes them; their own cache is written in place), or those that optimum writes:
`model.onnx`, or `encoder_model.onnx` and `decoder_model_merged.onnx`, whose `use_cache_branch` chooses between reading the
encoder's states and its cached keys. Those that mmedge writes keep what was read from call to call. Works on
token ids alone; knows no text, no tokenizer, no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from mmedge.engines.drafting import EMPTY, FILE_NAME, HitRates, PhraseTable, StepCosts
from mmedge.engines.engine import Engine, RowEngine
from mmedge.engines.generation import (
    GREEDY,
    Decoding,
    Generation,
    Logits,
    TokenWriter,
    by_beginning,
    decode,
    left_padded,
    right_padded,
)
from mmedge.engines.onnx.ahead import ONLY, Ahead, Drafting
from mmedge.engines.onnx.graphs import Device, Graph, Place, Reading, Saved, bound, check_runtime, choose_device
from mmedge.manifest import Bundle
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Tokens

STEPPED = 4  # a batch whose rows have at most so many tokens more to read takes them one by one, and nothing is read twice
LEAVES = 0.75  # a batch is made smaller when no more than this share of its rows still writes
ENCODED_TOGETHER = 16  # contexts; what goes between layers then stays near the processor
FILLED_UP_TO = 8  # tokens that a context is a multiple of where contexts are encoded together: more of them are then of a width


class DecoderOnlyEngine:
    """Decodes `model.onnx`."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self._graph = Graph(bundle.graph("decoder"), threads, device)
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


class FusedEngine(ABC):
    """Decodes a decoder as mmedge writes it; subclasses say what it is given at the beginning."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self.decoder = Graph(bundle.graph("decoder"), threads, device)
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

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        return self.conversation().generate(prompts, max_new_tokens, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self.conversation().next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self.conversation().forced_logits(prompt, target)

    def conversation(self) -> Engine:
        return _Conversation(self)

    def rows(self, most: int, most_bytes: int) -> RowEngine | None:
        """See `HasRows`; a graph on another device, or with recurrent states, has none."""
        from mmedge.engines.onnx.rows import FusedRows

        if not self.decoder.shares_memory or self.decoder.states:
            return None
        return FusedRows(self, most, most_bytes)


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
        self._encoder = Graph(bundle.graph("encoder"), threads, device)
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


class _Conversation:
    """What one batch of contexts has been asked so far, kept in the decoder's cache.

    Each call says its whole prompts; of these only what differs from the call before is read. Contexts that are the same in
    several rows, as for several samples, are read once.
    """

    def __init__(self, engine: FusedEngine) -> None:
        self._engine = engine
        self._contexts: list[tuple[int, ...]] = []
        self._read: list[list[int]] = []  # what the cache holds of each row
        self._reading: Reading | None = None
        self._saved: tuple[list[tuple[int, ...]], Saved] | None = (
            None  # contexts, and the states behind them that no rewinding gives
        )
        self._logits: Logits = np.empty((0, 0), dtype=np.float32)  # behind what was read last

    def conversation(self) -> Engine:
        return self

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        writer = TokenWriter(len(prompts), how, self._engine.special.eos, max_new_tokens)
        logits = self._last_logits(prompts, room=max_new_tokens)
        assert self._reading is not None
        writer.steps += 1
        drafted = how.draft and self._engine.drafts and not how.temperature
        if len(prompts) == 1 and (drafted or (writer.forces and self._engine.reads_ahead)):
            self._read_ahead(writer, logits, prompts[0], max_new_tokens, drafted)
            return writer.generation()
        reading, rows = self._reading, np.arange(len(prompts))
        while True:
            tokens = writer.take(logits, rows)
            still = writer.open[rows]
            if not still.any():
                return writer.generation()
            if still.sum() <= LEAVES * len(rows):
                kept = np.flatnonzero(still)
                reading, rows, tokens = reading.rows(kept, reading.capacity), rows[kept], tokens[kept]
            elif reading is self._reading:
                for row, token in zip(rows, tokens, strict=True):
                    self._read[row].append(int(token))
            logits = reading.step(tokens)
            writer.steps += 1

    def _read_ahead(self, writer: TokenWriter, logits: Logits, prompt: Prompt, limit: int, drafted: bool) -> None:
        """Write one row, several tokens a step where they are known or can be guessed."""
        reading, (row,) = self._reading, self._read
        assert reading is not None
        ahead = Ahead(self._engine.drafting, (*prompt.context, *prompt.begun) if drafted else None, limit)
        token = int(writer.take(logits, ONLY)[0])
        while writer.open[0]:
            token = ahead.step(writer, reading, row, token)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return np.array(self._last_logits([Prompt(prompt.context, (*prompt.begun, *more)) for prompt in prompts]))

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        engine = self._engine
        ids = np.array([(*engine.sequence(prompt), *target[:-1])], dtype=np.int64)
        reading = Reading(engine.decoder, 1, ids.shape[1], engine.held([prompt]))
        width = ids.shape[1]
        return np.array(reading.read(ids, np.array([width]), np.arange(width - len(target), width)))

    def _last_logits(self, prompts: Sequence[Prompt], room: int = 0) -> Logits:
        """Read what was not read before of the prompts; return the logits after each, (rows, vocabulary), until the next call.

        Args:
            prompts: One for each row.
            room: How many tokens may follow.
        """
        engine = self._engine
        sequences = [engine.sequence(prompt) for prompt in prompts]
        contexts = [prompt.context for prompt in prompts]
        capacity = max(map(len, sequences)) + room
        reading, before = self._reading, self._read
        # a decoder-only student's context is the beginning of its sequence, so another context may share a beginning too
        same = reading is not None and len(prompts) == len(before) and (contexts == self._contexts or not reading.held)
        self._contexts, self._read = contexts, [list(sequence) for sequence in sequences]
        if reading is not None and same:
            shared = [_shared(old, new) for old, new in zip(before, sequences, strict=True)]
            kept = reading.rewinds or all(count == len(old) for count, old in zip(shared, before, strict=True))
            if not kept and self._saved is not None and self._saved[0] == contexts and self._branches(prompts):
                reading.back(self._saved[1])
                shared, kept = [len(context) for context in contexts], True
            new = max(len(sequence) - count for sequence, count in zip(sequences, shared, strict=True))
            if kept and (len(prompts) == 1 or (new <= STEPPED and all(len(sequence) >= new for sequence in sequences))):
                if reading.capacity < capacity:
                    reading = reading.rows(np.arange(len(prompts)), capacity)
                return self._continued(reading, sequences, new)
        if reading is not None and same and reading.rewinds:
            self._reading = self._fresh(sequences, capacity, reading.held)
        else:
            self._reading = None  # its memory is given back first
            self._reading = self._fresh_of(prompts, sequences, capacity)
        return self._logits

    def _branches(self, prompts: Sequence[Prompt]) -> bool:
        """Whether prompts are read in two parts, so that others of the same contexts may follow states that cannot be rewound."""
        begun = {len(prompt.begun) for prompt in prompts}
        short = len(prompts) == 1 or max(begun) <= STEPPED
        return bool(self._engine.decoder.states) and len(begun) == 1 and begun != {0} and short and all(p.context for p in prompts)

    def _continued(self, reading: Reading, sequences: Sequence[tuple[int, ...]], new: int) -> Logits:
        """Rewind what differs and read the last `new` tokens of each sequence."""
        self._reading = reading
        reading.rewind(np.array([len(sequence) - new for sequence in sequences]))
        last = np.array([sequence[len(sequence) - new :] for sequence in sequences], dtype=np.int64)
        if len(sequences) == 1:
            return reading.read(last, np.array([new]), np.array([new - 1]))
        for place in range(new):
            logits = reading.step(last[:, place])
        return logits

    def _fresh_of(self, prompts: Sequence[Prompt], sequences: Sequence[tuple[int, ...]], capacity: int) -> Reading:
        """Read whole prompts, those that are the same in several rows once."""
        self._saved = None
        if self._branches(prompts):
            self._reading = self._once(prompts, [prompt.context for prompt in prompts], capacity)
            self._saved = [prompt.context for prompt in prompts], self._reading.saved()
            self._logits = self._continued(self._reading, sequences, len(prompts[0].begun))
            return self._reading
        return self._once(prompts, sequences, capacity)

    def _once(self, prompts: Sequence[Prompt], sequences: Sequence[tuple[int, ...]], capacity: int) -> Reading:
        """Read the beginnings of prompts, those that are the same in several rows once."""
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        places = [
            alike.setdefault((prompt.context, sequence), len(alike)) for prompt, sequence in zip(prompts, sequences, strict=True)
        ]
        firsts = [places.index(place) for place in range(len(alike))]
        held = self._engine.held([prompts[row] for row in firsts])
        reading = self._fresh([sequences[row] for row in firsts], capacity, held)
        if len(firsts) == len(prompts):
            return reading
        self._logits = np.array(self._logits[places])
        return reading.rows(np.array(places), capacity)

    def _fresh(self, sequences: Sequence[tuple[int, ...]], capacity: int, held: dict[str, ort.OrtValue]) -> Reading:
        engine = self._engine
        ids, counts = right_padded(sequences, engine.special.pad)
        reading = Reading(engine.decoder, len(ids), capacity, held)
        self._logits = reading.read(ids, counts, np.arange(len(ids), dtype=np.int64) * ids.shape[1] + counts - 1)
        return reading


def _shared(old: Sequence[int], new: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common, one less than the new one has at most: its last is read."""
    most = min(len(old), len(new) - 1)
    return next((place for place in range(most) if old[place] != new[place]), most)


class EncoderDecoderEngine:
    """Decodes `encoder_model.onnx` and `decoder_model_merged.onnx` as optimum writes them."""

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Place = "cpu") -> None:
        self._encoder = Graph(bundle.graph("encoder"), threads, device)
        self._decoder = Graph(bundle.graph("decoder"), threads, device)
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
