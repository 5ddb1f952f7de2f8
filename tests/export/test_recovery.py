"""Recovery: a quantized student comes nearer to its float self, in the same layout, the same after a kill, or says why not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmedge.bundle import open_bundle
from mmedge.errors import MmedgeError
from mmedge.export.bundles import write_bundle
from mmedge.export.calibration import modules_of, own_texts
from mmedge.export.graphs import fused_linears
from mmedge.export.quantization.blocks import QuantizedMatrix, quantize_blocks
from mmedge.export.quantization.formats import INT4
from mmedge.export.quantization.precisions import PRECISIONS, Precision
from mmedge.export.recovery import Recovery, RecoverySettings
from mmedge.export.source import RecoverChoice, Source
from mmedge.export.weights import WeightFiles
from mmedge.manifest import Manifest, Verification
from mmedge.progress import Progress
from mmedge.storage import read_json, write_json
from mmedge.students.saved import open_student
from mmedge.tasks.evaluation_set import CALIBRATION, RECOVERY, read_evaluation_set
from tests.conftest import is_one_line_error, mmedge

QUIET = Progress(quiet=True)
TEXTS = 24


def _copied(run: Path, to: Path) -> Path:
    to.mkdir()
    shutil.copytree(run / "student", to / "student")
    texts = 0
    with open(to / "evaluation.jsonl", "w", encoding="utf-8") as file:
        for line in (run / "evaluation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
            taught = f'"{RECOVERY}"' in line or f'"{CALIBRATION}"' in line
            texts += taught
            if not taught or texts <= TEXTS:
                file.write(line)
    return to


def _exported(run: Path, recover: RecoverChoice, out: Path | None = None, *, trim: bool = False) -> Manifest:
    source = Source(run / "student", out or run, QUIET, recover=recover, trim_vocabulary=trim)
    return write_bundle(source, PRECISIONS["int4"], lambda *_: [])


def test_what_a_student_never_learned_to_write_is_not_learned_from(tiny_run: Path, tmp_path: Path) -> None:
    """One that answers alone is observed and recovered on its answers; what it would write as a rationale is noise."""
    whole, bare = (_copied(tiny_run, tmp_path / name) for name in ("whole", "bare"))
    details = read_json(bare / "student" / "mmedge.json")
    write_json(bare / "student" / "mmedge.json", {**details, "learned": []})
    texts = {}
    for run in (whole, bare):
        source = Source(run / "student", run, QUIET)
        texts[run.name] = {target.kind for lesson in source.recovery_lessons for target in lesson.targets}
        assert source.observed()
    assert texts == {"whole": {"predict", "explain"}, "bare": {"predict"}}
    assert Source(whole / "student", whole, QUIET).key != Source(bare / "student", bare, QUIET).key


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.suffix in (".onnx", ".data")}


@pytest.mark.parametrize("which", ["tiny_run", "llama_run"])
def test_a_recovered_bundle_is_nearer_to_the_student_and_has_the_same_layout(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(which)
    plain, taught = (_copied(run, tmp_path / name) for name in ("plain", "taught"))
    before, after = _exported(plain, "never"), _exported(taught, "always")
    assert before.recovery is None and after.recovery is not None
    assert after.recovery.steps == after.recovery.planned and after.recovery.texts >= 16
    assert after.recovery.kl_after < 0.6 * after.recovery.kl_before
    assert after.verification.mean_kl < 0.8 * before.verification.mean_kl
    assert after.quantization == before.quantization
    assert _sizes(taught / "bundle-int4") == _sizes(plain / "bundle-int4")
    assert not list(taught.glob(".recovery*"))
    assert _exported(taught, "always") == after  # kept
    assert _exported(taught, "never").recovery is None  # what was learned is not wanted any more


@pytest.mark.slow
def test_a_trimmed_vocabulary_keeps_what_was_learned(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path / "run")
    found, whole = _exported(run, "always", trim=True), _exported(run, "always", tmp_path / "whole")
    assert found.recovery == whole.recovery
    assert found.verification.mean_kl == pytest.approx(whole.verification.mean_kl, rel=0.05)


class Killed(Exception):
    """What a test raises in place of a kill."""


class _Watched(Progress):
    """Ends a recovery after so many of its steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self.left = steps

    def task(self, *arguments: Any, **more: Any) -> Any:
        context = super().task(*arguments, **more)
        watched = self

        class Counting:
            def __enter__(self) -> Any:
                self.step = context.__enter__()
                return self

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

            def advance(self, count: int, **shown: str) -> None:
                watched.left -= 1
                if watched.left < 0:
                    raise Killed
                self.step.advance(count, **shown)

        return Counting()


def _teaching(run: Path, settings: RecoverySettings, lessons: int = 24) -> tuple[Recovery, dict[str, QuantizedMatrix]]:
    student, linears = open_student(run / "student"), fused_linears(run / "student")
    questions = read_evaluation_set(run / "evaluation.jsonl").questions[RECOVERY][:lessons]
    texts = own_texts(student, questions, 8, 16, len(questions))
    second = open_student(run / "student")
    modules = modules_of(second.model, linears)
    weights: Any = WeightFiles(run / "student")
    matrices = {
        name: quantize_blocks(np.concatenate([weights[part] for part in linears[name]]), INT4)
        for name in modules
        if name != "embedding"
    }
    return Recovery(student, second, modules, texts, settings), matrices


def test_a_killed_recovery_continues_to_the_same_scales(tiny_run: Path, tmp_path: Path) -> None:
    settings = RecoverySettings(epochs=2, checkpoint_seconds=0.0)
    teaching, matrices = _teaching(tiny_run, settings)
    whole = teaching.run(matrices, tmp_path / "whole", "key", QUIET)
    teaching, _ = _teaching(tiny_run, settings)
    with pytest.raises(Killed):
        teaching.run(matrices, tmp_path / "cut", "key", _Watched(4))
    teaching, _ = _teaching(tiny_run, settings)
    again = teaching.run(matrices, tmp_path / "cut", "key", QUIET)
    assert (again.steps, again.kl_before, again.kl_after) == (whole.steps, whole.kl_before, whole.kl_after)
    for name, matrix in whole.matrices.items():
        assert np.array_equal(again.matrices[name].scales, matrix.scales)
        assert np.array_equal(matrix.codes, matrices[name].codes) and matrix.scales.shape == matrices[name].scales.shape


def test_a_limit_of_time_ends_it_with_the_best_so_far(tiny_run: Path, tmp_path: Path) -> None:
    teaching, matrices = _teaching(tiny_run, RecoverySettings(epochs=1000, max_minutes=0.05))
    found = teaching.run(matrices, tmp_path / "place", "key", QUIET)
    assert 0 < found.steps < found.planned and found.kl_after <= found.kl_before


def test_where_the_budget_does_not_hold_scales_are_learned_before_layers_are_kept_finer(tiny_run: Path, tmp_path: Path) -> None:
    run, calls = _copied(tiny_run, tmp_path / "run"), []

    def judge(found: Verification, precision: Precision, drop: float) -> list[str]:
        calls.append(found)
        return ["too bad"] if len(calls) < 3 else []

    source = Source(run / "student", run, QUIET)
    manifest = write_bundle(source, PRECISIONS["int4"], judge)
    assert [(step.recovered, step.kept_finer) for step in manifest.budget] == [(False, 0), (False, 0), (True, 0)]
    assert manifest.recovery is not None and calls[2].mean_kl < calls[1].mean_kl
    assert open_bundle(run / "bundle-int4").manifest == manifest


def test_too_few_texts_and_broken_weights_are_one_line(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path / "few")
    path = run / "evaluation.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if '"recovery"' not in line and '"calibration"' not in line]
    path.write_text("".join(kept))
    found = mmedge("export", run, "--int4", "--recover")
    assert is_one_line_error(found) and "recovery needs 16 texts to learn from, and there are 0" in found.err
    teaching, matrices = _teaching(tiny_run, RecoverySettings(epochs=1))
    name = next(iter(matrices))
    scales = np.full_like(matrices[name].scales, np.nan)
    with pytest.raises(MmedgeError, match="NaN or infinite"):
        teaching.run(matrices | {name: replace(matrices[name], scales=scales)}, tmp_path / "place", "key", QUIET)
    assert torch.is_grad_enabled()
