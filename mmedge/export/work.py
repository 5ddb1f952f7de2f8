"""What one decoding step of a graph does with its weights: bytes read, operations computed. The bench reads it in the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx
from onnx import helper

from mmedge.manifest import Work

_LOOKUPS = ("Gather", "GatherBlockQuantized")
_ALIASES = ("Transpose", "Cast", "Identity", "DequantizeLinear", "Reshape")
_LINEARS = ("MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FusedMatMul")


def decoding_work(graph: onnx.GraphProto) -> Work:
    """Return what one row's step does with a decoder's weights; of a graph with a branch for its cache, that branch counts.

    Args:
        graph: A decoder's; weights may lie in another file, and need not be loaded.
    """
    seen = _Weights()
    operations = seen.read_by(graph)
    read = {seen.places[name]: seen.sizes[name] for name in seen.read if name in seen.sizes}
    tables = {seen.places[name]: seen.sizes[name] for name in seen.looked_up if name in seen.sizes}
    return Work(sum(read.values()), operations, sum(size for place, size in tables.items() if place not in read))


@dataclass
class _Weights:
    """A graph's weights by name: their bytes, where these lie, their shapes, what goes by another name, and who reads them."""

    sizes: dict[str, int] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    looked_up: set[str] = field(default_factory=set)

    def read_by(self, graph: onnx.GraphProto) -> int:
        """Note what a graph's nodes read, and return the operations of its linear layers."""
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.sizes[tensor.name], self.places[tensor.name] = _bytes_of(tensor), _place_of(tensor)
        operations = 0
        for node in graph.node:
            kind, attributes = node.op_type, {attribute.name: attribute for attribute in node.attribute}
            if kind == "If":  # the `then` branch is the one with a cache
                operations += self.read_by(attributes["then_branch"].g)
                continue
            inputs = [self.made_of.get(name, name) for name in node.input]
            if kind in _ALIASES and inputs[0] in self.sizes:  # read by whoever reads what it is made into
                self.made_of[node.output[0]] = inputs[0]
                continue
            if kind in _LOOKUPS:
                self.looked_up.update([inputs[0], *(inputs[2:] if kind == "GatherBlockQuantized" else ())])
                self.read.update(inputs[1:2])
            else:
                self.read.update(inputs)
            if kind == "MatMulNBits":
                operations += 2 * int(attributes["K"].i) * int(attributes["N"].i)
            elif kind in _LINEARS and len(dims := self.shapes.get(inputs[1], ())) == 2:
                operations += 2 * math.prod(dims)
        return operations


def _bytes_of(tensor: onnx.TensorProto) -> int:
    elements = int(math.prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):  # two in a byte
        return (elements + 1) // 2
    return elements * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _place_of(tensor: onnx.TensorProto) -> str:
    """Return the place of a tensor's content, which several tensors may share."""
    external = {entry.key: entry.value for entry in tensor.external_data}
    return f"{external['location']}:{external.get('offset', 0)}" if external else tensor.name
