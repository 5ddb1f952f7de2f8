"""Ceilings: what the machine can do, and what share of it a step's weights are; checked against the package `onnx`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmedge.bench.ceilings import Ceilings, _product_graph, decoding_work, measure_ceilings
from mmedge.errors import MmedgeError


def test_the_machine_is_measured_in_about_a_second() -> None:
    found = measure_ceilings(threads=1, cache_bytes=1 << 20, seconds=0.4)
    assert found.array_bytes == 64 << 20 and found.threads == 1
    # from the slowest board to the fastest server
    assert 1e8 < found.read_bytes_per_second < 1e12 and 1e8 < found.copy_bytes_per_second < 2e12
    assert 1e8 < found.float32_operations_per_second < 1e14 and 1e8 < found.int8_operations_per_second < 1e15
    assert Ceilings(**found.to_json()) == found


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_product_that_is_measured_is_a_model_as_onnx_wants_it(kind: str) -> None:
    model = onnx.load_from_string(_product_graph(kind))  # type: ignore[arg-type]
    onnx.checker.check_model(model, full_check=True)
    assert numpy_helper.to_array(model.graph.initializer[0]).sum() == 768 * 768


def test_shares_are_of_what_was_measured() -> None:
    ceilings = Ceilings(2, 20e9, 30e9, 100e9, 400e9, 1 << 28)
    assert ceilings.share_of_bandwidth(100e6, 0.01) == pytest.approx(0.5)
    assert ceilings.share_of_arithmetic(2e9, 0.01, "float32") == pytest.approx(2.0)
    assert ceilings.share_of_arithmetic(2e9, 0.01, "int8") == pytest.approx(0.5)


def counted(path: Path) -> tuple[int, int]:
    """Return the bytes of all initializers but tables that only a Gather reads, and the operations, by the package `onnx`."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {
        tensor.name: int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    }
    read, operations = set(), 0
    for node in graph.node:
        gathers = node.op_type in ("Gather", "GatherBlockQuantized")
        read |= {node.input[1]} if gathers else set(node.input)
        if node.op_type == "MatMulNBits":
            whole = {item.name: item.i for item in node.attribute}
            operations += 2 * whole["K"] * whole["N"]
        elif node.op_type == "MatMul":
            dims = next((tensor.dims for tensor in graph.initializer if tensor.name == node.input[1]), ())
            operations += 2 * int(np.prod(dims)) if len(dims) == 2 else 0
    return sum(size for name, size in sizes.items() if name in read), operations


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundles_step_reads_what_onnx_counts(tiny_run: Path, precision: str) -> None:
    path = tiny_run / f"bundle-{precision}" / "decoder_model.onnx"
    found = decoding_work(path)
    size, operations = counted(path)
    assert found.bytes == size and found.operations >= operations > 0
    assert found.table_bytes > 0 and found.bytes < (tiny_run / f"bundle-{precision}" / "weights.data").stat().st_size


def test_the_branch_with_a_cache_is_counted_and_a_transposed_head_too(tmp_path: Path) -> None:
    def weights(name: str, *dims: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.zeros(dims, dtype=np.float32), name)

    def branch(name: str, weight: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", weight], [f"{name}_out"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Transpose", ["head"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
        helper.make_node("If", ["cached"], ["y"], then_branch=branch("with", "small"), else_branch=branch("without", "large")),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("cached", TensorProto.BOOL, [1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
        [weights("table", 100, 8), weights("head", 50, 8), weights("small", 8, 16), weights("large", 8, 64)],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    found = decoding_work(tmp_path / "model.onnx")
    assert found.bytes == 4 * (50 * 8 + 8 * 16) and found.table_bytes == 4 * 100 * 8
    assert found.operations == 2 * (50 * 8 + 8 * 16)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"{}", b"\x3a\x7f"])
def test_a_file_that_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(MmedgeError, match="no ONNX model"):
        decoding_work(path)
    with pytest.raises(MmedgeError, match="cannot read"):
        decoding_work(tmp_path / "none.onnx")
