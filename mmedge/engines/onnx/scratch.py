"""Memory for arrays that come and go with every batch, reused instead of returned to the system.

An array of a hundred kilobytes or more is mapped again each time, and its first use costs a page fault for every four of them:
a tenth of the time of small students in batches on two threads, which also stop each other for it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 1 << 16, 1 << 22  # bytes of an array that is worth keeping
MOST = 1 << 25  # bytes that are kept in all


class Scratch:
    """Lends arrays. When an array and all views of it are gone, its memory is lent again. Thread-safe."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()
        self._bytes = 0  # kept in all, lent or free
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if not SMALLEST <= size <= LARGEST:
            return np.empty(shape, kind)
        memory, kept = self._memory(size)
        # Memory is a bytearray and not an array: numpy lets a view of a view refer to the array at the bottom, and here that
        # must be `lent`, so that every view of it keeps it alive.
        lent: NDArray[Any] = np.ndarray(shape, kind, memory)
        if kept:
            weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent

    def zeros(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Return an array of zeros."""
        found = self.empty(shape, dtype)
        found.fill(0)
        return found

    def _memory(self, size: int) -> tuple[bytearray, bool]:
        """Return memory of at least so many bytes, and whether it is to come back."""
        with self._lock:  # arrays may come back meanwhile: that appends, and takes no lock
            for place in range(len(self._free)):
                if size <= len(self._free[place]) <= 2 * size:
                    memory = self._free[place]
                    del self._free[place]
                    return memory, True
            length = size + size // 4  # the next one may be a little longer
            kept = self._bytes + length <= MOST
            self._bytes += length if kept else 0
        return bytearray(length), kept
