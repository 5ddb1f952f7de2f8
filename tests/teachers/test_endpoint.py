"""The collector's transport: whole responses from servers of all kinds, kept connections, proxies, certificates, deadlines."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.openai import ChatFailure, ChatProtocol, ChatReply
from mmedge.teachers.base import SampleRequest
from mmedge.teachers.endpoint import EndpointTeacher
from tests.certificates import certificate_in
from tests.teachers.endpoint import Endpoint, completion

KEY = "sk-secret-0123456789abcdef"
REQUEST = SampleRequest((("system", "Be brief."), ("user", "What is 3 + 4?")), wanted=1, seed=17, max_tokens=64)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def ask(url: str, *requests: SampleRequest, timeout: float = 5.0, pause: float = 0.0) -> list[ChatReply]:
    """Ask an endpoint, one request after the other."""

    async def ask_all() -> list[ChatReply]:
        async with EndpointTeacher(ChatProtocol(url, "m", "TEST_KEY"), timeout=timeout) as teacher:
            replies = []
            for request in requests or (REQUEST,):
                replies.append(await teacher.sample(request))
                await asyncio.sleep(pause)
            return replies

    return asyncio.run(ask_all())


def test_a_request_arrives_and_its_reply_is_read() -> None:
    with Endpoint() as endpoint:
        (reply,) = ask(endpoint.url, REQUEST._replace(wanted=3))
        asked = endpoint.served[0]
    assert asked["messages"][1] == {"role": "user", "content": "What is 3 + 4?"} and (asked["n"], asked["seed"]) == (3, 17)
    assert f"Authorization: Bearer {KEY}" in asked["_head"]
    assert len(reply.completions) == 3 and (reply.prompt_tokens, reply.completion_tokens, reply.estimated) == (100, 60, False)


def test_a_request_is_sent_again_without_a_parameter_that_the_endpoint_refuses() -> None:
    def strict(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        return (400, {}, b'{"error": {"message": "n must be 1"}}') if "n" in asked else None

    with Endpoint(handler=strict) as endpoint:
        replies = ask(endpoint.url, REQUEST._replace(wanted=4), REQUEST._replace(wanted=4))
        assert [len(reply.completions) for reply in replies] == [1, 1] and len(endpoint.served) == 3


def test_how_many_tokens_a_prompt_has_at_most_is_learned_from_what_the_endpoint_counts() -> None:
    teacher = EndpointTeacher(ChatProtocol("http://host/v1", "m"))
    assert teacher.most_tokens((("user", "ab\u00fc"),)) == 4 + 8  # its bytes, before anything is known

    async def most_after(url: str) -> int:
        async with EndpointTeacher(ChatProtocol(url, "m")) as asked:
            await asked.sample(REQUEST)
            return asked.most_tokens((("user", "x" * 230),))

    with Endpoint() as endpoint:  # 100 tokens for 23 characters
        assert asyncio.run(most_after(endpoint.url)) == int(230 * 100 / 23 * 1.1) + 8


def test_no_redirect_is_followed() -> None:
    with Endpoint() as target, Endpoint(handler=lambda _: (307, {"Location": target.url}, b"")) as endpoint:
        with pytest.raises(MmedgeError, match="follows no redirects"):
            ask(endpoint.url)
        assert target.served == []


def test_a_reply_that_does_not_come_is_not_waited_for_forever() -> None:
    with Endpoint(delay=30) as endpoint, pytest.raises(ChatFailure, match="timeout") as caught:
        ask(endpoint.url, timeout=0.2)
    assert caught.value.overloaded


def test_nobody_listening_and_no_such_host() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://no.such.host.invalid/v1"):
        with pytest.raises(ChatFailure, match="unreachable"):
            ask(url)


class _RawServer:
    """Answers one request of every connection with given bytes, then closes it.

    Args:
        answers: One for each connection.
        tls: Encrypts.
        linger: Close when a second request has come, and not before.
        parting: What is said to that one.
    """

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None, linger: bool = False, parting: bytes = b"") -> None:
        self._answers, self._tls, self._linger, self._parting = answers, tls, linger, parting
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
                if self._linger:
                    connection.recv(65536)
                    connection.sendall(self._parting)
                connection.close()
            except OSError:
                continue


def reply_of(url: str) -> str:
    return ask(url)[0].completions[0].text


OK = completion("ok")
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK


def test_bodies_in_all_the_ways_that_http_has() -> None:
    middle = len(OK) // 2
    halves = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in (OK[:middle], OK[middle:]))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + halves + b"0\r\n\r\n"
    until_end = b"HTTP/1.0 200 OK\r\n\r\n" + OK
    after_100 = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
    for answer in (PLAIN, chunked, until_end, after_100):
        with _RawServer(answer) as server:
            assert reply_of(f"http://127.0.0.1:{server.port}") == "ok", answer


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
def test_half_a_response_is_none(answer: bytes, kind: str) -> None:
    with _RawServer(answer) as server, pytest.raises(ChatFailure) as caught:
        ask(f"http://127.0.0.1:{server.port}")
    assert caught.value.status == kind and "\n" not in str(caught.value)


def test_a_connection_that_the_server_closed_while_idle_costs_no_request() -> None:
    with _RawServer(PLAIN, PLAIN) as server:
        assert len(ask(f"http://127.0.0.1:{server.port}", REQUEST, REQUEST, pause=0.05)) == 2


def test_a_connection_that_dies_when_it_is_used_again_costs_no_request() -> None:
    """The server closes as the second request arrives, without an answer: it never saw it."""
    with _RawServer(PLAIN, PLAIN, linger=True) as server:
        assert len(ask(f"http://127.0.0.1:{server.port}", REQUEST, REQUEST)) == 2
        assert len(server.heads) == 2


def test_a_connection_that_dies_with_half_a_response_is_not_tried_again() -> None:
    with _RawServer(PLAIN, PLAIN, linger=True, parting=b"HTTP/1.1 200 OK\r\nContent-Le") as server:
        with pytest.raises(ChatFailure, match="dropped"):
            ask(f"http://127.0.0.1:{server.port}", REQUEST, REQUEST)
        assert len(server.heads) == 1


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with _RawServer(PLAIN) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "localhost")
        assert reply_of("http://far.away.invalid/v1") == "ok"
    assert proxy.heads[0].startswith("POST http://far.away.invalid/v1/chat/completions HTTP/1.1")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]


def test_a_certificate_that_nobody_signed_is_refused_and_one_that_is_trusted_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_in(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with _RawServer(PLAIN, PLAIN, tls=tls) as server:
        with pytest.raises(MmedgeError, match="certificate is not trusted"):
            ask(f"https://localhost:{server.port}/v1")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert reply_of(f"https://localhost:{server.port}") == "ok"
