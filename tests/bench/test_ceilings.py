"""Ceilings: what the machine can do, and what share of it was reached; the model is checked against the package `onnx`."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

from mmedge.bench.ceilings import Ceilings, _matmul_graph, measure_ceilings


def test_the_machine_is_measured_in_about_a_second() -> None:
    found = measure_ceilings(threads=1, cache_bytes=1 << 20, seconds=0.4)
    assert found.array_bytes == 64 << 20 and found.threads == 1
    # from the slowest board to the fastest server
    assert 1e8 < found.read_bytes_per_second < 1e12 and 1e8 < found.copy_bytes_per_second < 2e12
    assert 1e8 < found.float32_operations_per_second < 1e14 and 1e8 < found.int8_operations_per_second < 1e15


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_model_that_is_measured_is_as_onnx_wants_it(kind: str) -> None:
    model = onnx.load_from_string(_matmul_graph(kind))  # type: ignore[arg-type]
    onnx.checker.check_model(model, full_check=True)
    assert numpy_helper.to_array(model.graph.initializer[0]).sum() == 768 * 768


def test_shares_are_of_what_was_measured() -> None:
    ceilings = Ceilings(2, 20e9, 30e9, 100e9, 400e9, 1 << 28)
    assert ceilings.share_of_bandwidth(100e6, 0.01) == pytest.approx(0.5)
    assert ceilings.share_of_arithmetic(2e9, 0.01, "float32") == pytest.approx(2.0)
    assert ceilings.share_of_arithmetic(2e9, 0.01, "int8") == pytest.approx(0.5)
