"""The bigger model behind an endpoint, asked from the device: its transport, its deadline, and what becomes of bad replies."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmedge import Endpoint, Student
from mmedge.errors import MmedgeError
from mmedge.openai import Prices
from mmedge.tasks.base import Example
from mmedge.tasks.forms.expression import ExpressionForm
from tests.certificates import certificate_in
from tests.conftest import is_one_line_error, mmedge

FORM = ExpressionForm()


class _Handler(BaseHTTPRequestHandler):
    replies: ClassVar[list[tuple[int, bytes]]] = []
    seen: ClassVar[list[tuple[str | None, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append((self.headers.get("Authorization"), body))
        code, text = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"replies": [], "seen": []})
    found = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1", handler
    found.shutdown()
    found.server_close()


def _completion(text: str) -> bytes:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


QUESTION = Example("q", "Ann has 3 apples and buys 4 more. How many are there now?")


def test_an_endpoint_answers_in_the_tasks_form(
    tiny_run: Path, server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server
    monkeypatch.setenv("BIG_KEY", "secret-123")
    handler.replies = [(503, b"busy"), (200, _completion("She adds: 3 + 4 = 7.\nThe answer is: 3 + 4"))]
    bigger = Endpoint(url, "big", "BIG_KEY", prices=Prices(2.0, 10.0))
    student = Student.load(tiny_run / "bundle-int8")
    answer = student.answer(QUESTION, abstain_below=1.0, escalate_to=bigger)
    assert (answer.text, answer.value, answer.source) == ("3 + 4", "7", "big")
    assert answer.escalation is not None and answer.escalation.cost == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    assert [key for key, _ in handler.seen] == ["Bearer secret-123"] * 2
    assert "Ann has 3 apples" in handler.seen[0][1]["messages"][0]["content"]
    assert "secret" not in repr(bigger) and "secret" not in json.dumps(answer.to_json())
    handler.replies = [(401, b"{}")]
    answer = student.answer(QUESTION, abstain_below=1.0, escalate_to=bigger)
    assert answer.withheld and "refuses the key in BIG_KEY" in (answer.problem or "")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ((401, b"{}"), "status 401"),
        ((302, b""), "follows no redirects"),
        ((400, b"{}"), "rejected 400"),
        ((500, b"{}"), "server error 500"),
        ((200, b"<html>"), "not valid JSON"),
        ((200, b'{"choices": []}'), "no choices"),
        ((200, _completion("I do not know.")), "no answer found"),
        ((200, _completion("The answer is: " * 2000)), "far more than 512 tokens"),
        ((200, json.dumps({"choices": [{"message": {"content": None}}]}).encode()), "empty"),
    ],
)
def test_bad_replies_are_one_error_each(server: tuple[str, type[_Handler]], reply: tuple[int, bytes], complaint: str) -> None:
    url, handler = server
    handler.replies = [reply]
    with pytest.raises(MmedgeError, match=complaint):
        Endpoint(url, "big", attempts=1).ask(QUESTION, FORM)


def test_what_may_help_is_tried_again_and_nothing_else(server: tuple[str, type[_Handler]]) -> None:
    url, handler = server
    for replies, tries in (
        ([(429, b"{}"), (200, b"half"), (200, _completion("The answer is: 3 + 4"))], 3),
        ([(400, b"{}"), (200, _completion("The answer is: 3 + 4"))], 1),
        ([(400, b'{"error": "use max_completion_tokens"}'), (200, _completion("The answer is: 3 + 4"))], 2),
    ):
        handler.replies, handler.seen = [*replies, (500, b"")], []
        with contextlib.suppress(MmedgeError):
            assert Endpoint(url, "big").ask(QUESTION, FORM).text == "3 + 4"
        assert len(handler.seen) == tries
    assert "max_completion_tokens" in handler.seen[-1][1]


def test_a_run_that_continues_asks_again_what_no_bigger_model_answered(
    tiny_run: Path, tmp_path: Path, server: tuple[str, type[_Handler]]
) -> None:
    url, handler = server
    (tmp_path / "in.jsonl").write_text('{"question": "How many?"}\n' * 3)
    output = tmp_path / "out.jsonl"
    output.mkdir()  # so that the first run fails when all is answered, and leaves its journal
    more = ["--input", tmp_path / "in.jsonl", "--output", output, "--batch", "1", "--abstain-below", "1"]
    command = ["run", tiny_run / "bundle-int8", *more, "--escalate-to", url, "--escalate-model", "big"]
    good = (200, _completion("The answer is: 3 + 4"))
    handler.replies = [good, (401, b""), good]
    assert is_one_line_error(mmedge(*command))
    output.rmdir()
    handler.replies, handler.seen = [good], []
    assert mmedge(*command).code == 0
    assert [json.loads(line)["value"] for line in output.read_text().splitlines()] == ["7"] * 3 and len(handler.seen) == 1


@pytest.mark.parametrize(
    ("begun", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Another: header\r\n"),
        (b"", b"H"),
    ],
    ids=["body", "a header", "headers", "the first line"],
)
def test_a_reply_that_drips_ends_at_the_timeout(begun: bytes, drop: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(begun)
                while not ended.wait(0.05):
                    connection.sendall(drop)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            bigger = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "big", timeout=0.5, attempts=1)
            started = time.monotonic()
            with pytest.raises(MmedgeError, match=r"no complete reply within 0\.5 s"):
                bigger.ask(QUESTION, FORM)
            assert time.monotonic() - started < 3
        finally:
            ended.set()
            thread.join()


def test_a_name_that_takes_long_to_look_up_ends_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        looked_up.wait(10)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    with pytest.raises(MmedgeError, match=r"no complete reply within 0\.3 s"):
        Endpoint("http://far.away.invalid/v1", "big", timeout=0.3, attempts=1).ask(QUESTION, FORM)
    looked_up.set()
    assert time.monotonic() - started < 3


def test_a_reply_without_end_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pour() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b" " * (1 << 20))

        thread = threading.Thread(target=pour)
        thread.start()
        with pytest.raises(MmedgeError, match="larger than 32 MB"):
            Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "big", attempts=1).ask(QUESTION, FORM)
        thread.join()


def test_a_proxy_of_the_environment_is_used(server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = server
    handler.replies = [(200, _completion("The answer is: 3 + 4"))]
    monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "localhost")
    assert Endpoint("http://far.away.invalid/v1", "big").ask(QUESTION, FORM).text == "3 + 4"


def test_an_encrypted_endpoint_behind_a_proxy_is_reached_and_its_certificate_checked(
    tmp_path: Path, server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_in(tmp_path)
    _, handler = server
    handler.replies = [(200, _completion("The answer is: 3 + 4"))]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    secure = HTTPServer(("127.0.0.1", 0), handler)
    secure.socket = tls.wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    url = f"https://localhost:{secure.server_port}/v1"
    try:
        with pytest.raises(MmedgeError, match="certificate is not trusted"):
            Endpoint(url, "big").ask(QUESTION, FORM)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert Endpoint(url, "big").ask(QUESTION, FORM).text == "3 + 4"
        with _tunnel(secure.server_port) as (proxy, asked):
            monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{proxy}")
            monkeypatch.setenv("no_proxy", "nowhere")
            assert Endpoint(url, "big").ask(QUESTION, FORM).text == "3 + 4"
        assert asked[0].startswith(f"CONNECT localhost:{secure.server_port} HTTP/1.1\r\n") and "Basic dXNlcjpwQHNz" in asked[0]
    finally:
        secure.shutdown()
        secure.server_close()


@contextlib.contextmanager
def _tunnel(target: int) -> Iterator[tuple[int, list[str]]]:
    """A proxy that passes one connection on, and what it was asked."""
    asked: list[str] = []

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        near, _ = listening.accept()
        with near, socket.create_connection(("127.0.0.1", target)) as far:
            asked.append(near.recv(65536).decode())
            near.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            back = threading.Thread(target=copy, args=(far, near))
            back.start()
            copy(near, far)
            back.join()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], asked
        thread.join()
