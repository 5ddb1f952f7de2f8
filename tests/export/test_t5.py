"""What only T5's fused graphs have: buckets of distances, and an encoder that reads many rows at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from mmedge import Student
from mmedge.errors import MmedgeError
from mmedge.export.architectures.t5 import ENCODER, bucket, read_shape
from mmedge.export.graphs import choose_graphs, write_fused
from mmedge.export.quantization.blocks import quantize_outputs
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.tasks.evaluation_set import read_evaluation_set
from tests.conftest import mmedge
from tests.export.test_fused import random_model


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (12, 20), (64, 500)])
def test_buckets_are_those_of_transformers(bidirectional: bool, buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, farthest).tolist()
    assert [bucket(int(d), buckets, farthest, bidirectional=bidirectional) for d in distances] == expected


def test_an_int8_encoder_computes_nearly_the_same(tmp_path: Path) -> None:
    random_model("t5").save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(2, 100, (3, 150))
    mask = np.ones_like(ids)
    mask[1, :40] = mask[2, :145] = 0
    found = []
    for precision in ("fp32", "int8"):
        numbers = BundleQuantizer(PRECISIONS[precision])
        write_fused(tmp_path, tmp_path, numbers)
        found.append(ort.InferenceSession(str(tmp_path / ENCODER)).run(None, {"input_ids": ids, "attention_mask": mask}))
    assert sum(name.startswith("encoder.") for name in numbers.written) == 3 * 4  # qkv, o, wi and wo of each layer
    for left, right in zip(*found, strict=True):
        seen = mask[:, None, :, None] == 1
        assert np.abs((left - right) * seen).max() < 0.1 * np.abs(left * seen).max()


def test_seven_bits_never_overflow_sixteen_in_pairs() -> None:
    rounded = quantize_outputs(np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    assert 2 * 255 * int(np.abs(rounded.codes.astype(int)).max()) <= 32767
    assert (rounded.scales > 0).all()


@pytest.mark.parametrize(("change", "named"), [("gated-silu", "gated-silu"), ("tanh", "tanh")])
def test_an_activation_that_the_graphs_do_not_have_is_refused_by_name(change: str, named: str, tmp_path: Path) -> None:
    config = json.loads(random_model("t5").config.to_json_string()) | {"feed_forward_proj": change}
    with pytest.raises(MmedgeError, match=named):
        read_shape(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    writer, why = choose_graphs(tmp_path, "auto")
    assert writer == "optimum" and why is not None and named in why
    with pytest.raises(MmedgeError, match=named):
        choose_graphs(tmp_path, "fused")


@pytest.mark.optimum
def test_fused_graphs_and_those_of_optimum_answer_the_same(tiny_run: Path, tmp_path: Path) -> None:
    done = mmedge("export", tiny_run, "--fp32", "--int8", "--graphs", "optimum", "--out", tmp_path, "-q")
    assert done.code == 0, done.err
    questions = [
        example for examples in read_evaluation_set(tiny_run / "evaluation.jsonl").questions.values() for example in examples
    ]
    fused, second = Student.load(tiny_run / "bundle-fp32"), Student.load(tmp_path / "bundle-fp32")
    assert (fused.bundle.manifest.graphs, second.bundle.manifest.graphs) == ("fused", "optimum")
    left, right = fused.answer_all(questions, explain=True), second.answer_all(questions, explain=True)
    assert [(answer.text, answer.rationale) for answer in left] == [(answer.text, answer.rationale) for answer in right]
    assert Student.load(tmp_path / "bundle-int8").answer_all(questions[:2])
