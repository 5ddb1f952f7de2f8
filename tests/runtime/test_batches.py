"""A batch gives every question the very bits that it gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mmedge.engines.onnx.decoding import FusedEncoderDecoderEngine
from mmedge.engines.onnx.graphs import ROWS_ALIKE, Graph
from mmedge.errors import MmedgeError
from mmedge.export.bundles import write_bundle
from mmedge.export.calibration import input_ranges
from mmedge.export.export import export
from mmedge.export.graphs import fused_linears, write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.export.source import Source
from mmedge.progress import Progress
from mmedge.runtime import Student
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.evaluation_set import CALIBRATION, FILE_NAME, read_evaluation_set
from tests.export.test_fused import opened, random_model

QUIET = Progress(quiet=True)


def operations(bundle: Path) -> set[str]:
    """Return the operations of a bundle's encoder."""
    return {node.op_type for node in onnx.load(bundle / "encoder_model.onnx", load_external_data=False).graph.node}


@pytest.mark.parametrize("steps", ["fixed", "anew"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_batch_has_the_very_bits_of_each_alone(precision: Any, steps: str, tmp_path: Path) -> None:
    """Over widths of one, several and many vectors; 4-bit linear layers may differ in the last bits, by processor."""
    model = random_model("t5 v1.1")
    model.save_pretrained(tmp_path)
    products = fused_linears(tmp_path)
    ranges = {name: (-4.0, 4.5) for name in products if name.startswith(("encoder.", "cross.kv"))}
    write_fused(tmp_path, tmp_path, BundleQuantizer(PRECISIONS[precision], ranges=ranges if steps == "fixed" else {}))
    engine = opened(tmp_path, "t5 v1.1")
    assert isinstance(engine, FusedEncoderDecoderEngine) and engine._encoder.rows_alike == (steps == "fixed")
    assert ("DynamicQuantizeMatMul" in operations(tmp_path)) == (steps == "anew")
    rng = np.random.default_rng(0)
    for _ in range(3):
        asked = [Prompt(tuple(rng.integers(3, 100, size).tolist()), (0,)) for size in rng.integers(2, 150, 20)]
        together, written = engine.next_logits(asked, [7, 8]), engine.generate(asked, 12).tokens
        for row, prompt in enumerate(asked):
            alone = engine.next_logits([prompt], [7, 8])[0]
            np.testing.assert_allclose(alone, together[row], rtol=0, atol=0 if PRECISIONS[precision].batch_invariant else 1e-4)
            assert engine.generate([prompt], 12).tokens[0] == written[row]


def test_fixed_steps_compute_nearly_what_the_student_does(tmp_path: Path) -> None:
    model = random_model("t5")
    model.save_pretrained(tmp_path)
    found = {}
    for name, ranges in (("anew", {}), ("fixed", dict.fromkeys(fused_linears(tmp_path), (-6.0, 6.0)))):
        (tmp_path / name).mkdir()
        write_fused(tmp_path, tmp_path / name, BundleQuantizer(PRECISIONS["int8"], ranges=ranges))
        engine = opened(tmp_path / name, "t5")
        found[name] = engine.forced_logits(Prompt((5, 6, 7, 8, 9, 1), (0,)), [11, 12, 13])
    with torch.no_grad():
        exact = model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 1]]), decoder_input_ids=torch.tensor([[0, 11, 12]])).logits[0].numpy()
    errors = {name: float(np.sqrt(((logits - exact) ** 2).mean() / exact.var())) for name, logits in found.items()}
    assert errors["anew"] < 0.05 and errors["fixed"] < 0.15


def test_export_fixes_the_steps_by_calibration_questions(tiny_run: Path) -> None:
    assert operations(tiny_run / "bundle-int8") >= {"QuantizeLinear", "MatMulIntegerToFloat"}
    assert "DynamicQuantizeMatMul" not in operations(tiny_run / "bundle-int8")
    assert Graph(tiny_run / "bundle-int8" / "encoder_model.onnx", 1).rows_alike
    assert not Graph(tiny_run / "bundle-fp32" / "encoder_model.onnx", 1).rows_alike
    notes = onnx.load(tiny_run / "bundle-int8" / "encoder_model.onnx", load_external_data=False).metadata_props
    assert [(note.key, note.value) for note in notes] == [(ROWS_ALIKE, "yes")]
    student = Student.load(tiny_run / "bundle-int8")
    questions = [example for split in read_evaluation_set(tiny_run / FILE_NAME).questions.values() for example in split]
    alone = [student.answer(example) for example in questions]
    assert student.answer_all(questions, batch=32) == alone  # confidences too, to the bit
    assert student.answer_all(questions[::-1], batch=7)[::-1] == alone


def test_every_input_lies_in_its_range(tiny_run: Path) -> None:
    from mmedge.students.saved import open_student

    student = open_student(tiny_run / "student")
    questions = read_evaluation_set(tiny_run / FILE_NAME).questions[CALIBRATION]
    found = input_ranges(student, questions, fused_linears(tiny_run / "student"))
    layers = student.model.config.num_layers
    assert len(found) == 4 * layers + 1 and "cross.kv" in found and not any(name.startswith("decoder.") for name in found)
    for name, (low, high) in found.items():
        # what goes into `wo` came through a ReLU: nothing below zero but for the margin
        assert low < high and (-0.1 * high < low <= 0) == name.endswith(".wo")


def test_where_questions_differ_too_much_steps_are_chosen_anew(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmedge.export.calibration.COARSEST", 1.0)
    export(tiny_run, ["int8"], QUIET, tmp_path, max_accuracy_drop=100)
    assert "DynamicQuantizeMatMul" in operations(tmp_path / "bundle-int8")


def test_where_static_activations_cost_too_much_dynamic_ones_are_taken(tiny_run: Path, tmp_path: Path) -> None:
    said = iter([["KL is too large"], []])
    manifest = write_bundle(Source(tiny_run / "student", tmp_path, QUIET), PRECISIONS["int8"], lambda *_: next(said))
    assert "DynamicQuantizeMatMul" in operations(tmp_path / "bundle-int8")
    assert [entry.problems for entry in manifest.budget] == [("KL is too large",), ()]
    assert [entry.static_activations for entry in manifest.budget] == [True, False]
    assert not manifest.quantization.exceptions


def test_a_graph_that_says_nothing_of_itself_is_read_row_by_row(tiny_run: Path, tmp_path: Path) -> None:
    """Bundles of before have no note."""
    path = tmp_path / "encoder_model.onnx"
    model = onnx.load(tiny_run / "bundle-int8" / "encoder_model.onnx", load_external_data=False)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    (tmp_path / "weights.data").write_bytes((tiny_run / "bundle-int8" / "weights.data").read_bytes())
    assert not Graph(path, 1).rows_alike
    with pytest.raises(MmedgeError):
        Graph(tmp_path / "none.onnx", 1)
