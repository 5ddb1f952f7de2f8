"""What a decoding step costs is counted from the graph, and is what the weights say."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest

from mmedge.bundle import read_manifest
from mmedge.export.graphs import fused_linears, write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.export.weights import TABLE, WeightFiles
from mmedge.export.work import decoding_work
from tests.export.test_fused import random_model


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(("name", "tied"), [("SmolLM2: grouped, tied", True), ("Qwen 3: untied", False)])
def test_work_is_that_of_all_linear_layers(name: str, tied: bool, precision: str, tmp_path: Path) -> None:
    random_model(name, vocab_size=320).save_pretrained(tmp_path)
    found = write_fused(tmp_path, tmp_path, BundleQuantizer(PRECISIONS[precision])).work
    weights, linears = WeightFiles(tmp_path), fused_linears(tmp_path)
    sizes = {part: math.prod(weights[part].shape) for parts in linears.values() for part in parts}
    assert found.operations == 2 * sum(sizes.values())
    bits = {"fp32": 32.0, "int8": 8.3, "int4": 4.7}[precision]  # with scales
    expected = sum(sizes.values()) * bits / 8
    assert 0.9 * expected < found.bytes < 1.1 * expected + 40_000  # with norms, and rotary tables
    table = weights["model.embed_tokens.weight"].size
    assert (TABLE in linears) is tied
    assert found.table_bytes == 0 if tied else 0.9 < found.table_bytes / (table * bits / 8) < 1.2


def test_a_bundle_carries_its_work(tiny_run: Path) -> None:
    for precision, arithmetic in (("fp32", "float32"), ("int8", "int8")):
        work = read_manifest(tiny_run / f"bundle-{precision}").work
        assert work is not None and work.arithmetic == arithmetic
        graph = onnx.load(tiny_run / f"bundle-{precision}" / "decoder_model.onnx", load_external_data=False).graph
        again = decoding_work(graph)
        assert (again.bytes, again.operations, again.table_bytes) == (work.bytes, work.operations, work.table_bytes)
