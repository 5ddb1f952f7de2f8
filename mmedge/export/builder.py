"""Writing an ONNX graph as a forward pass: each call adds a node and returns the name of what it computes.

    with DataFile(out / "model.onnx.data") as data:
        g = GraphBuilder("decoder", data, quantizer)
        x = g.lookup(ids, table, "embedding")
        x = g.linear(x, weight, "layers.0.attention.qkv")
        written = g.save(out / "model.onnx")

Weights go into the data file as they come, so that no more than one matrix is in memory; several graphs may share one file, and
a weight that two nodes read is written once. Knows ONNX and its quantized operators, and nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmedge.errors import MmedgeError
from mmedge.export.quantization.blocks import QuantizedMatrix
from mmedge.export.quantization.formats import FLOAT32, WeightFormat
from mmedge.export.work import decoding_work
from mmedge.manifest import State, Work

OPSET = 21
IR_VERSION = 10  # what ONNX Runtime 1.22, the oldest supported one, reads
CONTRIB = "com.microsoft"
SMALL = 1024  # bytes; smaller constants stay in the graph, where ONNX Runtime can fold them
ALIGNMENT = 4096  # so that a weight can be mapped into memory where it lies
SMALL_ALIGNMENT = 64  # of what only a layer plan refers to, which is small
COMPUTE_IN_INT8 = 4  # MatMulNBits' accuracy_level
PAST_STATES = "past_states."


class Quantizer(Protocol):
    """Decides how each matrix is stored, and quantizes it."""

    @property
    def float_dtype(self) -> type[np.float32 | np.float16]:
        """What everything else is stored and computed in."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether every linear layer gives a token the same bits, however many tokens are read with it."""
        ...

    def weight_format(self, name: str, shape: tuple[int, ...], *, table: bool = False) -> WeightFormat:
        """Return how a matrix, (outputs, inputs), is stored; the rows of a table are also looked up."""
        ...

    def input_range(self, name: str) -> tuple[float, float] | None:
        """Return the static range of an int8 linear layer's inputs; None to compute it in each call."""
        ...

    def quantize(self, name: str, weight: NDArray[np.float32], format_: WeightFormat) -> QuantizedMatrix:
        """Return a matrix in few bits."""
        ...


class KeepFloat:
    """The quantizer of a float32 graph: it quantizes nothing."""

    float_dtype: type[np.float32 | np.float16] = np.float32
    batch_invariant = False

    def weight_format(self, name: str, shape: tuple[int, ...], *, table: bool = False) -> WeightFormat:
        return FLOAT32

    def input_range(self, name: str) -> tuple[float, float] | None:
        return None

    def quantize(self, name: str, weight: NDArray[np.float32], format_: WeightFormat) -> QuantizedMatrix:
        raise ValueError(f"{name}: a float32 graph quantizes nothing")


@dataclass(frozen=True)
class WrittenGraphs:
    """What an architecture wrote.

    Attributes:
        nodes: How many nodes the decoder's graph has.
        work: What one decoding step does with its weights.
        states: The graph's recurrent states.
        plan: The layer plan of an engine that interprets one, JSON-able; None where none was written.
        least_runtime: The oldest ONNX Runtime that has all its operators; empty for the oldest that mmedge supports.
    """

    nodes: int
    work: Work
    states: tuple[State, ...] = ()
    plan: Mapping[str, Any] | None = None
    least_runtime: str = ""


@dataclass(frozen=True)
class StoredMatrix:
    """How a linear layer or a table lies in the data file.

    Attributes:
        format: Of its weights.
        outputs: Of the layer; entries of a table.
        inputs: Of the layer; a table's width.
        columns: Whether float32 weights lie as (inputs, outputs).
        codes: The key of its codes, or of its float32 weights.
        scales: The key of its scales; empty for float32.
        bias: The name of its bias; empty for none.
    """

    format: WeightFormat
    outputs: int
    inputs: int
    columns: bool
    codes: str
    scales: str = ""
    bias: str = ""


def _to_float16(name: str, array: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return an array in float16."""
    largest = float(np.abs(array).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise MmedgeError(f"{name} holds {largest:.3g}, more than float16's largest value, 65504", "export without --fp16")
    return array.astype(np.float16)


class DataFile:
    """The file that holds the weights of one or several graphs, each weight once.

    Args:
        path: Where it goes; the graphs that refer to it must lie in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, key: str, array: NDArray[Any], alignment: int = ALIGNMENT) -> None:
        """Append a weight, unless one of the same key is there.

        Raises:
            ValueError: The one that is there is of another size.
        """
        if key in self._places:
            if self._places[key][1] != array.nbytes:
                raise ValueError(f"two different weights are called {key!r}")
            return
        start = self._file.tell()
        self._file.write(b"\0" * (-start % alignment))
        start = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        self._places[key] = (start, array.nbytes)

    def place(self, key: str) -> int | None:
        """Return where a weight begins, in bytes; None where there is none of this key."""
        return self._places[key][0] if key in self._places else None

    def tensor(self, key: str, name: str, type_: int, shape: Sequence[int]) -> onnx.TensorProto:
        """Return a tensor of a graph whose content is a weight in this file."""
        start, length = self._places[key]
        tensor = TensorProto(name=name, data_type=type_, dims=shape, data_location=TensorProto.EXTERNAL)
        for entry, value in (("location", self.path.name), ("offset", start), ("length", length)):
            tensor.external_data.add(key=entry, value=str(value))
        return tensor


class GraphBuilder:
    """A graph that grows node by node.

    Args:
        name: The graph's name; nodes and values are called after what they compute.
        data: Where weights go.
        quantizer: How they are stored; as float32 by default.

    Attributes:
        name: The graph's name.
        float_type: ONNX's constant for what it computes in: float32 or float16.
        batch_invariant: Whether every linear layer gives a token the same bits, however many tokens are read with it.
        notes: What the file says of itself (ONNX's `metadata_props`).
        matrices: How linear layers and tables are stored, by name; those in other formats than plans know are left out.
    """

    def __init__(self, name: str, data: DataFile, quantizer: Quantizer | None = None) -> None:
        self.name = name
        self._data = data
        self._quantizer = quantizer or KeepFloat()
        self.batch_invariant = self._quantizer.batch_invariant
        self.float_type = int(helper.np_dtype_to_tensor_dtype(np.dtype(self._quantizer.float_dtype)))
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tables: dict[str, QuantizedMatrix] = {}
        self._cast: set[str] = set()
        self._codes: dict[tuple[str, float, int], tuple[str, str, str]] = {}
        self.notes: dict[str, str] = {}
        self.matrices: dict[str, StoredMatrix] = {}

    def input(self, name: str, type_: int, shape: Sequence[int | str]) -> str:
        """Declare an input; dimensions given as text are free."""
        self._inputs.append(helper.make_tensor_value_info(name, type_, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str], type_: int = TensorProto.FLOAT) -> None:
        """Declare that a computed value is an output, under a name of its own."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, type_, list(shape)))

    def constant(self, name: str, array: NDArray[Any], *, exact: bool = False) -> str:
        """Return a constant; the same name stands for the same array. float32 becomes what the graph computes in, unless `exact`.

        Raises:
            MmedgeError: A value is beyond float16's range.
        """
        if name not in self._constants:
            if array.dtype == np.float32 and self.float_type == TensorProto.FLOAT16 and not exact:
                array = _to_float16(name, array)
            if array.nbytes > SMALL:
                self._data.write(name, array)
                type_ = helper.np_dtype_to_tensor_dtype(array.dtype)
                self._constants[name] = self._data.tensor(name, name, type_, array.shape)
            else:
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

    def output_names(self, op: str, inputs: Sequence[str], names: Sequence[str], domain: str = "", **attributes: Any) -> list[str]:
        """Add a node whose outputs have given names, as a graph's outputs need them, and return these."""
        self._nodes.append(helper.make_node(op, list(inputs), list(names), name=names[0], domain=domain, **attributes))
        return list(names)

    def declare(self, name: str, shape: Sequence[int | str], type_: int = TensorProto.FLOAT) -> None:
        """Declare that a value that has the right name already is an output."""
        self._outputs.append(helper.make_tensor_value_info(name, type_, list(shape)))

    def norm(self, x: str, weight: NDArray[np.float32], epsilon: float, name: str) -> str:
        """Return the root-mean-square norm of x (Zhang and Sennrich 2019)."""
        scale = self.constant(f"{name}.weight", weight)
        return self.node("SimplifiedLayerNormalization", [x, scale], name, axis=-1, epsilon=epsilon, stash_type=1)

    def add_norm(self, x: str, added: str, weight: NDArray[np.float32], epsilon: float, name: str) -> tuple[str, str]:
        """Return the norm of x + added, and x + added."""
        scale = self.constant(f"{name}.weight", weight)
        found = self.nodes("SkipSimplifiedLayerNormalization", [x, added, scale], 4, name, CONTRIB, epsilon=epsilon)
        return found[0], found[3]

    # ---------------------------------------------------------------------------------------------- weights

    def linear(self, x: str, weight: NDArray[np.float32], name: str, bias: NDArray[np.float32] | None = None) -> str:
        """Return x · weightᵀ + bias, with weights stored as the quantizer says.

        Args:
            x: (…, inputs).
            weight: (outputs, inputs), as torch keeps it.
            name: What it computes.
            bias: (outputs,).
        """
        format_ = self._quantizer.weight_format(name, weight.shape)
        added = [] if bias is None else [self.constant(f"{name}.bias", bias)]
        if format_.is_float:
            if format_.bits == 32:
                self.matrices[name] = StoredMatrix(
                    format_, weight.shape[0], weight.shape[1], True, f"{name}.weight", bias="".join(added)
                )
            found = self.node("MatMul", [x, self.constant(f"{name}.weight", weight.T)], name)
            return self.node("Add", [found, *added], f"{name}.biased") if added else found
        if not format_.block:
            matrix = self._quantizer.quantize(name, weight, format_)
            codes, scales = self.constant(f"{name}.codes", matrix.codes.T), self.constant(f"{name}.scales", matrix.scales)
            self.matrices[name] = StoredMatrix(format_, len(matrix.codes), matrix.width, True, codes, scales, "".join(added))
            range_ = self._quantizer.input_range(name)
            if range_ is None:
                return self.node("DynamicQuantizeMatMul", [x, codes, scales, "", *added], name, CONTRIB)
            inputs, scale, zero = self._quantized_inputs(x, name, range_)
            return self.node("MatMulIntegerToFloat", [inputs, codes, scale, scales, zero, "", *added], name, CONTRIB)
        return self._blocks_linear(x, weight, name, format_, added)

    def _quantized_inputs(self, x: str, name: str, range_: tuple[float, float]) -> tuple[str, str, str]:
        """Return x in unsigned 8-bit codes that cover a range, their scale and their zero; all linear layers of x share them."""
        low, high = min(0.0, range_[0]), max(0.0, range_[1])
        step = np.float32((high - low) / 255) or np.float32(1.0)
        zero = np.uint8(np.clip(np.rint(-low / step), 0, 255))
        key = (x, float(step), int(zero))
        if key not in self._codes:
            scale_name = self.constant(f"{name}.input.scale", np.asarray(step))
            zero_name = self.constant(f"{name}.input.zero", np.asarray(zero))
            codes = self.node("QuantizeLinear", [x, scale_name, zero_name], f"{name}.input")
            self._codes[key] = codes, scale_name, zero_name
        return self._codes[key]

    @property
    def rows_alike(self) -> bool:
        """Whether every linear layer multiplies integers with static scales, so that a row's values never depend on other rows."""
        linears = [node.op_type for node in self._nodes if "MatMul" in node.op_type or node.op_type == "Gemm"]
        return bool(linears) and set(linears) == {"MatMulIntegerToFloat"}

    def head(self, x: str, weight: NDArray[np.float32], name: str, output: str) -> str:
        """Return x · weightᵀ, float32, for x (rows, inputs); a table of the same name that is looked up in is kept once.

        Args:
            x: What goes in.
            weight: (outputs, inputs).
            name: The weight's name.
            output: The name of what it computes.
        """
        format_ = self._quantizer.weight_format(name, weight.shape, table=True)
        if format_.bits == 16:
            found = self.node("Gemm", [x, self.constant(f"{name}.weight", weight)], f"{output}.half", transB=1)
            return self.node("Cast", [found], output, to=TensorProto.FLOAT)
        if format_.bits == 32:
            self.matrices[name] = StoredMatrix(format_, weight.shape[0], weight.shape[1], False, f"{name}.weight")
            return self.node("Gemm", [x, self.constant(f"{name}.weight", weight)], output, transB=1)
        return self._blocks_linear(x, weight, name, format_, [], node=output)

    def lookup(self, ids: str, table: NDArray[np.float32], name: str) -> str:
        """Return rows of a table, (entries, width)."""
        format_ = self._quantizer.weight_format(name, table.shape, table=True)
        if format_.is_float:
            if format_.bits == 32:
                self.matrices[name] = StoredMatrix(format_, table.shape[0], table.shape[1], False, f"{name}.weight")
            return self.node("Gather", [self.constant(f"{name}.weight", table), ids], f"{name}.row")
        matrix = self._quantized(name, table, format_, table=True)
        codes = self._shaped(f"{name}.codes", f"{name}.table", matrix.codes.reshape(len(table), -1))
        scales = self._scales(name, f"{name}.table_scales", matrix.scales)
        self._note_blocks(name, matrix, "")
        inputs = [codes, ids, scales]
        if matrix.zeros is not None:
            inputs.append(self._shaped(f"{name}.zeros", f"{name}.table_zeros", matrix.zeros))
        return self.node(
            "GatherBlockQuantized",
            inputs,
            f"{name}.row",
            CONTRIB,
            bits=format_.bits,
            block_size=format_.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _quantized(self, name: str, weight: NDArray[np.float32], format_: WeightFormat, *, table: bool = False) -> QuantizedMatrix:
        if name in self._tables:
            return self._tables[name]
        found = self._quantizer.quantize(name, weight, format_)
        if table:  # used twice, as embedding and as head
            self._tables[name] = found
        return found

    def _shaped(self, key: str, name: str, array: NDArray[Any]) -> str:
        """Return a constant that shares its bytes in the data file with others of the same key, whatever their shapes."""
        if name not in self._constants:
            self._data.write(key, array)
            type_ = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._constants[name] = self._data.tensor(key, name, type_, array.shape)
        return name

    def _scales(self, key: str, name: str, scales: NDArray[np.float32]) -> str:
        """Return blocks' scales, kept in float16 where that is exact: the runtime folds the cast when it loads."""
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), scales):
            return self._shaped(f"{key}.scales", name, scales)
        if name not in self._cast:
            kept = self._shaped(f"{key}.half_scales", f"{name}.half", halves)
            self._cast.add(self.node("Cast", [kept], name, to=TensorProto.FLOAT))
        return name

    def _note_blocks(self, name: str, matrix: QuantizedMatrix, bias: str) -> None:
        """Note how a matrix in blocks is stored."""
        if matrix.zeros is None:
            scales = next(key for key in (f"{name}.half_scales", f"{name}.scales") if self._data.place(key) is not None)
            self.matrices[name] = StoredMatrix(matrix.format, len(matrix.codes), matrix.width, False, f"{name}.codes", scales, bias)

    def floats_place(self, name: str) -> int:
        """Return where a float32 constant begins in the data file; one that is kept in the graph is written there too."""
        place = self._data.place(name)
        if place is not None:
            return place
        key = f"plan.{name}"
        self._data.write(key, numpy_helper.to_array(self._constants[name]), SMALL_ALIGNMENT)
        place = self._data.place(key)
        assert place is not None
        return place

    def data_place(self, key: str) -> int:
        """Return where a weight begins in the data file."""
        place = self._data.place(key)
        return self.floats_place(key) if place is None else place

    @property
    def data_name(self) -> str:
        """The name of the data file."""
        return self._data.path.name

    def _blocks_linear(
        self, x: str, weight: NDArray[np.float32], name: str, format_: WeightFormat, added: list[str], node: str = ""
    ) -> str:
        matrix = self._quantized(name, weight, format_)
        inputs = [x, self._shaped(f"{name}.codes", f"{name}.codes", matrix.codes)]
        inputs.append(self._scales(name, f"{name}.scales", matrix.scales))
        self._note_blocks(name, matrix, "".join(added))
        zeros = "" if matrix.zeros is None else self._shaped(f"{name}.zeros", f"{name}.zeros", matrix.zeros)
        if zeros or added:
            inputs += [zeros, "", *added]
        return self.node(
            "MatMulNBits",
            inputs,
            node or name,
            CONTRIB,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=format_.bits,
            block_size=format_.block,
            accuracy_level=COMPUTE_IN_INT8,
        )

    def model(self) -> onnx.ModelProto:
        """Return the finished model.

        Raises:
            onnx.checker.ValidationError: The graph is broken.
        """
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmedge")
        helper.set_model_props(model, self.notes)
        return model

    @property
    def states(self) -> tuple[State, ...]:
        """Its recurrent states, which are its inputs of the name `past_states.…`."""
        found = []
        for value in self._inputs:
            if value.name.startswith(PAST_STATES):
                type_ = value.type.tensor_type
                shape = tuple(int(dimension.dim_value) for dimension in type_.shape.dim)[1:]
                half = type_.elem_type == TensorProto.FLOAT16
                found.append(State(value.name.removeprefix(PAST_STATES), shape, "float16" if half else "float32"))
        return tuple(found)

    def save(self, path: Path, plan: Mapping[str, Any] | None = None) -> WrittenGraphs:
        """Write the graph, whose weights are in the data file beside it, and describe it as a decoder, with its layer plan."""
        model = self.model()
        path.write_bytes(model.SerializeToString())
        return WrittenGraphs(len(self._nodes), decoding_work(model.graph), self.states, plan)
