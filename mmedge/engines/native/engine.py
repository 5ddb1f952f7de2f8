"""Decoder-only students on the native library: what was read stays in its cache; which tokens are chosen is decided elsewhere.

A row gives the same bits alone and in a batch, token by token and many at once, on one thread and on several.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.ahead import Drafting
from mmedge.engines.conversation import Conversing
from mmedge.engines.drafting import EMPTY, FILE_NAME, HitRates, PhraseTable, StepCosts
from mmedge.engines.generation import Logits
from mmedge.engines.native import library
from mmedge.engines.reading import Reading
from mmedge.errors import MmedgeError
from mmedge.machine import usable_cores
from mmedge.manifest import Bundle, Manifest
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms.constraints import Tokens


def unsupported(manifest: Manifest) -> str | None:
    """Return why a bundle cannot run on the native engine here; None where it can."""
    if manifest.plan is None:
        exported = "exported earlier" if manifest.work is None else "none is written for its architecture or precision"
        return f"the bundle has no layer plan ({exported})"
    return library.problem()


class NativeEngine(Conversing):
    """Decodes a bundle by its layer plan.

    Args:
        bundle: A checked bundle.
        threads: Threads of a step; by default what the bundle asks for, or else all usable cores.
        kernels: The instruction set; what `MMEDGE_ISA` says or the fastest by default.

    Raises:
        MmedgeError: The bundle has no plan that the library can run, or there is no library.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, kernels: str | None = None) -> None:
        stated = bundle.manifest
        why = unsupported(stated)
        if why is not None or stated.plan is None:
            raise MmedgeError(f"the native engine cannot be used: {why}", "use ONNX Runtime: MMEDGE_ENGINE=onnx")
        weights = mapped(bundle.folder, stated.plan)
        self.decoder = library.Decoder(stated.plan, weights, threads or stated.threads or usable_cores(), kernels)
        self.special = stated.special_tokens
        table = bundle.folder / FILE_NAME
        self.drafting = Drafting(PhraseTable.load(table) if table.is_file() else EMPTY, StepCosts(), HitRates())
        self.reads_ahead = self.rewinds = True
        self.drafts = table.is_file()

    def held(self, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
        return {}

    def sequence(self, prompt: Prompt) -> tuple[int, ...]:
        return (*prompt.context, *prompt.begun)

    def reading(self, rows: int, capacity: int, held: Mapping[str, Any]) -> Reading:
        return NativeReading(self.decoder, rows, capacity)


def mapped(folder: Path, plan: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a plan's data file, mapped into memory that other processes with the same bundle share.

    Raises:
        MmedgeError: The plan names no file of the bundle.
    """
    name = plan.get("file")
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise MmedgeError(f"{folder}: the layer plan names no file of the bundle", "export the student again")
    with open(folder / name, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


class NativeReading:
    """See `reading.Reading`.

    Args:
        decoder: The decoder.
        rows: Sequences.
        capacity: The most tokens of any.
    """

    rewinds = True

    def __init__(self, decoder: library.Decoder, rows: int, capacity: int) -> None:
        self._decoder, self.capacity = decoder, capacity
        self._cache = library.Cache(decoder, rows, capacity)
        self.lengths: Tokens = np.zeros(rows, dtype=np.int64)
        self._logits: Logits = np.empty((0, decoder.vocabulary), dtype=np.float32)
        self._everyone, self._one = np.arange(rows, dtype=np.int64), np.ones(rows, dtype=np.int64)

    @property
    def held(self) -> Mapping[str, Any]:
        return {}

    def read(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        new = ids.shape[1]
        counts = np.ascontiguousarray(counts, dtype=np.int64)
        real = np.arange(new) < counts[:, None]
        numbers = np.cumsum(real.ravel()) - 1  # of the tokens without padding
        order = np.argsort(wanted, kind="stable")
        places = np.unique(numbers[wanted])
        if len(places) == len(wanted) and np.array_equal(order, np.arange(len(order))):
            return self._run(np.ascontiguousarray(ids[real]), counts, places)
        found = self._run(np.ascontiguousarray(ids[real]), counts, places)
        return found[np.searchsorted(places, numbers[wanted])]

    def step(self, tokens: Tokens) -> Logits:
        return self._run(np.ascontiguousarray(tokens, dtype=np.int64), self._one, self._everyone)

    def _run(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        if len(self._logits) < len(wanted):
            self._logits = np.empty((len(wanted), self._decoder.vocabulary), dtype=np.float32)
        logits = self._logits[: len(wanted)]
        self._decoder.read(self._cache, ids, counts, self.lengths, wanted, logits)
        self.lengths = self.lengths + counts
        return logits

    def rewind(self, lengths: Tokens | int) -> None:
        self.lengths = np.minimum(self.lengths, lengths)

    def saved(self) -> Tokens:
        return self.lengths.copy()

    def back(self, saved: Tokens) -> None:
        self.lengths = saved.copy()

    def rows(self, wanted: Tokens, capacity: int) -> NativeReading:
        found = NativeReading(self._decoder, len(wanted), capacity)
        found.lengths = np.ascontiguousarray(self.lengths[wanted])
        self._decoder.copy(self._cache, np.ascontiguousarray(wanted, dtype=np.int64), found.lengths, found._cache)
        return found
