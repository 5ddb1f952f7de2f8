"""The accuracy budget: what rounding costs is foreseen, and what costs most is kept in finer numbers until it holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmedge.bundle import open_bundle
from mmedge.engines.torch_decoding import TorchEngine
from mmedge.errors import MmedgeError
from mmedge.export import verify
from mmedge.export.budget import within_budget
from mmedge.export.bundles import write_bundle
from mmedge.export.calibration import observe
from mmedge.export.export import export
from mmedge.export.graphs import fused_linears
from mmedge.export.quantization.formats import INT4
from mmedge.export.quantization.precisions import PRECISIONS, Precision
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.export.source import Source
from mmedge.manifest import Verification
from mmedge.progress import Progress
from mmedge.students.saved import open_student
from mmedge.tasks.evaluation_set import CALIBRATION, VALIDATION, read_evaluation_set
from mmedge.tasks.prompts import render_question

QUIET = Progress(quiet=True)


def _copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("bundle-*")))


@pytest.mark.parametrize("family", ["tiny_run", "llama_run"])
def test_the_foreseen_cost_of_a_product_is_near_the_measured_one(family: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(family)
    student = open_student(run / "student")
    questions = read_evaluation_set(run / "evaluation.jsonl").questions
    assert not {example.id for example in questions[CALIBRATION]} & {example.id for example in questions[VALIDATION]}
    products = fused_linears(run / "student")
    seen = observe(student, questions[CALIBRATION], products, 12, 24, QUIET, gradients=True)
    assert set(seen) == set(products)
    contexts = [student.encoder.prompts.reasoning_context(render_question(example)) for example in questions[CALIBRATION]]
    written = [[5, 9, 11, 7, 6, 13]] * len(contexts)

    def logits() -> Any:
        engine = TorchEngine(student)
        pairs = zip(contexts, written, strict=True)
        return [engine.forced_logits(student.encoder.prompt("predict", context), target) for context, target in pairs]

    before, weights = logits(), dict(student.model.named_parameters())
    quantizer, foreseen, measured = BundleQuantizer(PRECISIONS["int4"]), [], []
    for name, parts in products.items():
        kept = {part: weights[part].detach().clone() for part in parts}
        change = 0.0
        for part, weight in kept.items():
            rounded = torch.from_numpy(quantizer.quantize(name, weight.numpy(), INT4).dequantized())
            weights[part].data.copy_(rounded)
        whole = np.concatenate([weights[part].detach().numpy() - kept[part].numpy() for part in parts])
        foreseen.append(seen[name].loss_of(whole))
        change = float(np.mean([verify._kl(left, right).mean() for left, right in zip(before, logits(), strict=True)]))
        measured.append(change)
        for part, weight in kept.items():
            weights[part].data.copy_(weight)
    ranks, expected = (np.argsort(np.argsort(values)) for values in (foreseen, measured))
    assert np.corrcoef(ranks, expected)[0, 1] > 0.5
    assert all(not parameter.grad_fn and parameter.requires_grad for parameter in student.model.parameters())


def test_what_costs_most_is_kept_finer_until_it_holds(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path)
    calls = []

    def thrice(found: Verification, precision: Precision, drop: float) -> list[str]:
        calls.append(found)
        return ["too bad"] if len(calls) < 4 else []

    manifest = write_bundle(Source(run / "student", run, QUIET, recover="never"), PRECISIONS["int4"], thrice)
    assert [step.problems for step in manifest.budget] == [("too bad",), ("too bad",), ("too bad",), ()]
    # the encoder's static activations are doubted first, but it is the weights in 4 bits that cost
    assert [step.static_activations for step in manifest.budget] == [True, False, True, True]
    *kept, last = [step.kept_finer for step in manifest.budget]
    assert kept[:2] == [0, 0] and 0 < kept[2] < last
    costs = manifest.sensitivity
    worst = {cost.linear for cost in costs[:last]}
    assert manifest.quantization.exceptions == dict.fromkeys(worst, "int8")
    assert {name for name, format_ in manifest.quantization.layers.items() if format_ == "int8"} >= worst
    per_byte = [cost.loss / cost.bytes for cost in costs]
    assert per_byte == sorted(per_byte, reverse=True)
    assert open_bundle(run / "bundle-int4").manifest.verification == calls[-1]


def test_the_report_shows_what_rounding_costs(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path)
    export(run, ["fp32", "int8"], QUIET, max_accuracy_drop=100)
    page = (run / "export.html").read_text()
    assert "int8" in page and "int4" not in page and "<svg" not in page
    manifest = export(run, ["int4"], QUIET, max_accuracy_drop=100, sensitivity=True, recover="never")["int4"]
    page = (run / "export.html").read_text()
    assert "<svg" in page and "decoder attention.qkv" in page
    assert all(f"{manifest.verification.mean_kl:.1e}" in page and name in page for name in ("fp32", "int8", "int4"))
    assert {cost.linear.split(".")[0] for cost in manifest.sensitivity} <= {"decoder", "cross", "head", "embedding"}
    assert export(run, ["int4"], QUIET, max_accuracy_drop=100, sensitivity=True, recover="never")["int4"] == manifest


def test_where_nothing_helps_it_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path)
    with pytest.raises(MmedgeError, match="the int4 graphs are refused: far too bad"):
        write_bundle(Source(run / "student", run, QUIET, recover="never"), PRECISIONS["int4"], lambda *_: ["far too bad"])
    assert not [path.name for path in run.iterdir() if path.name.startswith("bundle-") or path.name.endswith(".tmp")]


def test_without_calibration_questions_the_error_says_what_to_do(tiny_run: Path, tmp_path: Path) -> None:
    run = _copied(tiny_run, tmp_path)
    path = run / "evaluation.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if f'"{CALIBRATION}"' not in line]
    path.write_text("".join(lines))
    with pytest.raises(MmedgeError, match="refused: bad") as caught:
        write_bundle(Source(run / "student", run, QUIET), PRECISIONS["int8"], lambda *_: ["bad"])
    assert "distil again" in str(caught.value.hint)


def _searched(kls: list[float], *, static: bool) -> tuple[list[tuple[int, bool]], list[str]]:
    """Return what was attempted (layers kept, static activations), and the lines that were told, where only the last KL holds."""
    attempts: list[tuple[int, bool]] = []
    lines: list[str] = []

    def attempt(finer: Any, activations: bool) -> Verification:
        attempts.append((len(finer), activations))
        return Verification(10, 9, 0.1, 0.9, kls[len(attempts) - 1])

    found, steps = within_budget(
        attempt,
        lambda checked: ["KL is too large"] if checked.mean_kl > kls[-1] else [],
        lambda share, wrong: ["layer"] * round(16 * share),
        lines.append,
        static=static,
    )
    assert found.mean_kl == kls[-1] and [(step.kept_finer, step.static_activations) for step in steps] == attempts
    return attempts, lines


def test_static_activations_are_given_up_first_and_come_back_only_where_they_were_not_to_blame() -> None:
    assert _searched([0.1, 0.01], static=True)[0] == [(0, True), (0, False)]
    assert _searched([0.1, 0.05, 0.02, 0.01], static=True)[0] == [(0, True), (0, False), (2, False), (4, False)]
    assert _searched([0.1, 0.095, 0.02, 0.01], static=True)[0] == [(0, True), (0, False), (2, True), (4, True)]
    attempts, lines = _searched([0.1, 0.05, 0.01], static=False)
    assert attempts == [(0, False), (2, False), (4, False)]
    assert lines == [f"KL is too large; keeping {count} layers in a finer format" for count in (2, 4)]
