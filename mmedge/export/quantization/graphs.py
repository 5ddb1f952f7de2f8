"""Quantizing graphs that somebody else wrote: float32 graphs of optimum become block-wise int8 or int4 ones.

Every product with a constant matrix becomes one `MatMulNBits` (ONNX Runtime's contrib operator), computed at accuracy level 4,
which quantizes activations per block and multiplies in int8. The embedding table becomes `GatherBlockQuantized`, with the same
blocks. A graph that always reads many rows at once, an encoder, takes `DynamicQuantizeMatMul` instead; the activations' scale is
then that of the whole batch, so answers in a batch may differ slightly from those to single questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmedge.export.builder import COMPUTE_IN_INT8, CONTRIB
from mmedge.export.quantization.blocks import quantize_blocks, quantize_outputs
from mmedge.export.quantization.formats import INT8, SMALLEST, WeightFormat

EXTERNAL_ABOVE = 1_800_000_000  # bytes; protobuf's limit is 2 GB


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized: matrices, tables, and the bytes of weights before and after."""

    matrices: int
    tables: int
    bytes_before: int
    bytes_after: int


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


def quantize_model(source: Path, target: Path, *, many_rows: bool = False, format_: WeightFormat = INT8) -> QuantizationReport:
    """Write a graph in few bits.

    Args:
        source: A float32 graph.
        target: Where the other goes.
        many_rows: Whether the graph always reads many rows at once, as an encoder does.
        format_: How weights are stored, symmetric; for many rows that is int8 with one scale per output in any case.
    """
    model = onnx.load(str(source))
    graphs = list(_graphs(model.graph))
    constants, transposed = _sources(graphs)
    before = sum(len(tensor.raw_data) for tensor in constants.values())
    added: dict[str, onnx.TensorProto] = {}
    matrices = tables = 0
    for graph in reversed(graphs):  # inner graphs first: a node is copied with what is inside it
        nodes: list[onnx.NodeProto] = []
        packed: set[str] = set()  # outputs that an earlier node computes already
        groups = _linears_by_input(graph, constants, transposed)
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
                    matrix = quantize_outputs(whole) if many_rows else quantize_blocks(whole, format_)
                    stored = np.ascontiguousarray(matrix.codes.T) if many_rows else matrix.codes
                    added[f"{key}.codes"] = numpy_helper.from_array(stored, f"{key}.codes")
                    added[f"{key}.scales"] = numpy_helper.from_array(matrix.scales, f"{key}.scales")
                nodes += _linear(group, key, [weight.shape for weight in weights], added, None if many_rows else format_)
                packed |= {member.output[0] for member in group}
            elif node.op_type == "Gather" and (table := _table(node, constants, format_)) is not None:
                name = node.input[0]
                if f"{name}.table" not in added:
                    tables += 1
                    matrix = quantize_blocks(table, format_)
                    codes = matrix.codes.reshape(len(table), -1)
                    added[f"{name}.table"] = numpy_helper.from_array(codes, f"{name}.table")
                    added[f"{name}.table_scales"] = numpy_helper.from_array(matrix.scales, f"{name}.table_scales")
                nodes.append(_lookup(node, name, format_))
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
    large = after > EXTERNAL_ABOVE
    onnx.save_model(model, str(target), save_as_external_data=large, location=f"{target.name}.data" if large else None)
    return QuantizationReport(matrices, tables, before, after)


def _linears_by_input(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], transposed: dict[str, str]
) -> dict[str, list[onnx.NodeProto]]:
    """Return the products with constant matrices that each tensor goes into, in the graph's order.

    Queries, keys and values, or gate and up projections, read the same tensor: packed into one layer, its activations are
    quantized once, and one larger node replaces several small ones.
    """
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and _matrix(node.input[1], constants, transposed) is not None:
            groups.setdefault(node.input[0], []).append(onnx.NodeProto.FromString(node.SerializeToString()))
    return groups


def _matrix(name: str, constants: dict[str, onnx.TensorProto], transposed: dict[str, str]) -> NDArray[np.float32] | None:
    """Return the constant right factor of a product as (outputs, inputs), or None where it is none worth quantizing."""
    tensor = constants.get(transposed.get(name, name))
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or min(tensor.dims) < SMALLEST:
        return None
    weight = numpy_helper.to_array(tensor)
    return np.ascontiguousarray(weight if name in transposed else weight.T)


def _table(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], format_: WeightFormat) -> NDArray[np.float32] | None:
    """Return an embedding table, (entries, width): a constant of two dimensions whose width is a multiple of the block."""
    tensor = constants.get(node.input[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or axis != 0:
        return None
    if tensor.dims[1] % format_.block or tensor.dims[0] < SMALLEST:
        return None
    return np.ascontiguousarray(numpy_helper.to_array(tensor))


def _linear(
    group: list[onnx.NodeProto],
    key: str,
    shapes: list[tuple[int, ...]],
    added: dict[str, onnx.TensorProto],
    format_: WeightFormat | None,
) -> list[onnx.NodeProto]:
    """Return the nodes that compute a group of linear layers of one input: one layer, and a split where there are several.

    Without a format, weights have one scale per output.
    """
    single = len(group) == 1
    output = group[0].output[0] if single else f"{group[0].output[0]}.packed"
    inputs = [group[0].input[0], f"{key}.codes", f"{key}.scales"]
    if format_ is None:
        linear = helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=group[0].name, domain=CONTRIB)
    else:
        linear = helper.make_node(
            "MatMulNBits",
            inputs,
            [output],
            name=group[0].name,
            domain=CONTRIB,
            K=shapes[0][1],
            N=sum(shape[0] for shape in shapes),
            bits=format_.bits,
            block_size=format_.block,
            accuracy_level=COMPUTE_IN_INT8,
        )
    if single:
        return [linear]
    sizes = np.array([shape[0] for shape in shapes], dtype=np.int64)
    added[f"{key}.sizes"] = numpy_helper.from_array(sizes, f"{key}.sizes")
    outputs = [member.output[0] for member in group]
    return [linear, helper.make_node("Split", [output, f"{key}.sizes"], outputs, name=f"{group[0].name}.split", axis=-1)]


def _lookup(node: onnx.NodeProto, name: str, format_: WeightFormat) -> onnx.NodeProto:
    return helper.make_node(
        "GatherBlockQuantized",
        [f"{name}.table", node.input[1], f"{name}.table_scales"],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        bits=format_.bits,
        block_size=format_.block,
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
