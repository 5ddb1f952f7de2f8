"""The slots of the native engine's cache: rows of one cache of the library, in whatever order their owners have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeReading
from mmedge.engines.slots import Slot, Slots


class NativeSlots(Slots):
    """See `Slots`.

    Args:
        decoder: The decoder.
        most: The most slots.
        most_bytes: The most memory; one slot is always there.
    """

    def __init__(self, decoder: library.Decoder, most: int, most_bytes: int) -> None:
        super().__init__(most, most_bytes)
        self._decoder = decoder
        self._cache: library.Cache | None = None
        self._rows: list[int] = []  # of the cache, for each slot
        self._readings: dict[tuple[int, ...], NativeReading] = {}

    def _bytes(self, capacity: int, width: int) -> int:
        return self._decoder.position_bytes * capacity

    def _resize(self, before: Sequence[Slot], kept: Sequence[int], capacity: int, width: int) -> None:
        fresh = library.Cache(self._decoder, len(self.slots), capacity)
        if self._cache is not None and kept:
            rows = np.array([self._rows[place] for place in kept], dtype=np.int64)
            lengths = np.array([min(capacity, len(before[place].tokens)) for place in kept], dtype=np.int64)
            self._decoder.copy(self._cache, rows, lengths, fresh, np.arange(len(kept), dtype=np.int64))
        self._cache, self._rows, self._readings = fresh, list(range(len(self.slots))), {}

    def reading(self, first: int, rows: int) -> NativeReading:
        assert self._cache is not None
        key = tuple(self._rows[first : first + rows])
        if key not in self._readings:
            if len(self._readings) > len(self.slots):  # rows come and go in ever new orders
                self._readings.clear()
            self._readings[key] = NativeReading(self._decoder, self._cache, np.array(key, dtype=np.int64), self.capacity)
        found = self._readings[key]
        found.lengths = np.array([len(slot.tokens) for slot in self.slots[first : first + rows]], dtype=np.int64)
        return found

    def _copy(self, source: int, target: int, tokens: int) -> None:
        assert self._cache is not None
        row, length, end = (np.array([number], dtype=np.int64) for number in (self._rows[source], tokens, self._rows[target]))
        self._decoder.copy(self._cache, row, length, self._cache, end)

    def _swap(self, left: int, right: int) -> None:
        self._rows[left], self._rows[right] = self._rows[right], self._rows[left]
