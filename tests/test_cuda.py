"""What only a CUDA GPU can show; skipped where there is none, or where ONNX Runtime has no CUDA provider."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from mmedge.engines.generation import Decoding
from mmedge.engines.onnx.graphs import CUDA
from mmedge.engines.torch_decoding import TorchEngine
from mmedge.engines.variants import VariantSpec, open_variant
from mmedge.export.export import export
from mmedge.manifest import QuantizedStudent
from mmedge.progress import Progress
from mmedge.runtime import Student
from mmedge.students.passes import LossPass
from mmedge.students.saved import open_student
from mmedge.tasks.prompts import Context
from tests.conftest import mmedge, tiny_recipe, write_recipe
from tests.export.test_fused import T5, expected_logits, prompts
from tests.export.test_half import check_that_the_cache_is_taken_back_continued_and_doubled, half
from tests.students.test_packed import MODELS, figures, lessons, student_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_provider = pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA provider")
NAMES = [*T5, "SmolLM2: grouped, tied", "Llama 2: as many heads, untied", "Llama 3: scaled rotary embedding", "biases everywhere"]
NAMES += ["Qwen 2: biases on queries, keys, values", "Qwen 3: norms on heads", "Mistral: a window shorter than the text"]
QUIET = Progress(quiet=True)


def learned(kind: str, packs: bool, precision: torch.dtype | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the losses of a pass on the GPU, and every parameter's gradient."""
    student = student_of(kind)
    student.model.to("cuda")
    lesson_pass = LossPass(student.model, student.encoder, packs=packs)
    with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
        found = figures(lesson_pass.token_losses(lessons()))
    found[0].backward()
    return found.detach(), {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", list(MODELS))
def test_passes_without_padding_learn_what_padded_ones_do(kind: str) -> None:
    losses, gradients = learned(kind, True, None)
    expected_losses, expected = learned(kind, False, None)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-2, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(MODELS))
def test_passes_in_half_precision(kind: str, precision: torch.dtype) -> None:
    losses, gradients = learned(kind, True, precision)
    expected, exact = learned(kind, True, None)
    torch.testing.assert_close(losses, expected, rtol=0.03, atol=0.01)
    for name, gradient in exact.items():
        assert (gradients[name] - gradient).norm() < 0.2 * gradient.norm(), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_student_learns_on_the_gpu_as_on_the_cpu(precision: str, tmp_path: Path) -> None:
    found = {}
    for device, kind in (("cpu", "float32"), ("cuda", precision)):
        values = tiny_recipe()
        values["training"] = {**values["training"], "device": device, "precision": kind}  # type: ignore[dict-item]
        run = tmp_path / device
        done = mmedge("distill", write_recipe(tmp_path / f"{device}.yaml", values), "--out", run, "-q")
        assert done.code == 0, done.err
        log = [json.loads(line) for path in sorted(run.rglob("metrics.jsonl")) for line in path.read_text().splitlines()]
        found[device] = [value for line in log for key, value in sorted(line.items()) if key.endswith("loss")]
    assert found["cpu"] and len(found["cpu"]) == len(found["cuda"])
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=0.02 if precision == "float32" else 0.1)


@pytest.mark.parametrize("which", ["tiny_run", "llama_run"])
@pytest.mark.parametrize("precision", ["bnb-int8", "bnb-nf4"])
def test_rounded_students_answer_on_the_gpu(which: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(which)
    manifest = export(run, [precision], QUIET, tmp_path, max_accuracy_drop=100)[precision]
    assert isinstance(manifest, QuantizedStudent) and manifest.computed_on == "cuda"
    assert manifest.verification.top1_agreement > 0.85
    folder = tmp_path / f"student-{precision}"
    there, here = open_student(folder, device="cuda"), open_student(folder)
    prompt, target = there.encoder.prompt("predict", Context("What is 3 and 4?")), here.encoder.target("3 + 4", 8)
    found, expected = (TorchEngine(student).forced_logits(prompt, target) for student in (there, here))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    opened = open_variant(VariantSpec("torch", folder))
    assert opened.device == "cuda" and opened.speaker.engine.generate([prompt], 8).tokens


@needs_provider
@pytest.mark.parametrize("name", NAMES)
def test_graphs_on_the_gpu_are_near_and_batches_are_no_matter(name: str, tmp_path: Path) -> None:
    model, engine = half(name, tmp_path, "cuda")
    target = np.random.default_rng(1).integers(3, 100, 12).tolist()
    for prompt in prompts():
        expected = expected_logits(model, prompt, target)
        found = engine.forced_logits(prompt, target)
        assert np.sqrt(((found - expected) ** 2).mean() / expected.var()) < 1e-2
    for row, prompt in zip(engine.next_logits(prompts(), [7, 8]), prompts(), strict=True):
        expected = expected_logits(model, prompt, [7, 8, 9])[-1]
        assert np.abs(row - expected).max() < 0.03 * expected.std()
    for prompt, written in zip(prompts(), engine.generate(prompts(), 40).tokens, strict=True):
        logits = expected_logits(model, prompt, written)
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 0.06 * logits.std()
        assert len(written) == 40 and (logits.argmax(-1) == written)[clear].all() and clear.mean() > 0.5
    sampled = [engine.generate(prompts(), 10, Decoding(temperature=1.0, seeds=(4,) * len(prompts()))).tokens for _ in range(2)]
    assert sampled[0] == sampled[1]


@needs_provider
@pytest.mark.parametrize("name", ["t5 v1.1", "SmolLM2: grouped, tied"])
def test_the_cache_on_the_gpu_is_taken_back_continued_and_doubled(name: str, tmp_path: Path) -> None:
    check_that_the_cache_is_taken_back_continued_and_doubled(*half(name, tmp_path, "cuda"), 0.03)


@needs_provider
@pytest.mark.parametrize("which", ["tiny_run", "llama_run"])
def test_a_float16_bundle_answers_on_the_gpu(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(which)
    export(run, ["fp16"], QUIET, tmp_path, max_accuracy_drop=100)
    questions = ["What is 3 and 4?", "There are 12 pens and 5 are lost. How many are left?", "How many?"]
    there, here = Student.load(tmp_path / "bundle-fp16"), Student.load(tmp_path / "bundle-fp16", device="cpu")
    for found, expected in zip(
        there.answer_all(questions, confidence=True), here.answer_all(questions, confidence=True), strict=True
    ):
        assert found.confidence == pytest.approx(expected.confidence, abs=0.05)
    answer = there.answer(questions[0], explain=True, evaluate=True)
    assert answer.verdict and answer.rationale is not None
    opened = open_variant(VariantSpec("bundle-cuda", tmp_path / "bundle-fp16"))
    assert opened.device == "cuda"
