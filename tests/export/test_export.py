"""Export: the same model in ONNX and in int8, verified, and refused where it is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from mmedge.bundle import open_bundle
from mmedge.engines.torch_decoding import torch_speaker
from mmedge.errors import MmedgeError
from mmedge.export.bundles import write_bundle
from mmedge.export.quantization.graphs import quantize_model
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.source import Source
from mmedge.export.verify import problems
from mmedge.manifest import Verification
from mmedge.progress import Progress
from tests.commands import kill_when
from tests.conftest import is_one_line_error, mmedge, own_recipe, write_recipe


def test_a_quantized_graph_computes_nearly_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(50, 64)).astype(np.float32)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "head"], ["z"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "a.onnx")
    report = quantize_model(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (report.matrices, report.tables) == (2, 1)
    assert report.bytes_after < 0.5 * report.bytes_before
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert kinds == ["GatherBlockQuantized", "MatMulNBits", "Split"]  # both products read x: one product of both
    ids = np.array([0, 7, 49])
    expected, found = (ort.InferenceSession(tmp_path / name).run(None, {"ids": ids}) for name in ("a.onnx", "b.onnx"))
    for left, right in zip(expected, found, strict=True):
        assert np.abs(left - right).max() < 0.03 * np.abs(left).max()


@pytest.mark.parametrize("family", ["tiny_run", "llama_run"])
def test_bundles_are_the_student(family: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(family)
    exact, small = (open_bundle(run / f"bundle-{precision}") for precision in ("fp32", "int8"))
    verified = exact.manifest.verification
    assert verified.same_answers == verified.questions > 0
    assert verified.largest_difference < 1e-4
    assert verified.top1_agreement == 1.0
    assert small.manifest.verification.mean_kl < 0.05
    assert small.size < 0.6 * exact.size


def test_the_students_logits_are_not_held_in_memory(tiny_run: Path, tmp_path: Path) -> None:
    source = Source(tiny_run / "student", tmp_path, Progress(quiet=True))
    reference = source.reference
    speaker = torch_speaker(source.student, source.questions.form, source.limits.max_answer_tokens)
    assert reference.forced and not list(tmp_path.iterdir())  # the file has no name that a kill could leave behind
    for context, (target, logits) in zip(reference.contexts, reference.forced, strict=True):
        assert isinstance(logits, np.memmap) and logits.shape[0] == len(target)
        np.testing.assert_array_equal(logits, speaker.engine.forced_logits(speaker.prompt("predict", context), target))
    for example, found in zip(reference.examples, reference.label_probabilities, strict=True):
        target = speaker.encoder.target(example.label or "", speaker.max_answer_tokens)
        logits = speaker.engine.forced_logits(speaker.prompt("predict", speaker.reasoning_context(example)), target).astype(
            np.float64
        )
        each = logits[np.arange(len(target)), target] - np.log(np.exp(logits).sum(-1))
        assert found == pytest.approx(float(np.exp(each.sum())), rel=1e-4)


def test_a_bundle_has_the_files_that_other_runtimes_expect(tiny_run: Path) -> None:
    names = {path.name for path in (tiny_run / "bundle-int8").iterdir()}
    assert {"encoder_model.onnx", "decoder_model.onnx", "weights.data", "config.json", "tokenizer.json", "manifest.json"} <= names
    assert not any(name.endswith((".py", ".bin", ".pt", ".pkl")) for name in names)
    assert str(Path.home()) not in (tiny_run / "bundle-int8" / "manifest.json").read_text()


def _verification(**changes: Any) -> Verification:
    values: dict[str, Any] = {"questions": 20, "same_answers": 20, "largest_difference": 1e-6, "top1_agreement": 1.0}
    values |= {"mean_kl": 1e-6, "accuracy_student": 0.8, "accuracy_bundle": 0.8, "accuracy_change": (0.0, 0.0, 0.0)}
    values |= {"label_probability": (0.7, 0.7), "label_probability_change": (0.0, -1.0, 1.0)}
    return Verification(**{"became_wrong": 0, "became_right": 0, **values, **changes})


@pytest.mark.parametrize(
    ("precision", "changes", "complaint"),
    [
        ("fp32", {"same_answers": 19}, "1 of 20 greedy answers differ"),
        ("fp32", {"largest_difference": 0.1}, "logits differ by 1.0e-01"),
        ("int8", {"top1_agreement": 0.5}, "a different token 50.0 %"),
        ("int4", {"top1_agreement": 0.89}, "a different token 11.0 %"),
        ("int8", {"accuracy_bundle": 0.7, "became_wrong": 2}, "accuracy drops by 10.0 points"),
        ("int8", {"accuracy_bundle": 0.7, "became_wrong": 3, "became_right": 1}, "accuracy drops by 10.0 points"),
        ("int8", {"mean_kl": float("nan")}, "not finite"),
        (
            "int8",
            {"label_probability_change": (-9.0, -12.0, -5.5)},
            "probability of the right answer changes by -9.0 [-12.0, -5.5]",
        ),
    ],
)
def test_a_bundle_that_differs_has_problems(precision: str, changes: dict[str, float], complaint: str) -> None:
    assert problems(_verification(), PRECISIONS[precision], 5.0) == []
    assert complaint in problems(_verification(**changes), PRECISIONS[precision], 5.0)[0]


def test_one_answer_fewer_is_no_loss_where_the_right_answers_probability_holds() -> None:
    lost: dict[str, Any] = {"questions": 80, "accuracy_bundle": 0.7875, "became_wrong": 2, "became_right": 1}
    held, fell = ({"label_probability_change": (value, value - 0.6, value + 0.6)} for value in (-0.6, -1.3))
    assert problems(_verification(**lost, **held), PRECISIONS["int8"], 1.0) == []
    for found in (_verification(**lost, **fell), _verification(**lost, label_probability_change=None)):
        assert problems(found, PRECISIONS["int8"], 1.0) == ["accuracy drops by 1.3 points (allowed: 1)"]


def test_more_than_a_hundred_points_allow_any_difference() -> None:
    found = _verification(top1_agreement=0.75)
    assert "25.0 % of the time (allowed: 10 %)" in problems(found, PRECISIONS["int4"], 100.0)[0]
    assert problems(found, PRECISIONS["int4"], 101.0) == []


def test_a_wrong_graph_is_refused_and_nothing_is_written(tiny_run: Path, tmp_path: Path) -> None:
    """The embedding's sign is turned behind the exporter's back: verification must see it."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("bundle-*"))
    source = Source(run / "student", run, Progress(quiet=True))
    assert source.reference.answers  # by the weights as they were
    weights = load_file(run / "student" / "model.safetensors")
    weights["shared.weight"] *= -1
    save_file(weights, run / "student" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MmedgeError, match="the fp32 graphs are refused"):
        write_bundle(source, PRECISIONS["fp32"])
    assert not [path.name for path in run.iterdir() if path.name.startswith("bundle-") or path.name.endswith(".tmp")]


def test_a_finished_bundle_is_kept_and_a_damaged_one_made_anew(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    damaged = run / "bundle-int8" / "weights.data"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = mmedge("export", run)
    assert done.code == 0, done.err
    assert "bundle-fp32: already exported, kept" in done.err
    assert damaged.read_bytes() == content


def _killed(run: Path, seen: str, *options: str) -> None:
    """Start an export and kill it as soon as a file is there."""
    kill_when(["export", run, "-q", *options], lambda: list(run.glob(seen)))


@pytest.mark.parametrize(
    ("seen", "options"),
    [
        pytest.param(".*.tmp/weights.data", (), id="fused"),
        pytest.param(".graphs/key.json", ("--graphs", "optimum"), id="optimum", marks=pytest.mark.optimum),
    ],
)
def test_a_killed_export_continues(tiny_run: Path, tmp_path: Path, seen: str, options: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("bundle-*"))
    _killed(run, seen, *options)
    again = mmedge("export", run, *options)
    assert again.code == 0, again.err
    if options:
        assert "float32 graphs: already made, kept" in again.err
    for precision in ("fp32", "int8"):
        fresh, before = (open_bundle(place / f"bundle-{precision}").manifest for place in (run, tiny_run))
        if not options:
            assert fresh.verification == before.verification
            assert fresh.files == before.files
        assert precision != "fp32" or fresh.verification.same_answers == fresh.verification.questions
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp") or path.name == ".graphs"]


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, tiny_llama: Path) -> None:
    for place, complaint in ((tmp_path / "none", "no such folder"), (tiny_llama, "has no mmedge.json")):
        found = mmedge("export", place, "--int8")
        assert is_one_line_error(found) and complaint in found.err


def test_a_pretrained_t5_v1_1_goes_through_the_chain(own_task: dict[str, Path], tmp_path: Path) -> None:
    """Untied head, gated layers: what google/t5-v1_1-base is, at the size of a test."""
    import torch
    import transformers

    from mmedge.students.scratch import train_tokenizer

    folder = tmp_path / "t5"
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["predict: explain: correct wrong uncertain solution: answer: 1 2 3"], 300)
    config = transformers.T5Config(
        vocab_size=-(-len(tokenizer) // 32) * 32, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    recipe = write_recipe(tmp_path / "r.yaml", own_recipe(own_task, folder))
    for command in (["distill", recipe, "--out", tmp_path / "run", "-q"], ["export", tmp_path / "run", "--fp32", "-q"]):
        done = mmedge(*command)
        assert done.code == 0, done.err
    manifest = open_bundle(tmp_path / "run" / "bundle-fp32").manifest
    assert manifest.verification.largest_difference < 1e-4
    assert manifest.student.origin["source"] == "t5"
