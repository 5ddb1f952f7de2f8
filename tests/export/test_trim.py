"""Trimmed vocabularies: what the task needs is cut as before, anything else still encodes, and outputs are unchanged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmedge import Student
from mmedge.errors import MmedgeError
from mmedge.export.trim import trim
from mmedge.tasks.evaluation_set import read_evaluation_set
from tests.conftest import is_one_line_error, mmedge

WORDS = [
    "box",
    "boxes",
    "plum",
    "plums",
    "takes",
    "taken",
    "taking",
    "apple",
    "apples",
    "sells",
    "seller",
    "many",
    "more",
    "than",
    "how",
    "there",
    "then",
    "away",
    "gives",
    "given",
]
OTHER = ["unrelated vocabulary words stand here for nothing at all", "quantum mechanics of the strangest kind"] * 40
STRANGE = ["Ünïcödé çhars", "日本語のテキスト", "emoji 🙂🙃", "tab\tand\nnewline", "x" * 300, "\x00\x01", "Zq9#@!~"]


def _texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=8)) + f" {rng.randrange(1000)}." for _ in range(count)]


def _byte_pair() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(400, 0) + OTHER, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def _unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_texts(400, 0) + OTHER, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _trimmed(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> tuple[tokenizers.Tokenizer, Any]:
    used = {number for text in texts for number in tokenizer.encode(text).ids}
    found = trim(tokenizer.to_str(), used)
    return tokenizers.Tokenizer.from_str(json.dumps(found.tokenizer)), found


@pytest.mark.parametrize("make", [_byte_pair, _unigram])
def test_texts_of_the_task_are_cut_as_before(make: Any) -> None:
    whole, texts = make(), _texts(200, 1)
    small, found = _trimmed(whole, texts)
    assert small.get_vocab_size() == len(found.kept) < 0.9 * whole.get_vocab_size()
    for text in texts:
        before, after = whole.encode(text), small.encode(text)
        assert [found.kept[number] for number in after.ids] == before.ids
        assert after.tokens == before.tokens and small.decode(after.ids) == whole.decode(before.ids)


@pytest.mark.parametrize("text", STRANGE)
def test_a_text_that_needs_a_dropped_piece_still_encodes(text: str) -> None:
    small, _ = _trimmed(_byte_pair(), _texts(200, 1))
    assert small.decode(small.encode(text, add_special_tokens=False).ids) == text  # byte by byte, if need be
    unigram, _ = _trimmed(_unigram(), _texts(200, 1))
    assert unigram.encode("quantum words" + text).ids  # a character that was never seen is unknown, as it was before


def test_special_tokens_and_settings_are_renumbered() -> None:
    small, found = _trimmed(_byte_pair(), _texts(20, 1))
    assert small.encode("box").tokens[0] == "<s>" and small.token_to_id("</s>") == found.kept.index(1)
    far, last = found.kept[-1], len(found.kept) - 1
    settings = found.renumbered({"eos_token_id": far, "pad_token_id": [0, far], "vocab_size": 600, "bos": None, "hidden": 7})
    assert settings == {"eos_token_id": last, "pad_token_id": [0, last], "vocab_size": last + 1, "bos": None, "hidden": 7}


def test_another_kind_of_tokenizer_is_refused() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(MmedgeError, match="'WordLevel' cannot be trimmed"):
        trim(words.to_str(), {0})


@pytest.mark.parametrize("family", ["tiny_run", "llama_run"])
def test_a_trimmed_bundle_answers_as_the_whole_one(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(family)
    options = ("--fp32", "--max-accuracy-drop", "100", "--out", tmp_path)
    done = mmedge("export", run, "--int8", "--trim-vocab", *options)
    assert done.code == 0, done.err
    assert "tokens kept" in done.err
    questions = [item for split in read_evaluation_set(run / "evaluation.jsonl").questions.values() for item in split]
    whole, small = Student.load(run / "bundle-fp32"), Student.load(tmp_path / "bundle-fp32")
    vocabulary = small.bundle.manifest.vocabulary
    assert vocabulary is not None
    if family == "llama_run":  # the other's tokenizer was made of the task's own texts
        assert vocabulary.kept < vocabulary.of
        assert small.bundle.size < whole.bundle.size
    answers = [[answer.text for answer in student.answer_all(questions)] for student in (small, whole)]
    assert answers[0] == answers[1]
    assert json.loads((tmp_path / "bundle-fp32" / "config.json").read_text())["vocab_size"] == vocabulary.kept
    for text in STRANGE:
        assert small.answer(text)
    assert "already exported, kept" in mmedge("export", run, "--trim-vocab", *options).err
    other = mmedge("export", run, "--whole-vocab", *options)
    assert other.code == 0 and "already exported" not in other.err


def test_graphs_of_optimum_cannot_be_trimmed(tiny_run: Path, tmp_path: Path) -> None:
    found = mmedge("export", tiny_run, "--fp32", "--trim-vocab", "--graphs", "optimum", "--out", tmp_path)
    assert is_one_line_error(found) and "can have their vocabulary trimmed" in found.err
