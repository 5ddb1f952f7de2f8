"""Ceilings: how fast this machine reads memory and multiplies, measured on the spot, and what share of that was reached.

A token costs at least the time to read the weights that its step uses, and at least the time of their products. Whichever of the
two shares is near 1 is what holds a student up; when neither is, it is overhead.

    ceilings = measure_ceilings(threads=2)                     about a second
    work = decoding_work(bundle / "model.onnx")                bytes and operations of one step's weights
    ceilings.share_of_bandwidth(work.bytes, seconds_per_token)
    ceilings.share_of_arithmetic(work.operations, seconds_per_token, "int8")

Bandwidth is that of reading, from numpy arrays far larger than the caches, one for each thread; arithmetic that of ONNX Runtime's
own products (`MatMul`, `MatMulInteger`) of square matrices. Both are what can be reached here, not what a data sheet says: another
program can reach more, and a share can exceed 1 on a machine that was busier while its ceilings were measured, or when weights fit
the cache. Both are the best of several tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from mmedge.errors import MmedgeError
from mmedge.machine import read_memory, read_processor

Arithmetic = Literal["float32", "int8"]
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
        float32_operations_per_second: Multiplications and additions of float32 products.
        int8_operations_per_second: The same of 8-bit products.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What one row's decoding step does with its weights; attention over what was read before is not counted.

    Attributes:
        bytes: Of the weights that are read: all but tables of which rows are picked.
        operations: Multiplications and additions of products with weights.
        table_bytes: Of those tables: embeddings that are not the head too.
    """

    bytes: int
    operations: int
    table_bytes: int


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
        float32_operations_per_second=_products("float32", threads, seconds / 4),
        int8_operations_per_second=_products("int8", threads, seconds / 4),
        array_bytes=size,
    )


def _fastest(task: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a task that is done again and again for so many seconds, at least three times."""
    best, begun, done = float("inf"), time.perf_counter(), 0
    while done < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        task()
        best, done = min(best, time.perf_counter() - started), done + 1
    return best


def _bandwidth(threads: int, size: int, seconds: float) -> tuple[float, float]:
    """Return bytes a second of reading and of copying; numpy lets go of Python's lock in both."""
    each = max(1024, size // threads // 8)
    parts = [np.ones(each, dtype=np.int64) for _ in range(threads)]
    halves = [(part[: each // 2], part[each // 2 : each // 2 * 2]) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        reading = _fastest(lambda: list(pool.map(lambda part: int(part.max()), parts)), seconds / 2)
        copying = _fastest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), halves)), seconds / 2)
    return threads * each * 8 / reading, threads * (each // 2 * 2) * 8 / copying


def _products(kind: Arithmetic, threads: int, seconds: float) -> float:
    """Return operations a second of one matrix product."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(_product_graph(kind), options, providers=["CPUExecutionProvider"])
    left = np.ones((SIDE, SIDE), dtype=np.float32 if kind == "float32" else np.uint8)
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", ort.OrtValue.ortvalue_from_numpy(left))
    binding.bind_output("c", "cpu")
    return 2 * SIDE**3 / _fastest(lambda: session.run_with_iobinding(binding), seconds)


# --------------------------------------------------------------------------------------- ONNX files, without the package `onnx`
#
# A protocol buffer is a sequence of (key, value), a key is field number · 8 + wire type; type 0 is a number in base 128, least
# digit first, 2 a length and so many bytes, 1 and 5 eight and four bytes. Field numbers are those of onnx.proto.


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


def _product_graph(kind: Arithmetic) -> bytes:
    """Return a model that multiplies its input by a constant matrix, (SIDE, SIDE) each."""
    whole = kind == "int8"
    weights = np.ones((SIDE, SIDE), dtype=np.int8 if whole else np.float32)
    dims = _field(1, SIDE) + _field(1, SIDE)
    tensor = dims + _field(2, _INT8 if whole else _FLOAT) + _field(8, "b") + _field(9, weights.tobytes())

    def value(name: str, element: int) -> bytes:
        shape = b"".join(_field(1, _field(1, SIDE)) for _ in range(2))
        return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, shape)))

    node = _field(1, "a") + _field(1, "b") + _field(2, "c") + _field(4, "MatMulInteger" if whole else "MatMul")
    graph = _field(1, node) + _field(2, "product") + _field(5, tensor)
    graph += _field(11, value("a", _UINT8 if whole else _FLOAT)) + _field(12, value("c", _INT32 if whole else _FLOAT))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))


_Field = tuple[int, int | memoryview]


def _fields(data: memoryview) -> Iterator[_Field]:
    """Yield the fields of a message.

    Raises:
        ValueError: It is none.
    """
    place, end = 0, len(data)

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= end or shift > 63:
                raise ValueError("a number has no end")
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < end:
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        length = number() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or place + length > end:
            raise ValueError("a field goes beyond its message")
        yield key >> 3, data[place : place + length]
        place += length


def _all(data: memoryview, number: int) -> list[memoryview]:
    return [value for found, value in _fields(data) if found == number and not isinstance(value, int)]


def _word(data: memoryview, number: int) -> str:
    return next((bytes(value).decode("utf-8", "replace") for value in _all(data, number)), "")


@dataclass(frozen=True)
class _Tensor:
    bytes: int
    elements: int
    dims: tuple[int, ...]


_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


def _tensor(data: memoryview) -> tuple[str, _Tensor]:
    """Return the name and size of an initializer, whose values may lie in another file."""
    dims: list[int] = []
    kind, name = 0, ""
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = bytes(value).decode("utf-8", "replace")
    elements = int(np.prod(dims, dtype=np.int64)) if dims else 1
    halves = kind in (21, 22)  # 4-bit numbers, two in a byte
    size = (elements + 1) // 2 if halves else elements * _ELEMENT_BYTES.get(kind, 1)
    return name, _Tensor(size, elements, tuple(dims))


def _packed(data: memoryview) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    return found


def decoding_work(graph: Path) -> Work:
    """Return what one step of a decoder does with its weights, from its graph.

    Args:
        graph: An ONNX file with a decoder: `model.onnx`, `decoder_model.onnx`, or optimum's `decoder_model_merged.onnx`, of which
            the branch with a cache is counted.

    Raises:
        MmedgeError: The file is missing or no ONNX model.
    """
    try:
        data = memoryview(graph.read_bytes())
    except OSError as error:
        raise MmedgeError(f"cannot read {graph}: {error.strerror or error}") from None
    try:
        inside = _all(data, 7)
        if not inside:
            raise ValueError("it has no graph")
        tensors: dict[str, _Tensor] = {}
        tables: set[str] = set()
        used: set[str] = set()
        operations = _walk(inside[0], tensors, used, tables)
    except (ValueError, IndexError) as error:
        raise MmedgeError(f"{graph} is no ONNX model: {error}", "export the student again") from None
    read = {name for name in used if name in tensors}
    picked = {name for name in tables if name in tensors} - read
    return Work(sum(tensors[name].bytes for name in read), operations, sum(tensors[name].bytes for name in picked))


_PICKS = ("Gather", "GatherBlockQuantized")
_ALIASES = ("Transpose", "Cast", "Identity", "DequantizeLinear", "Reshape")


def _walk(graph: memoryview, tensors: dict[str, _Tensor], used: set[str], tables: set[str]) -> int:
    """Note a graph's weights and which nodes read them; return the operations of its products."""
    operations = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for data in _all(graph, 5):
        name, tensor = _tensor(data)
        tensors[name] = tensor
    for node in _all(graph, 1):
        inputs = [bytes(value).decode("utf-8", "replace") for value in _all(node, 1)]
        outputs = [bytes(value).decode("utf-8", "replace") for value in _all(node, 2)]
        kind = _word(node, 4)
        attributes = {_word(data, 1): data for data in _all(node, 5)}
        if kind == "If":
            branches = [part for name in ("else_branch", "then_branch") if name in attributes for part in _all(attributes[name], 6)]
            # optimum's `then` branch is the one with a cache
            operations += _walk(branches[-1], tensors, used, tables) if branches else 0
            continue
        if kind in _PICKS:
            tables.update(inputs[:1] if kind == "Gather" else [inputs[0], *inputs[2:]])
            used.update(inputs[1:2])
        else:
            used.update(inputs)
        if kind in _ALIASES and outputs and (source := shapes.get(inputs[0]) or _dims(tensors, inputs[0])):
            shapes[outputs[0]] = source
        if kind == "MatMulNBits":
            operations += 2 * _whole(attributes, "K") * _whole(attributes, "N")
        elif kind in ("MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul", "FusedMatMul") and len(inputs) > 1:
            dims = shapes.get(inputs[1]) or _dims(tensors, inputs[1])
            operations += 2 * int(np.prod(dims, dtype=np.int64)) if len(dims) == 2 else 0
    return operations


def _dims(tensors: dict[str, _Tensor], name: str) -> tuple[int, ...]:
    return tensors[name].dims if name in tensors else ()


def _whole(attributes: dict[str, memoryview], name: str) -> int:
    """Return an attribute that is a whole number; 0 where there is none of this name."""
    found = [value for number, value in _fields(attributes[name]) if number == 3] if name in attributes else []
    return found[0] if found and isinstance(found[0], int) else 0
