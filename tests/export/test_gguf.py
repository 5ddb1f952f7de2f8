"""Students as GGUF: what transformers reads out of the file is the student that was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.errors import MmedgeError
from mmedge.export.gguf import GgufFormat, write_gguf


def logits(folder: Path, file: str | None = None, config: Path | None = None) -> np.ndarray:
    """Return the logits of a few tokens, (tokens, vocabulary), by transformers; with another folder's config if given."""
    import torch
    import transformers

    more: dict[str, Any] = {"gguf_file": file} if file else {}
    if config:  # transformers reads Gemma's second rotary base out of no GGUF
        more["config"] = transformers.AutoConfig.from_pretrained(config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([[5, 9, 3, 100, 7]])).logits[0].numpy())


@pytest.mark.parametrize(("format_", "tolerance"), [("F32", 1e-5), ("F16", 5e-3), ("Q8_0", 5e-2)])
def test_what_is_read_back_is_the_student(format_: GgufFormat, tolerance: float, tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tiny_llama, tmp_path / "student.gguf", format_)
    expected, found = logits(tiny_llama), logits(tmp_path, "student.gguf")
    np.testing.assert_allclose(found, expected, atol=tolerance * float(np.abs(expected).max()))


SMALL: dict[str, object] = {
    "vocab_size": 407, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = SMALL | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
}


def other_kind(tiny_llama: Path, folder: Path, config: dict[str, object]) -> Path:
    """Write a small student of another kind, with no weight at the value that it begins with, and the same tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [SMALL | {"model_type": "qwen2"}, SMALL | {"model_type": "qwen3", "head_dim": 128}, GEMMA],
    ids=lambda one: str(one["model_type"]),
)
def test_other_kinds_are_read_back_too(config: dict[str, object], tiny_llama: Path, tmp_path: Path) -> None:
    student = other_kind(tiny_llama, tmp_path / "student", config)
    write_gguf(student, tmp_path / "student.gguf", "F32")
    expected, found = logits(student), logits(tmp_path, "student.gguf", student)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_rounded_files_are_smaller(tiny_llama: Path, tmp_path: Path) -> None:
    sizes = []
    for format_ in ("F32", "F16", "Q8_0", "Q4_0"):
        write_gguf(tiny_llama, tmp_path / format_, format_)
        sizes.append((tmp_path / format_).stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def changed(student: Path, folder: Path, **values: object) -> Path:
    """Return a copy of a student whose config differs."""
    shutil.copytree(student, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def test_another_rotary_base_and_scaling_are_in_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    both = {"rope_theta": 500.0, "rope_scaling": scaling, "rope_parameters": {"rope_theta": 500.0, **scaling}}  # 4.57's and 5.x's
    student = changed(tiny_llama, tmp_path / "student", **both)
    write_gguf(student, tmp_path / "student.gguf", "F32")
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "student.gguf")
    assert reader.fields["llama.rope.freq_base"].contents() == 500.0
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    assert factors.shape == (8,) and factors[0] == 1.0 and factors[-1] == pytest.approx(8.0)


def test_what_cannot_be_written_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    windowed = changed(tiny_llama, tmp_path / "windowed", model_type="mistral", sliding_window=128)
    with pytest.raises(MmedgeError, match="sliding windows cannot be written as GGUF"):
        write_gguf(windowed, tmp_path / "a.gguf")
    with pytest.raises(MmedgeError, match="model_type 'granite'"):
        write_gguf(changed(tiny_llama, tmp_path / "granite", model_type="granite"), tmp_path / "a.gguf")
    with pytest.raises(MmedgeError, match="layers of another order"):
        write_gguf(other_kind(tiny_llama, tmp_path / "gemma", GEMMA | {"layer_types": ["full_attention"] * 6}), tmp_path / "a.gguf")
    other = changed(tiny_llama, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": {"type": "Metaspace"}}))
    command = [sys.executable, "-m", "mmedge.export.gguf"]
    done = subprocess.run([*command, other, tmp_path / "a.gguf"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not a byte-level BPE" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.tmp"))
