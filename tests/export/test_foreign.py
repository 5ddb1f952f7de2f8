"""Graphs that somebody else writes compute what transformers does, and what nobody writes is refused with what to install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from mmedge.bundle import open_bundle
from mmedge.engines.onnx.decoding import DecoderOnlyEngine
from mmedge.errors import MmedgeError
from mmedge.export.foreign import write_foreign
from mmedge.export.graphs import choose_graphs
from mmedge.export.quantization.formats import INT4, INT8
from mmedge.export.quantization.graphs import quantize_model
from mmedge.students import dialects
from mmedge.students.scratch import train_tokenizer
from mmedge.tasks.encoding import SpecialTokens
from tests.bundles import bundle_of
from tests.conftest import distilled, mmedge, own_recipe, write_recipe
from tests.export.test_fused import expected_logits, prompts

needs_5 = pytest.mark.skipif(dialects.MAJOR < 5, reason="transformers.exporters came with transformers 5")
SMALL: dict[str, Any] = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "max_position_embeddings": 256}


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL, n_positions=256, n_embd=64, n_layer=1, n_head=4))


def gemma3() -> Any:
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        **SMALL, **WIDTHS, num_hidden_layers=2, num_key_value_heads=2, head_dim=32, sliding_window=12, layer_types=layers
    )
    return transformers.Gemma3ForCausalLM(config)


def phi() -> Any:
    config = transformers.PhiConfig(**SMALL, **WIDTHS, num_hidden_layers=1, partial_rotary_factor=0.5)
    return transformers.PhiForCausalLM(config)


def engine_of(graphs: Path) -> DecoderOnlyEngine:
    return DecoderOnlyEngine(bundle_of(graphs, SpecialTokens(pad=0, eos=-1), graphs="transformers"), 1)


@needs_5
@pytest.mark.parametrize(
    "make",
    [gpt2, pytest.param(gemma3, marks=pytest.mark.slow), pytest.param(phi, marks=pytest.mark.slow)],
    ids=lambda one: one.__name__,
)
def test_what_transformers_exports_is_the_model(make: Any, tmp_path: Path) -> None:
    """One graph for prompts of any length and for single tokens, alone and in a batch, behind an empty cache and a full one."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at 1 and biases at 0
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    out, small = tmp_path / "graphs", tmp_path / "small"
    out.mkdir()
    small.mkdir()
    assert choose_graphs(tmp_path, "auto")[0] == ("fused" if make is gemma3 else "transformers")
    write_foreign("transformers", tmp_path, "decoder-only", out)
    engine, target = engine_of(out), np.random.default_rng(1).integers(3, 100, 12).tolist()
    for prompt in prompts():
        assert np.abs(engine.forced_logits(prompt, target) - expected_logits(model, prompt, target)).max() < 1e-4
    for row, prompt in zip(engine.next_logits(prompts(), [7, 8]), prompts(), strict=True):
        assert np.abs(row - expected_logits(model, prompt, [7, 8, 9])[-1]).max() < 1e-4
    written = engine.generate(prompts(), 40).tokens
    assert engine.generate(prompts()[1:2], 40).tokens[0] == written[1]
    for prompt, tokens in zip(prompts(), written, strict=True):
        logits = expected_logits(model, prompt, tokens)
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 1e-4  # a tie may fall either way
        assert (logits.argmax(-1) == tokens)[clear].all() and clear.mean() > 0.9
    for format_, bound in ((INT8, 0.06), (INT4, 0.6)):
        report = quantize_model(out / "model.onnx", small / "model.onnx", format_=format_)
        assert report.bytes_after < 0.5 * report.bytes_before
        kinds = {node.op_type for node in onnx.load(small / "model.onnx").graph.node}
        assert "MatMulNBits" in kinds and "Gemm" not in kinds
        found, expected = (one.forced_logits(prompts()[1], target) for one in (engine_of(small), engine))
        assert 0 < np.sqrt(((found - expected) ** 2).mean() / expected.var()) < bound


@needs_5
def test_without_a_writer_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", "is_encoder_decoder": True}))
    assert choose_graphs(tmp_path, "auto") == ("optimum", "fused graphs do not support 'bart'")
    with pytest.raises(MmedgeError, match="needs the package 'optimum-onnx'") as caught:
        write_foreign("optimum", tmp_path, "encoder-decoder", tmp_path)
    assert "mmedge[optimum]" in caught.value.hint
    with pytest.raises(MmedgeError, match="writes no encoder-decoder") as caught:
        write_foreign("transformers", tmp_path, "encoder-decoder", tmp_path)
    assert "mmedge[optimum]" in caught.value.hint


@needs_5
@pytest.mark.slow
def test_a_foreign_architecture_goes_through_the_chain(own_task: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = tmp_path / "gpt2"
    tokenizer = train_tokenizer(["predict: explain: correct wrong uncertain solution: answer: 1 2 3"], 300)
    torch.manual_seed(0)
    tokens: dict[str, Any] = {"vocab_size": len(tokenizer) + 4, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.GPT2Config(**tokens, n_positions=512, n_embd=64, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    run = tmp_path / "run"
    distilled(
        write_recipe(tmp_path / "r.yaml", own_recipe(own_task, folder)), run, "--fp32", "--int8", "--max-accuracy-drop", "100"
    )
    exact, small = (open_bundle(run / f"bundle-{precision}") for precision in ("fp32", "int8"))
    assert exact.manifest.graphs == small.manifest.graphs == "transformers"
    assert exact.manifest.verification.same_answers == exact.manifest.verification.questions
    assert exact.manifest.verification.largest_difference < 1e-4
    assert small.manifest.work is not None and small.manifest.work.arithmetic == "int8"
    assert small.size < 0.7 * exact.size
    asked = mmedge("run", run / "bundle-int8", "--explain", "What is 3 and 4?")
    assert asked.code == 0, asked.err
