"""The slots of a fused decoder's cache on ONNX Runtime: what one run reads lies together.

Nothing is copied for a row that joins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.onnx.graphs import FusedReading, Graph, Places, bound
from mmedge.engines.slots import Slot, Slots

MASK = "encoder_attention_mask"
FILLED_UP_TO = 8  # tokens that a context is a multiple of where contexts are encoded together: more of them are then of a width


class FusedSlots(Slots):
    """See `Slots`.

    Args:
        graph: The decoder; it runs on the CPU and has no recurrent states.
        held: The names of inputs that stay the same for a row, but for the mask: the cross-attention's keys and values.
        most: The most slots.
        most_bytes: The most memory; one slot is always there.
    """

    def __init__(self, graph: Graph, held: Sequence[str], most: int, most_bytes: int) -> None:
        super().__init__(most, most_bytes)
        self._graph, self._held_names, self.hold_contexts = graph, tuple(held), bool(held)
        self._own: dict[str, NDArray[Any]] = {}
        self._held: dict[str, NDArray[Any]] = {}
        self._readings: dict[tuple[int, int], FusedReading] = {}
        self._places = Places(graph)

    def width_of(self, context: Sequence[int]) -> int:
        return -(-len(context) // FILLED_UP_TO) * FILLED_UP_TO if self.hold_contexts else 0

    def _bytes(self, capacity: int, width: int) -> int:
        total, itemsize = 0, np.dtype(self._graph.floats).itemsize
        for name in self._graph.past:
            _, heads, _, head_width = self._graph.inputs[name].shape
            total += heads * head_width * itemsize * (width if name in self._held_names else capacity + 1)
        return total

    def _resize(self, before: Sequence[Slot], kept: Sequence[int], capacity: int, width: int) -> None:
        own, held, count = self._own, self._held, len(self.slots)
        self._readings = {}
        self._own, self._held = {}, {}
        for name in self._graph.past:
            _, heads, _, head_width = self._graph.inputs[name].shape
            is_held = name in self._held_names
            room = width if is_held else capacity + 1
            fresh = np.zeros((count, heads, room, head_width), dtype=self._graph.floats)
            old = (held if is_held else own).pop(name, None)
            if old is not None:
                _moved(old, fresh, kept, [self._filled(before[place], is_held, room) for place in kept])
            (self._held if is_held else self._own)[name] = fresh
        if self._held_names:
            mask = np.zeros((count, width), dtype=np.int64)
            if MASK in held:
                shared = min(width, self.width)
                mask[: len(kept), :shared] = held[MASK][kept, :shared]
            self._held[MASK] = mask

    def _filled(self, slot: Slot, is_held: bool, room: int) -> int:
        return min(room, self.width if is_held else len(slot.tokens))

    def reading(self, first: int, rows: int) -> FusedReading:
        key = first, rows
        if key not in self._readings:
            part = slice(first, first + rows)
            own = {name: bound(array[part]) for name, array in self._own.items()}
            held = {name: bound(array[part]) for name, array in self._held.items()}
            self._readings[key] = FusedReading(self._graph, rows, self.capacity, held, own, self._places)
        found = self._readings[key]
        found.lengths = np.array([len(slot.tokens) for slot in self.slots[first : first + rows]], dtype=np.int64)
        return found

    def put(self, place: int, context: tuple[int, ...], encoded: Mapping[str, Any], row: int) -> None:
        self._held[MASK][place] = 0
        for name, value in encoded.items():
            array = value.numpy()[row]  # good as long as the value is there
            if name == MASK:
                self._held[name][place, : len(array)] = array
            else:
                self._held[name][place, :, : array.shape[1]] = array
        self.slots[place].context, self.slots[place].tokens = context, []

    def _copy(self, source: int, target: int, tokens: int) -> None:
        for array in self._own.values():
            array[target, :, :tokens] = array[source, :, :tokens]
        for array in self._held.values():
            array[target] = array[source]

    def _swap(self, left: int, right: int) -> None:
        one, other = self.slots[left], self.slots[right]
        longest = max(len(one.tokens), len(other.tokens))
        for array in self._own.values():
            _swapped(array, left, right, longest)
        if one.context is not None or other.context is not None:
            for array in self._held.values():
                _swapped(array, left, right, self.width)


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
