"""The teacher on this machine: seeds, batches, memory, number types, and the same recipe as for an endpoint."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mmedge.errors import MmedgeError
from mmedge.openai import ChatFailure, ChatReply
from mmedge.recipe import validate
from mmedge.teachers.base import SampleRequest
from mmedge.teachers.local import LocalTeacher, _SeededSampling
from tests.rigged_model import write_rigged_model
from tests.teachers.test_collector import collect, held, values

MESSAGES = [(("user", f"How many plums are {number} plums and {number + 1} plums?" * number),) for number in range(1, 7)]


def sample(teacher: LocalTeacher, *requests: SampleRequest) -> list[ChatReply | BaseException]:
    async def all_at_once() -> list[ChatReply | BaseException]:
        async with teacher:
            return await asyncio.gather(*map(teacher.sample, requests), return_exceptions=True)

    return asyncio.run(all_at_once())


def requests(max_tokens: int = 12) -> list[SampleRequest]:
    return [SampleRequest(messages, 1, 100 + number, max_tokens) for number, messages in enumerate(MESSAGES)]


def test_a_text_depends_on_its_prompt_and_seed_and_not_on_its_batch(tiny_llama: Path) -> None:
    together = sample(LocalTeacher(str(tiny_llama), batch_size=6), *requests())
    alone = sample(LocalTeacher(str(tiny_llama), batch_size=1), *reversed(requests()))[::-1]
    assert together == alone
    other = sample(
        LocalTeacher(str(tiny_llama), batch_size=6), *(request._replace(seed=request.seed + 50) for request in requests())
    )
    assert other != together
    greedy = [sample(LocalTeacher(str(tiny_llama), temperature=0), *requests()) for _ in range(2)]
    assert greedy[0] == greedy[1]
    for reply in together:
        assert isinstance(reply, ChatReply) and len(reply.completions) == 1
        assert 0 < reply.completion_tokens <= 12 and reply.prompt_tokens > 5 and not reply.estimated


def test_seeded_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])
    draws = 6000
    sampling = _SeededSampling(list(range(draws)), temperature=0.7, top_p=1.0)
    drawn = sampling(None, logits.repeat(draws, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=5) / draws
    assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=0.02)
    nucleus = _SeededSampling(list(range(draws)), temperature=0.7, top_p=0.75)
    assert set(nucleus(None, logits.repeat(draws, 1)).argmax(-1).tolist()) == {0}  # it has 0.76 alone


def test_a_batch_that_does_not_fit_is_halved_and_everything_is_written(tiny_llama: Path) -> None:
    teacher = LocalTeacher(str(tiny_llama), batch_size=6)
    sizes: list[int] = []

    async def all_at_once() -> list[ChatReply]:
        async with teacher:
            generate = teacher._model.generate

            def small_memory(input_ids: Any, **settings: Any) -> Any:
                sizes.append(len(input_ids))
                if len(input_ids) > 2:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return generate(input_ids=input_ids, **settings)

            teacher._model.generate = small_memory
            return await asyncio.gather(*map(teacher.sample, requests()))

    replies = asyncio.run(all_at_once())
    assert replies == sample(LocalTeacher(str(tiny_llama)), *requests())
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] or sizes == [6, 3, 2, 2, 2] or sizes[:2] == [6, 3]


def test_memory_that_is_too_small_for_one_prompt_is_one_error(tiny_llama: Path) -> None:
    teacher = LocalTeacher(str(tiny_llama))

    async def once() -> None:
        async with teacher:

            def no_memory(**_: Any) -> Any:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

            teacher._model.generate = no_memory
            await teacher.sample(requests()[0])

    with pytest.raises(MmedgeError, match="out of memory for a single prompt"):
        asyncio.run(once())


def test_a_prompt_that_the_model_has_no_room_for_is_rejected_alone(tiny_llama: Path) -> None:
    long = SampleRequest((("user", "plums " * 800),), 1, 1, 12)
    first, second = sample(LocalTeacher(str(tiny_llama)), long, requests()[0])
    assert isinstance(first, ChatFailure) and first.rejected and "context of 512" in first.detail
    assert isinstance(second, ChatReply)


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "nf4"}], ids=lambda s: "-".join(s.values())
)
def test_number_types(tiny_llama: Path, settings: dict[str, Any]) -> None:
    if "quantization" in settings:
        pytest.importorskip("bitsandbytes")
    replies = sample(LocalTeacher(str(tiny_llama), temperature=0, **settings), *requests())
    assert all(isinstance(reply, ChatReply) for reply in replies), replies


def test_texts_end_where_they_are_told_to(tiny_llama: Path) -> None:
    usual = sample(LocalTeacher(str(tiny_llama), temperature=2.0), *requests(24))
    assert all(isinstance(reply, ChatReply) for reply in usual)
    texts = [reply.completions[0].text for reply in usual if isinstance(reply, ChatReply)]
    stop = next(sign for text in texts for sign in text[1:] if sign.isascii() and sign.isprintable())
    cut = sample(LocalTeacher(str(tiny_llama), temperature=2.0, stop=(stop,)), *requests(24))
    for before, reply in zip(usual, cut, strict=True):
        assert isinstance(reply, ChatReply) and isinstance(before, ChatReply)
        text, finish = before.completions[0]
        assert reply.completions[0] == (text.split(stop)[0], "stop" if stop in text else finish)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"source": "/no/such/folder"}, "teacher.source: /no/such/folder is not a teacher"),
        ({"source": "package:no-such-package/x.gguf"}, "'no-such-package' is not installed"),
        ({"device": "cuda"}, "no CUDA device found"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_error(tiny_llama: Path, settings: dict[str, Any], complaint: str) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(MmedgeError, match=complaint):
        sample(LocalTeacher(**{"source": str(tiny_llama)} | settings), *requests())


def test_a_local_teacher_takes_the_place_of_an_endpoint_in_a_recipe(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = values("http://unused/")
    local = {"kind": "local", "source": str(tiny_llama), "cots_per_question": 2, "evaluations_per_cot": 1, "attempts": 2}
    short = {"max_cot_tokens": 8, "max_evaluation_tokens": 8, "batch_size": 8}
    (tmp_path / "cot.txt").write_text("=== user\n{question}")
    (tmp_path / "judge.txt").write_text("=== user\n{question} {cot}")
    prompts = {"cot": str(tmp_path / "cot.txt"), "evaluation": str(tmp_path / "judge.txt")}
    recipe["teacher"] = local | short | {"prompts": prompts}
    recipe["task"]["train"] = 4
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        found = collect(tmp_path / attempt, validate(recipe, "r"))
        # random weights write no answers; the texts are drawn, kept apart, and given up
        assert found.complete and found.given_up == 4 and found.requests == 16
    assert len(held(tmp_path / "one")["responses"]) == 4 * 4
    assert held(tmp_path / "one") == held(tmp_path / "two")


def test_a_whole_collection_by_a_local_teacher(tmp_path: Path) -> None:
    recipe = values("http://unused/")
    local = {"kind": "local", "source": str(write_rigged_model(tmp_path / "model")), "batch_size": 16, "attempts": 6}
    recipe["teacher"] = local | {"cots_per_question": 3, "evaluations_per_cot": 2, "max_cot_tokens": 40}
    recipe["task"]["train"] = 5
    found = collect(tmp_path, validate(recipe, "r"))
    assert found.complete and not found.given_up
    annotations = held(tmp_path)["annotations"]
    assert Counter(row[1] for row in annotations) == {"cot": 15, "evaluation": 30}
    assert len({(row[0], row[4]) for row in annotations if row[1] == "cot"}) == 15
    assert {row[6] for row in annotations} == {"model"}


def test_a_reasoning_block_keeps_its_marks_and_one_that_the_prompt_begins_is_seen(tmp_path: Path) -> None:
    from tests.chat_templates import QWEN3
    from tests.students.test_chat import instruct

    begins = QWEN3.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    texts = {}
    for name, template, thinking in (("may", QWEN3, None), ("must not", QWEN3, False), ("begun", begins, None)):
        folder = instruct(tmp_path / name, template)
        teacher = LocalTeacher(str(folder), temperature=0, thinking=thinking)

        async def read(teacher: LocalTeacher = teacher) -> str:
            async with teacher:
                prompt = teacher._prompt((("user", "Hm?"),))
                inside = teacher._tokenizer("why</think>because<|im_end|>", add_special_tokens=False)["input_ids"]
                return f"{teacher._tokenizer.decode(prompt)[-20:]}|{teacher._text(inside, prompt)}"

        texts[name] = asyncio.run(read())
    assert texts["may"].endswith("assistant\n|why</think>because")
    assert texts["must not"].endswith("</think>\n\n|why</think>because")
    assert texts["begun"].endswith("<think>\n|<think>why</think>because")
