"""What the server replies: chats, completions, answers, streams; and what it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedge import Student
from tests.serve.conftest import LLAMA, T5
from tests.serve.running import JSON, QUESTION, Running

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
    early = server.chat(T5, stop=[" "]).json["choices"][0]
    assert " " not in early["message"]["content"] and early["mmedge"].get("value") in (None, early["message"]["content"])


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
    written = expected.written
    assert written is not None and written.rationale_tokens > 0 and written.evaluation_tokens > 0
    own = {"explain": True, "evaluate": True}
    for usage in (found["usage"], last["usage"], server.chat(model, mmedge=own).json["usage"]):
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        assert reasoning == written.rationale_tokens + written.evaluation_tokens
        assert usage["completion_tokens"] == len(written.tokens) + reasoning


def test_what_is_below_the_threshold_is_withheld(server: Running) -> None:
    choice = server.chat(T5, mmedge={"abstain_below": 1.0}).json["choices"][0]
    assert choice["message"]["content"] is None and " is below " in choice["message"]["refusal"]
    assert choice["mmedge"]["withheld"] and choice["mmedge"]["guess"]
    chunks = server.chat(T5, mmedge={"abstain_below": 1.0}, stream=True).events()[:-1]
    assert not any(chunk["choices"][0]["delta"].get("content") for _, chunk in chunks)
    assert chunks[-1][1]["choices"][0]["delta"]["refusal"]
    reply = server.post("/v1/answer", {"model": T5, "question": QUESTION, "abstain_below": 1.0})
    assert reply.json["answer"] is None and reply.json["withheld"] and reply.json["source"] == "student"
    assert reply.headers["x-mmedge-source"] == "student" and reply.headers["x-mmedge-withheld"] == "true"
    assert "x-mmedge-withheld" not in server.chat(T5).headers


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
    message = {"role": "user", "content": QUESTION, "tool_calls": None}
    assert server.post("/v1/chat/completions", {"model": T5, "messages": [message]}).status == 200


WRONG_OPTIONS: list[tuple[dict[str, object], str, str]] = [
    ({"target_accuracy": 0.9}, "target_accuracy", "not calibrated"),
    ({"max_withheld": 0.1}, "max_withheld", "not calibrated"),
    ({"abstain_field_below": 0.5}, "abstain_field_below", "no fields"),
    ({"max_withheld_by_field": {"name": 0.5}}, "max_withheld_by_field", "no fields"),
    ({"abstain_below": 0.5, "max_withheld": 0.1}, "max_withheld", "contradict each other"),
]


@pytest.mark.parametrize(("wanted", "param", "complaint"), WRONG_OPTIONS, ids=[param for _, param, _ in WRONG_OPTIONS])
def test_options_that_the_bundle_refuses_are_named_with_what_to_do(
    server: Running, wanted: dict[str, object], param: str, complaint: str
) -> None:
    asked: dict[str, dict[str, object]] = {
        "/v1/completions": {"prompt": QUESTION},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    }
    replies = [(server.post(path, {"model": T5, "mmedge": wanted} | body), "mmedge.") for path, body in asked.items()]
    for reply, within in [*replies, (server.post("/v1/answer", {"model": T5, "question": QUESTION} | wanted), "")]:
        assert reply.status == 400 and reply.error["param"] == f"{within}{param}" and complaint in reply.error["message"]
        assert "; give " in reply.error["message"]


@BOTH
def test_the_field_of_a_question_that_is_too_long_is_named(server: Running, model: str) -> None:
    asked: list[tuple[str, dict[str, object], str, str]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION * 20}]}, "messages", "mmedge.cut"),
        ("/v1/completions", {"prompt": ["x", QUESTION * 20]}, "prompt", "mmedge.cut"),
        ("/v1/answer", {"question": QUESTION * 20}, "question", "with cut"),
    ]
    for path, body, param, advice in asked:
        error = server.post(path, {"model": model} | body).error
        assert (error["code"], error["param"]) == ("context_length_exceeded", param) and advice in error["message"]


def test_messages_say_values_as_json_does(server: Running) -> None:
    wrong = {"echo": True, "store": True, "suffix": "x", "logit_bias": {"1": 2}, "modalities": ["audio"], "tool_choice": "auto"}
    for name, value in wrong.items():
        message = server.post("/v1/completions", {"model": T5, "prompt": QUESTION, name: value}).error["message"]
        assert not any(word in message for word in ("True", "False", "None", "'")), message
    assert "set it to false" in server.chat(T5, store=True).error["message"]
    assert 'set it to ["text"]' in server.chat(T5, modalities=["audio"]).error["message"]


NOT_JSON: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b'{"password": hunter2}', "line 1, column 14"),
    (b'{"a": 1,\n "hunter2": "x\ty"}', "line 2, column 15"),
    (b'{"a": "NaN",\n"b": NaN}', "line 2, column 6"),
    (b'{"a": -Infinity}', "line 1, column 7"),
    (b'{"a": 1.' + b"1" * 5000 + b',\n\n"b": ' + b"7" * 5000 + b"}", "line 3, column 6"),
    (b'{"hunter2":\n "\xff"}', "line 2, column 3"),
]


@pytest.mark.parametrize(("body", "place"), NOT_JSON, ids=[place for _, place in NOT_JSON])
def test_what_is_not_json_is_told_by_its_place_and_not_repeated(server: Running, body: bytes, place: str) -> None:
    error = server.ask("POST", "/v1/answer", body, JSON).error
    assert error["code"] == "invalid_json" and place in error["message"]
    assert "hunter2" not in error["message"] and "7777" not in error["message"]


def test_an_unknown_model_or_address_is_404(server: Running) -> None:
    assert server.chat("gpt-4").error["code"] == "model_not_found"
    assert server.get("/v1/nothing").error["type"] == "not_found_error"
    assert server.get("/v1/answer").status == 405
    assert server.post("/v1/chat/completions", {"messages": []}).error["param"] == "model"
