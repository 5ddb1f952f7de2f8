"""Quantization known in training: layers compute with the weights that export will write, and learn them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmedge.bundle import open_bundle
from mmedge.export.quantization.blocks import quantize_blocks
from mmedge.export.quantization.formats import INT2, INT4, WeightFormat
from mmedge.export.quantization.gptq import quantize_calibrated
from mmedge.students.passes import LossPass
from mmedge.students.rounding import Rounding, rounded
from tests.commands import kill_when
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe
from tests.students.test_packed import figures, lessons, student_of


@pytest.mark.parametrize("format_", [INT4, INT2], ids=str)
@pytest.mark.parametrize("width", [96, 75])
def test_export_finds_the_codes_of_rounded_weights(format_: WeightFormat, width: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, width)).astype(np.float32)
    weight[3] = 0
    found = rounded(torch.from_numpy(weight), format_).numpy()
    assert 0 < np.abs(found - weight).max() < np.abs(weight).max()
    np.testing.assert_array_equal(quantize_blocks(found, format_).dequantized(), found)
    inputs = rng.standard_normal((200, width))
    moments = (inputs.T @ inputs / 200).astype(np.float32)
    np.testing.assert_array_equal(quantize_calibrated(found, format_, moments).dequantized(), found)
    np.testing.assert_array_equal(rounded(torch.from_numpy(found), format_).numpy(), found)


@pytest.mark.parametrize("kind", ["llama", "t5-v1.1", "qwen2"])
def test_it_computes_with_rounded_weights_and_learns_those_behind_them(kind: str) -> None:
    student = student_of(kind)
    before = {name: one.detach().clone() for name, one in student.model.named_parameters()}
    one_pass = LossPass(student.model, student.encoder)
    plain = figures(one_pass.token_losses(lessons()))
    rounding = Rounding(student.model, "int4")
    found = figures(one_pass.token_losses(lessons()))
    found[0].backward()
    assert all(torch.equal(one, before[name]) for name, one in student.model.named_parameters())
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in student.model.parameters())
    rounding.settle()
    settled = figures(one_pass.token_losses(lessons()))
    torch.testing.assert_close(settled.detach(), found.detach(), rtol=1e-5, atol=1e-6)
    assert (settled - plain).abs().max() > 1e-4
    changed = [name for name, one in student.model.named_parameters() if not torch.equal(one, before[name])]
    assert changed and not any("norm" in name or "bias" in name for name in changed)


def quantized_recipe(**training: object) -> dict[str, object]:
    values = tiny_recipe()
    own = {
        "checkpoint_minutes": 0,
        "quantize": "int4",
        "quantize_share": 0.5,
        "stage1": {"max_steps": 4, "batch_size": 8},
        "stage2": {"max_steps": 16, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 4},
    }
    return values | {"training": {**values["training"], **own, **training}}  # type: ignore[dict-item]


def test_a_run_ends_on_codes_and_a_killed_one_too(tmp_path: Path) -> None:
    recipe, whole, cut = write_recipe(tmp_path / "r.yaml", quantized_recipe()), tmp_path / "whole", tmp_path / "cut"
    done = mmedge("distill", recipe, "--out", whole)
    assert done.code == 0, done.err
    assert "stage2: weights are rounded to int4 from step 8 on" in done.err
    kept = json.loads((whole / "stage2" / "done.json").read_text())["best"]["step"]
    assert kept > 8
    log = cut / "stage2" / "metrics.jsonl"
    kill_when(["distill", str(recipe), "--out", str(cut), "-q"], lambda: log.is_file() and '"step": 10' in log.read_text())
    again = mmedge("distill", recipe, "--out", cut)
    assert again.code == 0, again.err
    weights = "student/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    written = mmedge("export", whole, "--int4", "--max-accuracy-drop", "100", "--no-recover")
    assert written.code == 0, written.err
    found = open_bundle(whole / "bundle-int4").manifest.verification
    assert found.mean_kl < 1e-3, found


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    values = quantized_recipe(compile=True)
    found = mmedge("distill", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run")
    assert is_one_line_error(found) and "training.quantize: cannot be combined with training.compile" in found.err
