"""Which weights are loaded: safetensors of the folder itself, all of them and no others, or none."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmedge.errors import MmedgeError
from mmedge.recipe import StudentSection
from mmedge.students import dialects
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.sources import load, reason_of, resolve
from mmedge.students.weight_files import check_place
from tests.export.published import CONFIGS, small

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def _loaded(folder: Path) -> Any:
    section = StudentSection(source=str(folder))
    return load_student(section, resolve_source(section), 64, [], 0)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def _indexed(model: Path, place: str, write: Callable[[dict[str, torch.Tensor], Path], None]) -> None:
    """Move a model's weights to a file that an index names, and leave safetensors of another name in the folder."""
    weights = load_file(model / WHOLE)
    (model / WHOLE).rename(model / "other.safetensors")
    write(weights, model / place)
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, place)}))


def test_an_index_never_leads_to_a_pickle(model: Path) -> None:
    _indexed(model, "real.bin", lambda weights, place: torch.save(weights, place))
    with pytest.raises(MmedgeError, match=r"is in 'real\.bin'; weights are read only from \*\.safetensors in the same folder"):
        resolve_source(StudentSection(source=str(model)))
    with pytest.raises(MmedgeError, match=r"real\.bin"):
        dialects.load_model(str(model), dialects.load_config(str(model)), dtype=torch.float32)


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "inner/x.safetensors", "{outside}", "..\\x.safetensors", "C:x.safetensors"]
)
def test_an_index_never_leads_out_of_its_folder(place: str, model: Path) -> None:
    place = place.format(outside=model.parent / "outside.safetensors")
    (model / "inner").mkdir()
    _indexed(model, place, lambda weights, path: save_file(weights, path, metadata={"format": "pt"}))
    with pytest.raises(MmedgeError, match=r"weights are read only from \*\.safetensors in the same folder"):
        resolve_source(StudentSection(source=str(model)))


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("[1", "not valid JSON"),
        ("[]", "is not an index of weights"),
        ('{"metadata": {}, "weight_map": {}}', "is not an index of weights"),
        ('{"metadata": {}, "weight_map": {"a": 5}}', "a is in '5'"),
        ('{"weight_map": {"a": "x.safetensors"}}', "is not an index of weights"),
        ('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: it is missing"),
    ],
)
def test_a_broken_index_is_one_error(index: str, complaint: str, model: Path) -> None:
    (model / WHOLE).rename(model / "other.safetensors")
    (model / INDEX).write_text(index)
    with pytest.raises(MmedgeError, match=complaint):
        resolve_source(StudentSection(source=str(model)))


def test_the_fingerprint_is_that_of_the_files_that_are_read(model: Path) -> None:
    def fingerprint() -> str:
        return resolve_source(StudentSection(source=str(model))).fingerprint

    whole = fingerprint()
    shutil.copy(model / WHOLE, model / "unused.safetensors")
    assert fingerprint() == whole
    (model / "unused.safetensors").unlink()
    _indexed(model, "shard.safetensors", lambda weights, place: save_file(weights, place, metadata={"format": "pt"}))
    sharded = fingerprint()
    weights = load_file(model / "shard.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, model / "shard.safetensors", metadata={"format": "pt"})
    assert len({whole, sharded, fingerprint()}) == 3


def test_weights_that_the_config_names_itself_are_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    torch.save(load_file(model / WHOLE), model / "adapter_model.bin")
    with pytest.raises(MmedgeError, match="transformers_weights names other weights"):
        _loaded(model)


@pytest.mark.parametrize("name", [WHOLE, INDEX])
def test_only_regular_files_are_read(name: str, model: Path) -> None:
    (model / WHOLE).rename(model / "other.safetensors")
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(MmedgeError, match=rf"{re.escape(name)}: it is not a regular file"):
        resolve_source(StudentSection(source=str(model)))
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(MmedgeError, match=rf"{re.escape(name)}: it is not a regular file"):
        resolve_source(StudentSection(source=str(model)))


def test_an_adapter_beside_the_weights_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(MmedgeError, match=r"has an adapter beside its weights \(adapter_config\.json\)\n.*merge it first"):
        resolve_source(StudentSection(source=str(model)))
    with pytest.raises(MmedgeError, match="has an adapter beside its weights"):
        dialects.load_model(str(model), dialects.load_config(str(model)), dtype=torch.float32)


def _other_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def test_weights_that_the_config_leaves_unused_are_refused(model: Path) -> None:
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    _other_config(model, num_hidden_layers=layers - 1)
    with pytest.raises(MmedgeError, match=rf"the config has no place for the weight model\.layers\.{layers - 1}\.\S+ and \d+ more"):
        _loaded(model)


def test_weights_of_another_kind_of_model_are_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "qwen3"}
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).save_pretrained(model)
    _other_config(model, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(MmedgeError, match=r"no place for the weight model\.layers\.0\.self_attn\.k_norm\.weight"):
        _loaded(model)


def test_what_belongs_to_other_parts_of_a_model_may_be_left_over(model: Path) -> None:
    weights, extra = load_file(model / WHOLE), torch.zeros(2)
    expected = _loaded(model).model.state_dict()
    others: tuple[str, ...] = (
        "model.visual.blocks.0.weight",
        "vision_tower.x.weight",
        "multi_modal_projector.y.weight",
        "audio_tower.z.weight",
    )
    others += ("mtp.layers.0.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    tied = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(weights | {name: extra.clone() for name in others} | tied, model / WHOLE, metadata={"format": "pt"})
    found = _loaded(model).model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_whole_gemma_3_that_reads_images_is_loaded_as_it_is(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    text = small(CONFIGS["google/gemma-3-270m"])
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"patch_size": 14}, mm_tokens_per_image=4)
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    found = dialects.load_model(str(tmp_path), dialects.load_config(str(tmp_path)), dtype=torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), whole.parameters(), strict=True))


def test_weights_of_another_shape_are_named_with_both_shapes(model: Path) -> None:
    weights = load_file(model / WHOLE)
    name = "model.layers.0.self_attn.q_proj.weight"
    rows, columns = weights[name].shape
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, model / WHOLE, metadata={"format": "pt"})
    with pytest.raises(
        MmedgeError, match=rf"{re.escape(name)} has shape \[{rows - 1}, {columns}\], and the config says \[{rows}, {columns}\]"
    ):
        _loaded(model)


def test_a_model_without_a_tokenizer_says_so(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(MmedgeError, match=r"has no tokenizer: no tokenizer\.json in it"):
        _loaded(model)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1024, found 1000000000"),
        ({"model_type": "qwen3", "num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1024"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number from 1 to 1024, found '3'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}}, "factor must be a number"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be a whole number"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "text_config: num_hidden_layers must be a whole number"),
    ],
)
def test_a_config_that_lies_is_refused_before_anything_is_made_of_it(changes: dict[str, Any], complaint: str, model: Path) -> None:
    _other_config(model, **changes)
    with pytest.raises(MmedgeError, match=complaint):
        _loaded(model)


def test_the_reason_of_an_error_is_one_line() -> None:
    assert (
        reason_of(ValueError("Validation error for field 'x':\n    TypeError: no\nmore"))
        == "Validation error for field 'x': TypeError: no"
    )
    assert reason_of(KeyError("evil")) == "nothing is called 'evil'" and reason_of(OSError()) == "OSError"
    assert reason_of(ValueError("a\x1b[2Jb\nc")) == "a\N{REPLACEMENT CHARACTER}[2Jb"


def _in_cache(model: Path, cache: Path) -> Path:
    """Put a model where the hub's client keeps what it fetched, and return its snapshot."""
    commit, repository = "0" * 39 + "1", cache / "models--someone--model"
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_what_the_hub_brought_is_held_to_the_same(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = _in_cache(model, tmp_path)
    source = resolve("someone/model", None, "student.source")
    assert source.kind == "hub"
    load(source, None, None, "student.source", dtype=torch.float32)
    (snapshot / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/other"}')
    with pytest.raises(MmedgeError, match="someone/model has an adapter beside its weights"):
        load(source, None, None, "student.source", dtype=torch.float32)
    (snapshot / "adapter_config.json").unlink()
    _indexed(snapshot, "real.bin", lambda weights, place: torch.save(weights, place))
    with pytest.raises(MmedgeError, match=r"is in 'real\.bin'"):
        load(source, None, None, "student.source", dtype=torch.float32)
    (snapshot / INDEX).unlink()
    _indexed_again(snapshot)
    assert check_place("someone/model", None) == snapshot.name
    load(source, None, None, "student.source", dtype=torch.float32)


def _indexed_again(snapshot: Path) -> None:
    (snapshot / "other.safetensors").rename(snapshot / WHOLE)
    _indexed(snapshot, "shard.safetensors", lambda weights, place: save_file(weights, place, metadata={"format": "pt"}))
