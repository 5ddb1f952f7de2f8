"""Dialogues over HTTP: earlier turns reach the students that were trained with them, and no others."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from mmedge import Student
from tests.serve.conftest import CALLS, TALKS, TOOLS
from tests.serve.running import Running

pytest.importorskip("llguidance")
FIRST: Any = {"role": "user", "content": "Buy 3 pears."}
CALL: Any = {"name": "BuyThings", "arguments": '{"thing": "pears", "count": 3}'}
CALLED: Any = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": CALL}]}
TALK: Any = [FIRST, CALLED, {"role": "tool", "tool_call_id": "c", "content": "done"}, {"role": "user", "content": "and apples"}]


def _tokens(reply: Any) -> int:
    return int(reply.json["usage"]["prompt_tokens"])


def test_a_client_sends_its_answer_back_as_it_came(structured: Running) -> None:
    client = openai.OpenAI(base_url=structured.url, api_key="none", max_retries=0)
    asked: Any = [FIRST]
    for question in ("and apples", "and more"):
        reply = client.chat.completions.create(model=TALKS, messages=asked, tools=[*TOOLS[:1], _wrapped(TOOLS[1])])
        asked += [reply.choices[0].message, {"role": "user", "content": question}]
        assert reply.choices[0].message.tool_calls
    chunks = list(client.chat.completions.create(model=TALKS, messages=asked, stream=True))
    assert any(chunk.choices[0].delta.content for chunk in chunks)


def _wrapped(function: Any) -> Any:
    return {"type": "function", "function": function}


def test_answers_are_those_of_python(structured: Running) -> None:
    student = Student.load(structured.out.parent / "talks")
    expected = student.answer(TALK, constrained=True)
    chat = structured.post("/v1/chat/completions", {"model": TALKS, "messages": TALK, "mmedge": {"constrained": True}})
    own = structured.post("/v1/answer", {"model": TALKS, "messages": TALK, "constrained": True})
    assert chat.json["choices"][0]["message"]["content"] == own.json["answer"] == expected.value
    single = structured.post("/v1/answer", {"model": TALKS, "question": TALK[-1]["content"]})
    assert _tokens(single) < _tokens(own) == _tokens(chat)
    long = structured.post("/v1/answer", {"model": TALKS, "messages": TALK[:2] * 30 + TALK, "constrained": True})
    assert long.json["left_out"] > 0 and "left_out" not in own.json


def test_models_say_which_read_dialogues(structured: Running) -> None:
    found = {one["id"]: one["mmedge"]["reads_dialogues"] for one in structured.get("/v1/models").json["data"]}
    assert found[TALKS] and not found[CALLS]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}, FIRST]}, "messages[0]"),
        ("/v1/chat/completions", {"messages": [FIRST, {"role": "robot", "content": "x"}, FIRST]}, "messages[1].role"),
        ("/v1/chat/completions", {"messages": [FIRST, CALLED]}, "messages[1]"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/answer", {"messages": TALK, "question": "and?"}, "messages"),
        ("/v1/answer", {"messages": "and?"}, "messages"),
        ("/v1/answer", {"model": CALLS, "messages": TALK}, "messages"),
        ("/v1/chat/completions", {"model": CALLS, "messages": TALK}, "messages"),
    ],
)
def test_what_is_no_dialogue_of_the_student_is_refused(structured: Running, path: str, body: dict[str, Any], param: str) -> None:
    reply = structured.post(path, {"model": TALKS} | body)
    assert reply.status == 400 and reply.error["param"] == param
