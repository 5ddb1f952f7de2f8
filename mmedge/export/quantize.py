"""int8: block-wise weights, and arithmetic in int8.

Every product with a constant matrix becomes one `MatMulNBits` (ONNX Runtime's contrib operator): weights in 8 bits, one
float32 scale for each block of 32 along the input, rounded symmetrically, computed at accuracy level 4, which quantizes
activations per block and multiplies in int8. The embedding table becomes
`GatherBlockQuantized`, with the same blocks.

A graph that always reads many rows at once, an encoder, takes `DynamicQuantizeMatMul` instead: one scale for each output and
one for all activations. On a CPU without VNNI, 30 rows × 128 × 384 take 27 µs with it, 35 µs in float32 and 204 µs with
`MatMulNBits`, which is made for few rows (Zen 3, one thread). Weights then use 7 of the 8 bits: where int8 products are added
in pairs in 16 bits (AVX2 without VNNI), 8 would overflow. The activations' scale is that of the
whole batch, so answers in a batch may differ slightly from those to single questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmedge.export.builder import CONTRIB, save

BLOCK = 32  # the finest block that the CPU kernels take; finer blocks follow outliers better
BITS = 8
ZERO_POINT = 128
COMPUTE_IN_INT8 = 4  # MatMulNBits' accuracy_level


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


def quantize_outputs(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round the rows of a matrix to 7 bits, one scale each.

    Args:
        weight: (outputs, inputs).

    Returns:
        Codes from -63 to 63, (outputs, inputs), and scales (outputs,).
    """
    scales = np.abs(weight).max(axis=1) / 63
    codes = np.rint(weight / np.where(scales == 0, 1, scales)[:, None])
    return codes.astype(np.int8), scales.astype(np.float32)


def quantize_model(source: Path, target: Path, *, many_rows: bool = False) -> QuantizationReport:
    """Write the int8 form of a graph.

    Args:
        source: A float32 graph.
        target: Where the int8 graph goes.
        many_rows: Whether the graph always reads many rows at once, as an encoder does.
    """
    model = onnx.load(str(source))
    graphs = list(_graphs(model.graph))
    constants, transposed = _sources(graphs)
    before = sum(len(tensor.raw_data) for tensor in constants.values())
    added: dict[str, onnx.TensorProto] = {}
    matrices = tables = 0
    for graph in reversed(graphs):  # inner graphs first: a node is copied with what is inside it
        nodes: list[onnx.NodeProto] = []
        packed: set[str] = set()  # outputs of products that stand in an earlier node already
        groups = _products_by_input(graph, constants, transposed)
        for node in graph.node:
            if node.op_type == "MatMul" and node.output[0] in packed:
                continue
            group = groups.get(node.input[0], []) if node.op_type == "MatMul" else []
            if any(member.output[0] == node.output[0] for member in group):
                names = [member.input[1] for member in group]
                weights = [weight for name in names if (weight := _matrix(name, constants, transposed)) is not None]
                key = "+".join(names)
                if f"{key}.codes" not in added:
                    matrices += len(names)
                    whole = np.concatenate(weights)
                    codes, scales = quantize_outputs(whole) if many_rows else quantize_blocks(whole)
                    stored = np.ascontiguousarray(codes.T) if many_rows else codes
                    added[f"{key}.codes"] = numpy_helper.from_array(stored, f"{key}.codes")
                    added[f"{key}.scales"] = numpy_helper.from_array(scales.reshape(-1), f"{key}.scales")
                nodes += _product(group, key, [weight.shape for weight in weights], added, many_rows=many_rows)
                packed |= {member.output[0] for member in group}
            elif node.op_type == "Gather" and (table := _table(node, constants)) is not None:
                name = node.input[0]
                if f"{name}.table" not in added:
                    tables += 1
                    codes, scales = quantize_blocks(table)
                    added[f"{name}.table"] = numpy_helper.from_array(codes.reshape(table.shape), f"{name}.table")
                    added[f"{name}.table_scales"] = numpy_helper.from_array(scales, f"{name}.table_scales")
                    zeros = np.full(scales.shape, ZERO_POINT, dtype=np.uint8)
                    added[f"{name}.table_zeros"] = numpy_helper.from_array(zeros, f"{name}.table_zeros")
                nodes.append(_lookup(node, name))
            else:
                nodes.append(node)
        rebuilt = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(rebuilt)
    _remove_unused(model)
    model.graph.initializer.extend(added.values())
    if not any(opset.domain == CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    after = sum(len(tensor.raw_data) for graph in _graphs(model.graph) for tensor in graph.initializer)
    save(model, target)
    return QuantizationReport(matrices, tables, before, after)


def _products_by_input(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], transposed: dict[str, str]
) -> dict[str, list[onnx.NodeProto]]:
    """Return the products with constant matrices that each tensor goes into, in the graph's order.

    Queries, keys and values, or gate and up projections, read the same tensor: packed into one product, its activations are
    rounded once, and one larger node replaces several small ones.
    """
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and _matrix(node.input[1], constants, transposed) is not None:
            groups.setdefault(node.input[0], []).append(onnx.NodeProto.FromString(node.SerializeToString()))
    return groups


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


def _product(
    group: list[onnx.NodeProto],
    key: str,
    shapes: list[tuple[int, ...]],
    added: dict[str, onnx.TensorProto],
    *,
    many_rows: bool,
) -> list[onnx.NodeProto]:
    """Return the nodes that compute a group of products of one input: one product, and a split where there are several."""
    single = len(group) == 1
    output = group[0].output[0] if single else f"{group[0].output[0]}.packed"
    inputs = [group[0].input[0], f"{key}.codes", f"{key}.scales"]
    if many_rows:
        product = helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=group[0].name, domain=CONTRIB)
    else:
        product = helper.make_node(
            "MatMulNBits",
            inputs,
            [output],
            name=group[0].name,
            domain=CONTRIB,
            K=shapes[0][1],
            N=sum(shape[0] for shape in shapes),
            bits=BITS,
            block_size=BLOCK,
            accuracy_level=COMPUTE_IN_INT8,
        )
    if single:
        return [product]
    sizes = np.array([shape[0] for shape in shapes], dtype=np.int64)
    added[f"{key}.sizes"] = numpy_helper.from_array(sizes, f"{key}.sizes")
    outputs = [member.output[0] for member in group]
    return [product, helper.make_node("Split", [output, f"{key}.sizes"], outputs, name=f"{group[0].name}.split", axis=-1)]


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


def _remove_unused(model: onnx.ModelProto) -> None:
    """Drop constants, and transposes of constants, that nothing reads any more."""
    while True:
        graphs = list(_graphs(model.graph))
        used = {output.name for graph in graphs for output in graph.output}
        used |= {name for graph in graphs for node in graph.node for name in node.input}
        unused_tensors = [(graph, tensor) for graph in graphs for tensor in graph.initializer if tensor.name not in used]
        unused_nodes = [
            (graph, node)
            for graph in graphs
            for node in graph.node
            if node.op_type in ("Transpose", "Constant") and node.output[0] not in used
        ]
        for graph, tensor in unused_tensors:
            graph.initializer.remove(tensor)
        for graph, node in unused_nodes:
            graph.node.remove(node)
        if not unused_tensors and not unused_nodes:
            return
