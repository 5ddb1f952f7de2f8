"""Students: where they come from, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmedge.engines.torch_decoding import TorchEngine
from mmedge.errors import MmedgeError
from mmedge.recipe import ScratchSection, StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.saved import open_student, save_student
from mmedge.students.scratch import build_scratch, train_tokenizer
from mmedge.tasks.prompts import VERDICTS, Context
from tests.conftest import TINY_SCRATCH


def _resolve(source: object) -> None:
    resolve_source(StudentSection(source=str(source)))


def test_a_folder_without_weights_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(MmedgeError, match="has no weights"):
        _resolve(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(MmedgeError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        _resolve(tmp_path)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere/weights.gguf", "no such file"),
        ("./nowhere", "is not a student"),
        ("/nowhere/at all", "is not a student"),
        ("package:no-such-package/x.gguf", "is not installed"),
        ("package:numpy/x.gguf", "has no file"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, complaint: str) -> None:
    with pytest.raises(MmedgeError, match=complaint):
        _resolve(source)


def test_the_student_of_a_run_that_is_not_there_yet_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MmedgeError, match=r"no such folder: runs/a/student\n.*mmedge distill RECIPE --out runs/a$"):
        _resolve("runs/a/student")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").touch()
    with pytest.raises(MmedgeError, match=r"mmedge distill recipes/a\.yaml --out runs/a$"):
        _resolve("runs/a/student")


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MmedgeError, match=r"has no config\.json"):
        _resolve(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_error() -> None:
    section = StudentSection(source="google/t5-v1_1-base")
    with pytest.raises(MmedgeError, match=r"cannot load google/t5-v1_1-base.*\n.*check the id and that the hub"):
        load_student(section, resolve_source(section), 128, [], 0)


def test_quantized_weights_are_not_trained(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    section = StudentSection(source=str(folder))
    with pytest.raises(MmedgeError, match=r"quantized is quantized and cannot be trained\n.*name the model that it was made from"):
        load_student(section, resolve_source(section), 128, [], 0)


def test_weights_that_were_cut_off_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    section = StudentSection(source=str(broken))
    with pytest.raises(MmedgeError):
        load_student(section, resolve_source(section), 128, [], 0)


def test_a_tokenizer_from_scratch_reads_anything_and_gives_it_back() -> None:
    tokenizer = train_tokenizer(["predict: Luke has 84 points, 7 apples."] * 5, 300).backend_tokenizer
    for text in ("Luke has 84 points.", "( 17 + 15 ) * 230", "Grüße, 你好 🙂 !"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids).strip() == text


def test_verdicts_are_told_apart_by_one_token(tiny_llama: Path) -> None:
    section = StudentSection(source=str(tiny_llama))
    for student in (
        load_student(section, resolve_source(section), 128, [], 0),
        build_scratch(ScratchSection(**TINY_SCRATCH), ["words that are no verdict"], 128, 0),
    ):
        common, tokens = student.encoder.verdict_tokens()
        assert len(set(tokens)) == len(VERDICTS)
        for verdict, token in zip(VERDICTS, tokens, strict=True):
            assert student.encoder.target(verdict, 64)[: len(common) + 1] == [*common, token]


def test_a_saved_student_is_the_same_student(tmp_path: Path) -> None:
    student = build_scratch(ScratchSection(**TINY_SCRATCH), ["predict: explain: some text 1 2 3"], 96, 3)
    folder = tmp_path / "student"
    folder.mkdir()
    save_student(student, folder, {"recipe": {}, "metrics": {}}, [5, 6])
    again = open_student(folder)
    prompt = student.encoder.prompt("predict", Context("some text 1"))
    assert again.encoder.prompt("predict", Context("some text 1")) == prompt
    assert again.encoder.max_input_tokens == 96
    left, right = TorchEngine(student).forced_logits(prompt, [5, 6, 7]), TorchEngine(again).forced_logits(prompt, [5, 6, 7])
    assert (left == right).all()


def test_a_t5_v1_1_saved_by_transformers_5_is_the_same_model_in_4(tmp_path: Path) -> None:
    """5.x writes tie_word_embeddings: true beside a head of its own; read naively, 4.57 scales the logits."""
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path, safe_serialization=True)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    (tmp_path / "config.json").write_text(json.dumps(written))
    train_tokenizer(["some words 1 2 3"], 300).save_pretrained(tmp_path)
    section = StudentSection(source=str(tmp_path))
    again = load_student(section, resolve_source(section), 64, [], 0).model.eval()
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.allclose(again(input_ids=ids, decoder_input_ids=ids).logits, expected, atol=1e-6)
