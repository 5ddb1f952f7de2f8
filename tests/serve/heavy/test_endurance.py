"""Ten thousand malformed requests, bodies of a gigabyte, clients that vanish by the hundred, and a server that is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.serve.conftest import LLAMA, T5
from tests.serve.running import JSON, QUESTION, Running, serving
from tests.serve.test_faults import mutated

REQUESTS = 10_000
LATEST = 15.0  # seconds until a malformed request has ended
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/answer", "/v1/models", "/", "/metrics", "/healthz")
FINE = (b"200", b"400", b"401", b"404", b"405", b"408", b"413", b"415", b"421", b"431", b"501", b"503")


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, llama_run: Path) -> Iterator[Running]:
    bundles = [tiny_run / "bundle-int8", llama_run / "bundle-int8"]
    with serving(tmp_path_factory.mktemp("hard"), bundles, "--body-timeout", 1, "--timeout", 10, fresh=True) as running:
        yield running


def _head(path: str, length: object, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def _chunked(chance: random.Random, body: bytes) -> bytes:
    """Return a request in chunks, some of them wrong."""
    head = b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    sizes = [b"%x" % len(body), b"ZZ", b"-1", b"", b"fffffffffffffffff", b"%x;ext=1" % len(body), b"%x" % (len(body) + 5)]
    ends = [b"0\r\n\r\n", b"", b"0\r\n", b"1\r\n"]
    return head + chance.choice(sizes) + b"\r\n" + body + b"\r\n" + chance.choice(ends)


def _strange(chance: random.Random) -> bytes:
    """Return the bytes of a request that is wrong somewhere in its line, its headers, its framing or its body."""
    body, path = mutated(chance), chance.choice(PATHS)
    whole = _head(path, len(body)) + body
    kind = chance.randrange(9)
    if kind == 0:
        return _chunked(chance, body)
    if kind == 1:  # a byte of the head changed
        place = chance.randrange(60)
        return whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :]
    if kind == 2:
        return _head(path, chance.choice([-1, "x", 10**30, "5, 6", "0x10", ""])) + body
    if kind == 3:
        return _head(path, len(body), *(f"X-{n}: {'y' * chance.randrange(300)}" for n in range(chance.randrange(200)))) + body
    if kind == 4:
        return chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n"
    if kind == 5:
        strange = "".join(chance.choice("/.%\\~:;?#[]@!$&'()*+,= é\x01") for _ in range(chance.randrange(80)))
        return f"GET /{strange} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    if kind == 6:
        return whole.replace(b"POST", chance.choice([b"PUT", b"DELETE", b"post", b"CONNECT", b"OPTIONS", b"TRACE", b""]), 1)
    if kind == 7:
        return whole[: chance.randrange(len(whole))]  # then half closed
    return whole


def _exchange(port: int, sent: bytes, slowly: bool) -> bytes:
    """Send bytes, close one half, and return what comes back."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), LATEST) as connection:
        try:
            if slowly:
                for start in range(0, min(len(sent), 40)):
                    connection.sendall(sent[start : start + 1])
                    time.sleep(0.002)
                connection.sendall(sent[40:])
            else:
                connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return said


def test_ten_thousand_malformed_requests(hardened: Running) -> None:
    process = psutil.Process(hardened.process.pid)
    expected = hardened.chat(T5).json["choices"][0]["message"]["content"]
    problems, harmed, done = list[str](), list[str](), threading.Event()

    def honest() -> None:
        while not done.is_set():
            reply = hardened.chat(T5)
            if reply.status != 200 or reply.json["choices"][0]["message"]["content"] != expected:
                harmed.append(f"{reply.status} {reply.body[:200]!r}")

    def hostile(seed: int, count: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            sent = _strange(chance)
            started = time.monotonic()
            said = _exchange(hardened.port, sent, slowly=chance.random() < 0.02)
            if time.monotonic() - started > LATEST or b"Traceback" in said or b"mmedge/" in said or b"/home" in said:
                problems.append(f"{time.monotonic() - started:.1f} s: {sent[:200]!r}: {said[:300]!r}")
            if said and said.split()[1] not in FINE:
                problems.append(f"{sent[:300]!r}: {said[:300]!r}")

    witness = threading.Thread(target=honest)
    witness.start()
    hostile(0, REQUESTS // 10)
    before = process.memory_info().rss
    crowd = [threading.Thread(target=hostile, args=(seed, REQUESTS // 10)) for seed in range(1, 10)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    done.set()
    witness.join()
    assert not problems, (len(problems), problems[:5])
    assert not harmed, (len(harmed), harmed[:3])
    grown = process.memory_info().rss - before
    assert grown <= 20 << 20, f"{grown / 2**20:.1f} MB"
    assert "Traceback" not in hardened.err.read_text(encoding="utf-8")
    assert not any("error" in line for line in hardened.log())
    assert hardened.metric("mmedge_running") == 0 == hardened.metric("mmedge_queue_length")


def test_bodies_of_a_gigabyte_are_refused_and_not_kept(hardened: Running) -> None:
    process, part = psutil.Process(hardened.process.pid), b" " * (1 << 20)
    before = process.memory_info().rss
    for head in (_head("/v1/answer", 1 << 30), _head("/v1/answer", "").replace(b"Content-Length: ", b"Transfer-Encoding: chunked")):
        sent = 0
        with socket.create_connection(("127.0.0.1", hardened.port), LATEST) as connection, contextlib.suppress(OSError):
            connection.sendall(head)
            while sent < 1 << 30:
                connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n" if b"chunked" in head else part)
                sent += len(part)
        assert sent < 200 << 20, "the connection is closed long before"
    assert hardened.chat(T5).status == 200
    assert process.memory_info().rss - before <= 40 << 20


def test_hundreds_of_clients_that_vanish(hardened: Running) -> None:
    body = json.dumps({"model": LLAMA, "question": QUESTION * 5, "explain": True, "evaluate": True, "stream": True}).encode()
    chance = random.Random(3)

    def vanish() -> None:
        for _ in range(40):
            with socket.create_connection(("127.0.0.1", hardened.port), LATEST) as connection:
                connection.sendall(_head("/v1/answer", len(body)) + body)
                if chance.random() < 0.5:
                    connection.recv(chance.randrange(1, 400))

    crowd = [threading.Thread(target=vanish) for _ in range(10)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    _until(lambda: hardened.metric("mmedge_running") + hardened.metric("mmedge_queue_length") == 0)
    assert hardened.chat(LLAMA).status == 200


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_server_loses_only_what_was_in_flight(tmp_path: Path, tiny_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = list[object]()
    for round_ in range(3):
        with serving(tmp_path, [tiny_run / "bundle-int8"], "--port", port, fresh=True) as running:
            lost: list[str] = []

            def ask(running: Running = running, lost: list[str] = lost) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=LATEST)
                try:
                    for _ in range(1000):
                        connection.request("POST", "/v1/completions", json.dumps({"model": T5, "prompt": QUESTION}), JSON)
                        response = connection.getresponse()
                        answers.append((response.status, json.loads(response.read())["choices"][0]["text"]))
                except (OSError, http.client.HTTPException, ValueError) as error:
                    lost.append(type(error).__name__)

            crowd = [threading.Thread(target=ask) for _ in range(4)]
            for one in crowd:
                one.start()
            _until(lambda round_=round_: len(answers) > 30 * (round_ + 1))  # type: ignore[misc]
            running.process.kill()
            running.process.wait(30)
            for one in crowd:
                one.join()
            assert len(lost) == len(crowd)  # each had one request in flight
    assert len(set(answers)) == 1, "before and after, the same answer"
