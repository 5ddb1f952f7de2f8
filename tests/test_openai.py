"""The chat protocol as its many implementations speak it: what counts as a whole reply, what is asked again, what is hopeless."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.openai import ChatFailure, ChatProtocol, ChatReply, HttpReply, Prices, proxy_for
from tests.teachers.endpoint import completion

KEY = "sk-secret-0123456789abcdef"
MESSAGES = (("system", "Be brief."), ("user", "What is 3 + 4?"))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def protocol(base_url: str = "http://host/v1", **settings: Any) -> ChatProtocol:
    return ChatProtocol(base_url, "m", "TEST_KEY", **settings)


def read(status: int, body: bytes, **headers: str) -> ChatReply:
    """Read a reply that is one."""
    found = protocol().read(HttpReply(status, {name.lower(): value for name, value in headers.items()}, body), MESSAGES)
    assert found is not None
    return found


def test_a_request_carries_what_the_api_asks_for() -> None:
    chat = protocol(top_p=0.9, stop=("\n\nQ:",), extra={"reasoning_effort": "low"})
    body = json.loads(chat.body(MESSAGES, 64, n=3, seed=17))
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
    expected = {"model": "m", "n": 3, "seed": 17, "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "stream": False}
    assert {name: body[name] for name in expected} == expected
    assert body["stop"] == ["\n\nQ:"] and body["reasoning_effort"] == "low"
    assert chat.headers()["Authorization"] == f"Bearer {KEY}" and KEY not in repr(vars(chat))
    assert protocol("http://host/v1/?version=2").url == "http://host/v1/chat/completions?version=2"
    plain = json.loads(ChatProtocol("http://host/v1", "m").body(MESSAGES, 64))
    assert not plain.keys() & {"n", "seed", "top_p", "stop"}
    assert "Authorization" not in ChatProtocol("http://host/v1", "m").headers()


def test_unusual_text_is_sent_and_read_unchanged() -> None:
    odd = 'Quotes " and \\ and \u2028 and 😀 and \u0000 and {question}'
    assert json.loads(protocol().body((("user", odd),), 64))["messages"][0]["content"] == odd
    assert read(200, completion(odd)).completions[0].text == odd


def test_tokens_are_those_that_the_endpoint_counts_and_estimated_where_its_counts_are_impossible() -> None:
    assert read(200, completion("a", "b"))[1:] == (100, 40, False)
    for count in (-5, 10**30, "many", True, 1.5, float("inf"), None):
        reply = read(200, completion("fine", usage={"prompt_tokens": count, "completion_tokens": 3}))
        assert reply.estimated and 0 < reply.prompt_tokens < 100 and reply.completion_tokens == 3


def test_what_tokens_cost() -> None:
    assert Prices(2.0, 10.0).cost(1000, 100) == pytest.approx(0.003)
    assert Prices(0.0, 1.0).known and not Prices().known


def _stream(*events: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return ("".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


def _part(content: str | None = None, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content} if content else {}, "finish_reason": finish}]}


def test_a_stream_that_nobody_asked_for_is_read() -> None:
    body = _stream(_part("The answer "), _part("is 7."), _part(finish="stop"))
    for headers in ({"Content-Type": "text/event-stream"}, {}):
        reply = read(200, body, **headers)
        assert [tuple(each) for each in reply.completions] == [("The answer is 7.", "stop")] and reply.estimated


@pytest.mark.parametrize(
    "body",
    [
        _stream(_part("The answer "), done=False),
        _stream(_part("The answer "), _part("is 7."), done=False)[:-9],
        b"data: {broken\n\ndata: [DONE]\n\n",
        b"data: [DONE]\n\n",
        b"",
        b"<html>welcome</html>",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "old style"}]}',
        b"[" * 100_000,
        completion("fine")[:-20],
        completion("fine").replace(b"fine", b"f\xff\xfe"),
    ],
)
def test_half_a_reply_is_asked_for_again(body: bytes) -> None:
    with pytest.raises(ChatFailure) as caught:
        read(200, body)
    assert caught.value.status == "garbage" and not caught.value.rejected


def test_an_error_that_comes_as_a_success_is_one_and_hides_the_key() -> None:
    for body in (json.dumps({"error": {"message": f"overloaded, {KEY}"}}).encode(), _stream({"error": f"overloaded {KEY}"})):
        with pytest.raises(ChatFailure) as caught:
            read(200, body)
        assert caught.value.status == "server error" and "overloaded" in caught.value.detail and KEY not in str(caught.value)


def test_how_a_text_ended_is_told_apart() -> None:
    refusal = {"choices": [{"message": {"content": None, "refusal": "I won't."}, "finish_reason": "stop"}]}
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}
    for body, expected in (
        (completion("cut", finish="length"), ("cut", "length")),
        (completion("", finish="content_filter"), ("", "content_filter")),
        (json.dumps(refusal).encode(), ("I won't.", "refusal")),
        (json.dumps(parts).encode(), ("ab", "stop")),
    ):
        assert tuple(read(200, body).completions[0]) == expected


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"Retry-After": "7"}, ("rate limited", 7.0, True)),
        (429, {"retry-after-ms": "1500"}, ("rate limited", 1.5, True)),
        (429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, ("rate limited", 0.0, True)),
        (429, {"Retry-After": "soon"}, ("rate limited", None, True)),
        (429, {"Retry-After": "99999999"}, ("rate limited", 600.0, True)),
        (429, {"Retry-After": "nan"}, ("rate limited", None, True)),
        (503, {}, ("server error 503", None, True)),
        (500, {}, ("server error 500", None, False)),
        (502, {}, ("server error 502", None, False)),
    ],
)
def test_trouble_that_passes(status: int, headers: dict[str, str], expected: tuple[str, float | None, bool]) -> None:
    with pytest.raises(ChatFailure) as caught:
        read(status, b"{}", **headers)
    failed = caught.value
    assert (failed.status, failed.retry_after, failed.overloaded) == expected and not failed.rejected


@pytest.mark.parametrize(
    ("status", "said", "complaint"),
    [
        (401, f"Incorrect API key provided: {KEY}", "refuses the key in TEST_KEY"),
        (401, "Incorrect API key provided: sk-secre***********cdef. Find it", "refuses the key in TEST_KEY"),
        (403, "no access", "refuses the key in TEST_KEY"),
        (404, "The model `m` does not exist", "does not know the model 'm'"),
        (400, "model_not_found: no such model", "does not know the model 'm'"),
        (429, "You exceeded your current quota", "quota"),
        (402, "Insufficient balance", "Insufficient balance"),
        (301, "moved", "follows no redirects"),
    ],
)
def test_trouble_that_stays_is_one_clear_error_without_the_key(status: int, said: str, complaint: str) -> None:
    body = json.dumps({"error": {"message": said, "code": said.split(":")[0]}}).encode()
    with pytest.raises(MmedgeError) as caught:
        read(status, body, Location="http://elsewhere/")
    shown = str(caught.value)
    assert complaint in shown and "→" in shown
    assert KEY not in shown and "sk-secre" not in shown and "cdef" not in shown


def test_parameters_that_the_endpoint_refuses_are_left_out_or_renamed() -> None:
    chat = protocol()
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    for status, refusal in (
        (400, {"error": {"message": said, "param": "max_tokens"}}),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "'seed' is unknown"}]}),
        (400, {"error": {"message": "n must be 1"}}),
    ):
        assert chat.read(HttpReply(status, {}, json.dumps(refusal).encode()), MESSAGES) is None
    body = json.loads(chat.body(MESSAGES, 64, n=4, seed=17))
    assert body["max_completion_tokens"] == 64 and not body.keys() & {"max_tokens", "seed", "n"}
    with pytest.raises(ChatFailure, match="rejected"):  # it does not help to leave out the same again
        chat.read(HttpReply(400, {}, b'{"error": {"message": "n must be 1"}}'), MESSAGES)


def test_a_request_that_is_wrong_in_itself_is_not_repeated() -> None:
    body = b'{"error": {"message": "This model\'s maximum context length is 2048 tokens. However, you requested 5000 tokens."}}'
    with pytest.raises(ChatFailure) as caught:
        read(400, body)
    assert caught.value.rejected and "maximum context length" in caught.value.detail


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost:8000", "invalid base URL 'localhost:8000'"),
        ("ftp://localhost/v1", "invalid base URL"),
        ("file:///etc/passwd", "invalid base URL"),
        ("http:///v1", "invalid base URL"),
        ("http://localhost:99999/v1", "invalid base URL"),
        ("http://local host/v1", "invalid base URL"),
        ("http://[::1/v1", "invalid base URL"),
        ("http://me:pass-word@localhost/v1", "carries a password or key"),
        ("http://me:pass-word@local host:99999/v1", "invalid base URL"),
        ("http://localhost/v1?api_key=pass-word", "carries a password or key"),
    ],
)
def test_an_address_that_is_invalid_or_carries_a_secret_is_refused_and_no_secret_is_shown(url: str, complaint: str) -> None:
    with pytest.raises(MmedgeError) as caught:
        ChatProtocol(url, "m")
    assert complaint in str(caught.value) and "pass-word" not in str(caught.value)


def test_a_missing_or_malformed_key_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("TEST_KEY", value)
        with pytest.raises(MmedgeError, match="TEST_KEY") as caught:
            protocol()
        assert not value or value not in str(caught.value)


def test_the_proxy_of_the_environment_is_used_unless_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.lan:3128")
    monkeypatch.setenv("no_proxy", "localhost,.lan")
    assert proxy_for("https://far.away/v1") == "http://proxy.lan:3128"
    assert proxy_for("https://near.lan:8000/v1") is None and proxy_for("http://far.away/v1") is None
    monkeypatch.setenv("https_proxy", "socks5://user:pass-word@proxy.lan")
    with pytest.raises(MmedgeError, match="unsupported proxy in https_proxy: socks5") as caught:
        proxy_for("https://far.away/v1")
    assert "pass-word" not in str(caught.value)


def test_half_a_character_is_replaced_and_two_halves_are_one() -> None:
    for said, found in (("a\\ud800b", "a\ufffdb"), ("\\ud83c\\udf4e", "🍎"), ("\\udf4e\\ud83c", "\ufffd\ufffd")):
        body = f'{{"choices": [{{"message": {{"content": "{said}"}}, "finish_reason": "stop"}}]}}'.encode()
        assert read(200, body).completions[0].text == found


def test_keys_are_hidden_in_an_endless_word_quickly() -> None:
    before = time.process_time()
    for word in ("9" * 500_000, "9" * 50_000 + "*" + "9" * 500_000, "." * 500_000, "*a" * 250_000):
        protocol().clean(f"{word} {KEY} sk-***cdef {word}")
    assert time.process_time() - before < 2
    assert protocol().clean(f"not {KEY}, sk-s...cdef or **** and 1... 2") == "not [key], [key] or [key] and 1... 2"
