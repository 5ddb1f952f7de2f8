"""Fused graphs are the model that transformers computes: every architecture, at a small random size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mmedge.engines.onnx.decoding import FusedDecoderOnlyEngine, FusedEncoderDecoderEngine
from mmedge.engines.onnx.graphs import FusedReading, Place
from mmedge.errors import MmedgeError
from mmedge.export.architectures import ARCHITECTURES
from mmedge.export.graphs import choose_graphs, fused_linears, write_fused
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.export.weights import WeightFiles
from mmedge.students import dialects
from mmedge.tasks.encoding import Prompt, SpecialTokens
from tests.bundles import bundle_of
from tests.export.published import CONFIGS, small

T5: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5 v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "flan-t5, odd widths": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 24, "num_heads": 3},
    "other buckets": {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2: grouped, tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "Llama 2: as many heads, untied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "TinyLlama: one head of keys": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "Llama 3: scaled rotary embedding": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "linear rotary embedding": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "biases everywhere": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral: no window": ("Mistral", {"sliding_window": None}),
    "Mistral: a window shorter than the text": ("Mistral", {"sliding_window": 12}),
    "Mistral: heads wider than their share": ("Mistral", {"head_dim": 32}),
    "Qwen 2: biases on queries, keys, values": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen 2: windows in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "Qwen 3: norms on heads": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen 3: untied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
}
DECODERS |= {
    "Gemma 3: scores and logits of its own, biases, untied": (
        "Gemma3Text",
        {"query_pre_attn_scalar": 40, "final_logit_softcapping": 3.0, "attention_bias": True, "head_dim": 32, "sliding_window": 12},
    ),
    "Gemma 3 as 4B: linear rotary embedding where all is seen": (
        "Gemma3Text",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "head_dim": 16, "sliding_window_pattern": 2, "sliding_window": 9},
    ),
    "SmolLM3: windows where nothing turns, biases": (
        "SmolLM3",
        {"use_sliding_window": True, "sliding_window": 12, "no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "Phi 3: neither window nor scaling, untied": ("Phi3", {"tie_word_embeddings": False}),
    "Phi 3: a window shorter than the text": ("Phi3", {"sliding_window": 12}),
    "Granite: multipliers and biases, untied": (
        "Granite",
        {
            "embedding_multiplier": 5.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 0.5,
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False,
        },
    ),
    "Granite 4: nothing turns": (
        "GraniteMoeHybrid",
        {"layer_types": ["attention"] * 3, "num_local_experts": 0, "shared_intermediate_size": 80, "mamba_n_heads": 8,
         "mamba_d_head": 16},
    ),
}  # fmt: skip
ALL = [*T5, *DECODERS, *CONFIGS]
# those that transformers 4.57 has too, and reads alike; students of the others need transformers 5
IN_BOTH = [*T5, *(name for name, (kind, _) in DECODERS.items() if kind in ("Llama", "Mistral", "Qwen2", "Qwen3"))]
FOREIGN = "transformers" if dialects.MAJOR >= 5 else "optimum"  # who writes other decoder-only graphs


def random_model(name: str, **changes: Any) -> Any:
    """Return a small model whose every weight has been moved, so that a missing one shows."""
    torch.manual_seed(0)
    if name in T5:
        settings: dict[str, Any] = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3}
        settings |= {"num_decoder_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**settings, **T5[name], **changes}))
    elif name in CONFIGS:
        config = transformers.AutoConfig.for_model(**{**small(CONFIGS[name]), "attn_implementation": "eager", **changes})
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        kind, own = DECODERS[name]
        settings = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
        settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "attn_implementation": "eager"}
        config = getattr(transformers, f"{kind}Config")(**{**settings, **own, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config)
    least = -0.5 if model.config.model_type in ("gemma3_text", "qwen3_5_text") else 0.5  # these add 1 to a norm's weight
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at 1 and biases at 0
            parameter.data.uniform_(least, least + 1)
    return model.eval()


def opened(folder: Path, name: str, device: Place = "cpu") -> FusedEncoderDecoderEngine | FusedDecoderOnlyEngine:
    """Return the engine of the graphs in a folder."""
    special = SpecialTokens(pad=0, eos=-1, start=0)
    if name in T5:
        return FusedEncoderDecoderEngine(bundle_of(folder, special, "encoder-decoder"), 1, device)
    return FusedDecoderOnlyEngine(bundle_of(folder, special), 1, device)


def expected_logits(model: Any, prompt: Prompt, target: list[int]) -> Any:
    """Return what transformers gives for each token of a target, from one whole pass without a cache."""
    written = torch.tensor([[*prompt.begun, *target[:-1]]])
    context = torch.tensor([prompt.context])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=context, decoder_input_ids=written).logits
        else:
            logits = model(input_ids=torch.cat([context, written], dim=1), use_cache=False).logits
    return logits[0, -len(target) :].numpy()


def prompts() -> list[Prompt]:
    """Three prompts of very unequal lengths, in their contexts and in what is begun."""
    rng = np.random.default_rng(0)
    lengths = ((150, 3), (40, 1), (5, 9))  # beyond a T5's farthest distance, and far below it
    return [Prompt(tuple(rng.integers(3, 100, a).tolist()), (0, *rng.integers(3, 100, b - 1).tolist())) for a, b in lengths]


@pytest.fixture(params=ALL)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    model = random_model(request.param)
    model.save_pretrained(tmp_path)
    assert choose_graphs(tmp_path, "auto") == ("fused", None)
    write_fused(tmp_path, tmp_path)
    return model, opened(tmp_path, request.param)


def test_logits_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    model, engine = pair
    target = np.random.default_rng(1).integers(3, 100, 12).tolist()
    for prompt in prompts():
        expected = expected_logits(model, prompt, target)
        assert np.abs(engine.forced_logits(prompt, target) - expected).max() < 1e-4


def test_logits_in_a_batch_of_unequal_lengths_are_those_of_each_alone(pair: tuple[Any, Any]) -> None:
    model, engine = pair
    found = engine.next_logits(prompts(), [7, 8])
    for row, prompt in zip(found, prompts(), strict=True):
        assert np.abs(row - expected_logits(model, prompt, [7, 8, 9])[-1]).max() < 1e-4


def test_greedy_tokens_are_the_same_over_64_steps_in_a_batch(pair: tuple[Any, Any]) -> None:
    model, engine = pair
    for prompt, written in zip(prompts(), engine.generate(prompts(), 64).tokens, strict=True):
        assert len(written) == 64
        logits = expected_logits(model, prompt, written)
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 1e-4  # a tie may fall either way
        assert (logits.argmax(-1) == written)[clear].all() and clear.mean() > 0.9


def test_a_cache_serves_several_calls(pair: tuple[Any, Any]) -> None:
    model, engine = pair
    prompt = prompts()[1]
    ids = np.array([engine.sequence(prompt)])
    reading = FusedReading(engine.decoder, 1, ids.shape[1] + 20, engine.held([prompt]))
    target = np.random.default_rng(2).integers(3, 100, 13).tolist()
    expected = expected_logits(model, prompt, [*target, 0])[1:]
    reading.read(ids, np.array([ids.shape[1]]), np.array([0]))
    found = []
    for first, last in ((0, 3), (3, 4), (4, 5), (5, 13)):
        more = np.array([target[first:last]])
        found.append(reading.read(more, np.array([last - first]), np.arange(last - first)).copy())
    assert np.abs(np.concatenate(found) - expected).max() < 1e-4
    if reading.rewinds:
        reading.rewind(ids.shape[1] + 2)
        again = reading.read(np.array([target[2:9]]), np.array([7]), np.arange(7))
        assert np.abs(again - expected[2:9]).max() < 1e-4
    else:  # a state is what was read up to its last token: go on from a copy of what it was before the last one
        reading = FusedReading(engine.decoder, 1, ids.shape[1] + 20)
        reading.read(np.array([[*ids[0], *target[:9]]]), np.array([ids.shape[1] + 9]), np.array([0]))
    twice = reading.rows(np.array([0, 0]), reading.capacity)
    both = twice.step(np.array(target[9:10] * 2))
    assert np.abs(both - expected[9]).max() < 1e-4


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["t5", "t5 v1.1", "SmolLM2: grouped, tied", "biases everywhere", "Qwen 3: untied", *CONFIGS])
def test_few_bits_are_near_and_batches_are_no_matter(name: str, precision: str, tmp_path: Path) -> None:
    model = random_model(name)
    model.save_pretrained(tmp_path)
    quantizer = BundleQuantizer(PRECISIONS[precision])
    write_fused(tmp_path, tmp_path, quantizer)
    assert set(fused_linears(tmp_path)) <= set(quantizer.written)
    engine = opened(tmp_path, name)
    target = np.random.default_rng(1).integers(3, 100, 12).tolist()
    bound = {"int8": 0.06, "int4": 0.6}[precision]
    for prompt in prompts():
        expected = expected_logits(model, prompt, target)
        found = engine.forced_logits(prompt, target)
        error = np.sqrt(((found - expected) ** 2).mean() / expected.var())
        assert 0 < error < bound
    batch = engine.next_logits(prompts(), [7])
    for row, prompt in zip(batch, prompts(), strict=True):
        assert np.abs(row - engine.next_logits([prompt], [7])[0]).max() < 1e-4


@pytest.mark.parametrize("name", ["t5", "t5 v1.1", "SmolLM2: grouped, tied", "Qwen 3: untied", *CONFIGS])
def test_a_trimmed_vocabulary_leaves_the_other_logits_as_they_are(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path)
    kept = [*range(10), *range(30, 61), 99]
    small = tmp_path / "small"
    small.mkdir()
    write_fused(tmp_path, tmp_path)
    write_fused(tmp_path, small, kept=kept)
    whole, trimmed = opened(tmp_path, name), opened(small, name)
    new = Prompt((3, 12, 40, 7, 41, 22), (0, 15))
    old = Prompt(*(tuple(kept[number] for number in part) for part in (new.context, new.begun)))
    expected = whole.forced_logits(old, [kept[5], kept[40], kept[41]])[:, kept]
    assert np.abs(trimmed.forced_logits(new, [5, 40, 41]) - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["SmolLM2: grouped, tied", "google/gemma-3-270m", "ibm-granite/granite-4.0-350m"])
def test_a_tied_table_is_kept_once(name: str, tmp_path: Path) -> None:
    model = random_model(name, vocab_size=4000)
    model.save_pretrained(tmp_path)
    for precision, bytes_each in (("fp32", 4.0), ("int8", 1 + 4 / 64), ("int4", 0.5 + 4 / 32)):
        write_fused(tmp_path, tmp_path, BundleQuantizer(PRECISIONS[precision]))
        size = (tmp_path / "weights.data").stat().st_size
        assert size < 1.1 * bytes_each * sum(p.numel() for p in model.parameters()) + 200_000


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_configs_of_published_models_are_read_as_they_are_and_as_transformers_saves_them(name: str, tmp_path: Path) -> None:
    config, shapes = CONFIGS[name], []
    for written in (config, json.loads(transformers.AutoConfig.for_model(**copy.deepcopy(config)).to_json_string(use_diff=False))):
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert choose_graphs(tmp_path, "fused") == ("fused", None)
        shapes.append(ARCHITECTURES[config["model_type"]].read_shape(written))
    assert shapes[0] == shapes[1]
    assert len(shapes[0].mixers) == config["num_hidden_layers"] and shapes[0].positions == 4096


@pytest.mark.skipif("Qwen/Qwen3.5-0.8B" not in CONFIGS, reason="this transformers has no Qwen 3.5")
def test_the_text_model_inside_a_published_qwen_3_5_becomes_the_student(tmp_path: Path) -> None:
    text = small(CONFIGS["Qwen/Qwen3.5-0.8B"])
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 128, "patch_size": 4}
    whole = transformers.Qwen3_5ForConditionalGeneration(transformers.Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path / "published")
    place, student = str(tmp_path / "published"), tmp_path / "student"
    dialects.load_model(place, dialects.load_config(place), dtype=torch.float32).save_pretrained(student)
    assert choose_graphs(student, "fused") == ("fused", None)
    write_fused(student, student)
    prompt, target = prompts()[1], [5, 6, 7]
    with torch.no_grad():
        expected = whole(input_ids=torch.tensor([[*prompt.context, *prompt.begun, *target[:-1]]])).logits[0, -3:].numpy()
    assert np.abs(opened(student, "Qwen/Qwen3.5-0.8B").forced_logits(prompt, target) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("google/gemma-3-270m", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("google/gemma-3-270m", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("google/gemma-3-270m", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("google/gemma-3-270m", {"layer_types": ["chunked_attention"] * 18}, "layer_types 'chunked_attention'"),
        ("google/gemma-3-270m", {"sliding_window": None}, "sliding_window None"),
        ("google/gemma-3-270m", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        ("HuggingFaceTB/SmolLM3-3B", {"layer_types": ["sliding_attention"] * 36}, "layer_types 'sliding_attention'"),
        ("HuggingFaceTB/SmolLM3-3B", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        ("microsoft/Phi-4-mini-instruct", {"partial_rotary_factor": 0.4, "rope_scaling": None}, "partial_rotary_factor 0.4"),
        ("microsoft/Phi-4-mini-instruct", {"partial_rotary_factor": 0.5}, "48 values for 32 frequencies"),
        ("microsoft/Phi-4-mini-instruct", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("ibm-granite/granite-4.0-350m", {"num_local_experts": 32}, "num_local_experts 32"),
        ("ibm-granite/granite-4.0-350m", {"layer_types": ["mamba", *["attention"] * 27]}, "layer_types 'mamba'"),
        ("ibm-granite/granite-4.0-350m", {"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
        ("LiquidAI/LFM2-350M", {"layer_types": ["sliding_attention", *["conv"] * 15]}, "layer_types 'sliding_attention'"),
        ("Qwen/Qwen3.5-0.8B", {"attn_output_gate": False}, "attn_output_gate False"),
        ("Qwen/Qwen3.5-0.8B", {"layer_types": ["sliding_attention"] * 24}, "layer_types 'sliding_attention'"),
        ("Qwen/Qwen3.5-0.8B", {"num_experts": 8}, "num_experts 8"),
        ("ibm-granite/granite-3.3-2b-instruct", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_a_published_model_might_say_some_day_is_refused_by_name(
    name: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[name], **changes}))
    with pytest.raises(MmedgeError, match=named):
        choose_graphs(tmp_path, "fused")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope_scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_scaling 'longrope'"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({"num_local_experts": 8}, "num_local_experts 8"),
        ({"num_experts": 4}, "num_experts 4"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"head_dim": 24}, "head_dim 24"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_the_graph_does_not_implement_is_refused_by_name(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = json.loads(random_model("SmolLM2: grouped, tied").config.to_json_string()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmedgeError, match=named):
        choose_graphs(tmp_path, "fused")
    writer, why = choose_graphs(tmp_path, "auto")
    assert writer == FOREIGN and why is not None and named in why


def test_a_setting_that_changes_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    config = json.loads(random_model("SmolLM2: grouped, tied").config.to_json_string())
    config |= {"final_logit_softcapping": None, "logits_scaling": 1.0, "partial_rotary_factor": 1.0, "hidden_act": "swish"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose_graphs(tmp_path, "fused") == ("fused", None)


def test_an_unknown_architecture_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert choose_graphs(tmp_path, "auto")[0] == FOREIGN
    with pytest.raises(MmedgeError, match="fused graphs do not support 'gpt2'"):
        choose_graphs(tmp_path, "fused")
    older = {"t5", "llama", "mistral", "qwen2", "qwen3"}
    newer = {"gemma3_text", "smollm3", "phi3", "granite", "granitemoehybrid", "lfm2", "qwen3_5_text"}
    assert set(ARCHITECTURES) == older | newer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found_by_name(value: float, tmp_path: Path) -> None:
    model = random_model("SmolLM2: grouped, tied")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(MmedgeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        WeightFiles(tmp_path).check()
    with pytest.raises(MmedgeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        write_fused(tmp_path, tmp_path)


def test_a_missing_weight_and_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    random_model("Llama 2: as many heads, untied").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, path)
    with pytest.raises(MmedgeError, match=r"no weight 'model\.layers\.2\.mlp\.down_proj\.weight'"):
        write_fused(tmp_path, tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(MmedgeError, match="cannot read"):
        write_fused(tmp_path, tmp_path)
