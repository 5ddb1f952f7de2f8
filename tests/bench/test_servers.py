"""Servers under questions at random moments: ours, one that serves a student in another engine, and a plain model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmedge.bench.scenarios import poisson_arrivals
from mmedge.bench.servers import Client, Server, ServerBench, ServerRequests, probe
from mmedge.runtime import Student
from mmedge.tasks.evaluation_set import read_evaluation_set
from tests.conftest import is_one_line_error, mmedge
from tests.serve.running import Running, serving


@contextmanager
def endpoint(
    text: str, seconds: float = 0.0, at_once: int = 64, models: Sequence[str] = ("big",)
) -> Iterator[tuple[str, list[Any]]]:
    """A server that replies one text to everything, so many at once; yields its address and what it was asked."""
    asked, free = list[Any](), threading.Semaphore(at_once)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._reply({"data": [{"id": name, "owned_by": "somebody"} for name in models]})

        def do_POST(self) -> None:
            asked.append(
                (self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.headers["Authorization"])
            )
            with free:
                time.sleep(seconds)
            self._reply({"choices": [{"text": text, "message": {"content": text}}]})

        def log_message(self, *_: object) -> None:
            pass

    class Fast(ThreadingHTTPServer):
        request_queue_size = 512
        disable_nagle_algorithm = True

    found = Fast(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1", asked
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, llama_run: Path) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("ours"), [llama_run / "bundle-int8"]) as running:
        yield running


QUICK = ("--questions", 6, "--server-seconds", 0.3, "--latency-bound", "2s", "-q")


def test_servers_are_compared_as_users_see_them(
    ours: Running, llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS", "k-1")
    bundle, evaluation = llama_run / "bundle-int8", llama_run / "evaluation.jsonl"
    with endpoint(" 3 + 4") as (url, asked):
        options = ("--student", bundle, "--evaluation", evaluation, "--server-key", "SERVERS", "--out", tmp_path, "--json")
        done = mmedge("bench", "--server", ours.url, "--server", url, *options, *QUICK)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (
        found == json.loads((tmp_path / "servers.json").read_text()) and "own/bundle-int8" in (tmp_path / "servers.md").read_text()
    )
    first, second = found["servers"]
    student = Student.load(bundle)
    examples = [one for some in read_evaluation_set(evaluation).tests().values() for one in some[:6]]
    assert first["answers"] == [student.answer(example).text for example in examples] and first["as_the_first"] == 1.0
    assert second["answers"] == ["3 + 4"] * len(examples) and second["model"] == "big"
    assert first["accuracy"]["total"] == len(examples) and first["rate_held"] > 0 and len(first["probes"]) == 7
    path, body, key = asked[0]
    prompt = student.speaker.prompt("predict", student.speaker.reasoning_context(examples[0]))
    assert path == "/v1/completions" and body["prompt"] == [*prompt.context, *prompt.begun] and key == "Bearer k-1"


def test_a_plain_model_is_asked_as_a_bigger_model_is(llama_run: Path) -> None:
    with endpoint("They add up.\nThe answer is: 3 + 4") as (url, asked):
        done = mmedge("bench", "--server", url, "--evaluation", llama_run / "evaluation.jsonl", *QUICK)
    assert done.code == 0 and "as the first" in done.out, done.err
    path, body, _ = asked[0]
    assert path == "/v1/chat/completions" and "The answer is: " in body["messages"][0]["content"]


def test_which_of_several_models_is_measured_must_be_said(llama_run: Path) -> None:
    evaluation = ("--evaluation", llama_run / "evaluation.jsonl")
    with endpoint("3 + 4", models=("small", "large")) as (url, asked):
        refused = mmedge("bench", "--server", url, *evaluation, *QUICK)
        assert is_one_line_error(refused) and "has 2 models: small, large\n  → choose one with --model" in refused.err
        assert not asked
        done = mmedge("bench", "--server", url, "--model", "large", *evaluation, *QUICK)
        assert done.code == 0 and {body["model"] for _, body, _ in asked} == {"large"}, done.err
    with endpoint("3 + 4", models=()) as (url, _):
        none = mmedge("bench", "--server", url, *evaluation, *QUICK)
        assert is_one_line_error(none) and "lists no models" in none.err


def test_time_counts_from_the_moment_of_arrival() -> None:
    """A server that takes 20 ms, one at a time, holds 25 questions a second and not 100."""
    settings = ServerBench(latency_bound=0.25, seconds=1.0)
    with endpoint("1", seconds=0.02, at_once=1) as (url, _):
        asking = ServerRequests(Server(url, "big", "mmedge"), Client(url, "", 10), None, None)  # type: ignore[arg-type]
        for rate, held in ((25.0, True), (150.0, False)):
            found = probe(asking, [b"{}"], rate, poisson_arrivals(rate, 1.0, 0), settings)
            assert found.held is held, found


def test_what_cannot_be_measured_is_one_line(ours: Running, llama_run: Path, tiny_run: Path) -> None:
    evaluation = llama_run / "evaluation.jsonl"
    cases: list[tuple[list[object], str]] = [
        (["--server", "http://127.0.0.1:9/v1", "--evaluation", evaluation], "does not list its models"),
        (["--server", ours.url, "--model", "gpt-4", "--evaluation", evaluation], "has no model 'gpt-4'"),
        (["--server", ours.url, "--model", "a", "--model", "b", "--evaluation", evaluation], "2 models for 1 servers"),
        (["--server", ours.url], "servers need questions"),
        (["--server", ours.url, llama_run / "bundle-int8"], "--server measures servers"),
        (["--server", ours.url, "--student", tiny_run / "bundle-int8"], "only decoder-only students"),
        (["--server", "ftp://x", "--evaluation", evaluation], "invalid base URL"),
        ([], "no variant given"),
    ]
    for arguments, complaint in cases:
        done = mmedge("bench", *arguments)
        assert is_one_line_error(done) and complaint in done.err, (arguments, done.err)
