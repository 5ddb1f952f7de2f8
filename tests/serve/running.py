"""A server in a process of its own, and what it replies."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import PAUSE, REPOSITORY, start

QUESTION = "Ann has 3 apples. Ben gives Ann 4 more apples. How many are there now?"
JSON = {"Content-Type": "application/json"}


@dataclass
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Its error; the shape is OpenAI's."""
        found: dict[str, Any] = self.json["error"]
        assert found.keys() == {"message", "type", "param", "code"} and "Traceback" not in found["message"]
        return found

    def events(self) -> list[tuple[str, Any]]:
        """The events of a stream: their names and documents."""
        found = []
        for part in self.body.decode().split("\n\n")[:-1]:
            name, data = re.fullmatch(r"(?:event: (\w+)\n)?data: (.*)", part, flags=re.DOTALL).groups()  # type: ignore[union-attr]
            found.append((name or "", data if data == "[DONE]" else json.loads(data)))
        return found


@dataclass
class Running:
    """A server that runs.

    Attributes:
        port: Where.
        process: What was started.
        out: The file of its access log.
        err: The file of its errors.
        key: What is sent with each request; nothing where it is empty.
    """

    port: int
    process: Any
    out: Path
    err: Path
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Reply:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, ({"Authorization": f"Bearer {self.key}"} if self.key else {}) | (headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, document: object, **headers: str) -> Reply:
        return self.ask("POST", path, json.dumps(document).encode(), JSON | headers)

    def chat(self, model: str, **more: object) -> Reply:
        """Ask one question as a chat."""
        return self.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": QUESTION}], **more})

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    def log(self, lines: int = 0, within: float = 10) -> list[dict[str, Any]]:
        """Return its access log, once it has so many `lines`, which are written after replies, or after so many seconds."""
        until = time.monotonic() + within
        while True:
            *whole, _ = self.out.read_text(encoding="utf-8").split("\n")
            if len(whole) >= lines or time.monotonic() > until:
                return [json.loads(line) for line in whole]
            time.sleep(0.01)

    def stop(self) -> int:
        """Tell it to end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        found: int = self.process.wait(60)
        return found


@contextmanager
def serving(
    folder: Path, bundles: Sequence[Path], *options: object, fresh: bool = False, within: Path = REPOSITORY
) -> Iterator[Running]:
    """Serve bundles at a free port; the logs lie in `folder`, and the process runs `within` another."""
    out, err = folder / "access.jsonl", folder / "errors.txt"
    env = os.environ | ({} if within == REPOSITORY else {"HOME": str(within), "TMPDIR": str(within)})
    process = start(["serve", *bundles, "--port", 0, *options], stdout=out, stderr=err, fresh=fresh, cwd=within, env=env)
    deadline = time.monotonic() + 60
    try:
        while not (found := re.search(r"at https?://\S+:(\d+)\n", err.read_text(encoding="utf-8") if err.is_file() else "")):
            assert process.poll() is None and time.monotonic() < deadline, err.read_text(encoding="utf-8")
            time.sleep(PAUSE)
        yield Running(int(found[1]), process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
