"""The native engine's library, called through ctypes: its structures, as `src/plan.h` has them, and its functions.

Whether there is a library that runs here, and if not, why: `problem()`. Knows pointers and plans, and no bundle.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.native.build import LIBRARY
from mmedge.errors import MmedgeError

ABI = 8
PLAN_VERSIONS = (1, 2, 3, 4)  # 2 has encoders; 3 rotary embeddings, norms and factors of a layer's own; 4 layers with states
_PLAN_STRUCTURE = 1
ABSENT = -1
_ROOM = 256  # bytes for a message
_MOST_TAPS = 16  # tokens that a convolution sees
_STORAGES = {"float32_rows": 1, "float32_columns": 2, "int8_blocks": 3, "int4_blocks": 4, "int8_columns": 5}
_SCALE_TYPES = {"float32": 1, "float16": 2}
_KINDS = {"self_attention": 1, "feed_forward": 2, "cross_attention": 3, "convolution": 4, "gated_delta": 5}
_CACHES = {"float32": 0, "float16": 1, "int8": 2}
_DELTA = ("key_heads", "value_heads", "key_width", "value_width")
_ACTIVATIONS = {"silu": 0, "relu": 1, "gelu": 2}

Integers = NDArray[np.int64]


class Matrix(ctypes.Structure):
    """`struct Matrix`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("storage", "block", "scale_type", "stride")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "codes", "scales", "bias")),
    ]


class Block(ctypes.Structure):
    """`struct Block`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "window", "first", "second", "out", "activation")),
        *((name, ctypes.c_int64) for name in ("norm", "query_norm", "key_norm", "after_norm", "head_norm", "cosines", "sines")),
        *((name, ctypes.c_int32) for name in ("rotary_width", "taps")),
        ("kernel_bias", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * _MOST_TAPS),
        *((name, ctypes.c_int32) for name in ("gated", *_DELTA, "reserved")),
        *((name, ctypes.c_int64) for name in ("step_bias", "slope")),
    ]


class Plan(ctypes.Structure):
    """`struct Plan`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("version", "width", "heads", "kv_heads", "head_width", "vocabulary", "positions")),
        *((name, ctypes.c_float) for name in ("epsilon", "attention_scale", "embedding_multiplier")),
        *((name, ctypes.c_int32) for name in ("table", "head", "matrix_count", "block_count", "encoder_blocks", "cache")),
        ("norm", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("cross", "farthest")),
        *((name, ctypes.c_int64) for name in ("encoder_norm", "bias", "encoder_bias")),
    ]


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
    """Return the kernels that are used: those of the given name, of `MMEDGE_ISA`, or the fastest; None where there are none."""
    library = _library()
    if isinstance(library, str):
        return None
    found = library.mmedge_kernels((name or os.environ.get("MMEDGE_ISA", "")).encode())
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

    Raises:
        MmedgeError: The library is missing, or it refuses the plan.
    """

    def __init__(
        self, plan: Mapping[str, Any], weights: NDArray[np.uint8], threads: int, kernels: str | None = None, callers: int = 1
    ) -> None:
        found = _library()
        if isinstance(found, str):
            raise MmedgeError(f"the native engine cannot be used: {found}", "use ONNX Runtime: MMEDGE_ENGINE=onnx")
        self.library, self.pointer, self._weights, self._lasting = found, ctypes.c_void_p(), weights, list[Any]()
        name = kernels or os.environ.get("MMEDGE_ISA", "")
        if instruction_set(name) is None:
            raise MmedgeError(
                f"MMEDGE_ISA={name}: this processor or this library has no such kernels", "leave it out for the fastest"
            )
        try:
            stated, matrices, blocks = structures(plan)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MmedgeError(f"the bundle's layer plan is broken: {error!r}"[:200], "export the student again") from None
        self.vocabulary = int(stated.vocabulary)
        self.call(
            "mmedge_open",
            ctypes.byref(stated),
            matrices,
            blocks,
            weights.ctypes.data,
            weights.nbytes,
            threads,
            callers,
            name.encode(),
            ctypes.byref(self.pointer),
        )
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
        message = ctypes.create_string_buffer(_ROOM)
        if getattr(self.library, name)(*given, message, _ROOM):
            said = message.value.decode(errors="replace")
            raise MmedgeError(f"the native engine refuses this: {said}", "export the student again, or use MMEDGE_ENGINE=onnx")

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


def cache_type(plan: Mapping[str, Any]) -> str:
    """Return what keys and values are kept in: `float32`, `float16` or `int8`; where a plan does not say, float16 beside integers.

    Raises:
        KeyError, TypeError: It is not a plan.
    """
    quantized = any(m["storage"] not in ("float32_rows", "float32_columns") for m in _list(plan["matrices"]))
    stated = plan.get("cache")
    return stated if stated is not None else "float16" if quantized else "float32"


def structures(plan: Mapping[str, Any]) -> tuple[Plan, ctypes.Array[Matrix], ctypes.Array[Block]]:
    """Return a plan as the library takes it.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It is not a plan.
    """
    if plan["version"] not in PLAN_VERSIONS:
        raise ValueError(f"version {plan['version']!r}")
    matrices = [
        Matrix(
            _STORAGES[m["storage"]],
            _int(m["block"]),
            _SCALE_TYPES[m["scale_type"]],
            _int(m.get("stride", 0)),
            *(_int(m[name]) for name in ("outputs", "inputs", "codes")),
            *(_place(m[name]) for name in ("scales", "bias")),
        )
        for m in _list(plan["matrices"])
    ]
    encoder = plan.get("encoder")
    encoding = [] if encoder is None else [_block(b, plan) for b in _list(encoder["blocks"])]
    blocks = [*encoding, *(_block(b, plan) for b in _list(plan["blocks"]))]
    shape = [_int(plan[name]) for name in ("width", "heads", "kv_heads", "head_width", "vocabulary", "positions")]
    factors = [*(float(plan[name]) for name in ("epsilon", "attention_scale")), float(plan.get("embedding_multiplier", 1.0))]
    ends = [_int(plan[name]) for name in ("table", "head")]
    more = [0, 0, ABSENT, ABSENT, ABSENT]
    if encoder is not None:
        more = [_int(encoder[name]) for name in ("cross", "farthest", "norm", "decoder_bias", "bias")]
    counts = (len(matrices), len(blocks), len(encoding), _CACHES[cache_type(plan)])
    stated = Plan(_PLAN_STRUCTURE, *shape, *factors, *ends, *counts, _int(plan["norm"]), *more)
    return stated, (Matrix * len(matrices))(*matrices), (Block * len(blocks))(*blocks)


def _block(stated: Mapping[str, Any], plan: Mapping[str, Any]) -> Block:
    """Return a sublayer; where it does not say how queries and keys are turned, the plan says it for all."""
    turns = stated if "rotary_width" in stated else plan
    taps = [_int(place) for place in _list(stated.get("taps", ()))]
    if len(taps) > _MOST_TAPS:
        raise ValueError(f"{len(taps)} taps")
    whole = 0 if turns.get("cosines") is None or stated["kind"] != "self_attention" else plan["head_width"]
    return Block(
        _KINDS[stated["kind"]],
        *(_int(stated.get(name, ABSENT if name == "second" else 0)) for name in ("window", "first", "second")),
        _int(stated["out"]),
        _ACTIVATIONS[stated.get("activation", "silu")],
        _int(stated["norm"]),
        *(_place(stated.get(name)) for name in ("query_norm", "key_norm", "after_norm", "head_norm")),
        *(_place(turns.get(name)) for name in ("cosines", "sines")),
        _int(turns.get("rotary_width", whole)),
        len(taps),
        _place(stated.get("kernel_bias")),
        (ctypes.c_int64 * _MOST_TAPS)(*taps),
        *(_int(stated.get(name, 0)) for name in ("gated", *_DELTA)),
        0,
        *(_place(stated.get(name)) for name in ("step_bias", "slope")),
    )


def _int(value: Any) -> int:
    if type(value) is not int or not -(2**62) < value < 2**62:
        raise ValueError(f"{value!r} is not a number of bytes or things")
    return value


def _place(value: Any) -> int:
    return ABSENT if value is None else _int(value)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("not a list")
    return value
