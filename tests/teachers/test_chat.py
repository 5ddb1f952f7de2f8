"""The endpoint as its many implementations behave: what counts as a whole answer, what is asked again, what is hopeless."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.teachers.asking import AskingFailed, Call, Reply
from mmedge.teachers.endpoint import ChatEndpoint
from mmedge.teachers.http import HttpClient, HttpFailure
from tests.teachers.endpoint import Endpoint, completion

KEY = "sk-secret-0123456789abcdef"
CALL = Call((("system", "Be brief."), ("user", "What is 3 + 4?")), wanted=1, seed=17, max_tokens=64)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def ask(endpoint: Endpoint | str, call: Call = CALL, **settings: Any) -> Reply:
    """Ask once."""

    async def once() -> Reply:
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        async with ChatEndpoint(url, "m", "TEST_KEY", **settings) as chat:
            return await chat.write(call)

    return asyncio.run(once())


def answers(status: int, body: bytes, **headers: str) -> Endpoint:
    return Endpoint(handler=lambda _: (status, headers, body))


def test_a_request_carries_what_the_api_asks_for() -> None:
    with Endpoint() as endpoint:
        reply = ask(endpoint, CALL._replace(wanted=3), top_p=0.9, stop=("\n\nQ:",), extra={"reasoning_effort": "low"})
        asked = endpoint.served[0]
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
    expected = {"model": "m", "n": 3, "seed": 17, "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "stream": False}
    assert {name: asked[name] for name in expected} == expected
    assert asked["stop"] == ["\n\nQ:"] and asked["reasoning_effort"] == "low"
    assert f"Authorization: Bearer {KEY}" in asked["_head"]
    assert len(reply.texts) == 3 and (reply.prompt_tokens, reply.completion_tokens, reply.estimated) == (100, 60, False)


def test_counts_of_tokens_that_cannot_be_are_estimated() -> None:
    for count in (-5, 10**30, "many", True, 1.5):
        body = completion("fine", usage={"prompt_tokens": count, "completion_tokens": 3})
        with answers(200, body) as endpoint:
            reply = ask(endpoint)
        assert reply.estimated and 0 < reply.prompt_tokens < 100


def test_unusual_text_comes_through_unchanged() -> None:
    odd = 'Quotes " and \\ and \u2028 and 😀 and \u0000 and {question}'
    with answers(200, completion(odd)) as endpoint:
        assert ask(endpoint, CALL._replace(messages=(("user", odd),))).texts[0].text == odd
        assert endpoint.served[0]["messages"][0]["content"] == odd


def _stream(*events: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return ("".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


def _piece(content: str | None = None, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content} if content else {}, "finish_reason": finish}]}


def test_a_stream_that_nobody_asked_for_is_read() -> None:
    body = _stream(_piece("The answer "), _piece("is 7."), _piece(finish="stop"))
    with answers(200, body, **{"Content-Type": "text/event-stream"}) as endpoint:
        reply = ask(endpoint)
    assert [(text.text, text.finish) for text in reply.texts] == [("The answer is 7.", "stop")]
    assert reply.estimated


@pytest.mark.parametrize(
    "body",
    [
        _stream(_piece("The answer "), done=False),
        _stream(_piece("The answer "), _piece("is 7."), done=False)[:-9],
        b"data: {broken\n\ndata: [DONE]\n\n",
        b"data: [DONE]\n\n",
    ],
)
def test_a_stream_that_ends_early_is_no_answer(body: bytes) -> None:
    with answers(200, body, **{"Content-Type": "text/event-stream"}) as endpoint, pytest.raises(AskingFailed, match="garbage"):
        ask(endpoint)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "old style"}]}',
        b"[" * 100_000,
        completion("fine")[:-20],
        completion("fine").replace(b"fine", b"f\xff\xfe"),
    ],
)
def test_a_body_that_is_no_whole_answer_is_asked_for_again(body: bytes) -> None:
    with answers(200, body) as endpoint, pytest.raises(AskingFailed) as caught:
        ask(endpoint)
    assert caught.value.status == "garbage" and not caught.value.rejected


def test_an_error_that_comes_as_a_success_is_one_and_hides_the_key() -> None:
    for body in (json.dumps({"error": {"message": f"overloaded, {KEY}"}}).encode(), _stream({"error": f"overloaded {KEY}"})):
        with answers(200, body) as endpoint, pytest.raises(AskingFailed) as caught:
            ask(endpoint)
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
        with answers(200, body) as endpoint:
            text = ask(endpoint).texts[0]
        assert (text.text, text.finish) == expected


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
    with answers(status, b"{}", **headers) as endpoint, pytest.raises(AskingFailed) as caught:
        ask(endpoint)
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
        (402, "Insufficient balance", "must be paid"),
        (301, "moved", "does not follow"),
    ],
)
def test_trouble_that_stays_is_one_clear_error_without_the_key(status: int, said: str, complaint: str) -> None:
    body = json.dumps({"error": {"message": said, "code": said.split(":")[0]}}).encode()
    with answers(status, body, Location="http://elsewhere/") as endpoint, pytest.raises(MmedgeError) as caught:
        ask(endpoint)
    shown = str(caught.value)
    assert complaint in shown and "→" in shown
    assert KEY not in shown and "sk-secre" not in shown and "cdef" not in shown


def test_parameters_that_the_endpoint_refuses_are_left_out_or_renamed() -> None:
    def strict(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        if "max_tokens" in asked:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return 400, {}, json.dumps({"error": {"message": said, "param": "max_tokens"}}).encode()
        if "seed" in asked:
            return 422, {}, json.dumps({"detail": [{"loc": ["body", "seed"], "msg": "'seed' is unknown"}]}).encode()
        if "n" in asked:
            return 400, {}, json.dumps({"error": {"message": "n must be 1"}}).encode()
        return None

    with Endpoint(handler=strict) as endpoint:
        reply = ask(endpoint, CALL._replace(wanted=4))
        asked = endpoint.served[-1]
    assert len(reply.texts) == 1 and asked["max_completion_tokens"] == 64 and "seed" not in asked


def test_a_request_that_is_wrong_in_itself_is_not_repeated() -> None:
    body = b'{"error": {"message": "This model\'s maximum context length is 2048 tokens. However, you requested 5000 tokens."}}'
    with answers(400, body) as endpoint, pytest.raises(AskingFailed) as caught:
        ask(endpoint)
    assert caught.value.rejected and "maximum context length" in caught.value.detail


def test_an_answer_that_does_not_come_is_not_waited_for_forever() -> None:
    with Endpoint(delay=30) as endpoint, pytest.raises(AskingFailed, match="timeout"):
        ask(endpoint, timeout=0.2)


def test_nobody_listening_and_no_such_host() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://no.such.host.invalid/v1"):
        with pytest.raises(AskingFailed, match="unreachable"):
            ask(url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost:8000", "no http or https address"),
        ("ftp://localhost/v1", "no http or https address"),
        ("http://localhost:99999/v1", "no http or https address"),
        ("http://local host/v1", "no http or https address"),
        ("http://me:secret@localhost/v1", "a password in the address"),
    ],
)
def test_an_address_that_is_none(url: str, complaint: str) -> None:
    with pytest.raises(MmedgeError, match=complaint):
        ChatEndpoint(url, "m", None)


def test_a_missing_or_broken_key_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint() as endpoint:
        for value in ("", "two\nlines"):
            monkeypatch.setenv("TEST_KEY", value)
            with pytest.raises(MmedgeError, match="TEST_KEY"):
                ask(endpoint)
        assert endpoint.served == []


class _RawServer:
    """Answers every connection with the same bytes, then closes it, or goes on to another request."""

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._answers, self._tls = answers, tls
        self.heads: list[str] = []

    def __enter__(self) -> _RawServer:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._socket.accept()
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                self.heads.append(connection.recv(65536).decode("latin-1"))
                connection.sendall(answer)
                connection.close()
            except OSError:
                continue


def fetch(url: str) -> Any:
    async def once() -> Any:
        async with HttpClient(url) as http:
            return await http.post("/x", "", b"{}", 5)

    return asyncio.run(once())


def test_bodies_in_all_the_ways_that_http_has() -> None:
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"
    until_end = b"HTTP/1.0 200 OK\r\n\r\nok"
    after_100 = b"HTTP/1.1 100 Continue\r\n\r\n" + plain
    for answer in (plain, chunked, until_end, after_100):
        with _RawServer(answer) as server:
            response = fetch(f"http://127.0.0.1:{server.port}")
        assert (response.status, response.body) == (200, b"ok"), answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "dropped"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf", "dropped"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf", "dropped"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "dropped"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (40 << 20), "garbage"),
    ],
)
def test_half_an_answer_is_none(answer: bytes, kind: str) -> None:
    with _RawServer(answer) as server, pytest.raises(HttpFailure) as caught:
        fetch(f"http://127.0.0.1:{server.port}")
    assert caught.value.kind == kind


def test_a_connection_that_the_server_closed_while_idle_costs_no_request() -> None:
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def twice(url: str) -> list[bytes]:
        async with HttpClient(url) as http:
            first = await http.post("/x", "", b"{}", 5)
            await asyncio.sleep(0.05)
            return [first.body, (await http.post("/x", "", b"{}", 5)).body]

    with _RawServer(plain, plain) as server:
        assert asyncio.run(twice(f"http://127.0.0.1:{server.port}")) == [b"ok", b"ok"]


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with _RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "localhost")
        assert fetch("http://far.away.invalid/v1").body == b"ok"
    assert proxy.heads[0].startswith("POST http://far.away.invalid:80/v1/x HTTP/1.1")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]


def test_a_certificate_that_nobody_signed_is_refused_and_one_that_is_trusted_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = _certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with _RawServer(plain, plain, tls=tls) as server:
        with pytest.raises(MmedgeError, match="certificate is not trusted"):
            ask(f"https://localhost:{server.port}/v1")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://localhost:{server.port}").body == b"ok"


def _certificate(folder: Path) -> Path:
    """Make a certificate for localhost that signs itself."""
    path = folder / "localhost.pem"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here to make a certificate with")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(path), "-out", str(folder / "c.pem")]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names], capture_output=True, check=True)
    path.write_bytes(path.read_bytes() + (folder / "c.pem").read_bytes())
    return path
