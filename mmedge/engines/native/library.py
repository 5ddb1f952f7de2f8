"""The native engine's library, called through ctypes.

Whether there is a library that runs here, and if not, why: `problem()`; which kernels it takes: `instruction_set()`. Knows pointers
and plans, and no bundle.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.environment import no_such_kernels, wanted_kernels
from mmedge.engines.native.build import LIBRARY
from mmedge.engines.native.plans import Block, BrokenPlan, Matrix, Plan, structures
from mmedge.errors import MmedgeError

ABI = 8
_ROOM = 256  # bytes for a message
_BROKEN = "export the student again, or run the bundle on ONNX Runtime: MMEDGE_ENGINE=onnx"
Integers = NDArray[np.int64]


def _loaded() -> ctypes.CDLL | str:
    """Return the library, or why there is none."""
    if not LIBRARY.is_file():
        return "it was installed without a C++ compiler"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.mmedge_abi.restype = ctypes.c_int
        if found.mmedge_abi() != ABI:
            return "its library is of another version of mmedge"
    except (OSError, AttributeError) as error:
        return f"its library cannot be loaded: {str(error)[:200]}"
    _declare(found)
    return found


@cache
def _library() -> ctypes.CDLL | str:
    return _loaded()


def _declare(library: ctypes.CDLL) -> None:
    """Declare the types of all functions."""
    pointer, integer, message = ctypes.c_void_p, ctypes.c_int64, (ctypes.c_char_p, ctypes.c_int)
    library.mmedge_kernels.restype = ctypes.c_char_p
    library.mmedge_kernels.argtypes = [ctypes.c_char_p]
    library.mmedge_open.argtypes = [
        ctypes.POINTER(Plan),
        ctypes.POINTER(Matrix),
        ctypes.POINTER(Block),
        pointer,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.POINTER(pointer),
        *message,
    ]
    library.mmedge_cache.argtypes = [pointer, integer, integer, ctypes.POINTER(pointer), *message]
    library.mmedge_cache_copy.argtypes = [pointer, pointer, pointer, pointer, integer, pointer, pointer, *message]
    library.mmedge_state_copy.argtypes = [pointer, pointer, pointer, integer, pointer, pointer, *message]
    for name in ("mmedge_position_bytes", "mmedge_state_bytes"):
        getattr(library, name).argtypes = [pointer]
        getattr(library, name).restype = integer
    library.mmedge_encode.argtypes = [pointer, pointer, pointer, integer, pointer, *message]
    library.mmedge_read.argtypes = [pointer, pointer, pointer, pointer, pointer, pointer, pointer, integer, pointer, *message]
    for name in ("mmedge_close", "mmedge_cache_close"):
        getattr(library, name).argtypes = [pointer]
        getattr(library, name).restype = None


def problem() -> str | None:
    """Return why the native engine cannot be used here; None where it can."""
    found = _library()
    return found if isinstance(found, str) else None


def instruction_set(name: str | None = None) -> str | None:
    """Return the kernels that are used: those of the given name, of `MMEDGE_ISA`, or the fastest; None where there are none.

    Raises:
        MmedgeError: `MMEDGE_ISA` names none that any machine has.
    """
    wanted = name or wanted_kernels()
    library = _library()
    if isinstance(library, str):
        return None
    found = library.mmedge_kernels(wanted.encode())
    return found.decode() if found else None


class Cache:
    """Keys and values of rows in the library's memory.

    Args:
        owner: Whose it is.
        pointer: The library's name for it; it is freed with this object.
        rows: How many.
    """

    def __init__(self, owner: Decoder, pointer: int | None, rows: int) -> None:
        self.owner, self.pointer, self.rows = owner, ctypes.c_void_p(pointer), rows

    def __del__(self) -> None:
        if self.pointer:
            self.owner.library.mmedge_cache_close(self.pointer)


class Decoder:
    """A plan that the library has checked and can run.

    Args:
        plan: The layer plan, as `export/plan.py` writes it.
        weights: The data file's bytes, mapped; kept as long as the decoder.
        threads: Threads of a step.
        kernels: The instruction set; what `MMEDGE_ISA` says or the fastest by default.
        callers: How many steps are computed at a time, each on threads of its own; further callers wait.
        where: What the plan stands in, for errors.

    Raises:
        MmedgeError: The library is missing, or it refuses the plan.
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        weights: NDArray[np.uint8],
        threads: int,
        kernels: str | None = None,
        callers: int = 1,
        where: str = "the bundle",
    ) -> None:
        found = _library()
        if isinstance(found, str):
            raise MmedgeError(f"the native engine cannot be used: {found}", "use ONNX Runtime: MMEDGE_ENGINE=onnx")
        self.library, self.pointer, self._weights = found, ctypes.c_void_p(), weights
        used = instruction_set(kernels)
        if used is None:
            raise no_such_kernels(kernels or wanted_kernels())
        self.kernels = used
        try:
            stated, matrices, blocks = structures(plan)
        except BrokenPlan as error:
            raise MmedgeError(f"{where}: {error}", _BROKEN) from None
        self.vocabulary = int(stated.vocabulary)
        wrong = self._wrong(
            "mmedge_open",
            ctypes.byref(stated),
            matrices,
            blocks,
            weights.ctypes.data,
            weights.nbytes,
            threads,
            callers,
            used.encode(),
            ctypes.byref(self.pointer),
        )
        if wrong:
            raise MmedgeError(f"{where}: field 'plan': {wrong}", _BROKEN)
        self.position_bytes: int = found.mmedge_position_bytes(self.pointer)  # of the keys and values of a token
        self.state_bytes: int = found.mmedge_state_bytes(self.pointer)  # of a row's recurrent states; 0 where it has none

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.mmedge_close(self.pointer)

    def call(self, name: str, *given: Any) -> None:
        """Call a function that returns whether it failed, and say why if it did.

        Raises:
            MmedgeError: It failed.
        """
        if wrong := self._wrong(name, *given):
            raise MmedgeError(f"the native engine refuses this: {wrong}", _BROKEN)

    def _wrong(self, name: str, *given: Any) -> str:
        """Call a function, and return what is wrong; nothing where it succeeds."""
        message = ctypes.create_string_buffer(_ROOM)
        failed = getattr(self.library, name)(*given, message, _ROOM)
        return (message.value.decode(errors="replace") or "it fails") if failed else ""

    def cache(self, rows: int, capacity: int) -> Cache:
        """Return a cache for so many rows of so many positions."""
        found = ctypes.c_void_p()
        self.call("mmedge_cache", self.pointer, rows, capacity, ctypes.byref(found))
        return Cache(self, found.value, rows)

    def encode(self, contexts: Sequence[Sequence[int]]) -> tuple[Cache, ...]:
        """Return what contexts are encoded to, each on its own, whatever others there are."""
        ids = np.array([token for context in contexts for token in context], dtype=np.int64)
        counts = np.array([len(context) for context in contexts], dtype=np.int64)
        found = (ctypes.c_void_p * len(contexts))()
        self.call("mmedge_encode", self.pointer, ids.ctypes.data, counts.ctypes.data, len(contexts), found)
        return tuple(Cache(self, pointer, 1) for pointer in found)

    def read(
        self,
        cache: Cache,
        ids: Integers,
        counts: Integers,
        starts: Integers,
        encoded: ctypes.Array[ctypes.c_void_p] | None,
        wanted: Integers,
        logits: NDArray[np.float32],
    ) -> None:
        """Read tokens of every row, and write the logits that are wanted.

        Args:
            cache: What was read before.
            ids: The rows' tokens, one row behind the other.
            counts: How many each row has, (rows,).
            starts: How many each row has read before, (rows,).
            encoded: What each row's context was encoded to; None without an encoder.
            wanted: Places in `ids` whose logits are wanted, ascending, (n,).
            logits: (n, vocabulary), contiguous.
        """
        arrays = (array.ctypes.data for array in (ids, counts, starts))
        self.call("mmedge_read", self.pointer, cache.pointer, *arrays, encoded, wanted.ctypes.data, len(wanted), logits.ctypes.data)

    def copy(self, source: Cache, rows: Integers, lengths: Integers, target: Cache, targets: Integers) -> None:
        """Copy the first positions of rows of one cache into rows of another, or of the same one.

        With recurrent states, these must be all positions that a row has read, or none.
        """
        arrays = (array.ctypes.data for array in (rows, lengths))
        self.call("mmedge_cache_copy", self.pointer, source.pointer, *arrays, len(rows), target.pointer, targets.ctypes.data)

    def copy_states(self, source: Cache, rows: Integers, target: Cache, targets: Integers) -> None:
        """Copy the recurrent states of rows of one cache, and nothing else, into rows of another."""
        self.call(
            "mmedge_state_copy", self.pointer, source.pointer, rows.ctypes.data, len(rows), target.pointer, targets.ctypes.data
        )
