"""Rounding: codes are within half a step, and calibrated codes change the products least."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.export.quantization.blocks import quantize_blocks
from mmedge.export.quantization.formats import INT4, INT8, WeightFormat
from mmedge.export.quantization.gptq import quantize_calibrated

FORMATS = [INT8, INT4, WeightFormat(8, 32, symmetric=False), WeightFormat(4, 32, symmetric=False), WeightFormat(4, 16)]


def _weight(rows: int = 40, width: int = 128) -> Any:
    weight = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    weight[3] = 0
    return weight


@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: f"{format_}-{format_.block}-{format_.symmetric}")
@pytest.mark.parametrize("width", [32, 64, 112])
def test_codes_are_the_nearest(format_: WeightFormat, width: int) -> None:
    weight = _weight(width=width)
    rounded = quantize_blocks(weight, format_)
    restored = rounded.dequantized()
    assert restored.shape == weight.shape and (restored[3] == 0).all()
    steps = np.repeat(np.abs(rounded.scales), format_.block, axis=1)[:, :width]
    off = np.abs(restored - weight)
    within = off <= steps / 2 + 1e-6
    assert within.all() if format_ == INT8 else within.mean() > 0.9  # in fewer bits the largest weights may be cut
    assert rounded.codes.nbytes == 40 * rounded.scales.shape[1] * format_.block * format_.bits // 8


@pytest.mark.parametrize("format_", [INT8, INT4], ids=str)
def test_scales_are_whole_in_float16_unless_that_is_too_coarse(format_: WeightFormat) -> None:
    def halved(scales: Any) -> Any:
        with np.errstate(over="ignore"):
            return scales.astype(np.float16).astype(np.float32)

    def error(rounded: Any, size: float) -> float:
        return float(((rounded.dequantized() / np.float32(size) - _weight()) ** 2).mean())

    usual = quantize_blocks(_weight(), format_)
    assert (halved(usual.scales) == usual.scales).all()
    for size in (1e-6, 1e7):  # float16 has few numbers so small, and none so large
        found = quantize_blocks(_weight() * np.float32(size), format_)
        assert (halved(found.scales) != found.scales).any()
        assert error(found, size) == pytest.approx(error(usual, 1), rel=0.02)


def test_searching_the_scale_beats_the_full_range_and_asymmetry_helps_what_is_not_centred() -> None:
    weight = _weight()
    grouped = weight.reshape(40, -1, 32)
    step = np.abs(grouped).max(axis=-1, keepdims=True) / 7
    plain = np.rint(grouped / np.where(step == 0, 1, step)) * step
    found = quantize_blocks(weight, INT4).dequantized()
    assert ((found - weight) ** 2).mean() < 0.9 * ((plain.reshape(weight.shape) - weight) ** 2).mean()
    shifted = weight + 2
    symmetric, asymmetric = (quantize_blocks(shifted, WeightFormat(4, 32, kind)).dequantized() for kind in (True, False))
    assert ((asymmetric - shifted) ** 2).mean() < 0.5 * ((symmetric - shifted) ** 2).mean()


def _inputs(width: int, rows: int) -> Any:
    """Inputs that depend on each other, as a network's do, with one that never comes."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(rows, width // 4)) @ rng.normal(size=(width // 4, width)) + 0.3 * rng.normal(size=(rows, width))
    inputs[:, 5] = 0
    return inputs.astype(np.float32)


@pytest.mark.parametrize("format_", [INT4, WeightFormat(4, 32, symmetric=False)])
@pytest.mark.parametrize("width", [128, 112, 320])
def test_gptq_changes_products_far_less_than_rounding_to_the_nearest(format_: WeightFormat, width: int) -> None:
    weight, (seen, fresh) = _weight(width=width), np.split(_inputs(width, 900), [500])
    moments = (seen.T @ seen / len(seen)).astype(np.float32)
    nearest, calibrated = quantize_blocks(weight, format_), quantize_calibrated(weight, format_, moments)
    assert calibrated.codes.shape == nearest.codes.shape
    errors = [float((((rounded.dequantized() - weight) @ fresh.T) ** 2).mean()) for rounded in (nearest, calibrated)]
    assert errors[1] < 0.5 * errors[0]


def test_outputs_are_rounded_by_themselves_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    weight, inputs = rng.standard_normal((100, 64)).astype(np.float32), rng.standard_normal((300, 64)).astype(np.float32)
    moments = (inputs.T @ inputs / 300).astype(np.float32)
    whole = quantize_calibrated(weight, INT4, moments)
    monkeypatch.setattr("mmedge.export.quantization.gptq._ROWS", 7)
    parts = quantize_calibrated(weight, INT4, moments)
    assert np.array_equal(whole.codes, parts.codes) and np.array_equal(whole.scales, parts.scales)


def test_a_tied_head_is_rounded_for_what_it_multiplies(llama_run: Path) -> None:
    from mmedge.export.calibration import observe
    from mmedge.export.graphs import fused_linears
    from mmedge.export.weights import TABLE
    from mmedge.progress import Progress
    from mmedge.students.saved import open_student
    from mmedge.tasks.evaluation_set import CALIBRATION, FILE_NAME, read_evaluation_set

    student = open_student(llama_run / "student")
    questions = read_evaluation_set(llama_run / FILE_NAME).questions[CALIBRATION][:24]
    products = fused_linears(llama_run / "student")
    assert TABLE in products and "head" not in products
    seen = observe(student, questions, products, 8, 16, Progress(quiet=True))[TABLE]
    weight = student.model.get_output_embeddings().weight.detach().numpy()
    format_ = replace(INT4, block=16)
    errors = {}
    for name, found in (
        ("nearest", quantize_blocks(weight, format_)),
        ("calibrated", quantize_calibrated(weight, format_, seen.moments)),
    ):
        change = found.dequantized() - weight
        errors[name] = float(((change @ seen.moments) * change).sum())
    assert errors["calibrated"] < 0.7 * errors["nearest"]
