"""Malformed, hostile and broken requests: each ends in an error of the client's, in time, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.serve.assault import assault, revealed
from tests.serve.conftest import LLAMA, T5
from tests.serve.malformed import KEY, head
from tests.serve.running import JSON, QUESTION, Running, serving

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/answer")
REQUESTS = 300  # in the quick suite; `heavy` sends 10,000


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, llama_run: Path) -> Iterator[Running]:
    """A server with a key and short times."""
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "keys").write_text(KEY, encoding="utf-8")
    bundles = [tiny_run / "bundle-int8", llama_run / "bundle-int8"]
    with serving(folder, bundles, "--api-key-file", folder / "keys", "--body-timeout", 1, "--timeout", 10) as running:
        yield replace(running, key=KEY)


def test_hundreds_of_malformed_requests_end_as_they_should(attacked: Running) -> None:
    found = assault(attacked, seed=0, count=REQUESTS, crowd=20)
    assert not found.problems, (len(found.problems), found.problems[:5])
    assert not found.harmed and found.answered > 10
    assert found.statuses[400] > REQUESTS / 2 and sum(found.statuses.values()) == REQUESTS
    logs = attacked.out.read_text(encoding="utf-8") + attacked.err.read_text(encoding="utf-8")
    assert not revealed(logs, "passwd", "apples") and not any("error" in line for line in attacked.log())
    assert attacked.err.read_text(encoding="utf-8").count("\n") == 1


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
    whole = json.dumps({"model": LLAMA, "question": QUESTION * 20, "cut": True, "explain": True, "stream": True}).encode()

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
    body = json.dumps({"model": LLAMA, "prompt": [QUESTION * 20] * 16, "mmedge": {"cut": True}}).encode()
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(_head("/v1/completions", len(body)) + body)
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while server.metric("mmedge_vanished_total") == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("mmedge_vanished_total") > before


def _closed_within(connection: socket.socket, seconds: float) -> bool:
    """Read until the server closes a connection; whether it does in time."""
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 20):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def _until_closed(connection: socket.socket, piece: bytes, seconds: float) -> float:
    """Send a piece again and again; return the seconds until the server has closed the connection."""
    started = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - started < seconds:
            connection.sendall(piece)
            time.sleep(0.02)
    return time.monotonic() - started


def test_who_does_not_read_is_not_waited_for(attacked: Running) -> None:
    """A client that asks again and again and reads nothing would keep its answers in memory, and its place, for ever."""
    one = head("/metrics", method="GET")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", attacked.port))
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(one * 100)  # until the server reads no more, as it cannot write
        assert _until_closed(connection, b"x", 10) < 5


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/nothing", KEY, b"404"), ("/v1/answer", None, b"401"), ("/metrics", KEY, b"405")]
)
def test_the_rest_of_a_refused_body_is_not_read_for_ever(attacked: Running, path: str, key: str | None, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", attacked.port), 10) as connection:
        connection.sendall(head(path, "Content-Length: 1000000000000", key=key))
        assert status in connection.recv(1000)
        assert _until_closed(connection, b" " * 1000, 10) < 5


def test_a_body_that_is_too_large_is_not_asked_for(attacked: Running) -> None:
    with socket.create_connection(("127.0.0.1", attacked.port), 10) as connection:
        connection.sendall(head("/v1/answer", "Content-Length: 100000000", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    body = json.dumps({"model": T5, "question": QUESTION}).encode()
    with socket.create_connection(("127.0.0.1", attacked.port), 10) as connection:
        connection.sendall(head("/v1/answer", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "unfinished"])
@pytest.mark.parametrize("size", [40_000, 300_000, 3_000_000])
def test_a_head_that_is_too_large_is_431(attacked: Running, size: int, whole: bool) -> None:
    lines = "".join(f"X-{number}: y\r\n" for number in range(size // 10))
    sent = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n{lines}".encode()
    with socket.create_connection(("127.0.0.1", attacked.port), 10) as connection:
        connection.sendall(sent + (b"\r\n" if whole else b""))
        said = b""
        while b"headers_too_large" not in said and (part := connection.recv(1000)):
            said += part
    assert said.startswith(b"HTTP/1.1 431 ") and b"headers_too_large" in said
    assert attacked.get(f"/v1/models?{'q' * 40_000}").status == 431


def test_what_is_no_request_is_logged_by_what_it_was_told(tmp_path: Path, tiny_run: Path) -> None:
    chunked = "Transfer-Encoding: chunked"
    cases = [
        (b"nonsense\r\n\r\n", 400, "other"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 50_000, 431, "other"),
        (b"GET / HT", 408, "other"),
        (head("/v1/answer", chunked) + b"ZZ\r\n", 400, "/v1/answer"),
        (head("/v1/answer", chunked) + b"5\r\n{    XX", 400, "/v1/answer"),
        (head("/v1/answer", chunked), 408, "/v1/answer"),
    ]
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--body-timeout", 0.5) as running:
        for sent, status, _ in cases:
            with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
                connection.sendall(sent)
                assert connection.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())
        with socket.create_connection(("127.0.0.1", running.port), 10) as connection:  # its second part comes later
            connection.sendall(head("/v1/answer", chunked) + b"1\r\n{\r\n")
            time.sleep(0.1)
            connection.sendall(b"ZZ\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert running.metric("mmedge_vanished_total") == 0
        with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
            connection.sendall(head("/v1/answer", chunked) + b"1\r\n{\r\n")
            time.sleep(0.1)
        lines = running.log(len(cases) + 3)
        assert not [line for line in lines if "error" in line]
        lines = [line for line in lines if line["route"] != "/metrics"]
    expected = [*((status, route) for _, status, route in cases), (400, "/v1/answer"), (499, "/v1/answer")]
    assert [(line["status"], line["route"]) for line in lines] == expected


def test_who_is_gone_before_it_is_refused_is_no_error(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"]) as running:
        for place in range(200):
            with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                if place % 2:
                    assert connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        assert running.get("/healthz").status == 200 and len(running.log(51)) > 50
        assert not [line for line in running.log() if "error" in line]


def test_pipelined_requests_are_answered_in_turn_and_nonsense_behind_them_ends_the_connection(attacked: Running) -> None:
    with socket.create_connection(("127.0.0.1", attacked.port), 10) as connection:
        connection.sendall(head("/v1/models", method="GET") + head("/nothing", method="GET") + b"nonsense\r\n\r\n")
        said = b""
        while part := connection.recv(65536):
            said += part
    assert re.findall(rb"HTTP/1\.1 (\d+) ", said) == [b"200", b"404", b"400"]


def test_a_crowd_of_idle_connections_keeps_nobody_out(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--max-clients", 4) as running:
        idle = [socket.create_connection(("127.0.0.1", running.port), 10) for _ in range(200)]
        for one in idle:
            one.sendall(b"GET / HT")
        assert running.chat(T5).status == 200 and running.get("/healthz").status == 200
        assert _closed_within(idle[0], 2) and not _closed_within(idle[-1], 0.1)
        for one in idle:
            one.close()


@pytest.mark.parametrize("text", ["x", "a b ", "9", "Ann has 3 apples. ", "<|endoftext|>", " "], ids=repr)
def test_questions_of_a_megabyte_take_neither_memory_nor_time(attacked: Running, text: str) -> None:
    process, body = psutil.Process(attacked.process.pid), text * (900_000 // len(text))
    used, memory = process.cpu_times(), process.memory_info().rss
    for place in range(6):
        document = {"model": (T5, LLAMA)[place % 2], "question": f"How many? {body}", "explain": True}
        assert attacked.post("/v1/answer", {**document, "cut": True}).status == 200
        whole = attacked.post("/v1/answer", document)
        assert whole.status == 200 if text.isspace() else whole.error["code"] == "context_length_exceeded"
    now = process.cpu_times()
    assert now.user + now.system - used.user - used.system < 3
    assert process.memory_info().rss - memory < 60 << 20
