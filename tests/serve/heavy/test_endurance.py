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
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.serve.assault import LATEST, assault, revealed
from tests.serve.conftest import LLAMA, T5
from tests.serve.malformed import KEY, head, posted
from tests.serve.running import JSON, QUESTION, Running, serving

REQUESTS = 10_000
CROWD = 20  # threads that send them
MOST_GROWTH = 20 << 20  # bytes


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, llama_run: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hardened")
    (folder / "keys").write_text(KEY, encoding="utf-8")
    bundles = [tiny_run / "bundle-int8", llama_run / "bundle-int8"]
    options = ["--api-key-file", folder / "keys", "--body-timeout", 1, "--timeout", 10]
    with serving(folder, bundles, *options, fresh=True) as running:
        yield replace(running, key=KEY)


def test_ten_thousand_malformed_requests(hardened: Running) -> None:
    process = psutil.Process(hardened.process.pid)
    first = assault(hardened, seed=1000, count=REQUESTS // 10, crowd=CROWD)  # after which all that is kept is there
    before = process.memory_info().rss
    found = assault(hardened, seed=2000, count=REQUESTS - REQUESTS // 10, crowd=CROWD)
    problems, harmed = first.problems + found.problems, first.harmed + found.harmed
    assert not problems, (len(problems), problems[:10])
    assert not harmed and found.answered > 100, (found.answered, harmed[:3])
    assert sum(first.statuses.values()) + sum(found.statuses.values()) == REQUESTS
    grown = process.memory_info().rss - before
    print(f"{found.statuses}, {found.answered} answers beside them, {before / 2**20:.1f} MB {grown / 2**20:+.1f} MB")
    assert grown <= MOST_GROWTH, f"{grown / 2**20:.1f} MB"
    logs = hardened.out.read_text(encoding="utf-8") + hardened.err.read_text(encoding="utf-8")
    assert not revealed(logs, "passwd", "apples")
    assert not any("error" in line for line in hardened.log())
    _until(lambda: hardened.metric("mmedge_running") == 0 == hardened.metric("mmedge_queue_length"))


def test_bodies_of_a_gigabyte_are_refused_and_not_kept(hardened: Running) -> None:
    process, part = psutil.Process(hardened.process.pid), b" " * (1 << 20)
    before = process.memory_info().rss
    for line, path in [
        (line, path) for line in ("Content-Length: 1073741824", "Transfer-Encoding: chunked") for path in ("/v1/answer", "/nothing")
    ]:
        sent = 0
        with socket.create_connection(("127.0.0.1", hardened.port), LATEST) as connection, contextlib.suppress(OSError):
            connection.sendall(head(path, line))
            while sent < 1 << 30:
                connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n" if "chunked" in line else part)
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
                connection.sendall(posted("/v1/answer", body))
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
