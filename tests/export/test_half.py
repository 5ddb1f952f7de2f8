"""float16 bundles: made for ONNX Runtime's CUDA provider, checked on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmedge.bundle import read_manifest
from mmedge.engines.onnx.graphs import CUDA, FusedReading, Graph, Place, choose_device
from mmedge.errors import MmedgeError
from mmedge.export.export import export
from mmedge.export.graphs import write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.manifest import Manifest
from mmedge.progress import Progress
from mmedge.runtime import Student
from tests.export.published import CONFIGS
from tests.export.test_fused import T5, expected_logits, opened, prompts, random_model

NAMES = [*T5, "SmolLM2: grouped, tied", "Llama 3: scaled rotary embedding", "biases everywhere", "Qwen 3: untied"]
NAMES += ["Mistral: a window shorter than the text", *{config["model_type"]: name for name, config in CONFIGS.items()}.values()]


def half(name: str, folder: Path, device: Place = "cpu") -> tuple[Any, Any]:
    """Return a model whose weights float16 holds exactly, and the engine of its float16 graphs on a device."""
    model = random_model(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    model.save_pretrained(folder)
    write_fused(folder, folder, BundleQuantizer(PRECISIONS["fp16"]))
    return model, opened(folder, name, device)


@pytest.mark.parametrize("name", NAMES)
def test_float16_graphs_are_near_and_batches_are_no_matter(name: str, tmp_path: Path) -> None:
    model, engine = half(name, tmp_path)
    target = np.random.default_rng(1).integers(3, 100, 12).tolist()
    for prompt in prompts():
        expected = expected_logits(model, prompt, target)
        found = engine.forced_logits(prompt, target)
        assert found.dtype == np.float32
        assert np.sqrt(((found - expected) ** 2).mean() / expected.var()) < 5e-3
    for row, prompt in zip(engine.next_logits(prompts(), [7, 8]), prompts(), strict=True):
        expected = expected_logits(model, prompt, [7, 8, 9])[-1]
        assert np.abs(row - expected).max() < 0.02 * expected.std()
    for prompt, written in zip(prompts(), engine.generate(prompts(), 40).tokens, strict=True):
        logits = expected_logits(model, prompt, written)
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 0.04 * logits.std()  # float16 has three digits
        assert len(written) == 40 and (logits.argmax(-1) == written)[clear].all() and clear.mean() > 0.5


@pytest.mark.parametrize("name", ["t5", "SmolLM2: grouped, tied"])
def test_weights_and_cache_are_float16_and_logits_float32(name: str, tmp_path: Path) -> None:
    _, engine = half(name, tmp_path)
    kinds = {"tensor(float16)", "tensor(int32)", "tensor(int64)"}
    assert {item.type for item in engine.decoder.inputs.values()} == kinds
    assert engine.decoder.floats == np.float16
    outputs = {item.name: item.type for item in engine.decoder.session.get_outputs()}
    assert outputs.pop("logits") == "tensor(float)" and set(outputs.values()) == {"tensor(float16)"}
    for path in tmp_path.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        assert not [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]


def test_a_t5_asks_of_cuda_only_what_it_has(tmp_path: Path) -> None:
    """CUDA's GroupQueryAttention takes no bias, which T5 cannot do without."""
    half("t5", tmp_path)
    nodes = onnx.load(tmp_path / "decoder_model.onnx", load_external_data=False).graph.node
    assert "GroupQueryAttention" not in {node.op_type for node in nodes}


def check_that_the_cache_is_taken_back_continued_and_doubled(model: Any, engine: Any, tolerance: float) -> None:
    prompt, target = prompts()[1], np.random.default_rng(2).integers(3, 100, 10).tolist()
    ids = np.array([engine.sequence(prompt)])
    reading = FusedReading(engine.decoder, 1, ids.shape[1] + 16, engine.held([prompt]))
    reading.read(ids, np.array([ids.shape[1]]), np.array([0]))
    expected = expected_logits(model, prompt, [*target, 0])[1:]
    near = tolerance * expected.std()
    reading.read(np.array([[9, 9, 9, 9]]), np.array([4]), np.array([0]))
    reading.rewind(ids.shape[1])
    assert np.abs(reading.read(np.array([target[:6]]), np.array([6]), np.arange(6)) - expected[:6]).max() < near
    both = reading.rows(np.array([0, 0]), reading.capacity)
    assert np.abs(both.step(np.array(target[6:7] * 2)) - expected[6]).max() < near


@pytest.mark.parametrize("name", ["t5 v1.1", "SmolLM2: grouped, tied"])
def test_the_cache_is_taken_back_continued_and_doubled(name: str, tmp_path: Path) -> None:
    check_that_the_cache_is_taken_back_continued_and_doubled(*half(name, tmp_path), 0.02)


@pytest.mark.parametrize("name", ["t5 v1.1", "SmolLM2: grouped, tied"])
def test_where_memory_is_not_shared_everything_is_handed_over_anew(name: str, tmp_path: Path) -> None:
    """As on a CUDA device, where what is written into an array after it was bound does not arrive."""
    _, engine = half(name, tmp_path)
    four = [*prompts(), prompts()[1]]  # one of them twice, so that rows are doubled, and dropped when others have ended
    expected = engine.generate(four, 20).tokens, engine.next_logits(four, [7])
    ends = opened(tmp_path, name)
    ends.decoder.shares_memory = False
    found = ends.generate(four, 20).tokens, ends.next_logits(four, [7])
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])


def test_what_float16_does_not_hold_is_refused_by_name(tmp_path: Path) -> None:
    model = random_model("SmolLM2: grouped, tied")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(MmedgeError, match=r"layers\.1\.feed_forward\.up\.weight holds 1e\+05, more than float16's largest value"):
        write_fused(tmp_path, tmp_path, BundleQuantizer(PRECISIONS["fp16"]))


@pytest.mark.parametrize("which", ["tiny_run", "llama_run"])
def test_a_float16_bundle_is_written_verified_and_answers(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(which)
    manifest = export(run, ["fp16"], Progress(quiet=True), tmp_path, max_accuracy_drop=100)["fp16"]
    assert isinstance(manifest, Manifest) and (manifest.precision, manifest.device) == ("fp16", "cuda")
    assert manifest.verification.top1_agreement >= 0.99
    assert read_manifest(run / "bundle-int8").device == "cpu"
    whole, small = ((folder / "weights.data").stat().st_size for folder in (run / "bundle-fp32", tmp_path / "bundle-fp16"))
    assert 0.45 < small / whole < 0.6
    student = Student.load(tmp_path / "bundle-fp16", device="cpu")
    assert student.bundle.manifest.device == "cuda" and student.answer("What is 3 and 4?", explain=True, evaluate=True).verdict


def test_states_that_float16_does_not_hold_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    """The CPU would compute them in float32 and see nothing."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    path = run / "student" / "model.safetensors"
    weights = load_file(path)
    weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"] = torch.full_like(
        weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"], 3e4
    )
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MmedgeError, match=r"encoder.* on validation questions, more than half of float16's largest value"):
        export(run, ["fp16"], Progress(quiet=True))
    assert not (run / "bundle-fp16").exists()


def test_optimums_graphs_have_no_float16(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(MmedgeError, match="only mmedge's own graphs can be written in fp16"):
        export(tiny_run, ["fp16"], Progress(quiet=True), tmp_path, graphs="optimum")


def test_cuda_is_one_line_where_there_is_none(tiny_run: Path) -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    assert choose_device("auto", "cuda") == choose_device("auto", "cpu") == choose_device("cpu", "cuda") == "cpu"
    with pytest.raises(MmedgeError, match="no CUDA provider"):
        choose_device("cuda", "cuda")
    with pytest.raises(MmedgeError, match="quantized for CPUs"):
        Student.load(tiny_run / "bundle-int8", device="cuda")
    with pytest.raises(MmedgeError, match="cannot start CUDA here"):
        Graph(tiny_run / "bundle-fp32" / "encoder_model.onnx", 1, "cuda")
