"""Peers answer what the student itself answers: real libraries on small random students, those that are installed."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mmedge.engines import ctranslate2, genai, llama_cpp, optimum
from mmedge.engines.engine import Engine
from mmedge.engines.generation import Decoding
from mmedge.engines.peers import Peer, asked_as, check_vocabulary, student_beside
from mmedge.errors import MmedgeError
from mmedge.export.gguf import write_gguf
from mmedge.runtime.student import Student
from mmedge.tasks.encoding import Prompt, PromptEncoder, SpecialTokens, load_tokenizer
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS
from tests.conftest import made_once

LIMIT = 12
PEERS = {one.name: one for one in (optimum.PEER, llama_cpp.PEER, genai.PEER, ctranslate2.PEER)}


def peer(name: str) -> Peer:
    return PEERS[name]


@pytest.fixture(scope="module")
def llama_encoder(tiny_llama: Path) -> PromptEncoder:
    """How the small Llama is asked."""
    tokenizer = load_tokenizer(tiny_llama / "tokenizer.json")
    return PromptEncoder(tokenizer, "decoder-only", DECODER_ONLY_PROMPTS, SpecialTokens(eos=0, pad=0), 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_run: Path) -> dict[str, Path]:
    """Both small students as optimum exports them."""

    def make(folder: Path) -> None:
        from mmedge.export.foreign import write_foreign

        for name, student, family in (("llama", tiny_llama, "decoder-only"), ("t5", tiny_run / "student", "encoder-decoder")):
            (folder / name).mkdir()
            write_foreign("optimum", student, family, folder / name)  # type: ignore[arg-type]

    folder = made_once(tmp_path_factory, "optimum_exports", make)
    return {name: folder / name for name in ("llama", "t5")}


def greedy_by_torch(folder: Path, prompt: Prompt, limit: int, eos: int) -> list[int]:
    """Return what the student writes, by whole passes of transformers' own model: slow and without a cache."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [*prompt.context, *prompt.begun]
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < limit:
            token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
            if token == eos:
                break
            written.append(token)
    return written


def logits_by_torch(folder: Path, ids: list[int]) -> np.ndarray:
    """Return the logits of all positions, (tokens, vocabulary)."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy())


def prompts_of(encoder: PromptEncoder) -> list[Prompt]:
    """Return two prompts of unequal length."""
    questions = ("Ann has 3 apples.", "Leo begins with 64 books. Later 20 of the books break. How many are there?")
    return [encoder.prompt("predict", encoder.prompts.reasoning_context(question)) for question in questions]


def answers_as_torch_does(engine: Engine, folder: Path, encoder: PromptEncoder, tolerance: float) -> None:
    """Check answers, times, verdict logits and forced logits of a decoder-only peer against transformers."""
    prompts = prompts_of(encoder)
    found = engine.generate(prompts, LIMIT)
    assert found.tokens == [greedy_by_torch(folder, prompt, LIMIT, encoder.special.eos) for prompt in prompts]
    assert found.ended == [len(row) < LIMIT for row in found.tokens]
    assert 0 < found.time_to_first_token < found.seconds and found.steps >= 1
    target = [5, 9, 3]
    read = [*prompts[1].context, *prompts[1].begun]
    expected = logits_by_torch(folder, [*read, *target[:-1]])[-3:]
    np.testing.assert_allclose(engine.forced_logits(prompts[1], target), expected, atol=tolerance)
    both = engine.next_logits(prompts, [5])
    np.testing.assert_allclose(both[1], logits_by_torch(folder, [*read, 5])[-1], atol=tolerance)
    assert both.shape == (2, expected.shape[1])


@pytest.mark.optimum
def test_optimum_answers_as_a_decoder_only_student_does(
    exported: dict[str, Path], tiny_llama: Path, llama_encoder: PromptEncoder
) -> None:
    engine = peer("optimum").open(exported["llama"], llama_encoder, 1)
    answers_as_torch_does(engine, tiny_llama, llama_encoder, 1e-4)


def same_as_ours(engine: Engine, student: Student, encoder: PromptEncoder) -> None:
    """Check that a peer of an encoder-decoder answers as its bundle does, with beginnings of unequal length too."""
    prompts = prompts_of(encoder)
    prompts.append(encoder.prompt("explain", encoder.prompts.reasoning_context("How many apples?")))
    ours, theirs = student.speaker.engine.generate(prompts, LIMIT), engine.generate(prompts, LIMIT)
    assert theirs.tokens == ours.tokens and theirs.ended == ours.ended
    assert any(row for row in ours.tokens)
    begun, _ = encoder.verdict_tokens()
    np.testing.assert_allclose(engine.next_logits(prompts, begun), student.speaker.engine.next_logits(prompts, begun), atol=1e-3)
    for target in ([7], [7, 8, 9]):
        ours_forced = student.speaker.engine.forced_logits(prompts[0], target)
        np.testing.assert_allclose(engine.forced_logits(prompts[0], target), ours_forced, atol=1e-3)


@pytest.mark.optimum
def test_optimum_answers_as_an_encoder_decoder_does(exported: dict[str, Path], tiny_run: Path) -> None:
    student = Student.load(tiny_run / "bundle-fp32", 1)
    engine = peer("optimum").open(exported["t5"], student.speaker.encoder, 1)
    same_as_ours(engine, student, student.speaker.encoder)


@pytest.mark.optimum
def test_what_a_peer_does_not_do_is_refused(exported: dict[str, Path], llama_encoder: PromptEncoder) -> None:
    engine = peer("optimum").open(exported["llama"], llama_encoder, 1)
    with pytest.raises(MmedgeError, match="greedy"):
        engine.generate(prompts_of(llama_encoder), LIMIT, Decoding(temperature=0.7, seeds=(0, 1)))


def test_a_path_that_is_not_what_a_peer_needs_is_one_line(tmp_path: Path, llama_encoder: PromptEncoder) -> None:
    for kind, needs in (
        ("optimum", "ONNX export"),
        ("llama.cpp", "a GGUF file"),
        ("genai", "model builder"),
        ("ctranslate2", "converter"),
    ):
        with pytest.raises(MmedgeError, match=f"is not .*{needs}"):
            peer(kind).open(tmp_path / "none", llama_encoder, 1)


@pytest.mark.optimum
def test_a_folder_that_optimum_cannot_open_is_one_line(tmp_path: Path, llama_encoder: PromptEncoder) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MmedgeError, match=r"optimum:.* cannot be opened"):
        peer("optimum").open(tmp_path, llama_encoder, 1)


@pytest.mark.parametrize(
    ("kind", "module", "file"),
    [
        ("llama.cpp", "llama_cpp", "m.gguf"),
        ("genai", "onnxruntime_genai", "genai_config.json"),
        ("ctranslate2", "ctranslate2", "model.bin"),
    ],
)
def test_a_peer_that_is_not_installed_names_its_package(
    kind: str, module: str, file: str, tmp_path: Path, llama_encoder: PromptEncoder
) -> None:
    if find_spec(module):
        pytest.skip(f"{module} is installed here")
    (tmp_path / file).write_text("{}")
    with pytest.raises(MmedgeError, match=f"needs the package '{module}', which is not installed") as caught:
        peer(kind).open(tmp_path / file if kind == "llama.cpp" else tmp_path, llama_encoder, 1)
    assert caught.value.hint.startswith("pip install")


@pytest.mark.optimum
def test_another_vocabulary_is_refused(llama_encoder: PromptEncoder, exported: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(exported["llama"], tmp_path / "other")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, *more = list(words)
    tokenizer["model"]["vocab"] = {name: place for place, name in enumerate([first, *reversed(more)])}
    tokenizer["model"]["merges"] = []
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MmedgeError, match="a different vocabulary: token 1 is"):
        peer("optimum").open(tmp_path / "other", llama_encoder, 1)
    with pytest.raises(MmedgeError, match="a different vocabulary: 2 tokens"):
        check_vocabulary("optimum:x", ["a", "b"], llama_encoder)


@pytest.mark.optimum
def test_a_student_of_the_other_family_is_refused(exported: dict[str, Path], llama_encoder: PromptEncoder) -> None:
    with pytest.raises(MmedgeError, match="holds no decoder-only student"):
        peer("optimum").open(exported["t5"], llama_encoder, 1)


def test_how_a_peer_is_asked_says_the_student_or_bundle_beside_it(tiny_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "run" / "model.gguf"
    with pytest.raises(MmedgeError, match="no student or bundle beside it"):
        student_beside("llama.cpp", model)
    bundle = tiny_run / "bundle-int8"
    assert student_beside("llama.cpp", model, [bundle]) == bundle
    shutil.copytree(bundle, tmp_path / "run" / "bundle-int8")
    assert student_beside("llama.cpp", model) == tmp_path / "run" / "bundle-int8"
    assert student_beside("optimum", bundle) == bundle
    shutil.copytree(tiny_run / "student", tmp_path / "run" / "student")
    assert student_beside("llama.cpp", model, [bundle]) == tmp_path / "run" / "student"
    (ours, *limits), (theirs, *others) = asked_as(bundle), asked_as(tiny_run / "student")
    student = Student.load(bundle, 1)
    assert prompts_of(ours) == prompts_of(theirs) == prompts_of(student.speaker.encoder)
    assert limits == others and limits[0] == 12


# ----------------------------------------------------------------------------- with their real libraries, where these are installed


def test_ctranslate2_answers_as_a_decoder_only_student_does(tiny_llama: Path, llama_encoder: PromptEncoder, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    student = tmp_path / "student"
    shutil.copytree(tiny_llama, student)
    settings = json.loads((student / "tokenizer_config.json").read_text())
    named = {"bos_token": settings["eos_token"], "unk_token": settings["eos_token"]}  # CTranslate2 opens nothing without these
    (student / "tokenizer_config.json").write_text(json.dumps(settings | named))
    TransformersConverter(str(student)).convert(str(tmp_path / "ct2"))
    engine = peer("ctranslate2").open(tmp_path / "ct2", llama_encoder, 1)
    answers_as_torch_does(engine, tiny_llama, llama_encoder, 1e-3)


def test_ctranslate2_answers_as_an_encoder_decoder_does(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(tiny_run / "student")).convert(str(tmp_path / "ct2"))
    student = Student.load(tiny_run / "bundle-fp32", 1)
    engine = peer("ctranslate2").open(tmp_path / "ct2", student.speaker.encoder, 1)
    same_as_ours(engine, student, student.speaker.encoder)


@pytest.mark.optimum
def test_genai_answers_as_the_student_does(
    exported: dict[str, Path], tiny_llama: Path, llama_encoder: PromptEncoder, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = tmp_path / "genai"
    shutil.copytree(exported["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    decoder = {  # optimum's own graph has the inputs that onnxruntime-genai wants, once it is told their names
        "filename": "model.onnx",
        "head_size": width,
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "session_options": {"provider_options": []},
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }
    model = {
        "type": "llama",
        "context_length": 512,
        "vocab_size": config["vocab_size"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "decoder": decoder,
    }
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"max_length": 512}}))
    engine = peer("genai").open(folder, llama_encoder, 1)
    answers_as_torch_does(engine, tiny_llama, llama_encoder, 1e-3)


def test_llama_cpp_answers_as_the_student_does(tiny_llama: Path, llama_encoder: PromptEncoder, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    write_gguf(tiny_llama, tmp_path / "student.gguf", "F32")
    engine = peer("llama.cpp").open(tmp_path / "student.gguf", llama_encoder, 1)
    answers_as_torch_does(engine, tiny_llama, llama_encoder, 2e-2)  # its cache is float16
    sampled = [engine.generate(prompts_of(llama_encoder), LIMIT, Decoding(temperature=1.0, seeds=(3, 4))).tokens for _ in range(2)]
    assert sampled[0] == sampled[1]
