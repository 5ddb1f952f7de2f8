"""Writing an ONNX graph as a forward pass: each call adds a node and returns the name of what it computes.

    g = GraphBuilder("encoder")
    x = g.node("Gather", [g.constant("embedding", table), ids])
    x = g.product(x, weight, "encoder.0.q")

Knows ONNX and nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10  # what ONNX Runtime 1.22, the oldest that the core takes, reads
CONTRIB = "com.microsoft"
EXTERNAL_ABOVE = 1_800_000_000  # bytes; protobuf's limit is 2 GB


class GraphBuilder:
    """A graph that grows node by node.

    Attributes:
        name: The graph's name; nodes and values are called after what they compute.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, type_: int, shape: Sequence[int | str]) -> str:
        """Declare an input; dimensions given as text are free."""
        self._inputs.append(helper.make_tensor_value_info(name, type_, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str], type_: int = TensorProto.FLOAT) -> None:
        """Declare that a computed value is an output, under a name of its own."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, type_, list(shape)))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Return a constant; the same name stands for the same array."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def integers(self, *values: int) -> str:
        """Return a constant vector of int64."""
        return self.constant("integers." + ".".join(map(str, values)), np.array(values, dtype=np.int64))

    def integer(self, value: int) -> str:
        """Return a constant scalar of int64."""
        return self.constant(f"integer.{value}", np.array(value, dtype=np.int64))

    def node(self, op: str, inputs: Sequence[str], name: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output's name; an empty input name is an input left out."""
        return self.nodes(op, inputs, 1, name, domain, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], count: int, name: str = "", domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        label = name or f"{op}.{len(self._nodes)}"
        outputs = [label if count == 1 else f"{label}.{index}" for index in range(count)]
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=label, domain=domain, **attributes))
        return outputs

    def product(self, x: str, weight: NDArray[np.float32], name: str) -> str:
        """Return x · weightᵀ.

        Args:
            x: (…, inputs).
            weight: (outputs, inputs), as torch keeps it.
            name: What it computes.
        """
        return self.node("MatMul", [x, self.constant(f"{name}.weight", weight.T)], name)

    def model(self) -> onnx.ModelProto:
        """Return the finished model.

        Raises:
            onnx.checker.ValidationError: The graph is broken.
        """
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmedge")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, its weights into a file beside it where they are too large for one."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    large = size > EXTERNAL_ABOVE
    onnx.save_model(model, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)
