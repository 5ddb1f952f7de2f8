"""The cache of rows that come and go, in slots side by side, whatever computes with it; its memory is bounded.

A slot that is free keeps what it holds until somebody needs it, so that a prompt with the same beginning is read from there on.
Knows no queue and no choice of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmedge.engines.reading import Reading

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


class Slots(ABC):
    """Slots at changing places: those that are read together lie side by side.

    Args:
        most: The most slots.
        most_bytes: The most memory; one slot is always there.
    """

    mixes = False  # whether rows that read several tokens and rows that read one have the same bits in one run as each alone
    hold_contexts = False  # whether a slot holds what a context was encoded to, beside the decoder's cache

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self.slots: list[Slot] = []
        self.capacity = self.width = 0

    def __len__(self) -> int:
        return len(self.slots)

    @abstractmethod
    def _bytes(self, capacity: int, width: int) -> int:
        """Return the bytes of one slot with so many positions and contexts of this width."""

    @abstractmethod
    def _resize(self, before: Sequence[Slot], kept: Sequence[int], capacity: int, width: int) -> None:
        """Make a cache for `self.slots`, the first of which hold what the places `kept` held."""

    @abstractmethod
    def _copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first positions of a slot, and its context, into another."""

    @abstractmethod
    def _swap(self, left: int, right: int) -> None:
        """Let the caches of two slots change places."""

    @abstractmethod
    def reading(self, first: int, rows: int) -> Reading:
        """Return the reading of some slots side by side, with the lengths that they have now."""

    @abstractmethod
    def put(self, place: int, context: tuple[int, ...], encoded: Mapping[str, Any], row: int) -> None:
        """Write what a context was encoded to: a row of what the engine's `held` returned."""

    @abstractmethod
    def width_of(self, context: Sequence[int]) -> int:
        """Return how wide an encoded context is; 0 where none is held."""

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
        before = self.slots
        by_age = sorted(range(active, len(before)), key=lambda place: -before[place].used)
        kept = [*range(active), *by_age][:count]
        self.slots = [before[place] for place in kept] + [Slot() for _ in range(count - len(kept))]
        self._resize(before, kept, new_capacity, new_width)
        for slot in self.slots:
            if len(slot.tokens) > new_capacity or (slot.context is not None and len(slot.context) > new_width):
                slot.tokens, slot.context = [], None
        self.capacity, self.width = new_capacity, new_width

    def clear(self, place: int) -> None:
        """Let a slot hold nothing."""
        self.slots[place].context, self.slots[place].tokens = None, []

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let a slot hold the first tokens of another, and its context."""
        self._copy(source, target, tokens)
        slot = self.slots[source]
        self.slots[target].context, self.slots[target].tokens = slot.context, slot.tokens[:tokens]

    def swap(self, left: int, right: int) -> None:
        """Let two slots change places."""
        if left != right:
            self._swap(left, right)
            self.slots[left], self.slots[right] = self.slots[right], self.slots[left]

    def forget(self) -> None:
        """Hold nothing any more."""
        for place in range(len(self.slots)):
            self.clear(place)
