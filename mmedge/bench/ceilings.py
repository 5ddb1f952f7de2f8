"""Ceilings: how fast this machine reads memory and multiplies, measured on the spot, and what share of that was reached.

A token costs at least the time to read the weights that its step uses, and at least the time to multiply by them. Whichever of the
two shares is near 1 is the bottleneck; when neither is, it is overhead.

    ceilings = measure_ceilings(threads=2)                     about a second
    ceilings.share_of_bandwidth(weight_bytes, seconds_per_token)
    ceilings.share_of_arithmetic(operations, seconds_per_token, "int8")

Bandwidth is measured by reading numpy arrays far larger than the caches, one for each thread; arithmetic with ONNX Runtime's
own `MatMul` and `MatMulInteger` of square matrices. Both are what is reachable here, not what a data sheet says: another
program can reach more, and a share can exceed 1 on a machine that was busier while its ceilings were measured, or when weights fit
the cache. Both are the best of several tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mmedge.machine import read_memory, read_processor
from mmedge.manifest import Arithmetic

LARGEST = 512_000_000  # bytes of all arrays together
SIDE = 768  # of the square matrices: their 2.4 MB of float32 fit a cache, their 0.9 G operations last a millisecond or more
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # onnx.TensorProto.DataType


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do.

    Attributes:
        threads: Threads that it was measured with.
        read_bytes_per_second: Reading memory.
        copy_bytes_per_second: Copying, bytes read and bytes written together.
        float32_operations_per_second: Multiplications and additions in float32.
        int8_operations_per_second: The same in 8 bits.
        array_bytes: Size of all arrays that were read.
    """

    threads: int
    read_bytes_per_second: float
    copy_bytes_per_second: float
    float32_operations_per_second: float
    int8_operations_per_second: float
    array_bytes: int

    def share_of_bandwidth(self, weight_bytes: float, seconds: float) -> float:
        """Return what share of the bandwidth reading so many bytes in so many seconds is."""
        return weight_bytes / seconds / self.read_bytes_per_second

    def share_of_arithmetic(self, operations: float, seconds: float, kind: Arithmetic) -> float:
        """Return what share of the peak so many operations in so many seconds are."""
        peak = self.int8_operations_per_second if kind == "int8" else self.float32_operations_per_second
        return operations / seconds / peak


def measure_ceilings(threads: int, cache_bytes: int | None = None, seconds: float = 1.0) -> Ceilings:
    """Measure.

    Args:
        threads: How many work at once.
        cache_bytes: The largest cache's size; by default what the system says.
        seconds: About how long it may take, after arrays are made.
    """
    if cache_bytes is None:
        cache_bytes = max(read_processor().caches.values(), default=32 << 20)
    size = min(LARGEST, max(4 * cache_bytes, 64 << 20), read_memory().available // 4)
    reading, copying = _bandwidth(threads, max(size, 1 << 20), seconds / 2)
    return Ceilings(
        threads=threads,
        read_bytes_per_second=reading,
        copy_bytes_per_second=copying,
        float32_operations_per_second=_multiplying("float32", threads, seconds / 4),
        int8_operations_per_second=_multiplying("int8", threads, seconds / 4),
        array_bytes=size,
    )


def _fastest(task: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a task that is repeated for this many seconds, at least three times."""
    best, begun, done = float("inf"), time.perf_counter(), 0
    while done < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        task()
        best, done = min(best, time.perf_counter() - started), done + 1
    return best


def _bandwidth(threads: int, size: int, seconds: float) -> tuple[float, float]:
    """Return bytes per second of reading and of copying; numpy releases Python's lock in both."""
    each = max(1024, size // threads // 8)
    parts = [np.ones(each, dtype=np.int64) for _ in range(threads)]
    halves = [(part[: each // 2], part[each // 2 : each // 2 * 2]) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        reading = _fastest(lambda: list(pool.map(lambda part: int(part.max()), parts)), seconds / 2)
        copying = _fastest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), halves)), seconds / 2)
    return threads * each * 8 / reading, threads * (each // 2 * 2) * 8 / copying


def _multiplying(kind: Arithmetic, threads: int, seconds: float) -> float:
    """Return operations per second of multiplying matrices."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(_matmul_graph(kind), options, providers=["CPUExecutionProvider"])
    left = np.ones((SIDE, SIDE), dtype=np.float32 if kind == "float32" else np.uint8)
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", ort.OrtValue.ortvalue_from_numpy(left))
    binding.bind_output("c", "cpu")
    return 2 * SIDE**3 / _fastest(lambda: session.run_with_iobinding(binding), seconds)


# -------------------------------------------------------------------- the model that is measured, without the package `onnx`
#
# A protocol buffer is a sequence of (key, value), a key is field number · 8 + wire type; type 0 is a number in base 128, least
# digit first, 2 a length and so many bytes. Field numbers are those of onnx.proto.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _matmul_graph(kind: Arithmetic) -> bytes:
    """Return an ONNX model that multiplies its input by a constant matrix, (SIDE, SIDE) each."""
    whole = kind == "int8"
    weights = np.ones((SIDE, SIDE), dtype=np.int8 if whole else np.float32)
    dims = _field(1, SIDE) + _field(1, SIDE)
    tensor = dims + _field(2, _INT8 if whole else _FLOAT) + _field(8, "b") + _field(9, weights.tobytes())

    def value(name: str, element: int) -> bytes:
        shape = b"".join(_field(1, _field(1, SIDE)) for _ in range(2))
        return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, shape)))

    node = _field(1, "a") + _field(1, "b") + _field(2, "c") + _field(4, "MatMulInteger" if whole else "MatMul")
    graph = _field(1, node) + _field(2, "matmul") + _field(5, tensor)
    graph += _field(11, value("a", _UINT8 if whole else _FLOAT)) + _field(12, value("c", _INT32 if whole else _FLOAT))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))
