"""Memory for arrays that come and go with every batch, used again instead of given back to the system.

An array of a hundred kilobytes or more is mapped anew each time, and its first use costs a page fault for every four of them:
a tenth of the time of small students in batches on two threads, which also stop each other for it.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 1 << 16, 1 << 22  # bytes of an array that is worth keeping
MOST = 1 << 25  # bytes that are kept in all
_UNUSED = 3  # references to memory that nobody uses: the list's, the loop's, and the count's own


class Scratch:
    """Lends arrays; what nobody refers to any more, as a whole or in part, is lent again. Threads may share it."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []
        self._bytes = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Return an array with anything in it."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if not SMALLEST <= size <= LARGEST:
            return np.empty(shape, kind)
        lent: NDArray[Any] = self._memory(size)[:size].view(kind).reshape(shape)
        return lent

    def zeros(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Return an array of zeros."""
        found = self.empty(shape, dtype)
        found.fill(0)
        return found

    def _memory(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            for memory in self._kept:
                if size <= len(memory) <= 2 * size and sys.getrefcount(memory) == _UNUSED:
                    return memory
            fresh = np.empty(size + size // 4, np.uint8)  # the next one may be a little longer
            if self._bytes + len(fresh) <= MOST:
                self._kept.append(fresh)
                self._bytes += len(fresh)
            return fresh
