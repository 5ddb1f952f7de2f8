"""Chats are byte for byte what transformers makes of them, and a student learns and answers in its model's chat."""

from __future__ import annotations

import dataclasses
import datetime
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from mmedge.engines.bundles import open_speaker
from mmedge.engines.torch_decoding import TorchEngine
from mmedge.errors import MmedgeError
from mmedge.export.graphs import copy_configs, write_fused
from mmedge.recipe import StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.saved import open_student, save_student
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.prompts import Context
from tests.bundles import bundle_of
from tests.chat_templates import ADDED, CHATML, MISTRAL, QWEN3, TEMPLATES, TOKENS

TEXTS = (
    "Turn off the lights",
    " spaces ",
    "",
    "Zürich\n東京 🎉",
    "quotes \" ' \\ {{ x }} {% if %}",
    "<|im_end|>",
    "<b>&amp;</b>",
    "a\tb",
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|end|>"}


def some_tools(rng: random.Random) -> list[dict[str, Any]] | None:
    if rng.random() < 0.6:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": rng.choice(TEXTS),
                "parameters": {
                    "type": "object",
                    "properties": {"room": {"type": "string"}, "n": {"type": "number"}},
                    "required": ["room"],
                },
            },
        }
        for name in rng.sample(["switch", "dim", "ärger"], rng.randint(1, 3))
    ]


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Return a conversation: perhaps a system message, one to four turns, perhaps tool calls, reasoning, and what is None."""
    found: list[dict[str, Any]] = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.4 else []
    for turn in range(rng.randint(1, 4)):
        found.append({"role": "user", "content": rng.choice(TEXTS)})
        if turn and rng.random() < 0.3:
            call = {"name": "switch", "arguments": rng.choice([{"room": "Küche", "n": 1.5}, {}])}
            found.append(
                {"role": "assistant", "content": rng.choice(["", None]), "tool_calls": [{"type": "function", "function": call}]}
            )
            found.append({"role": "tool", "content": rng.choice(TEXTS), "name": "switch"})
        found.append({"role": "assistant", "content": rng.choice([*TEXTS, "<think>\nwell\n</think>\n\nyes"])})
        if rng.random() < 0.2:
            found[-1][rng.choice(["reasoning_content", "thinking", "reasoning"])] = rng.choice(TEXTS)
    return found[: -1 if rng.random() < 0.7 else None]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A tokenizer of transformers whose special tokens are named as ours."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.add_special_tokens(list(SPECIAL.values()))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_two_hundred_conversations_are_rendered_as_transformers_renders_them(name: str, theirs: Any) -> None:
    chat = ChatTemplate(TEMPLATES[name], SPECIAL, date=datetime.date.today().isoformat())
    rng, refused = random.Random(7), 0
    for _ in range(200):
        messages, tools, prompt = conversation(rng), some_tools(rng), rng.random() < 0.7
        settings = {"enable_thinking": rng.random() < 0.5} if rng.random() < 0.5 else {}
        given: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt, **settings}
        try:
            expected = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **given)
        except Exception:
            refused += 1
            with pytest.raises(MmedgeError):
                chat.render(messages, **given)
            continue
        assert chat.render(messages, **given) == expected
    assert refused < 180


def instruct(folder: Path, template: str | None) -> Path:
    """Write a small Llama whose byte-level tokenizer has a chat template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(TOKENS))
    backend.add_tokens(list(ADDED))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    tokenizer.chat_template = template
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, eos_token_id=5
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_reads_questions_in_its_models_chat_and_still_does_when_it_is_opened_again(tmp_path: Path) -> None:
    section = StudentSection(source=str(instruct(tmp_path / "model", CHATML)), prompt="chat", system="Be brief.")
    student = load_student(section, resolve_source(section), 200, [], 0)
    context = student.encoder.context(Context("Dim the lamp"))
    text = student.tokenizer.decode(context)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nDim the lamp<|im_end|>\n<|im_start|>assistant\n"
    end = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert student.encoder.special.eos == end and student.encoder.target("yes", 9)[-1] == end
    assert student.tokenizer.decode(student.encoder.begun("explain", Context(""))) == "explain:"
    save_student(student, tmp_path / "student", {}, [])
    again = open_student(tmp_path / "student")
    assert again.encoder.chat == student.encoder.chat and again.encoder.prompts == student.encoder.prompts
    assert again.encoder.context(Context("Dim the lamp")) == context


def test_a_thinking_models_rationales_are_its_reasoning(tmp_path: Path) -> None:
    section = StudentSection(source=str(instruct(tmp_path, QWEN3)), prompt="chat")
    student = load_student(section, resolve_source(section), 200, [], 0)
    assert student.tokenizer.decode(student.encoder.prompt("explain", Context("Hm?")).begun) == "<think>\n"
    ids = [*student.encoder.target("Lamps are lights.", 50)]
    assert student.encoder.text(ids) == "Lamps are lights."


def test_what_has_no_chat_template_is_one_line(tmp_path: Path) -> None:
    section = StudentSection(source=str(instruct(tmp_path, None)), prompt="chat")
    with pytest.raises(MmedgeError, match=r"student\.prompt: chat, and the model's tokenizer has no chat template"):
        load_student(section, resolve_source(section), 200, [], 0)
    with pytest.raises(MmedgeError, match="a student from scratch has no chat template"):
        scratch = StudentSection(source="scratch", prompt="chat")
        load_student(scratch, resolve_source(scratch), 200, ["a"], 0)
    with pytest.raises(ValueError, match=r"system: requires student\.prompt: chat"):
        StudentSection(source="scratch", system="Be brief.")


def test_a_template_that_takes_no_system_message_says_so(tmp_path: Path) -> None:
    section = StudentSection(source=str(instruct(tmp_path, MISTRAL)), prompt="chat", system="Be brief.")
    with pytest.raises(MmedgeError, match="Only user and assistant roles are supported!"):
        load_student(section, resolve_source(section), 200, [], 0)


def test_a_bundle_reads_questions_in_the_same_chat_and_writes_the_same(tmp_path: Path) -> None:
    section = StudentSection(source=str(instruct(tmp_path / "model", CHATML)), prompt="chat", system="Be brief.")
    student = load_student(section, resolve_source(section), 200, [], 0)
    save_student(student, tmp_path / "student", {}, [])
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_fused(tmp_path / "student", folder)
    copy_configs(tmp_path / "student", folder)
    bundle = bundle_of(folder, student.encoder.special)
    stated = dataclasses.replace(bundle.manifest, max_input_tokens=200, prompts=student.encoder.prompts)
    speaker = open_speaker(dataclasses.replace(bundle, manifest=stated), 1)
    assert speaker.encoder.chat == student.encoder.chat
    prompts = [student.encoder.prompt("predict", Context(text)) for text in ("Dim the lamp", "Turn <|im_end|> off")]
    context = speaker.encoder.context(Context("Turn <|im_end|> off"))
    assert context == prompts[1].context
    assert speaker.engine.generate(prompts, 12).tokens == TorchEngine(student).generate(prompts, 12).tokens
