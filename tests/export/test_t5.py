"""T5's fused graphs are the model that transformers computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers

from mmedge.errors import MmedgeError
from mmedge.export.graphs import choose_graphs
from mmedge.export.quantize import quantize_model, quantize_outputs
from mmedge.export.t5 import DECODER, ENCODER, bucket, read_shape, write_t5
from mmedge.runtime import EdgeStudent
from mmedge.tasks.evaluation_set import read_evaluation_set
from tests.conftest import is_one_line_error, mmedge

SHAPES: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5 v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "flan-t5, odd widths": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 24, "num_heads": 3},
    "other buckets": {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
}


def _model(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2}
    config = transformers.T5Config(**{**settings, "num_heads": 4, "decoder_start_token_id": 0, **changes})
    model = transformers.T5ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at 1, which would hide a missing one
            parameter.data.uniform_(0.5, 1.5)
    return model


class Graphs:
    """Two sessions and what passes between them."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._encoder, self._decoder = (ort.InferenceSession(str(folder / name), options) for name in (ENCODER, DECODER))

    def read(self, ids: Any, mask: Any) -> None:
        names = [output.name.replace("present", "past_key_values") for output in self._encoder.get_outputs()]
        self._held = dict(zip(names, self._encoder.run(None, {"input_ids": ids, "attention_mask": mask}), strict=True))
        self._held["encoder_attention_mask"] = mask
        self._past = {
            item.name: np.zeros((len(ids), item.shape[1], 0, item.shape[3]), dtype=np.float32)
            for item in self._decoder.get_inputs()
            if ".decoder." in item.name
        }

    def write(self, tokens: Any) -> Any:
        outputs = [output.name for output in self._decoder.get_outputs()]
        found = dict(zip(outputs, self._decoder.run(None, {"input_ids": tokens, **self._held, **self._past}), strict=True))
        logits = found.pop("logits")
        self._past = {name.replace("present", "past_key_values"): value for name, value in found.items()}
        return logits


def _batch() -> tuple[Any, Any]:
    """Three rows of 150, 110 and 5 tokens, padded in front: beyond the largest relative distance, and far below it."""
    ids = np.random.default_rng(0).integers(2, 100, (3, 150))
    mask = np.ones_like(ids)
    mask[1, :40] = mask[2, :145] = 0
    return np.where(mask == 1, ids, 0), mask


@pytest.fixture(params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Graphs]]:
    model = _model(**SHAPES[request.param])
    model.save_pretrained(tmp_path)
    write_t5(tmp_path, tmp_path)
    with torch.no_grad():
        yield model, Graphs(tmp_path)


def test_logits_are_those_of_transformers_in_batches_and_over_calls(pair: tuple[Any, Graphs]) -> None:
    model, graphs = pair
    ids, mask = _batch()
    tokens = np.random.default_rng(1).integers(0, 100, (3, 7))
    expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(tokens))
    graphs.read(ids, mask)
    found = np.concatenate([graphs.write(tokens[:, first:last]) for first, last in ((0, 3), (3, 4), (4, 5), (5, 7))], axis=1)
    assert np.abs(found - expected.logits.numpy()).max() < 1e-4


def test_greedy_tokens_are_the_same_over_64_steps(pair: tuple[Any, Graphs]) -> None:
    model, graphs = pair
    ids, mask = _batch()
    expected = model.generate(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=64, min_new_tokens=64, do_sample=False
    )[:, 1:].numpy()
    graphs.read(ids, mask)
    token, written = np.zeros((3, 1), dtype=np.int64), []
    for _ in range(64):
        logits = graphs.write(token)[:, -1]
        logits[:, model.config.eos_token_id] = -np.inf
        token = logits.argmax(-1)[:, None]
        written.append(token)
    assert (np.concatenate(written, axis=1) == expected).all()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (12, 20), (64, 500)])
def test_buckets_are_those_of_transformers(bidirectional: bool, buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, farthest).tolist()
    assert [bucket(int(d), buckets, farthest, bidirectional=bidirectional) for d in distances] == expected


def test_an_int8_encoder_computes_nearly_the_same(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    write_t5(tmp_path, tmp_path)
    ids, mask = _batch()
    exact = ort.InferenceSession(str(tmp_path / ENCODER)).run(None, {"input_ids": ids, "attention_mask": mask})
    report = quantize_model(tmp_path / ENCODER, tmp_path / "int8.onnx", many_rows=True)
    found = ort.InferenceSession(str(tmp_path / "int8.onnx")).run(None, {"input_ids": ids, "attention_mask": mask})
    assert report.matrices == 3 * 4 + 1  # qkv, o, wi and wo of each layer, and all cross keys and values
    for left, right in zip(exact, found, strict=True):
        seen = mask[:, None, :, None] == 1
        assert np.abs((left - right) * seen).max() < 0.1 * np.abs(left * seen).max()


def test_seven_bits_never_overflow_sixteen_in_pairs() -> None:
    codes, scales = quantize_outputs(np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    assert 2 * 255 * int(np.abs(codes.astype(int)).max()) <= 32767
    assert (scales > 0).all()


@pytest.mark.parametrize(("change", "named"), [("gated-silu", "gated-silu"), ("tanh", "tanh")])
def test_an_activation_that_the_graphs_do_not_have_is_refused_by_name(change: str, named: str, tmp_path: Path) -> None:
    config = json.loads(_model().config.to_json_string()) | {"feed_forward_proj": change}
    with pytest.raises(MmedgeError, match=named):
        read_shape(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose_graphs(tmp_path, "auto") == "optimum"
    with pytest.raises(MmedgeError, match=named):
        choose_graphs(tmp_path, "fused")


def test_weights_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    model = _model()
    model.encoder.block[1].layer[0].SelfAttention.q.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(MmedgeError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight holds NaN"):
        write_t5(tmp_path, tmp_path)


def test_fused_graphs_and_those_of_optimum_answer_the_same(tiny_run: Path, tmp_path: Path) -> None:
    done = mmedge("export", tiny_run, "--fp32", "--int8", "--graphs", "optimum", "--out", tmp_path, "-q")
    assert done.code == 0, done.err
    questions = [
        example for examples in read_evaluation_set(tiny_run / "evaluation.jsonl").questions.values() for example in examples
    ]
    fused, second = EdgeStudent.open(tiny_run / "bundle-fp32"), EdgeStudent.open(tmp_path / "bundle-fp32")
    assert (fused.bundle.graphs, second.bundle.graphs) == ("fused", "optimum")
    assert fused.answer(questions, explain=True) == second.answer(questions, explain=True)
    assert EdgeStudent.open(tmp_path / "bundle-int8").answer(questions[:2])


def test_fused_graphs_for_an_architecture_without_any_are_refused(llama_run: Path) -> None:
    found = mmedge("export", llama_run, "--fp32", "--graphs", "fused")
    assert is_one_line_error(found) and "no fused graphs for 'llama'" in found.err
