"""Layer plans as the native library takes them: a manifest's JSON becomes the structures of `src/plan.h`, checked field by field.

    plan, matrices, blocks = structures(manifest.plan)

What is missing, of another kind, or beyond what its structure has room for is named by its field (`plan.matrices.3.codes`). Whether
the numbers fit each other and the weights is for `src/model.cpp` to check. Knows no file and no library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PLAN_VERSIONS = (1, 2, 3, 4)  # 2 has encoders; 3 rotary embeddings, norms and factors of a layer's own; 4 layers with states
ABSENT = -1
_PLAN_STRUCTURE = 1
_MOST_TAPS = 16  # tokens that a convolution sees
_STORAGES = {"float32_rows": 1, "float32_columns": 2, "int8_blocks": 3, "int4_blocks": 4, "int8_columns": 5}
_FLOATS = ("float32_rows", "float32_columns")
_SCALE_TYPES = {"float32": 1, "float16": 2}
_KINDS = {"self_attention": 1, "feed_forward": 2, "cross_attention": 3, "convolution": 4, "gated_delta": 5}
_CACHES = {"float32": 0, "float16": 1, "int8": 2}
_DELTA = ("key_heads", "value_heads", "key_width", "value_width")
_ACTIVATIONS = {"silu": 0, "relu": 1, "gelu": 2}
_MOST = 2**31 - 1  # that an int32 of a structure holds
_MOST_BYTES = 2**62  # of a file, and of what is counted in 64 bits
_LARGEST_EPSILON = 1.0
_LARGEST_FACTOR = 1e6  # of scores and embeddings
_MISSING = object()


class BrokenPlan(ValueError):
    """A field of a layer plan is not what it must be; the message names it."""


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


class _Part:
    """An object of a plan and its path; a field that is not what it must be is refused by name."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            raise _broken(path, "an object", value)
        self._value, self.path = value, path

    def _of(self, name: str, default: Any) -> Any:
        found = self._value.get(name, default)
        if found is _MISSING:
            raise BrokenPlan(f"field '{self.path}.{name}' is missing")
        return found

    def has(self, name: str) -> bool:
        """Whether a field is there and says something."""
        return self._value.get(name) is not None

    def number(self, name: str, default: Any = _MISSING) -> int:
        """Return a whole number that an int32 holds."""
        return _number(self._of(name, default), f"{self.path}.{name}", _MOST)

    def size(self, name: str) -> int:
        """Return a whole number of bytes or things."""
        return _number(self._of(name, _MISSING), f"{self.path}.{name}")

    def place(self, name: str) -> int:
        """Return where something lies in the weights; `ABSENT` for nothing."""
        found = self._of(name, None)
        return ABSENT if found is None else _number(found, f"{self.path}.{name}")

    def real(self, name: str, low: float, high: float, default: Any = _MISSING) -> float:
        """Return a number within a range."""
        found = self._of(name, default)
        if type(found) not in (int, float) or not low <= found <= high:
            raise _broken(f"{self.path}.{name}", f"a number from {low:g} to {high:g}", found)
        return float(found)

    def one_of(self, name: str, known: Mapping[str, int], default: Any = _MISSING) -> int:
        """Return the number that a name stands for."""
        found = self._of(name, default)
        if not isinstance(found, str) or found not in known:
            raise _broken(f"{self.path}.{name}", " or ".join(map(repr, known)), found)
        return known[found]

    def items(self, name: str, default: Any = _MISSING) -> Sequence[Any]:
        """Return a list."""
        found = self._of(name, default)
        if not isinstance(found, (list, tuple)):
            raise _broken(f"{self.path}.{name}", "a list", found)
        return found

    def part(self, name: str) -> _Part:
        """Return an object within this one."""
        return _Part(self._of(name, _MISSING), f"{self.path}.{name}")

    def parts(self, name: str) -> Iterator[_Part]:
        """Yield the objects of a list."""
        for place, item in enumerate(self.items(name)):
            yield _Part(item, f"{self.path}.{name}.{place}")


def _number(value: Any, path: str, most: int = _MOST_BYTES) -> int:
    if type(value) is not int:
        raise _broken(path, "a whole number", value)
    if abs(value) > most:
        raise _broken(path, f"a whole number from {-most} to {most}", value)
    return value


def _broken(path: str, expected: str, found: Any) -> BrokenPlan:
    return BrokenPlan(f"field {path!r}: expected {expected}, found {found!r:.60}")


def cache_type(plan: Mapping[str, Any]) -> str:
    """Return what keys and values are kept in: `float32`, `float16` or `int8`; where a plan does not say, float16 beside integers.

    Raises:
        BrokenPlan: It is not a plan.
    """
    kept = _cache(_Part(plan, "plan"))
    return next(name for name, number in _CACHES.items() if number == kept)


def _cache(stated: _Part) -> int:
    floats = {_STORAGES[name] for name in _FLOATS}
    usual = "float32" if {matrix.one_of("storage", _STORAGES) for matrix in stated.parts("matrices")} <= floats else "float16"
    return stated.one_of("cache", _CACHES) if stated.has("cache") else _CACHES[usual]


def structures(plan: Mapping[str, Any]) -> tuple[Plan, ctypes.Array[Matrix], ctypes.Array[Block]]:
    """Return a plan as the library takes it.

    Raises:
        BrokenPlan: It is not a plan.
    """
    stated = _Part(plan, "plan")
    if (version := stated.number("version")) not in PLAN_VERSIONS:
        known = f"a version from {PLAN_VERSIONS[0]} to {PLAN_VERSIONS[-1]}"
        raise _broken("plan.version", known, version)
    matrices = [_matrix(part) for part in stated.parts("matrices")]
    encoder = stated.part("encoder") if stated.has("encoder") else None
    encoding = [] if encoder is None else [_block(part, stated) for part in encoder.parts("blocks")]
    blocks = [*encoding, *(_block(part, stated) for part in stated.parts("blocks"))]
    shape = [stated.number(name) for name in ("width", "heads", "kv_heads", "head_width", "vocabulary", "positions")]
    factors = [
        stated.real("epsilon", 0.0, _LARGEST_EPSILON),
        stated.real("attention_scale", -_LARGEST_FACTOR, _LARGEST_FACTOR),
        stated.real("embedding_multiplier", -_LARGEST_FACTOR, _LARGEST_FACTOR, 1.0),
    ]
    ends = [stated.number(name) for name in ("table", "head")]
    more = [0, 0, ABSENT, ABSENT, ABSENT]
    if encoder is not None:
        more = [encoder.number("cross"), encoder.number("farthest"), *map(encoder.size, ("norm", "decoder_bias", "bias"))]
    counts = (len(matrices), len(blocks), len(encoding), _cache(stated))
    whole = Plan(_PLAN_STRUCTURE, *shape, *factors, *ends, *counts, stated.size("norm"), *more)
    return whole, (Matrix * len(matrices))(*matrices), (Block * len(blocks))(*blocks)


def _matrix(stated: _Part) -> Matrix:
    return Matrix(
        stated.one_of("storage", _STORAGES),
        stated.number("block"),
        stated.one_of("scale_type", _SCALE_TYPES),
        stated.number("stride", 0),
        *map(stated.size, ("outputs", "inputs", "codes")),
        *map(stated.place, ("scales", "bias")),
    )


def _block(stated: _Part, plan: _Part) -> Block:
    """Return a sublayer; where it does not say how queries and keys are turned, the plan says it for all."""
    kind = stated.one_of("kind", _KINDS)
    turns = stated if stated.has("rotary_width") else plan
    taps = stated.items("taps", ())
    if len(taps) > _MOST_TAPS:
        raise BrokenPlan(f"field '{stated.path}.taps': expected at most {_MOST_TAPS} taps, found {len(taps)} taps")
    turned = turns.has("cosines") and kind == _KINDS["self_attention"]
    return Block(
        kind,
        *(stated.number(name, default) for name, default in (("window", 0), ("first", 0), ("second", ABSENT))),
        stated.number("out"),
        stated.one_of("activation", _ACTIVATIONS, "silu"),
        stated.size("norm"),
        *map(stated.place, ("query_norm", "key_norm", "after_norm", "head_norm")),
        *map(turns.place, ("cosines", "sines")),
        turns.number("rotary_width", plan.number("head_width") if turned else 0),
        len(taps),
        stated.place("kernel_bias"),
        (ctypes.c_int64 * _MOST_TAPS)(*(_number(tap, f"{stated.path}.taps.{place}") for place, tap in enumerate(taps))),
        *(stated.number(name, 0) for name in ("gated", *_DELTA)),
        0,
        *map(stated.place, ("step_bias", "slope")),
    )
