"""A review of what the server gives away, as tests: headers, keys, paths, files, and what it says of its own bugs."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

pytest.importorskip("starlette")

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.serve.app import make_app
from mmedge.serve.gate import Gate
from mmedge.serve.models import open_models
from mmedge.serve.settings import Settings
from mmedge.tasks.encoding import Prompt
from tests.serve.conftest import LLAMA, T5
from tests.serve.running import QUESTION, Running, serving

SECRET = "/home/someone/secret"
HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
OTHERS = ("content-security-policy", "content-type", "content-length", "date", "connection", "x-mmedge-source")


class Failing:
    """An engine that cannot read its files."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def conversation(self) -> Engine:
        return self

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        raise self._error

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        raise self._error

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        raise self._error


def _asked(gate: Gate, path: str, document: object) -> tuple[int, str]:
    """Ask an application in this process; return the status and the body."""
    sent: list[Any] = []
    body = [{"type": "http.request", "body": json.dumps(document).encode()}]

    async def ask() -> None:
        async def receive() -> Any:
            return body.pop() if body else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        common = {"type": "http", "http_version": "1.1", "method": "POST", "query_string": b"", "client": ("127.0.0.1", 1)}
        await gate(
            {**common, "path": path, "raw_path": path.encode(), "root_path": "", "headers": headers, "state": {}}, receive, send
        )

    asyncio.run(ask())
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:]).decode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [OSError(2, "No such file", SECRET), RuntimeError(SECRET), MemoryError(SECRET)], ids=type)
def test_a_bug_is_told_to_the_log_by_its_place_and_to_the_client_not_at_all(tiny_run: Path, error: Exception, stream: bool) -> None:
    models, log = open_models([tiny_run / "bundle-int8"]), io.StringIO()
    student = models[T5].student
    student.speaker = student.speaker.on(Failing(error))
    gate = make_app(models, Settings(), log)
    status, said = _asked(gate, "/v1/answer", {"question": QUESTION, "stream": stream})
    assert status == (200 if stream else 500)
    assert "the server failed to answer" in said and SECRET not in said and "Traceback" not in said
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (bug,) = [line for line in lines if "error" in line]
    assert bug["error"] == type(error).__name__ and bug["where"].count(":") == 1 and not bug["where"].startswith("/")
    assert SECRET not in log.getvalue()


def test_every_response_has_the_headers_that_protect(server: Running) -> None:
    replies = {
        200: [server.get("/"), server.get("/v1/models"), server.get("/metrics"), server.get("/healthz"), server.chat(T5)],
        400: [server.post("/v1/answer", {}), server.post("/v1/answer", {"question": QUESTION, "stream": "x"})],
        404: [server.get("/nothing"), server.get("/v1/models/nobody"), server.get("/../mmedge/serve/page.html")],
        405: [server.get("/v1/answer"), server.ask("OPTIONS", "/v1/answer"), server.ask("TRACE", "/")],
        415: [server.ask("POST", "/v1/answer", b"{}")],
        421: [server.get("/v1/models", Host="evil.example")],
    }
    for status, there in replies.items():
        for reply in there:
            assert reply.status == status and HEADERS.items() <= reply.headers.items(), (status, reply)
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            allowed = {
                *HEADERS,
                "content-security-policy",
                "content-type",
                "content-length",
                "date",
                "connection",
                "x-mmedge-source",
            }
            assert reply.headers.keys() <= allowed | ({"allow"} if status == 405 else set()), reply.headers
    streamed = server.chat(T5, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream") and HEADERS.items() <= streamed.headers.items()


def test_pages_of_other_sites_may_not_ask(server: Running) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for reply in (server.ask("OPTIONS", "/v1/answer", headers=preflight), server.get("/v1/models", Origin="https://evil.example")):
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_every_key_is_compared_whatever_is_sent(tiny_run: Path) -> None:
    """The time that it takes then tells nothing of a key; what is compared are digests, of one length."""
    keys = tuple(f"key-{number}" for number in range(20))
    gate = make_app(open_models([tiny_run / "bundle-int8"]), Settings(keys))

    def compared(secret: str) -> int:
        calls = Counter[str]()

        def profile(_: FrameType, event: str, argument: Any) -> None:
            if event == "c_call":
                calls[argument.__name__] += 1

        scope = {"headers": [(b"authorization", f"Bearer {secret}".encode())]}
        sys.setprofile(profile)
        try:
            gate._let_in(scope)
        except Exception:
            pass
        finally:
            sys.setprofile(None)
        return calls["compare_digest"]

    assert [compared(secret) for secret in (keys[0], keys[-1], "key-1", "k", "", "x" * 10_000)] == [len(keys)] * 6


def test_nothing_is_written_but_logs(tmp_path: Path, tiny_run: Path) -> None:
    bundle, empty = tiny_run / "bundle-int8", tmp_path / "empty"
    empty.mkdir()

    def state() -> list[tuple[str, int]]:
        return [(str(path), path.stat().st_mtime_ns) for path in sorted(bundle.rglob("*"))]

    before = state()
    with serving(tmp_path, [bundle], within=empty) as running:
        for _ in range(5):
            assert running.chat(T5, mmedge={"explain": True, "evaluate": True}).status == 200
            running.chat(T5, stream=True)
            running.get("/nothing")
        writable = [one.path for one in psutil.Process(running.process.pid).open_files() if one.mode not in ("r", "rb")]
        assert {Path(path) for path in writable} <= {running.out, running.err}
        assert running.stop() == 0
    assert not list(empty.iterdir()) and state() == before


def test_what_a_student_refuses_names_no_file(server: Running, tiny_run: Path) -> None:
    wrong: list[dict[str, object]] = [
        {"evaluate": True}, {"target_accuracy": 0.9}, {"max_withheld": 0.1}, {"abstain_field_below": 0.5}
    ]  # fmt: skip
    for fields in wrong:
        for model in (T5, LLAMA):
            reply = server.post("/v1/answer", {"model": model, "question": QUESTION} | fields)
            assert reply.status in (200, 400)
            assert str(tiny_run).encode() not in reply.body and b"bundle-int8/" not in reply.body and b"/tmp" not in reply.body
