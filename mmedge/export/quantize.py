"""int8: block-wise weights, and arithmetic in int8.

Every product with a constant matrix becomes one `MatMulNBits` (ONNX Runtime's contrib operator): weights in 8 bits, one
float32 scale for each block of 32 along the input, rounded symmetrically, computed at accuracy level 4, which quantizes
activations per block and multiplies in int8. Measured on this project's students, such a graph loses less accuracy than
per-tensor `quantize_dynamic` and decodes faster, since one node replaces three. The embedding table becomes
`GatherBlockQuantized`, with the same blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32  # the finest block that the CPU kernels take; finer blocks follow outliers better
BITS = 8
ZERO_POINT = 128
CONTRIB = "com.microsoft"
COMPUTE_IN_INT8 = 4  # MatMulNBits' accuracy_level
_EXTERNAL_ABOVE = 1_800_000_000  # protobuf's limit is 2 GB


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized: matrices, tables, and the bytes of weights before and after."""

    matrices: int
    tables: int
    bytes_before: int
    bytes_after: int


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round the rows of a matrix to 8 bits in blocks.

    Args:
        weight: (rows, width).

    Returns:
        Codes (rows, blocks, 32), where 128 stands for zero, and scales (rows, blocks); a width that is no multiple of 32 is
        filled with zeros.
    """
    rows, width = weight.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), dtype=np.float32)
    padded[:, :width] = weight
    grouped = padded.reshape(rows, blocks, BLOCK)
    scales = np.abs(grouped).max(axis=2) / 127
    safe = np.where(scales == 0, 1, scales)
    codes = np.clip(np.rint(grouped / safe[:, :, None]), -127, 127) + ZERO_POINT
    return codes.astype(np.uint8), scales.astype(np.float32)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _sources(graphs: list[onnx.GraphProto]) -> tuple[dict[str, onnx.TensorProto], dict[str, str]]:
    """Return all constant tensors by name, and for each transposed constant the constant that it transposes."""
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for graph in graphs:
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
    transposed = {
        node.output[0]: node.input[0]
        for graph in graphs
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in constants and len(constants[node.input[0]].dims) == 2
    }
    return constants, transposed


def quantize_model(source: Path, target: Path) -> QuantizationReport:
    """Write the int8 form of a graph.

    Args:
        source: A float32 graph.
        target: Where the int8 graph goes.
    """
    model = onnx.load(str(source))
    graphs = list(_graphs(model.graph))
    constants, transposed = _sources(graphs)
    before = sum(len(tensor.raw_data) for tensor in constants.values())
    added: dict[str, onnx.TensorProto] = {}
    matrices = tables = 0
    for graph in graphs:
        for index, node in enumerate(graph.node):
            if node.op_type == "MatMul" and (weight := _matrix(node.input[1], constants, transposed)) is not None:
                name = node.input[1]
                if f"{name}.codes" not in added:
                    matrices += 1
                    codes, scales = quantize_blocks(weight)
                    added[f"{name}.codes"] = numpy_helper.from_array(codes, f"{name}.codes")
                    added[f"{name}.scales"] = numpy_helper.from_array(scales.reshape(-1), f"{name}.scales")
                graph.node[index].CopyFrom(_product(node, name, weight.shape))
            elif node.op_type == "Gather" and (table := _table(node, constants)) is not None:
                name = node.input[0]
                if f"{name}.table" not in added:
                    tables += 1
                    codes, scales = quantize_blocks(table)
                    added[f"{name}.table"] = numpy_helper.from_array(codes.reshape(table.shape), f"{name}.table")
                    added[f"{name}.table_scales"] = numpy_helper.from_array(scales, f"{name}.table_scales")
                    zeros = np.full(scales.shape, ZERO_POINT, dtype=np.uint8)
                    added[f"{name}.table_zeros"] = numpy_helper.from_array(zeros, f"{name}.table_zeros")
                graph.node[index].CopyFrom(_lookup(node, name))
    _remove_unused(model, graphs)
    model.graph.initializer.extend(added.values())
    if not any(opset.domain == CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    after = sum(len(tensor.raw_data) for graph in graphs for tensor in graph.initializer)
    large = after > _EXTERNAL_ABOVE
    onnx.save_model(model, str(target), save_as_external_data=large, location=f"{target.name}.data" if large else None)
    return QuantizationReport(matrices, tables, before, after)


def _matrix(name: str, constants: dict[str, onnx.TensorProto], transposed: dict[str, str]) -> NDArray[np.float32] | None:
    """Return the constant right factor of a product as (outputs, inputs), or None where it is none worth quantizing."""
    tensor = constants.get(transposed.get(name, name))
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or min(tensor.dims) < BLOCK:
        return None
    weight = numpy_helper.to_array(tensor)
    return np.ascontiguousarray(weight if name in transposed else weight.T)


def _table(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> NDArray[np.float32] | None:
    """Return an embedding table, (entries, width): a constant of two dimensions whose width is a multiple of the block."""
    tensor = constants.get(node.input[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or axis != 0:
        return None
    if tensor.dims[1] % BLOCK or tensor.dims[0] < BLOCK:
        return None
    return np.ascontiguousarray(numpy_helper.to_array(tensor))


def _product(node: onnx.NodeProto, name: str, shape: tuple[int, ...]) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{name}.codes", f"{name}.scales"],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        K=shape[1],
        N=shape[0],
        bits=BITS,
        block_size=BLOCK,
        accuracy_level=COMPUTE_IN_INT8,
    )


def _lookup(node: onnx.NodeProto, name: str) -> onnx.NodeProto:
    return helper.make_node(
        "GatherBlockQuantized",
        [f"{name}.table", node.input[1], f"{name}.table_scales", f"{name}.table_zeros"],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        bits=BITS,
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


def _remove_unused(model: onnx.ModelProto, graphs: list[onnx.GraphProto]) -> None:
    """Drop constants, and transposes of constants, that nothing reads any more."""
    while True:
        used = {output.name for graph in graphs for output in graph.output}
        used |= {name for graph in graphs for node in graph.node for name in node.input}
        removed = False
        for graph in graphs:
            kept_tensors = [tensor for tensor in graph.initializer if tensor.name in used]
            kept_nodes = [
                node for node in graph.node if node.op_type not in ("Transpose", "Constant") or node.output[0] in used
            ]
            if len(kept_tensors) < len(graph.initializer) or len(kept_nodes) < len(graph.node):
                removed = True
                del graph.initializer[:]
                graph.initializer.extend(kept_tensors)
                nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept_nodes]
                del graph.node[:]
                graph.node.extend(nodes)
        if not removed:
            return
