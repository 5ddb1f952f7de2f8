"""Checkpoints in the words of transformers 5: the same model, whichever version of transformers reads them.

The configs are those that transformers 5.17.0 wrote; the models behind them are built in the words that 4.57 knows too. With
transformers 5 installed too, tests/students/test_versions.py takes what it really writes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmedge.errors import MmedgeError
from mmedge.export.graphs import choose_graphs, fused_linears, write_fused
from mmedge.export.weights import WeightFiles
from mmedge.students import dialects
from mmedge.students.sources import load, resolve
from tests.export.test_fused import expected_logits, opened, prompts, random_model
from tests.students.checkpoints import load_float32

pytestmark = pytest.mark.versions

T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"], "classifier_dropout": 0.0, "d_ff": 96, "d_kv": 16, "d_model": 64,
    "decoder_start_token_id": 0, "dense_act_fn": "relu", "dropout_rate": 0.1, "dtype": "float32", "eos_token_id": 1,
    "feed_forward_proj": "relu", "initializer_factor": 1.0, "is_decoder": False, "is_encoder_decoder": True,
    "is_gated_act": False, "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 2, "num_heads": 4,
    "num_layers": 3, "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
    "scale_decoder_outputs": True, "tie_word_embeddings": True, "transformers_version": "5.17.0", "use_cache": True,
    "vocab_size": 100,
}  # fmt: skip
T5_V1_1 = T5 | {"dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True, "scale_decoder_outputs": False}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "dtype": "float32", "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 96, "max_position_embeddings": 256, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 0, "pretraining_tp": 1,
    "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": False,
    "transformers_version": "5.17.0", "use_cache": True, "vocab_size": 100,
}  # fmt: skip
QWEN2 = {name: value for name, value in LLAMA.items() if name not in ("attention_bias", "mlp_bias", "pretraining_tp", "head_dim")}
QWEN2 |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "layer_types": ["full_attention"] * 3}
QWEN2 |= {"max_window_layers": 28, "sliding_window": None, "use_sliding_window": False}
QWEN3 = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 16}
MISTRAL = {name: value for name, value in LLAMA.items() if name not in ("attention_bias", "mlp_bias", "pretraining_tp")}
MISTRAL |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
LLAMA3 = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32,
    "rope_theta": 500000.0, "rope_type": "llama3",
}  # fmt: skip
FAR = {"rope_theta": 1000000.0, "rope_type": "default"}

# the model in 4.57's words (a name of test_fused.py and changes), and its config in 5.x's
WRITTEN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "T5": ("t5", {}, T5),
    "T5 v1.1, a head of its own": ("t5 v1.1", {}, T5_V1_1),
    "T5 v1.1, built by 5.x: a tied head": ("t5 v1.1", {}, T5_V1_1),
    "flan-T5": ("flan-t5, odd widths", {}, T5_V1_1 | {"d_kv": 24, "num_heads": 3}),
    "SmolLM2": ("SmolLM2: grouped, tied", {}, LLAMA | {"tie_word_embeddings": True}),
    "Llama 2": ("Llama 2: as many heads, untied", {}, LLAMA | {"num_key_value_heads": 4}),
    "Llama 3": ("Llama 3: scaled rotary embedding", {}, LLAMA | {"rope_parameters": LLAMA3}),
    "TinyLlama": ("TinyLlama: one head of keys", {}, LLAMA | {"num_key_value_heads": 1}),
    "linear": (
        "linear rotary embedding",
        {},
        LLAMA | {"rope_parameters": {"factor": 2.0, "rope_theta": 10000.0, "rope_type": "linear"}},
    ),
    "Mistral": ("Mistral: no window", {"rope_theta": 1e6}, MISTRAL | {"sliding_window": None, "rope_parameters": FAR}),
    "Mistral, a window": ("Mistral: a window shorter than the text", {}, MISTRAL | {"sliding_window": 12}),
    "Mistral, wide heads": ("Mistral: heads wider than their share", {}, MISTRAL | {"head_dim": 32, "sliding_window": 4096}),
    "Qwen 2": ("Qwen 2: biases on queries, keys, values", {}, QWEN2 | {"tie_word_embeddings": True}),
    "Qwen 2.5": (
        "Qwen 2: windows in the upper layers",
        {"rope_theta": 1e6},
        QWEN2
        | {"layer_types": ["full_attention", *["sliding_attention"] * 2], "max_window_layers": 1, "sliding_window": 12}
        | {"use_sliding_window": True, "rope_parameters": FAR},
    ),
    "Qwen 3": (
        "Qwen 3: norms on heads",
        {"rope_theta": 1e6},
        QWEN3 | {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": FAR},
    ),
    "Qwen 3, untied": ("Qwen 3: untied", {}, QWEN3),
}


def written(case: str, folder: Path, *, sharded: bool = False) -> Any:
    """Write a checkpoint as 5.x does, and return its model, built by the transformers that is installed."""
    name, changes, config = WRITTEN[case]
    model = random_model(name, **changes)
    if "head of its own" in case or case == "flan-T5":  # 5.x itself builds no such model, but keeps one that 4.57 made
        torch.manual_seed(1)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
        model.config.tie_word_embeddings = False
    if case.endswith("a tied head"):
        model.lm_head.weight.data = model.shared.weight.data.clone()
    saved = model
    if sharded:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        saved, config = copy.deepcopy(model).bfloat16(), config | {"dtype": "bfloat16"}
    saved.save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    if case.endswith("a tied head"):
        for path in folder.glob("*.safetensors"):
            weights = load_file(path)
            weights.pop("lm_head.weight", None)
            save_file(weights, path, metadata={"format": "pt"})
        for path in folder.glob("*.index.json"):
            index = json.loads(path.read_text())
            index["weight_map"].pop("lm_head.weight", None)
            path.write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("sharded", [False, True], ids=["float32", "bfloat16 in shards"])
@pytest.mark.parametrize("case", WRITTEN)
def test_graphs_and_torch_read_the_same_model(case: str, sharded: bool, tmp_path: Path) -> None:
    model = written(case, tmp_path, sharded=sharded)
    assert not sharded or len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert choose_graphs(tmp_path, "auto") == ("fused", None)
    write_fused(tmp_path, tmp_path)
    engine, again = opened(tmp_path, WRITTEN[case][0]), load_float32(tmp_path)
    target = np.random.default_rng(1).integers(3, 100, 12).tolist()
    for prompt in prompts():
        expected = expected_logits(model, prompt, target)
        assert np.abs(expected_logits(again, prompt, target) - expected).max() < 1e-5
        assert np.abs(engine.forced_logits(prompt, target) - expected).max() < 1e-4
    for prompt, tokens in zip(prompts(), engine.generate(prompts(), 64).tokens, strict=True):
        logits = expected_logits(model, prompt, tokens)
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 1e-4  # a tie may fall either way
        assert len(tokens) == 64 and (logits.argmax(-1) == tokens)[clear].all() and clear.mean() > 0.9


@pytest.mark.parametrize("case", ["T5", "T5 v1.1, a head of its own", "T5 v1.1, built by 5.x: a tied head", "Llama 3", "SmolLM2"])
def test_a_model_that_was_read_and_saved_again_is_still_the_same(case: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    model = written(case, first)
    load_float32(first).save_pretrained(second)
    write_fused(second, second)
    engine, target = opened(second, WRITTEN[case][0]), [5, 6, 7, 8]
    expected = expected_logits(model, prompts()[1], target)
    assert np.abs(engine.forced_logits(prompts()[1], target) - expected).max() < 1e-4
    assert np.abs(expected_logits(load_float32(second), prompts()[1], target) - expected).max() < 1e-5


def test_a_head_is_a_product_of_its_own_only_where_the_weights_have_one(tmp_path: Path) -> None:
    for case, own in (("T5", False), ("T5 v1.1, a head of its own", True), ("T5 v1.1, built by 5.x: a tied head", False)):
        written(case, tmp_path / case)
        assert ("head" in fused_linears(tmp_path / case)) is own


def test_a_weight_that_is_missing_is_refused_and_not_made_up(tmp_path: Path) -> None:
    written("Llama 2", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_key_value_heads": 4}))
    plain_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MmedgeError, match=r"the weights lack lm_head\.weight"):
        load(resolve(str(tmp_path), None, "student.source"), None, None, "student.source", dtype=torch.float32)


def test_files_that_transformers_does_not_read_are_not_read(tmp_path: Path) -> None:
    model = written("Llama 2", tmp_path, sharded=True)
    stale = {"model.norm.weight": torch.full((64,), 7.0), "layers.0.attention.wq.weight": torch.ones(2, 2)}
    save_file(stale, tmp_path / "zzz.safetensors")
    weights = WeightFiles(tmp_path)
    assert "layers.0.attention.wq.weight" not in weights
    assert np.array_equal(weights["model.norm.weight"], model.model.norm.weight.detach().numpy())
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(MmedgeError, match="cannot read"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"rope_parameters": {"full_attention": FAR, "sliding_attention": FAR}}, "rope_parameters 'full_attention'"),
        (LLAMA | {"rope_parameters": FAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        (LLAMA | {"rope_parameters": FAR | {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 3, "sliding_window": 12}, "layer_types 'sliding_attention'"),
        (MISTRAL | {"layer_types": ["sliding_attention", *["full_attention"] * 2], "sliding_window": 12}, "'full_attention'"),
        (T5 | {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_only_5_can_say_and_the_graphs_do_not_implement_is_refused(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmedgeError, match=named):
        choose_graphs(tmp_path, "fused")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"num_attention_heads": -4}, "num_attention_heads must be a whole number from 1 to 1024, found -4"),
        (LLAMA | {"num_key_value_heads": 0}, "num_key_value_heads must be a whole number from 1 to 1024, found 0"),
        (LLAMA | {"num_hidden_layers": 10**6}, "num_hidden_layers must be a whole number from 1 to 1024, found 1000000"),
        (LLAMA | {"rms_norm_eps": -1e-5}, "rms_norm_eps must be a number from 1e-30 to 1, found -1e-05"),
        (LLAMA | {"rms_norm_eps": "small"}, "rms_norm_eps must be a number from 1e-30 to 1, found 'small'"),
        (LLAMA | {"rope_parameters": FAR | {"rope_theta": 0}}, "rope_theta must be a number from 1 to"),
        (LLAMA | {"rope_theta": -1e4}, "rope_theta must be a number from 1 to"),
        (LLAMA | {"hidden_size": True}, "hidden_size must be a whole number from 1 to"),
        (T5 | {"d_kv": 0}, "d_kv must be a whole number from 1 to"),
        (T5 | {"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon must be a number from 1e-30 to 1, found inf"),
    ],
)
def test_sizes_that_no_model_has_are_refused(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmedgeError) as caught:
        choose_graphs(tmp_path, "fused")
    assert caught.value.what.startswith(f"config.json: {named}") and caught.value.hint


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    """A Mistral without `sliding_window` has one of 4096 positions; a Qwen 3 without `head_dim` has heads of 128."""
    from mmedge.export.architectures.decoder import Attention
    from mmedge.export.architectures.llama import LLAMA

    mistral = LLAMA.read_shape({name: value for name, value in MISTRAL.items() if name != "sliding_window"}).mixers
    assert [mixer.window for mixer in mistral if isinstance(mixer, Attention)] == [4096] * 3
    (qwen,) = set(LLAMA.read_shape({name: value for name, value in QWEN3.items() if name != "head_dim"}).mixers)
    assert isinstance(qwen, Attention) and qwen.head_width == 128
    assert transformers.MistralConfig().sliding_window == 4096 and transformers.Qwen3Config().head_dim == 128


def plain_tokenizer() -> Any:
    """Return a small tokenizer with special tokens."""
    from mmedge.students.scratch import train_tokenizer

    return train_tokenizer(["some words 1 2 3"], 300)


def test_a_tokenizer_that_5_wrote_is_read(tmp_path: Path) -> None:
    written("SmolLM2", tmp_path)
    plain_tokenizer().save_pretrained(tmp_path)
    said = {
        "backend": "tokenizers", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_special_tokens": ["words"],
        "model_max_length": 512, "tokenizer_class": "TokenizersBackend",
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    for plain in (False, True):
        tokenizer = dialects.load_tokenizer(str(tmp_path), plain=plain)
        assert tokenizer.is_fast and (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")
        assert tokenizer.convert_tokens_to_ids("words") in tokenizer.all_special_ids
