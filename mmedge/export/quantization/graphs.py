"""Quantizing graphs of other exporters: their float32 graphs become block-wise int8 or int4 ones.

Every linear layer (`MatMul` with a constant matrix, and `Gemm` with its bias) becomes one `MatMulNBits` (ONNX Runtime's contrib
operator), computed at accuracy level 4, which quantizes activations per block and multiplies in int8. The embedding table becomes
`GatherBlockQuantized`, with the same blocks. A graph that always reads many rows at once, an encoder, takes `DynamicQuantizeMatMul`
instead; the activations' scale is then that of the whole batch, so answers in a batch may differ slightly from those to single
questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def quantize_model(source: Path, target: Path, *, many_rows: bool = False, format_: WeightFormat = INT8) -> QuantizationReport:
    """Write a graph with quantized weights.

    Args:
        source: A float32 graph.
        target: Where the other goes.
        many_rows: Whether the graph always reads many rows at once, as an encoder does.
        format_: How weights are stored, symmetric; for many rows that is int8 with one scale per output in any case.
    """
    model = onnx.load(str(source))
    graphs = list(_graphs(model.graph))
    rewriting = _Rewriting(graphs, format_, many_rows)
    before = sum(len(tensor.raw_data) for tensor in rewriting.constants.values())
    for graph in reversed(graphs):  # inner graphs first: a node is copied with what is inside it
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewriting.nodes_of(graph)]
        del graph.node[:]
        graph.node.extend(nodes)
    _remove_unused(model)
    model.graph.initializer.extend(rewriting.added.values())
    if not any(opset.domain == CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    after = sum(len(tensor.raw_data) for graph in _graphs(model.graph) for tensor in graph.initializer)
    large = after > EXTERNAL_ABOVE
    onnx.save_model(model, str(target), save_as_external_data=large, location=f"{target.name}.data" if large else None)
    return QuantizationReport(rewriting.matrices, rewriting.tables, before, after)


class _Rewriting:
    """The nodes and constants of a quantized model while it is made.

    Args:
        graphs: All graphs of the model.
        format_: How weights are stored.
        many_rows: Whether linear layers read many rows at once.

    Attributes:
        constants: All constant tensors by name.
        added: The new ones.
        matrices: How many matrices were quantized.
        tables: How many embedding tables were.
    """

    def __init__(self, graphs: list[onnx.GraphProto], format_: WeightFormat, many_rows: bool) -> None:
        self._format, self._many_rows = format_, many_rows
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        nodes = [node for graph in graphs for node in graph.node]
        for node in nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self._transposed = {  # by its name, the constant that a transposed one is made of
            node.output[0]: node.input[0]
            for node in nodes
            if node.op_type == "Transpose" and node.input[0] in self.constants and len(self.constants[node.input[0]].dims) == 2
        }
        self.added: dict[str, onnx.TensorProto] = {}
        self.matrices = self.tables = 0

    def nodes_of(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Return a graph's nodes, quantized where they can be.

        Queries, keys and values, or gate and up projections, read the same tensor: packed into one layer, its activations are
        quantized once, and one larger node replaces several small ones.
        """
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if node.op_type == "MatMul" and self._matrix(node.input[1]) is not None:
                groups.setdefault(node.input[0], []).append(node)
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            group = groups.get(node.input[0], []) if node.op_type == "MatMul" else []
            outputs = [member.output[0] for member in group]
            if node.op_type == "MatMul" and node.output[0] in outputs:
                nodes += self._linear(group) if node.output[0] == outputs[0] else []
            elif node.op_type == "Gemm" and self._is_linear(node):
                nodes += self._linear([node], list(node.input[2:]))
            elif node.op_type == "Gather" and (table := self._table(node)) is not None:
                nodes.append(self._lookup(node, table))
            else:
                nodes.append(node)
        return nodes

    def _matrix(self, name: str, *, outputs_first: bool = False) -> NDArray[np.float32] | None:
        """Return the weight of a linear layer as (outputs, inputs), or None if it is not worth quantizing."""
        tensor = self.constants.get(self._transposed.get(name, name))
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or min(tensor.dims) < SMALLEST:
            return None
        weight = numpy_helper.to_array(tensor)
        return np.ascontiguousarray(weight if outputs_first != (name in self._transposed) else weight.T)

    def _is_linear(self, gemm: onnx.NodeProto) -> bool:
        """Return whether a Gemm is x · weight + bias of a constant matrix, and no more."""
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in gemm.attribute}
        plain = (given.get("alpha", 1.0), given.get("beta", 1.0), given.get("transA", 0)) == (1.0, 1.0, 0)
        return plain and self._matrix(gemm.input[1]) is not None

    def _linear(self, group: list[onnx.NodeProto], bias: Sequence[str] = ()) -> list[onnx.NodeProto]:
        """Return the nodes that compute a group of linear layers of one input: one layer, and a split where there are several."""
        first, names = group[0], [node.input[1] for node in group]
        turned = any(attribute.name == "transB" and attribute.i for attribute in first.attribute)
        weights = [weight for name in names if (weight := self._matrix(name, outputs_first=turned)) is not None]
        key = "+".join(names)
        if f"{key}.codes" not in self.added:
            self.matrices += len(names)
            whole = np.concatenate(weights)
            matrix = quantize_outputs(whole) if self._many_rows else quantize_blocks(whole, self._format)
            self._add(f"{key}.codes", np.ascontiguousarray(matrix.codes.T) if self._many_rows else matrix.codes)
            self._add(f"{key}.scales", matrix.scales)
        single = len(group) == 1
        output = first.output[0] if single else f"{first.output[0]}.packed"
        inputs = [first.input[0], f"{key}.codes", f"{key}.scales"]
        if self._many_rows:
            inputs += ["", *bias] if bias else []
            layer = helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=first.name, domain=CONTRIB)
        else:
            inputs += ["", "", *bias] if bias else []
            layer = helper.make_node(
                "MatMulNBits",
                inputs,
                [output],
                name=first.name,
                domain=CONTRIB,
                K=weights[0].shape[1],
                N=sum(len(weight) for weight in weights),
                bits=self._format.bits,
                block_size=self._format.block,
                accuracy_level=COMPUTE_IN_INT8,
            )
        if single:
            return [layer]
        self._add(f"{key}.sizes", np.array([len(weight) for weight in weights], dtype=np.int64))
        outputs = [member.output[0] for member in group]
        return [layer, helper.make_node("Split", [output, f"{key}.sizes"], outputs, name=f"{first.name}.split", axis=-1)]

    def _table(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        """Return an embedding table, (entries, width): a constant of two dimensions whose width is a multiple of the block."""
        tensor = self.constants.get(node.input[0])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or axis != 0:
            return None
        if tensor.dims[1] % self._format.block or tensor.dims[0] < SMALLEST:
            return None
        return np.ascontiguousarray(numpy_helper.to_array(tensor))

    def _lookup(self, node: onnx.NodeProto, table: NDArray[np.float32]) -> onnx.NodeProto:
        name = node.input[0]
        if f"{name}.table" not in self.added:
            self.tables += 1
            matrix = quantize_blocks(table, self._format)
            self._add(f"{name}.table", matrix.codes.reshape(len(table), -1))
            self._add(f"{name}.table_scales", matrix.scales)
        return helper.make_node(
            "GatherBlockQuantized",
            [f"{name}.table", node.input[1], f"{name}.table_scales"],
            list(node.output),
            name=node.name,
            domain=CONTRIB,
            bits=self._format.bits,
            block_size=self._format.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _add(self, name: str, array: NDArray[Any]) -> None:
        self.added[name] = numpy_helper.from_array(array, name)


def _remove_unused(model: onnx.ModelProto) -> None:
    """Drop unused constants, and unused transposes of constants."""
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
