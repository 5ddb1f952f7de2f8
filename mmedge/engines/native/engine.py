"""Students on the native library: what was read stays in its cache; which tokens are chosen is decided elsewhere.

A row gives the same bits alone and in a batch, token by token and many at once, on one thread and on several.
"""

from __future__ import annotations

import ctypes
import mmap
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.bundle import Bundle
from mmedge.engines.ahead import Drafting
from mmedge.engines.conversation import Conversing
from mmedge.engines.drafting import EMPTY, FILE_NAME, HitRates, PhraseTable, StepCosts
from mmedge.engines.engine import RowEngine
from mmedge.engines.generation import Logits
from mmedge.engines.native import library
from mmedge.engines.reading import Reading
from mmedge.engines.slotted import SlottedRows
from mmedge.errors import MmedgeError
from mmedge.folders import MANIFEST
from mmedge.machine import usable_cores
from mmedge.manifest import Manifest
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Tokens

KEPT = 48  # slots beyond the rows, as far as there is memory: what was read last, for prompts that begin alike
ENCODED = "encoded"  # what `held` calls the contexts' caches


def unsupported(manifest: Manifest) -> str | None:
    """Return why a bundle cannot run on the native engine here; None where it can."""
    if manifest.plan is None:
        exported = "exported earlier" if manifest.work is None else "none is written for its architecture or precision"
        return f"the bundle has no layer plan ({exported})"
    longest = manifest.plan.get("positions")
    if isinstance(longest, int) and manifest.max_input_tokens > longest:
        return f"its questions may have {manifest.max_input_tokens} tokens, and its layer plan has {longest} positions"
    return library.problem()


class NativeEngine(Conversing):
    """Decodes a bundle by its layer plan.

    Args:
        bundle: A checked bundle.
        threads: Threads of a step, at most the usable cores, or two; by default what the bundle asks for, or else all of them.
        kernels: The instruction set; what `MMEDGE_ISA` says or the fastest by default.

    Raises:
        MmedgeError: The library is missing, or it cannot run the bundle's plan.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, kernels: str | None = None) -> None:
        stated = bundle.manifest
        why = unsupported(stated)
        if why is not None or stated.plan is None:
            raise MmedgeError(f"the native engine cannot be used: {why}", "use ONNX Runtime: MMEDGE_ENGINE=onnx")
        held = bundle.held.get(str(stated.plan.get("file")))
        weights = mapped(bundle.folder, stated.plan) if held is None else held
        cores = usable_cores()
        threads = min(threads or stated.threads or cores, max(2, cores))  # more would only wait for each other
        where, callers = str(bundle.folder / MANIFEST), max(1, cores // threads)
        self.decoder = library.Decoder(stated.plan, weights, threads, kernels, callers, where)
        self.special, self.family = stated.special_tokens, stated.family
        table = bundle.folder / FILE_NAME
        self.drafting = Drafting(PhraseTable.load(table) if table.is_file() else EMPTY, StepCosts(), HitRates())
        self.reads_ahead = self.rewinds = not self.decoder.state_bytes  # recurrent states cannot be rewound
        self.drafts = table.is_file() and self.rewinds

    @property
    def _encodes(self) -> bool:
        return self.family == "encoder-decoder"

    def held(self, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
        return {ENCODED: self.decoder.encode([prompt.context for prompt in prompts])} if self._encodes else {}

    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        return prompt.begun if self._encodes else (*prompt.context, *prompt.begun)

    def reading(self, rows: int, capacity: int, held: Mapping[str, Any]) -> Reading:
        return NativeReading.new(self.decoder, rows, capacity, held.get(ENCODED, ()))

    def rows(self, most: int, most_bytes: int) -> RowEngine:
        """See `HasRows`."""
        from mmedge.engines.native.slots import NativeSlots

        return SlottedRows(self, NativeSlots(self.decoder, most + KEPT, most_bytes, self._encodes), most)


def mapped(folder: Path, plan: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a plan's data file, mapped into memory that other processes with the same bundle share.

    Raises:
        MmedgeError: The plan names no file of the bundle.
    """
    name = plan.get("file")
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise MmedgeError(
            f"{folder / MANIFEST}: field 'plan.file': {name!r:.60} names no file of the bundle", "export the student again"
        )
    if not (folder / name).stat().st_size:
        raise MmedgeError(f"{folder / name} is empty", "export the student again")
    with open(folder / name, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


@dataclass(frozen=True)
class NativeSnapshot:
    """How many tokens of each row were read, (rows,), and a copy of their recurrent states, where there are any."""

    lengths: Tokens
    states: library.Cache | None = None


class NativeReading:
    """See `reading.Reading`.

    Args:
        decoder: The decoder.
        cache: Holds what its rows have read.
        places: The rows of the cache that it has, (rows,).
        capacity: The most tokens of any.
        encoded: What each row's context was encoded to; empty without an encoder.
    """

    def __init__(
        self, decoder: library.Decoder, cache: library.Cache, places: Tokens, capacity: int, encoded: Sequence[library.Cache] = ()
    ) -> None:
        self._decoder, self._cache, self._places, self.capacity = decoder, cache, places, capacity
        self._order = np.argsort(places)  # the library takes rows in the cache's order
        self._back = np.argsort(self._order)
        self._in_order = bool((self._order == np.arange(len(places))).all())
        self._counts, self._starts = np.zeros((2, cache.rows), dtype=np.int64)
        self.lengths: Tokens = np.zeros(len(places), dtype=np.int64)
        self._logits: Logits = np.empty((0, decoder.vocabulary), dtype=np.float32)
        self._everyone, self._one = np.arange(len(places), dtype=np.int64), np.ones(len(places), dtype=np.int64)
        self._encoded: Sequence[library.Cache] = ()
        self._pointers: Any = None
        self.encode_with(encoded)

    @classmethod
    def new(cls, decoder: library.Decoder, rows: int, capacity: int, encoded: Sequence[library.Cache]) -> NativeReading:
        """Return rows of which nothing was read, in a cache of their own."""
        return cls(decoder, decoder.cache(rows, capacity), np.arange(rows, dtype=np.int64), capacity, encoded)

    def encode_with(self, encoded: Sequence[library.Cache]) -> None:
        """Give the rows what their contexts were encoded to; it is kept as long as they have it."""
        if not encoded or (len(encoded) == len(self._encoded) and all(map(operator.is_, encoded, self._encoded))):
            return
        self._encoded, self._pointers = tuple(encoded), (ctypes.c_void_p * self._cache.rows)()
        for place, cache in zip(self._places.tolist(), encoded, strict=True):
            self._pointers[place] = cache.pointer

    @property
    def held(self) -> Mapping[str, Any]:
        return {ENCODED: self._encoded} if self._encoded else {}

    @property
    def rewinds(self) -> bool:
        """Whether what was read can be rewound."""
        return not self._decoder.state_bytes

    def read(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        real = (np.arange(ids.shape[1]) < counts[:, None])[self._order]
        numbers = (np.cumsum(real.ravel()) - 1).reshape(real.shape)[self._back].ravel()[wanted]  # among tokens without padding
        places = np.unique(numbers)
        found = self._run(np.ascontiguousarray(ids[self._order][real]), counts, places)
        return found if np.array_equal(places, numbers) else found[np.searchsorted(places, numbers)]

    def step(self, tokens: Tokens) -> Logits:
        found = self._run(np.ascontiguousarray(tokens[self._order], dtype=np.int64), self._one, self._everyone)
        return found if self._in_order else found[self._back]

    def _run(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        if len(self._logits) < len(wanted):
            self._logits = np.empty((len(wanted), self._decoder.vocabulary), dtype=np.float32)
        logits = self._logits[: len(wanted)]
        self._counts[self._places], self._starts[self._places] = counts, self.lengths
        self._decoder.read(self._cache, ids, self._counts, self._starts, self._pointers, wanted, logits)
        self.lengths = self.lengths + counts
        return logits

    def rewind(self, lengths: Tokens | int) -> None:
        shorter = np.minimum(self.lengths, lengths)
        if not self.rewinds and not np.array_equal(shorter, self.lengths):
            raise ValueError("recurrent states cannot be rewound")
        self.lengths = shorter

    def saved(self) -> NativeSnapshot:
        if self.rewinds:
            return NativeSnapshot(self.lengths.copy())
        states = self._decoder.cache(len(self._places), 1)
        self._decoder.copy_states(self._cache, self._places, states, self._everyone)
        return NativeSnapshot(self.lengths.copy(), states)

    def back(self, saved: NativeSnapshot) -> None:
        self.lengths = saved.lengths.copy()
        if saved.states is not None:
            self._decoder.copy_states(saved.states, self._everyone, self._cache, self._places)

    def rows(self, wanted: Tokens, capacity: int) -> NativeReading:
        encoded = [self._encoded[row] for row in wanted] if self._encoded else ()
        found = NativeReading.new(self._decoder, len(wanted), capacity, encoded)
        found.lengths = np.ascontiguousarray(self.lengths[wanted])
        source = np.ascontiguousarray(self._places[wanted], dtype=np.int64)
        self._decoder.copy(self._cache, source, found.lengths, found._cache, found._places)
        return found
