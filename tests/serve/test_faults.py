"""Malformed, hostile and broken requests: each ends in an error of the client's, in time, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.serve.conftest import LLAMA, T5
from tests.serve.running import JSON, QUESTION, Running

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/answer")
REQUESTS = 400  # in the quick suite
WHOLE = {
    "model": T5,
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 1.0,
    "n": 2,
    "seed": 1,
    "max_tokens": 4,
    "stop": ["x"],
    "logprobs": True,
    "mmedge": {"explain": True, "abstain_below": 0.5},
}
STRANGE: tuple[object, ...] = (
    None, True, -1, 0, 10**30, 1e308, "", "\x00", "\ud800", "é" * 300, [], {}, [[]], [None], {"a": {"b": []}}, "x" * 5000,
)  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    """Return a body that is wrong somewhere."""
    document: dict[str, object] = json.loads(json.dumps(WHOLE))
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*WHOLE, "prompt", "question", "tools", "response_format", "stream_options", "né"])
        document[name] = chance.choice(STRANGE)
    body = json.dumps(document).encode()
    kind = chance.randrange(6)
    if kind == 0:
        return body[: chance.randrange(len(body))]
    if kind == 1:
        place = chance.randrange(len(body))
        return body[:place] + bytes([chance.randrange(256)]) + body[place + 1 :]
    if kind == 2:
        return chance.randbytes(chance.randrange(200))
    return body


def test_hundreds_of_malformed_requests_end_in_client_errors(server: Running) -> None:
    chance = random.Random(0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    statuses = []
    for _ in range(REQUESTS):
        connection.request("POST", chance.choice(PATHS), mutated(chance), JSON)
        response = connection.getresponse()
        body = response.read()
        statuses.append(response.status)
        assert response.status < 500, body
        if response.status >= 400:
            assert json.loads(body)["error"]["message"] and b"Traceback" not in body
    connection.close()
    assert statuses.count(400) > REQUESTS / 2
    assert server.chat(T5).status == 200
    assert "Traceback" not in server.err.read_text(encoding="utf-8")
    assert not any("error" in line for line in server.log())


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"model": NaN}', b"\xff\xfe{}", b"", b"1", b'{"n": 1' + b"0" * 5000 + b"}"],
    ids=["lists", "objects", "nan", "utf-16", "empty", "number", "digits"],
)
def test_strange_json_is_400(server: Running, body: bytes) -> None:
    for path in PATHS:
        reply = server.ask("POST", path, body, JSON)
        assert reply.status == 400 and reply.error["type"] == "invalid_request_error"


RAW: list[bytes] = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\n\r\n",  # no Host
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
    b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # TLS where there is none
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]


@pytest.mark.parametrize("sent", RAW, ids=range(len(RAW)))
def test_what_is_hardly_http_is_refused(server: Running, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while part := connection.recv(65536):
                said += part
        except ConnectionResetError:
            pass
    assert not said or said.split()[1] in (b"200", b"400", b"401", b"404", b"408", b"415", b"421", b"431"), said[:100]
    assert b"Traceback" not in said and b"root:" not in said
    assert server.get("/healthz").status == 200


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def test_slow_and_vanishing_clients_harm_nobody(server: Running) -> None:
    whole = json.dumps({"model": LLAMA, "question": QUESTION * 20, "explain": True, "stream": True}).encode()

    def half(connection: socket.socket) -> None:
        connection.sendall(_head("/v1/answer", 1000) + b'{"model": ')

    def gone_at_once(connection: socket.socket) -> None:
        connection.sendall(_head("/v1/answer", len(whole)) + whole)

    def gone_while_it_is_written(connection: socket.socket) -> None:
        connection.sendall(_head("/v1/answer", len(whole)) + whole)
        connection.recv(50)

    def by_bytes(connection: socket.socket) -> None:
        for byte in b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Ty":
            connection.sendall(bytes([byte]))

    ways: list[Callable[[socket.socket], None]] = [half, gone_at_once, gone_while_it_is_written, by_bytes] * 8
    open_ = []
    for place, way in enumerate(ways):
        connection = socket.create_connection(("127.0.0.1", server.port), 10)
        way(connection)
        if place % 2:
            open_.append(connection)
        else:
            connection.close()
    expected = server.chat(T5).json["choices"][0]["message"]["content"]
    statuses = []

    def ask() -> None:
        reply = server.chat(T5)
        statuses.append((reply.status, reply.json["choices"][0]["message"]["content"]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [(200, expected)] * 8
    for connection in open_:
        connection.close()
    deadline = time.monotonic() + 10
    while server.metric("mmedge_running") + server.metric("mmedge_queue_length") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("mmedge_running") == 0 == server.metric("mmedge_queue_length")


def test_a_vanished_client_is_not_waited_for(server: Running) -> None:
    before = server.metric("mmedge_vanished_total")
    body = json.dumps({"model": LLAMA, "prompt": [QUESTION * 20] * 16}).encode()
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(_head("/v1/completions", len(body)) + body)
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while server.metric("mmedge_vanished_total") == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("mmedge_vanished_total") > before
