"""Models out of GGUF files: a table that the file holds twice is one again, two different tables stay two."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from mmedge.errors import MmedgeError
from mmedge.export.gguf import write_gguf
from mmedge.students import gguf_files
from mmedge.students.sources import load, resolve


def two_tables(tiny_llama: Path, folder: Path, spread: float) -> Path:
    """Write a student whose head is its embedding and noise of `spread` times its size."""
    shutil.copytree(tiny_llama, folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    table = model.get_input_embeddings().weight.detach()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(table + spread * table.std() * torch.randn_like(table))
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    return folder


@pytest.mark.parametrize(("spread", "tied"), [(0.04, True), (1.0, False)])
def test_a_table_held_twice_is_one(spread: float, tied: bool, tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(two_tables(tiny_llama, tmp_path / "student", spread), tmp_path / "student.gguf", "F32")
    source = resolve(str(tmp_path / "student.gguf"), None, "student.source")
    model, _ = load(source, None, None, "student.source", dtype=torch.float32)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert model.config.tie_word_embeddings is tied
    model.save_pretrained(tmp_path / "saved")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert (read.lm_head.weight is read.model.embed_tokens.weight) is tied


@pytest.mark.parametrize(("embedding", "head"), [(5, 8), (8, 5)])
def test_the_finer_rounding_is_kept(embedding: int, head: int, tiny_llama: Path, tmp_path: Path) -> None:
    student = two_tables(tiny_llama, tmp_path / "student", 0.04)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    tables = {"token_embd.weight": model.model.embed_tokens.weight.clone(), "output.weight": model.lm_head.weight.clone()}
    sizes = {"token_embd.weight": embedding, "output.weight": head}
    held = [SimpleNamespace(name=name, n_bytes=bits * 100, n_elements=800) for name, bits in sizes.items()]
    gguf_files._tie_same_table(model, SimpleNamespace(tensors=held))
    finer = max(sizes, key=lambda name: sizes[name])
    assert torch.equal(model.lm_head.weight, tables[finer]) and model.lm_head.weight is model.model.embed_tokens.weight


def test_a_file_that_lies_about_its_layers_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    place = tmp_path / "student.gguf"
    write_gguf(tiny_llama, place, "F32")
    whole = place.read_bytes()
    at = whole.index(b"llama.block_count") + len("llama.block_count") + 4
    for layers, complaint in (
        (1 << 31, r"student\.gguf: num_hidden_layers must be a whole number from 1 to 1024"),
        (struct.unpack("<I", whole[at : at + 4])[0] + 1, "the weights lack model.layers"),
    ):
        place.write_bytes(whole[:at] + struct.pack("<I", layers) + whole[at + 4 :])
        with pytest.raises(MmedgeError, match=complaint):
            load(resolve(str(place), None, "student.source"), None, None, "student.source", dtype=torch.float32)


def test_an_adapter_beside_a_file_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tiny_llama, tmp_path / "student.gguf", "F32")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MmedgeError, match="has an adapter beside its weights"):
        load(resolve(str(tmp_path / "student.gguf"), None, "student.source"), None, None, "student.source", dtype=torch.float32)
