"""What serving costs: one client against the same student in this process, and 8 and 200 clients at once.

    python benchmarks/serve_speed.py runs/quickstart/bundle-int8 [--questions 400] [--out serve-speed.json]

Server and clients share the machine's cores, as on a device. Prints one JSON document: milliseconds for an answer (p50, p99) and
answers a second. One client is alternated with the process's own answers, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmedge import Student
from mmedge.machine import machine

CLIENTS = (8, 200)
WARM = 20  # questions before anything is timed
TEMPLATE = "Ann has {} apples. Ben gives Ann {} more apples. How many are there now?"


class Client:
    """One connection that asks."""

    def __init__(self, port: int, model: str) -> None:
        self._connection, self._model = http.client.HTTPConnection("127.0.0.1", port, timeout=120), model

    def ask(self, question: str) -> float:
        """Return the seconds of an answer."""
        body = json.dumps({"model": self._model, "messages": [{"role": "user", "content": question}]})
        started = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}")
        return time.perf_counter() - started


def questions(count: int) -> list[str]:
    return [TEMPLATE.format(3 + number % 90, 4 + number * 7 % 80) for number in range(count)]


def times(seconds: list[float]) -> dict[str, float]:
    """Return percentiles, in milliseconds."""
    ordered = sorted(1000 * one for one in seconds)
    return {"p50_ms": round(statistics.median(ordered), 3), "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 3)}


def alternated(student: Student, client: Client, asked: list[str]) -> dict[str, Any]:
    """Ask every question in this process and over HTTP, in turns."""
    inside, outside = [], []
    for question in asked:
        started = time.perf_counter()
        student.answer(question)
        inside.append(time.perf_counter() - started)
        outside.append(client.ask(question))
    return {"in_process": times(inside), "one_client": times(outside), "one_client_per_second": round(len(asked) / sum(outside), 1)}


def crowded(port: int, model: str, clients: int, asked: list[str]) -> dict[str, float]:
    """Let many clients ask at once, each the same number of questions."""
    each = max(2, len(asked) // clients)
    found: list[float] = []
    begin = threading.Barrier(clients + 1)

    def work(place: int) -> None:
        client = Client(port, model)
        begin.wait()
        found.extend([client.ask(asked[(place * each + number) % len(asked)]) for number in range(each)])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    if len(found) < clients * each:
        raise RuntimeError("some clients got no answer")
    return times(found) | {"per_second": round(len(found) / (time.perf_counter() - started), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mmedge", "serve", str(arguments.bundle), "--port", "0", "--no-access-log"]
    began = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = re.search(r"serving (\S+) at http://\S+:(\d+)", server.stderr.readline())
        if said is None:
            raise RuntimeError("the server did not start")
        model, port, started = said[1], int(said[2]), time.perf_counter() - began
        student, client, asked = Student.load(arguments.bundle), Client(port, model), questions(arguments.questions)
        for question in asked[:WARM]:
            student.answer(question)
            client.ask(question)
        found: dict[str, Any] = {"bundle": model, "start_seconds": round(started, 2), **alternated(student, client, asked)}
        began = time.perf_counter()
        student.answer_all(asked)
        found["offline_per_second"] = round(len(asked) / (time.perf_counter() - began), 1)
        found |= {f"{clients}_clients": crowded(port, model, clients, asked) for clients in CLIENTS}
    finally:
        server.terminate()
        server.wait()
    found["machine"] = machine()
    text = json.dumps(found, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
