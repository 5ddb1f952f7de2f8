"""Schemas and tools: those of the bundle and no others; JSON and calls in OpenAI's shape, streamed too."""

from __future__ import annotations

import copy
import json
import random
import time
from typing import Any, Literal

import openai
import psutil
import pydantic
import pytest

from tests.serve.conftest import BOOK, BOOKS, CALLS, ROOMS, T5, TOOLS
from tests.serve.running import Running

pytest.importorskip("llguidance")
ASKED: Any = [{"role": "user", "content": "Buy 3 pears."}]
GIVEN: Any = [TOOLS[0], {"type": "function", "function": {**TOOLS[1], "strict": True}}][::-1]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "book", "strict": True, "schema": BOOK}}


class Book(pydantic.BaseModel):
    """What a client states as a class: another order of words, a title for each field."""

    model_config = pydantic.ConfigDict(extra="forbid")
    year: int = pydantic.Field(ge=1800, le=2000, description="of the first edition")
    title: Literal["Dune", "Emma"]


@pytest.fixture
def client(structured: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=structured.url, api_key="none", max_retries=0)


def _is_call(name: str, arguments: str) -> bool:
    given = json.loads(arguments)
    return name == "GoHome" or (name == "BuyThings" and given["thing"] in ("apples", "pears") and given.get("count", 1) < 100)


def _is_book(text: str | None) -> bool:
    found = json.loads(text or "")
    return list(found) == ["title", "year"] and found["title"] in ("Dune", "Emma") and 1800 <= found["year"] <= 2000


@pytest.mark.parametrize("choice", ["auto", "required", openai.omit])
def test_answers_come_as_tool_calls(client: openai.OpenAI, choice: Any) -> None:
    reply = client.chat.completions.create(model=CALLS, messages=ASKED, tools=GIVEN, tool_choice=choice)
    (one,) = reply.choices[0].message.tool_calls or []
    assert one.type == "function" and one.id.startswith("call_") and reply.choices[0].finish_reason == "tool_calls"
    assert _is_call(one.function.name, one.function.arguments) and reply.choices[0].message.content is None
    again = client.chat.completions.create(model=CALLS, messages=ASKED, extra_body={"mmedge": {"constrained": True}})
    said = json.loads(again.choices[0].message.content or "")
    assert said == {"name": one.function.name, "arguments": json.loads(one.function.arguments)}


def test_tool_calls_are_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=CALLS, messages=ASKED, tools=GIVEN, parallel_tool_calls=False) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds and _is_call(call.function.name, call.function.arguments)
    samples = client.chat.completions.create(model=CALLS, messages=ASKED, tools=GIVEN, n=3, temperature=1.0, seed=1)
    assert all(len(choice.message.tool_calls or []) == 1 for choice in samples.choices)


@pytest.mark.parametrize("wanted", [SCHEMA, {"type": "json_object"}, Book], ids=["schema", "object", "class"])
def test_answers_come_as_json(client: openai.OpenAI, wanted: Any) -> None:
    if wanted is Book:
        parsed = client.chat.completions.parse(model=BOOKS, messages=ASKED, response_format=Book)
        assert isinstance(parsed.choices[0].message.parsed, Book)
        return
    whole = client.chat.completions.create(model=BOOKS, messages=ASKED, response_format=wanted)
    assert _is_book(whole.choices[0].message.content) and whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model=BOOKS, messages=ASKED, response_format=wanted, stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert texts == [whole.choices[0].message.content]


def _changed(document: Any, *path: Any, to: Any) -> Any:
    changed = place = copy.deepcopy(document)
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return changed


IN_SCHEMA = "response_format.json_schema.schema"
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    (CALLS, {"tools": TOOLS[:1]}, "tools"),
    (CALLS, {"tools": _changed(GIVEN, 1, "function", "name", to="SellThings")}, "tools"),
    (CALLS, {"tools": _changed(GIVEN, 1, "function", "parameters", "properties", "count", "maximum", to=100)}, "tools"),
    (CALLS, {"tools": "all"}, "tools"),
    (CALLS, {"tools": GIVEN, "tool_choice": "none"}, "tool_choice"),
    (CALLS, {"tools": GIVEN, "tool_choice": {"type": "function", "function": {"name": "GoHome"}}}, "tool_choice"),
    (CALLS, {"tool_choice": "required"}, "tool_choice"),
    (CALLS, {"tools": GIVEN, "mmedge": {"constrained": False}}, "mmedge.constrained"),
    (CALLS, {"response_format": SCHEMA}, "response_format"),
    (BOOKS, {"response_format": {"type": "json_schema"}}, IN_SCHEMA),
    (BOOKS, {"response_format": _changed(SCHEMA, "json_schema", "schema", "required", to=["title"])}, IN_SCHEMA),
    (BOOKS, {"response_format": _changed(SCHEMA, "json_schema", "schema", to={"$ref": "#"})}, IN_SCHEMA),
    (BOOKS, {"response_format": _changed(SCHEMA, "json_schema", "other", to=1)}, "response_format.json_schema.other"),
    (BOOKS, {"response_format": {"type": "grammar"}}, "response_format"),
    (BOOKS, {"tools": TOOLS}, "tools"),
    (BOOKS, {"stop": ["}"]}, "stop"),
    (BOOKS, {"logprobs": True}, "logprobs"),
    (BOOKS, {"response_format": SCHEMA, "max_tokens": 2}, "max_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "more", "param"), OTHERS, ids=range(len(OTHERS)))
def test_what_is_not_the_bundles_own_is_refused(structured: Running, model: str, more: dict[str, Any], param: str) -> None:
    reply = structured.post("/v1/chat/completions", {"model": model, "messages": ASKED} | more)
    assert reply.status == 400 and reply.error["param"] == param, reply.body
    if reply.error["code"].startswith("another_"):
        assert "GET /v1/models lists" in reply.error["message"] and len(reply.error["message"]) < 300


def test_the_function_that_is_another_is_named(structured: Running) -> None:
    own, fly = TOOLS[0], {"type": "function", "function": {"name": "Fly", "parameters": {"type": "object"}}}
    for tools, why in (
        (TOOLS[1:], "is missing"),
        ([*TOOLS, fly], "function 'Fly' is not among them"),
        ([own, 7, {"function": {"name": ["x"]}}], "is missing"),
    ):
        reply = structured.post("/v1/chat/completions", {"model": CALLS, "messages": ASKED, "tools": tools})
        assert reply.status == 400 and why in reply.error["message"], reply.body


def test_schemas_that_would_take_long_to_read_are_refused_at_once(structured: Running) -> None:
    grown: Any = {"$defs": {"a0": {"type": "string"}}, "$ref": "#/$defs/a20"}
    for number in range(20):
        grown["$defs"][f"a{number + 1}"] = {"anyOf": [{"$ref": f"#/$defs/a{number}"}] * 2}
    deep: Any = True
    for _ in range(300):
        deep = {"items": deep}
    slow = {"properties": {f"p{n}": {"pattern": "((b{100}){100}){99}" + "c" * n} for n in range(50)}}
    began = time.monotonic()
    for schema in (grown, deep, slow, {"pattern": "(a{1000}){1000}"}, [1], "x", 10**30):
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        reply = structured.post("/v1/chat/completions", {"model": BOOKS, "messages": ASKED, "response_format": wanted})
        assert reply.status == 400 and reply.error["code"] == "another_schema", reply.body
    assert time.monotonic() - began < 1


def test_each_field_has_a_confidence_and_may_be_why_an_answer_is_withheld(structured: Running) -> None:
    asked = {"model": BOOKS, "question": "Which book?", "constrained": True}
    found = structured.post("/v1/answer", asked).json
    assert found["fields"].keys() == {"title", "year"} and all(0 <= value <= 1 for value in found["fields"].values())
    withheld = structured.post("/v1/answer", asked | {"abstain_field_below": 1.0}).json
    assert withheld["withheld"] and withheld["answer"] is None and withheld["fields"] == found["fields"]
    by_name = [structured.post("/v1/answer", asked | {"abstain_field_below": {"year": level}}).json for level in (0.0, 1.0)]
    assert [one["withheld"] for one in by_name] == [False, found["fields"]["year"] < 1.0]
    assert json.loads(by_name[1]["guess"]).keys() == {"title", "year"}
    own = {"constrained": True, "abstain_field_below": 1.0}
    reply = structured.post("/v1/chat/completions", {"model": BOOKS, "messages": ASKED, "mmedge": own})
    assert "title 0.00 is below 1" in reply.json["choices"][0]["message"]["refusal"]


def test_labels_that_are_written_in_two_letters_are_read_whole(structured: Running) -> None:
    asked = {"model": "own/rooms", "constrained": True}
    reply = structured.post("/v1/answer", asked | {"question": "Where do we cook?", "probabilities": True})
    assert reply.status == 200, reply.body
    found = reply.json
    assert found["answer"] == found["value"] in ROOMS and set(found["probabilities"]) == set(ROOMS)
    chat = {"model": "own/rooms", "messages": [{"role": "user", "content": "Where do we cook?"}], "mmedge": {"constrained": True}}
    assert structured.post("/v1/chat/completions", chat).json["choices"][0]["message"]["content"] == found["value"]
    parts = [
        part for _, part in structured.post("/v1/chat/completions", chat | {"stream": True}).events() if isinstance(part, dict)
    ]
    said = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
    assert said == found["value"]
    refused = structured.post("/v1/chat/completions", chat | {"logprobs": True})
    assert refused.status == 400 and "writes a compact spelling" in refused.error["message"]


def test_a_rationale_that_was_never_learned_is_refused(structured: Running) -> None:
    assert structured.get(f"/v1/models/{CALLS}").json["mmedge"]["learned"] == []
    for wanted, complaint in (("explain", "learned answers alone"), ("evaluate", "did not learn to judge")):
        reply = structured.post("/v1/answer", {"model": CALLS, "question": "Buy 3 pears.", wanted: True})
        assert reply.status == 400 and complaint in reply.error["message"]


def test_schema_and_tools_are_listed(structured: Running, server: Running) -> None:
    assert structured.get(f"/v1/models/{CALLS}").json["mmedge"]["tools"] == TOOLS
    assert structured.get(f"/v1/models/{BOOKS}").json["mmedge"]["schema"] == BOOK
    assert server.get(f"/v1/models/{T5}").json["mmedge"].keys() & {"tools", "schema"} == set()


def _mutated(chance: random.Random, value: Any) -> Any:
    """Return a schema or definitions with parts that are something else."""
    if chance.random() < 0.1:
        return chance.choice([None, 1, "x", [], {}, -1, 1e308, 10**40, True, {"$ref": "#/x"}, {"$ref": "#"}, {"type": []}])
    if isinstance(value, list):
        return [_mutated(chance, one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _mutated(chance, one) for key, one in value.items()}
    if chance.random() < 0.2:
        keyword = chance.choice(["$ref", "pattern", "enum", "minimum", "items", "format", "const", "minLength", "type", "required"])
        found[keyword] = chance.choice([1, "x", "(", [], {}, -1, None, True, [[]], {"a": []}, "[" * 500, 2**70])
    return found


def test_whatever_a_schema_or_tools_hold_the_server_answers(structured: Running) -> None:
    chance = random.Random(0)
    for _ in range(150):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": _mutated(chance, BOOK)}}
        for model, more in ((BOOKS, {"response_format": schema}), (CALLS, {"tools": _mutated(chance, TOOLS)})):
            assert structured.post("/v1/chat/completions", {"model": model, "messages": ASKED, **more}).status in (200, 400), more
    assert not any("error" in line for line in structured.log())


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": list(range(100_000))},
        {"type": "object", "properties": {f"k{n}": {"enum": list(range(50))} for n in range(3000)}},
        {"const": "x" * 900_000},
        {"$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)}, "$ref": "#/$defs/0"},
    ],
    ids=["values", "members", "text", "references"],
)
def test_a_huge_schema_is_refused_before_it_is_compared(structured: Running, schema: Any) -> None:
    body = {
        "model": BOOKS,
        "messages": ASKED,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    before = _processor(structured)
    reply = structured.post("/v1/chat/completions", body)
    assert reply.status == 400 and reply.error["code"] == "another_schema"
    assert _processor(structured) - before < 0.5


def _processor(running: Running) -> float:
    times = psutil.Process(running.process.pid).cpu_times()
    return float(times.user + times.system)
