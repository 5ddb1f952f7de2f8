"""What the server replies: chats, completions, answers, streams; and what it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedge import Student
from tests.serve.conftest import LLAMA, T5
from tests.serve.running import QUESTION, Running

BOTH = pytest.mark.parametrize("model", [T5, LLAMA])


@pytest.fixture(scope="module")
def alone(tiny_run: Path, llama_run: Path) -> dict[str, Student]:
    return {T5: Student.load(tiny_run / "bundle-int8"), LLAMA: Student.load(llama_run / "bundle-int8")}


def test_models_are_listed_with_what_they_are(server: Running) -> None:
    listed = server.get("/v1/models").json
    assert [model["id"] for model in listed["data"]] == [T5, LLAMA]
    one = server.get(f"/v1/models/{T5}").json
    assert one == listed["data"][0] and one["mmedge"]["precision"] == "int8" and "expression" in one["mmedge"]["form"]
    assert server.get("/v1/models/gpt-4").error["code"] == "model_not_found"


@BOTH
def test_a_chat_answers_as_python_does(server: Running, alone: dict[str, Student], model: str) -> None:
    expected = alone[model].answer(QUESTION)
    reply = server.chat(model)
    found, (choice,) = reply.json, reply.json["choices"]
    assert reply.status == 200 and found["object"] == "chat.completion" and found["model"] == model
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["mmedge"]["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
    assert choice["mmedge"]["source"] == "student" == reply.headers["x-mmedge-source"]
    assert expected.written is not None and choice["logprobs"] is None
    assert choice["finish_reason"] == ("stop" if expected.written.ended else "length")
    usage = found["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (expected.written.prompt_tokens, len(expected.written.tokens))


@BOTH
def test_a_stream_comes_to_the_same(server: Running, model: str) -> None:
    whole = server.chat(model).json["choices"][0]
    reply = server.chat(model, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, (_, counted), (_, done) = reply.events()
    parts = [chunk["choices"][0] for _, chunk in chunks]
    assert done == "[DONE]" and counted["choices"] == [] and counted["usage"]["total_tokens"] > 0
    assert parts[0]["delta"]["role"] == "assistant" and parts[-1]["finish_reason"] == whole["finish_reason"]
    assert "".join(part["delta"].get("content") or "" for part in parts) == whole["message"]["content"]
    assert parts[-1]["mmedge"]["confidence"] == pytest.approx(whole["mmedge"]["confidence"], abs=1e-3)


@BOTH
@pytest.mark.parametrize("held", [False, True])
def test_a_stream_can_count_its_tokens_as_they_come(server: Running, model: str, held: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    more = {"mmedge": {"abstain_below": 0.0}} if held else {}
    *chunks, (_, counted), _ = server.chat(model, stream=True, stream_options=options, **more).events()
    running = [chunk["usage"] for _, chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    made = [one["completion_tokens"] for one in running]
    assert made == sorted(made) and {one["prompt_tokens"] for one in running} == {counted["usage"]["prompt_tokens"]}
    assert not made or (made[0] >= 1 and made[-1] <= counted["usage"]["completion_tokens"])
    assert all(one["total_tokens"] == one["prompt_tokens"] + one["completion_tokens"] for one in running)


@BOTH
def test_the_probabilities_of_tokens_come_where_they_are_asked_for(server: Running, alone: dict[str, Student], model: str) -> None:
    written = alone[model].answer(QUESTION).written
    assert written is not None
    tokens = server.chat(model, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in tokens] == pytest.approx(written.log_probabilities[: len(written.tokens)], abs=1e-3)
    found = server.post("/v1/completions", {"model": model, "prompt": QUESTION, "logprobs": 0}).json["choices"][0]
    assert "".join(found["logprobs"]["tokens"]).strip() == found["text"] == "".join(token["token"] for token in tokens).strip()


def test_a_seed_gives_the_same_samples(server: Running) -> None:
    def texts(**more: object) -> list[str]:
        found = server.chat(T5, temperature=1.5, n=4, **more).json
        return [choice["message"]["content"] for choice in found["choices"]]

    first = texts(seed=7)
    assert len(first) == 4 and first == texts(seed=7) != texts(seed=8) and len(set(first)) > 1
    streamed = [""] * 4
    for _, chunk in server.chat(T5, temperature=1.5, n=4, seed=7, stream=True).events()[:-1]:
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == first


def test_an_answer_ends_where_it_is_told(server: Running) -> None:
    whole = server.chat(LLAMA).json["choices"][0]["message"]["content"]
    short = server.chat(LLAMA, max_tokens=2).json
    assert short["usage"]["completion_tokens"] == 2 and short["choices"][0]["finish_reason"] == "length"
    assert whole.startswith(short["choices"][0]["message"]["content"])
    stop = whole[2:4]
    cut = server.chat(LLAMA, stop=[stop, "never there"]).json["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    chunks = server.chat(LLAMA, stop=stop, stream=True).events()[:-1]
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for _, chunk in chunks)
    assert streamed == cut["message"]["content"]


def test_several_prompts_are_as_many_choices(server: Running) -> None:
    found = server.post("/v1/completions", {"model": T5, "prompt": [QUESTION, "How many?"]}).json
    assert found["object"] == "text_completion" and [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["choices"][0]["text"] == server.chat(T5).json["choices"][0]["message"]["content"]


@BOTH
def test_answers_in_our_own_words(server: Running, alone: dict[str, Student], model: str) -> None:
    asked = {"model": model, "question": QUESTION, "explain": True, "evaluate": True}
    expected = alone[model].answer(QUESTION, explain=True, evaluate=True)
    found = server.post("/v1/answer", asked).json
    assert (found["answer"], found["rationale"], found["verdict"]) == (expected.text, expected.rationale, expected.verdict)
    *pieces, (name, last) = server.post("/v1/answer", asked | {"stream": True}).events()
    assert name == "answer" and last["answer"] == found["answer"]
    rationale = "".join(piece["text"] for _, piece in pieces if piece["part"] == "rationale")
    assert rationale == found["rationale"]


def test_what_is_below_the_threshold_is_withheld(server: Running) -> None:
    choice = server.chat(T5, mmedge={"abstain_below": 1.0}).json["choices"][0]
    assert choice["message"]["content"] is None and "below the threshold" in choice["message"]["refusal"]
    assert choice["mmedge"]["withheld"] and choice["mmedge"]["guess"]
    chunks = server.chat(T5, mmedge={"abstain_below": 1.0}, stream=True).events()[:-1]
    assert not any(chunk["choices"][0]["delta"].get("content") for _, chunk in chunks)
    assert chunks[-1][1]["choices"][0]["delta"]["refusal"]
    found = server.post("/v1/answer", {"model": T5, "question": QUESTION, "abstain_below": 1.0}).json
    assert found["answer"] is None and found["withheld"]


CANNOT: list[tuple[dict[str, object], str]] = [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"top_p": 0.5}, "top_p"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"n": 2}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"n": 17, "temperature": 1}, "n"),
    ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"nonsense": 1}, "nonsense"),
    ({"mmedge": {"nonsense": 1}}, "mmedge.nonsense"),
    ({"mmedge": {"abstain_below": 2}}, "mmedge.abstain_below"),
    ({"mmedge": {"choices": ["a", "b"]}}, "mmedge.choices"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "system", "content": "hi"}, {"role": "user", "content": "hi"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": []}]}, "messages[0].tool_calls"),
]


@pytest.mark.parametrize(("more", "param"), CANNOT, ids=[str(more)[:60] for more, _ in CANNOT])
def test_what_a_bundle_cannot_do_is_refused_by_name(server: Running, more: dict[str, object], param: str) -> None:
    reply = server.post("/v1/chat/completions", {"model": T5, "messages": [{"role": "user", "content": "hi"}]} | more)
    assert reply.status == 400 and reply.error["param"] == param and reply.error["type"] == "invalid_request_error"


def test_what_changes_nothing_is_accepted(server: Running) -> None:
    neutral = {"top_p": 1, "presence_penalty": 0, "logit_bias": {}, "tools": [], "store": False, "user": "u", "seed": None}
    assert server.chat(T5, response_format={"type": "text"}, n=1, temperature=0, **neutral).status == 200


def test_options_that_the_bundle_refuses_are_its_own_words(server: Running) -> None:
    reply = server.chat(T5, mmedge={"target_accuracy": 0.9})
    assert reply.status == 400 and "not calibrated" in reply.error["message"]


def test_an_unknown_model_or_address_is_404(server: Running) -> None:
    assert server.chat("gpt-4").error["code"] == "model_not_found"
    assert server.get("/v1/nothing").error["type"] == "not_found_error"
    assert server.get("/v1/answer").status == 405
    assert server.post("/v1/chat/completions", {"messages": []}).error["param"] == "model"
