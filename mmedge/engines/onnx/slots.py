"""The cache of rows that come and go, in slots side by side: what one run of the decoder reads lies together, and nothing is copied
for a row that joins.

A slot that is free keeps what it holds until somebody needs it, so that a prompt with the same beginning is read from there on.
Knows no queue and no choice of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mmedge.engines.onnx.graphs import Graph, Places, Reading, bound

MASK = "encoder_attention_mask"
_STEP = 64  # positions that the cache grows by


@dataclass(eq=False)
class Slot:
    """What a slot holds.

    Attributes:
        context: The tokens whose encoding it holds, for an encoder-decoder.
        tokens: The tokens that its cache holds.
        used: When it was last written to; larger is later.
    """

    context: tuple[int, ...] | None = None
    tokens: list[int] = field(default_factory=list)
    used: int = 0


class Slots:
    """Rows of a fused decoder's cache, at changing places; the memory is bounded.

    Args:
        graph: The decoder; it runs on the CPU and has no recurrent states.
        held: The names of inputs that stay the same for a row, but for the mask: the cross-attention's keys and values.
        most: The most slots.
        most_bytes: The most memory; one slot is always there.
    """

    def __init__(self, graph: Graph, held: Sequence[str], most: int, most_bytes: int) -> None:
        self._graph, self._held_names = graph, tuple(held)
        self._most, self._most_bytes = most, most_bytes
        self.slots: list[Slot] = []
        self.capacity = self.width = 0
        self._own: dict[str, NDArray[Any]] = {}
        self._held: dict[str, NDArray[Any]] = {}
        self._readings: dict[tuple[int, int], Reading] = {}
        self._places = Places(graph)

    def __len__(self) -> int:
        return len(self.slots)

    def _bytes(self, capacity: int, width: int) -> int:
        """Return the bytes of one slot."""
        total, itemsize = 0, np.dtype(self._graph.floats).itemsize
        for name in self._graph.past:
            _, heads, _, head_width = self._graph.inputs[name].shape
            total += heads * head_width * itemsize * (width if name in self._held_names else capacity + 1)
        return total

    def fits(self, active: int, capacity: int, width: int) -> bool:
        """Whether a row can be added to so many, where one needs this many positions and its context has this width."""
        wanted = max(self.capacity if active else 0, -(-capacity // _STEP) * _STEP), max(self.width if active else 0, width)
        return active < max(1, min(self._most, self._most_bytes // self._bytes(*wanted)))

    def prepare(self, active: int, capacity: int, width: int) -> None:
        """Make room for one more row; what the first `active` slots hold is kept, and what the others hold where it fits."""
        capacity = -(-capacity // _STEP) * _STEP
        new_capacity, new_width = max(self.capacity, capacity), max(self.width, width)
        if not active and (capacity <= self.capacity // 4 or 0 < width <= self.width // 2):
            new_capacity, new_width = capacity, width  # nobody needs as much any more
        count = max(1, min(self._most, self._most_bytes // self._bytes(new_capacity, new_width)))
        if (new_capacity, new_width) == (self.capacity, self.width) and count == len(self.slots):
            return
        before, own, held = self.slots, self._own, self._held
        by_age = sorted(range(active, len(before)), key=lambda place: -before[place].used)
        kept = [*range(active), *by_age][:count]
        self.slots = [before[place] for place in kept] + [Slot() for _ in range(count - len(kept))]
        self._readings = {}
        self._own, self._held = {}, {}
        for name in self._graph.past:
            _, heads, _, head_width = self._graph.inputs[name].shape
            is_held = name in self._held_names
            room = new_width if is_held else new_capacity + 1
            fresh = np.zeros((count, heads, room, head_width), dtype=self._graph.floats)
            old = (held if is_held else own).pop(name, None)
            if old is not None:
                _moved(old, fresh, kept, [self._filled(before[place], is_held, room) for place in kept])
            (self._held if is_held else self._own)[name] = fresh
        if self._held_names:
            mask = np.zeros((count, new_width), dtype=np.int64)
            if MASK in held:
                shared = min(new_width, self.width)
                mask[: len(kept), :shared] = held[MASK][kept, :shared]
            self._held[MASK] = mask
        for slot in self.slots:
            if len(slot.tokens) > new_capacity or (slot.context is not None and len(slot.context) > new_width):
                slot.tokens, slot.context = [], None
        self.capacity, self.width = new_capacity, new_width

    def _filled(self, slot: Slot, is_held: bool, room: int) -> int:
        return min(room, self.width if is_held else len(slot.tokens))

    def reading(self, first: int, rows: int) -> Reading:
        """Return the reading of some slots side by side, with the lengths that they have now."""
        key = first, rows
        if key not in self._readings:
            part = slice(first, first + rows)
            own = {name: bound(array[part]) for name, array in self._own.items()}
            held = {name: bound(array[part]) for name, array in self._held.items()}
            self._readings[key] = Reading(self._graph, rows, self.capacity, held, own, self._places)
        found = self._readings[key]
        found.lengths = np.array([len(slot.tokens) for slot in self.slots[first : first + rows]], dtype=np.int64)
        return found

    def put(self, place: int, context: tuple[int, ...], encoded: dict[str, ort.OrtValue], row: int) -> None:
        """Write what a context was encoded to, a row of (rows, heads, width, head width) for each name and of the mask."""
        self._held[MASK][place] = 0
        for name, value in encoded.items():
            array = value.numpy()[row]  # good as long as the value is there
            if name == MASK:
                self._held[name][place, : len(array)] = array
            else:
                self._held[name][place, :, : array.shape[1]] = array
        self.slots[place].context, self.slots[place].tokens = context, []

    def clear(self, place: int) -> None:
        """Let a slot hold nothing."""
        self.slots[place].context, self.slots[place].tokens = None, []

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let a slot hold the first tokens of another, and its context."""
        for array in self._own.values():
            array[target, :, :tokens] = array[source, :, :tokens]
        for array in self._held.values():
            array[target] = array[source]
        slot = self.slots[source]
        self.slots[target].context, self.slots[target].tokens = slot.context, slot.tokens[:tokens]

    def swap(self, left: int, right: int) -> None:
        """Let two slots change places."""
        if left == right:
            return
        one, other = self.slots[left], self.slots[right]
        longest = max(len(one.tokens), len(other.tokens))
        for array in self._own.values():
            _swapped(array, left, right, longest)
        if one.context is not None or other.context is not None:
            for array in self._held.values():
                _swapped(array, left, right, self.width)
        self.slots[left], self.slots[right] = other, one

    def forget(self) -> None:
        """Hold nothing any more."""
        for place in range(len(self.slots)):
            self.clear(place)


def _moved(old: NDArray[Any], fresh: NDArray[Any], kept: Sequence[int], filled: Sequence[int]) -> None:
    """Copy the first positions of some rows."""
    for row, (place, count) in enumerate(zip(kept, filled, strict=True)):
        fresh[row, :, :count] = old[place, :, :count]


def _swapped(array: NDArray[Any], left: int, right: int, count: int) -> None:
    """Swap two rows' positions, the third axis, or the second where there are two."""
    part = (slice(None), slice(count)) if array.ndim == 4 else (slice(count),)
    kept = array[(left, *part)].copy()
    array[(left, *part)] = array[(right, *part)]
    array[(right, *part)] = kept
