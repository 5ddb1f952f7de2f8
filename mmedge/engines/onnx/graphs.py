"""ONNX graphs on ONNX Runtime, on the CPU or a CUDA device, with inputs and outputs bound where they lie.

On a CUDA device the cache stays there from first to last; only token ids and lengths go in, and logits come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from packaging.version import Version

from mmedge.engines.generation import Logits
from mmedge.engines.onnx.scratch import Scratch
from mmedge.errors import MmedgeError
from mmedge.machine import usable_cores
from mmedge.tasks.forms.constraints import Tokens

Device = Literal["auto", "cpu", "cuda"]
Place = Literal["cpu", "cuda"]
Held = Mapping[str, NDArray[np.uint8]]  # contents of files, by name
_NOTHING: Held = {}
_IN_MEMORY = "add_external_initializers_from_files_in_memory"  # not every version has it; others read the files
CUDA = "CUDAExecutionProvider"
ROWS_ALIKE = "mmedge.rows_alike"  # a graph's metadata key: what it computes for a row never depends on other rows


def choose_device(wanted: Device, meant_for: Place) -> Place:
    """Return where a bundle's graphs run: `auto` takes a CUDA device where there is one and the bundle is meant for it.

    Args:
        wanted: What was asked for.
        meant_for: What the bundle was made for.

    Raises:
        MmedgeError: CUDA is asked for, and this ONNX Runtime has none, or it has no kernels for the bundle's dtypes.
    """
    if wanted == "cuda" and meant_for != "cuda":
        raise MmedgeError("device cuda: this bundle is quantized for CPUs", "export the student with --fp16")
    there = CUDA in ort.get_available_providers()
    if wanted == "cuda" and not there:
        raise MmedgeError(
            "device cuda: this ONNX Runtime has no CUDA provider", "install onnxruntime-gpu in place of onnxruntime, or use cpu"
        )
    return "cuda" if there and wanted != "cpu" and meant_for == "cuda" else "cpu"


def check_runtime(least: str, folder: Path) -> None:
    """Refuse graphs whose operators this ONNX Runtime does not have.

    Args:
        least: The oldest version that has them; empty for the oldest that mmedge supports.
        folder: The bundle's, for the error.

    Raises:
        MmedgeError: This one is older.
    """
    if least and Version(ort.__version__) < Version(least):
        raise MmedgeError(f"{folder} needs ONNX Runtime {least}, and this is {ort.__version__}", "pip install -U onnxruntime")


def open_session(path: Path, threads: int | None, device: Place = "cpu", held: Held = _NOTHING) -> ort.InferenceSession:
    """Open a graph.

    Args:
        path: Its file.
        threads: Threads within one operation on the CPU; None for all cores.
        device: Where it runs.
        held: What files of weights beside it hold, where they were read into memory; ONNX Runtime copies what it needs.

    Raises:
        MmedgeError: ONNX Runtime cannot read it, or not start on that device.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    if held and hasattr(options, _IN_MEMORY):
        sizes = [array.nbytes for array in held.values()]
        getattr(options, _IN_MEMORY)(list(held), [array.data for array in held.values()], sizes)
    providers = [*([CUDA] if device == "cuda" else []), "CPUExecutionProvider"]
    try:
        if device == "cuda" and CUDA in ort.get_available_providers():
            ort.preload_dlls()  # CUDA and cuDNN where pip installed them, outside of the library path
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises its own types, which have no public base class
        raise MmedgeError(f"ONNX Runtime cannot open {path}: {str(error)[:200]}", "export the student again") from error
    if device == "cuda" and CUDA not in session.get_providers():  # it falls back to the CPU with nothing but a warning
        raise MmedgeError("device cuda: ONNX Runtime cannot start CUDA here", "check the driver, CUDA and cuDNN, or use cpu")
    return session


def bound(array: NDArray[Any]) -> ort.OrtValue:
    """Return an array as a value for graphs; it stays in CPU memory."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


class Graph:
    """A session with the names, shapes and dtypes of its cache.

    Args:
        path: The graph's file.
        threads: Threads within one operation.
        device: Where it runs, and where its cache lies.
        held: See `open_session`.
    """

    def __init__(self, path: Path, threads: int | None, device: Place = "cpu", held: Held = _NOTHING) -> None:
        self.device: Place = device
        self.shares_memory = device == "cpu"  # values made of arrays are those arrays
        self.scratch = Scratch()
        self.session = open_session(path, threads, device, held)
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.past = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.states = [name for name in self.inputs if name.startswith("past_states.")]
        half = any(self.inputs[name].type == "tensor(float16)" for name in self.past)
        self.floats: type[np.float32 | np.float16] = np.float16 if half else np.float32
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.steps_alike = "attended" in self.inputs
        self.rows_alike = self.session.get_modelmeta().custom_metadata_map.get(ROWS_ALIKE) == "yes"
        self.vocabulary = next((item.shape[-1] for item in self.session.get_outputs() if item.name == "logits"), 0)

    def placed(self, array: NDArray[Any]) -> ort.OrtValue:
        """Return an array as a value where the graph runs; a copy, unless that is the CPU."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)

    def empty_past(self, rows: int, length: int) -> dict[str, ort.OrtValue]:
        """Return a cache of `length` zero positions."""
        values = {}
        for name in self.past:
            shape = self.inputs[name].shape
            heads, width = shape[1], shape[3]
            values[name] = self.placed(np.zeros((rows, heads, length, width), dtype=self.floats))
        return values

    def run(self, feeds: dict[str, ort.OrtValue], wanted: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Run once; inputs are bound where they lie, outputs stay in the runtime."""
        binding = self.session.io_binding()
        for name, value in feeds.items():
            if name in self.inputs:
                binding.bind_ortvalue_input(name, value)
        for name in wanted:
            binding.bind_output(name, self.device)
        self.session.run_with_iobinding(binding)
        return dict(zip(wanted, binding.get_outputs(), strict=True))


_FED = ("input_ids", "wanted", "lengths", "total", "starts", "counts", "attended", "kept")
_MOST_SHAPES = 128

Shape = tuple[int, int, int, bool]  # rows, new tokens, wanted logits, whether a single token is given twice


class Places:
    """Memory for what a decoder is fed and for the logits that come back; readings of one thread may share it.

    Args:
        graph: The decoder.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = [name for name in _FED if name in graph.inputs]
        self._by_shape: dict[Shape, tuple[dict[str, ort.OrtValue], dict[str, NDArray[Any]]]] = {}
        self._logits: NDArray[np.float32] = np.empty((0, graph.vocabulary), dtype=np.float32)

    def of(self, shape: Shape) -> tuple[dict[str, ort.OrtValue], dict[str, NDArray[Any]]]:
        """Return the values of one shape, and the same memory as arrays; both are good until the next call."""
        rows, new, wanted, doubles = shape
        if wanted > len(self._logits) or len(self._by_shape) >= _MOST_SHAPES:
            self._by_shape.clear()
        if wanted > len(self._logits):
            self._logits = self._graph.scratch.empty((wanted, self._graph.vocabulary), np.float32)
        if shape not in self._by_shape:
            fresh: dict[str, NDArray[Any]] = {
                "input_ids": np.zeros((rows, new), dtype=np.int64),
                "wanted": np.zeros(wanted, dtype=np.int64),
                "lengths": np.zeros(rows, dtype=np.int32),
                "total": np.array(0, dtype=np.int32),
                "starts": np.zeros(rows, dtype=np.int64),
                "counts": np.ones(rows, dtype=np.int32),
                "attended": np.zeros(2, dtype=np.int64) if doubles and new == 1 else np.arange(new, dtype=np.int64),
                "kept": np.arange(new, dtype=np.int64),
            }
            values = {name: bound(array) for name, array in fresh.items() if name in self._names}
            # a place of its own: asking the binding for its outputs would wrap the whole cache, half a millisecond a step
            values["logits"] = bound(self._logits[:wanted])
            self._by_shape[shape] = values, {name: value.numpy() for name, value in values.items()}
        return self._by_shape[shape]


@dataclass(frozen=True)
class Saved:
    """A copy of recurrent states: how many tokens of each row they hold, (rows,), and their values by name."""

    lengths: Tokens
    states: Mapping[str, NDArray[Any]]


class FusedReading:
    """A batch of token sequences that a fused decoder has read so far, their cache in one place from first to last.

    What was read can be rewound from the end (`rewind`), so that several continuations follow one beginning, and rows
    can be picked, dropped or doubled (`rows`). A graph with recurrent states (`past_states.…`) holds all that was read in them:
    nothing can be rewound, but to where a copy of them was saved.

    Args:
        graph: The decoder.
        rows: Sequences.
        capacity: The most tokens of any.
        held: Inputs that stay the same, such as the cross-attention's keys and values; their first axis is the rows.
        cache: Memory for the cache, `room` positions long; allocated where None.
        places: Memory for what is fed; its own where None.
    """

    def __init__(
        self,
        graph: Graph,
        rows: int,
        capacity: int,
        held: dict[str, ort.OrtValue] | None = None,
        cache: dict[str, ort.OrtValue] | None = None,
        places: Places | None = None,
    ) -> None:
        self._graph = graph
        self._session, self._binding = graph.session, graph.session.io_binding()
        self.lengths: Tokens = np.zeros(rows, dtype=np.int64)
        self.capacity = capacity
        self._doubles = graph.steps_alike and rows == 1
        self.held = held or {}
        for name, value in self.held.items():
            self._binding.bind_ortvalue_input(name, value)
        self._cache = cache or {}
        for name in graph.past:
            if name not in self.held:
                if cache is None:
                    _, heads, _, width = graph.inputs[name].shape
                    shape = (rows, heads, capacity + self._doubles, width)
                    self._cache[name] = graph.placed(graph.scratch.zeros(shape, graph.floats))
                self._binding.bind_ortvalue_input(name, self._cache[name])
                self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), self._cache[name])
        # a state is read and written in one run: two places that take turns
        self._states: dict[str, tuple[ort.OrtValue, ort.OrtValue]] = {
            name: (self._empty_state(name, rows), self._empty_state(name, rows)) for name in graph.states
        }
        self._bind_states()
        self._places = places or Places(graph)
        self._fed: tuple[dict[str, ort.OrtValue], dict[str, NDArray[Any]]] | None = None  # what is bound

    def _empty_state(self, name: str, rows: int) -> ort.OrtValue:
        item = self._graph.inputs[name]
        return self._graph.placed(np.zeros((rows, *item.shape[1:]), dtype=np.float16 if "float16" in item.type else np.float32))

    def _bind_states(self) -> None:
        for name, (before, after) in self._states.items():
            self._binding.bind_ortvalue_input(name, before)
            self._binding.bind_ortvalue_output(name.replace("past_states", "present_states"), after)

    @property
    def rewinds(self) -> bool:
        """Whether what was read can be rewound."""
        return not self._states

    def read(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        """Read more tokens: at the beginning, or one for each row, or several for a single row.

        Args:
            ids: (rows, new), padded behind.
            counts: (rows,), how many of each row's are tokens.
            wanted: (n,), whose logits are wanted: places in the flat (rows · new).

        Returns:
            (n, vocabulary), in memory of this object: copy it to keep it beyond the next call.
        """
        starts, self.lengths = self.lengths, self.lengths + counts
        fed = self._bind((*ids.shape, len(wanted)))
        fed["input_ids"][...] = ids
        fed["wanted"][...] = wanted
        more = self._doubles and ids.shape[1] == 1
        if "lengths" in fed:  # a graph without attention needs none
            fed["lengths"][...] = self.lengths - 1 + more
            fed["total"][...] = self.lengths.max() + more
        if "starts" in fed:
            fed["starts"][...] = starts
        if "counts" in fed:
            fed["counts"][...] = counts
        self._run()
        return fed["logits"]

    def step(self, tokens: Tokens) -> Logits:
        """Read one token of each row, (rows,), and return the logits behind it, (rows, vocabulary), until the next call."""
        rows = len(tokens)
        if self._fed is None or self._fed is not self._places.of((rows, 1, rows, self._doubles)):
            return self.read(tokens[:, None], np.ones(rows, dtype=np.int64), np.arange(rows, dtype=np.int64))
        fed = self._fed[1]
        if "starts" in fed:
            fed["starts"][...] = self.lengths
        before, self.lengths = self.lengths, self.lengths + 1
        if "lengths" in fed:
            fed["lengths"][...] = before + self._doubles
            fed["total"][...] = self.lengths.max() + self._doubles
        fed["input_ids"][:, 0] = tokens
        self._run()
        return fed["logits"]

    def rewind(self, lengths: Tokens | int) -> None:
        """Rewind to the first tokens of each row, (rows,).

        Raises:
            ValueError: The graph has recurrent states, and something would be rewound.
        """
        shorter = np.minimum(self.lengths, lengths)
        if self._states and not np.array_equal(shorter, self.lengths):
            raise ValueError("recurrent states cannot be rewound")
        self.lengths = shorter

    def saved(self) -> Saved:
        """Return a copy of what the states hold now, to which `back` goes back."""
        return Saved(self.lengths.copy(), {name: before.numpy().copy() for name, (before, _) in self._states.items()})

    def back(self, saved: Saved) -> None:
        """Go back to what was read when it was saved; nothing before that has been rewound since."""
        self.lengths = saved.lengths.copy()
        for name, values in saved.states.items():
            self._put(self._states[name][0], (slice(None),), values)

    def rows(self, wanted: Tokens, capacity: int) -> FusedReading:
        """Return some of the rows, in any order and number, as a reading of their own; this one stays as it is."""
        held = {name: bound(self._picked(value.numpy(), wanted)) for name, value in self.held.items()}
        found = FusedReading(self._graph, len(wanted), capacity, held)
        found.lengths = self.lengths[wanted]
        longest = int(found.lengths.max())
        for name, value in self._cache.items():
            self._put(found._cache[name], (slice(None), slice(None), slice(longest)), value.numpy()[wanted, :, :longest])
        for name, (before, _) in self._states.items():
            self._put(found._states[name][0], (), before.numpy()[wanted])
        return found

    def _put(self, target: ort.OrtValue, place: tuple[Any, ...], values: NDArray[Any]) -> None:
        if self._graph.shares_memory:
            target.numpy()[place] = values
            return
        whole = target.numpy()
        whole[place] = values
        target.update_inplace(whole)

    def _picked(self, values: NDArray[Any], wanted: Tokens) -> NDArray[Any]:
        into = self._graph.scratch.empty((len(wanted), *values.shape[1:]), values.dtype)
        return np.take(values, wanted, axis=0, out=into, mode="clip")  # which writes into it at once; rows are there

    def _run(self) -> None:
        self._run_bound()
        if self._states:
            self._states = {name: (after, before) for name, (before, after) in self._states.items()}
            self._bind_states()

    def _run_bound(self) -> None:
        if self._graph.shares_memory:
            self._session.run_with_iobinding(self._binding)
            return
        assert self._fed is not None
        for name, value in self._fed[0].items():
            if name != "logits":
                self._binding.bind_ortvalue_input(name, value)  # which copies it over; what is written later would not arrive
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def _bind(self, shape: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
        """Bind places for what is fed and what comes back, and return them as arrays in the same memory.

        Args:
            shape: Rows, new tokens, wanted logits.
        """
        found = self._places.of((*shape, self._doubles))
        if self._fed is not found:
            for name, value in found[0].items():
                if name == "logits":
                    self._binding.bind_ortvalue_output(name, value)
                else:
                    self._binding.bind_ortvalue_input(name, value)
            self._fed = found
        return found[1]
