"""The slots of the native engine's cache: rows of one cache of the library, in whatever order their owners have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmedge.engines.native import library
from mmedge.engines.native.engine import ENCODED, NativeReading
from mmedge.engines.slots import Slot, Slots


class NativeSlots(Slots):
    """See `Slots`.

    Args:
        decoder: The decoder.
        most: The most slots.
        most_bytes: The most memory; one slot is always there.
        encodes: Whether there is an encoder; what it makes of a context is not copied, and belongs to whoever holds it.
    """

    mixes = True

    def __init__(self, decoder: library.Decoder, most: int, most_bytes: int, encodes: bool) -> None:
        super().__init__(most, most_bytes)
        self._decoder, self.hold_contexts = decoder, encodes
        self._encoded: dict[Slot, library.Cache] = {}
        self._cache: library.Cache | None = None
        self._rows: list[int] = []  # of the cache, for each slot
        self._readings: dict[tuple[int, ...], NativeReading] = {}

    def _bytes(self, capacity: int, width: int) -> int:
        return self._decoder.position_bytes * (capacity + width) + self._decoder.state_bytes

    def width_of(self, context: Sequence[int]) -> int:
        return len(context) if self.hold_contexts else 0

    def _resize(self, before: Sequence[Slot], kept: Sequence[int], capacity: int, width: int) -> None:
        fresh = self._decoder.cache(len(self.slots), capacity)
        if self._cache is not None and kept:
            rows = np.array([self._rows[place] for place in kept], dtype=np.int64)
            lengths = np.array([self._filled(before[place], capacity) for place in kept], dtype=np.int64)
            self._decoder.copy(self._cache, rows, lengths, fresh, np.arange(len(kept), dtype=np.int64))
        self._cache, self._rows, self._readings = fresh, list(range(len(self.slots))), {}
        self._encoded = {slot: self._encoded[slot] for slot in self.slots if slot in self._encoded}

    def _filled(self, slot: Slot, capacity: int) -> int:
        """Return how many tokens of a slot a cache has room for; recurrent states hold all or nothing."""
        count = len(slot.tokens)
        return min(capacity, count) if not self._decoder.state_bytes or count <= capacity else 0

    def reading(self, first: int, rows: int) -> NativeReading:
        assert self._cache is not None
        key = tuple(self._rows[first : first + rows])
        if key not in self._readings:
            if len(self._readings) > len(self.slots):  # rows come and go in ever new orders
                self._readings.clear()
            self._readings[key] = NativeReading(self._decoder, self._cache, np.array(key, dtype=np.int64), self.capacity)
        found = self._readings[key]
        slots = self.slots[first : first + rows]
        found.lengths = np.array([len(slot.tokens) for slot in slots], dtype=np.int64)
        if self.hold_contexts:
            found.encode_with([self._encoded[slot] for slot in slots])
        return found

    def put(self, place: int, context: tuple[int, ...], encoded: Mapping[str, Any], row: int) -> None:
        slot = self.slots[place]
        self._encoded[slot] = encoded[ENCODED][row]
        slot.context, slot.tokens = context, []

    def clear(self, place: int) -> None:
        self._encoded.pop(self.slots[place], None)
        super().clear(place)

    def _copy(self, source: int, target: int, tokens: int) -> None:
        assert self._cache is not None
        row, length, end = (np.array([number], dtype=np.int64) for number in (self._rows[source], tokens, self._rows[target]))
        self._decoder.copy(self._cache, row, length, self._cache, end)
        if self.hold_contexts:
            self._encoded[self.slots[target]] = self._encoded[self.slots[source]]

    def _swap(self, left: int, right: int) -> None:
        self._rows[left], self._rows[right] = self._rows[right], self._rows[left]
