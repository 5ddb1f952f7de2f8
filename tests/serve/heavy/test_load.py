"""Load tools that others wrote, as they are; and memory over a hundred thousand requests.

MMEDGE_SERVE_REQUESTS=10000 makes it ten thousand, from the first thousand on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tests.serve.conftest import T5
from tests.serve.heavy.conftest import needed
from tests.serve.running import QUESTION, Running, serving

BODY = json.dumps({"model": T5, "messages": [{"role": "user", "content": QUESTION}]})
ALL = int(os.environ.get("MMEDGE_SERVE_REQUESTS", "100000"))
MOST_GROWTH = 10 << 20  # bytes from the first tenth of the requests to the last
BOOK = "".join(f"Ann has {3 + n % 90} apples. Ben gives Ann {4 + 7 * n % 80} more. How many are there now?\n" for n in range(200))


@pytest.fixture
def fresh(tmp_path: Path, tiny_run: Path) -> Iterator[Running]:
    with serving(tmp_path, [tiny_run / "bundle-int8"], fresh=True) as running:
        yield running


def _hey(running: Running, folder: Path, requests: int, clients: int) -> dict[str, int]:
    """Let hey send chats; return how often each status came."""
    (folder / "body.json").write_text(BODY, encoding="utf-8")
    command = [needed("hey"), "-n", str(requests), "-c", str(clients), "-m", "POST", "-T", "application/json", "-t", "60"]
    said = subprocess.run([*command, "-D", folder / "body.json", f"{running.url}/chat/completions"], capture_output=True, text=True)
    assert said.returncode == 0 and "Error distribution" not in said.stdout, said.stdout + said.stderr
    return {status: int(count) for status, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", said.stdout)}


@pytest.mark.parametrize("clients", [1, 8, 200])
def test_hey_gets_every_answer(fresh: Running, tmp_path: Path, clients: int) -> None:
    assert _hey(fresh, tmp_path, 2000, clients) == {"200": 2000}
    assert fresh.metric("mmedge_answers_total") == 2000


def test_wrk_gets_answers_alone(fresh: Running, tmp_path: Path) -> None:
    script = tmp_path / "chat.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{BODY}]==]\n')
    command = [needed("wrk"), "-t2", "-c64", "-d5s", "--timeout", "30s", "-s", str(script), f"{fresh.url}/chat/completions"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0 and "Non-2xx" not in said.stdout and "Socket errors" not in said.stdout, said.stdout
    assert int(re.findall(r"(\d+) requests in", said.stdout)[0]) > 100


def test_guidellm_measures_streams(fresh: Running, tmp_path: Path) -> None:
    """It asks /health, streams with `continuous_usage_stats`, and takes its tokens from the usage of the stream."""
    program = needed("guidellm")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in BOOK.splitlines()))
    options = {
        "backend": f"kind=openai_http,target={fresh.url.removesuffix('/v1')}",
        "profile": "kind=concurrent,streams=4",
        "constraint": "kind=max_requests,count=100",
        "data": f"kind=json_file,path={tmp_path / 'questions.jsonl'}",
        "output": f"kind=json,path={tmp_path / 'found.json'}",
    }
    _run([program, "run", *(f"--{name}={value}" for name, value in options.items()), "--disable-console"], tmp_path)
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert totals["successful"] == 100 and not totals["errored"]
    assert found["metrics"]["output_token_count"]["successful"]["total_sum"] == _written(fresh)


def test_llama_benchy_measures_streams(fresh: Running, tmp_path: Path, tiny_run: Path) -> None:
    """It cuts its prompts from a text at an address; `return_token_ids`, which it would send, is left out by its own option."""
    program = needed("llama-benchy")

    class Book(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BOOK.encode())

    with HTTPServer(("127.0.0.1", 0), Book) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        book = f"http://127.0.0.1:{server.server_port}/book.txt"
        command = [program, "--base-url", fresh.url, "--model", T5, "--tokenizer", tiny_run / "bundle-int8", "--book-url", book]
        command += [
            "--pp",
            32,
            "--tg",
            8,
            "--runs",
            3,
            "--concurrency",
            1,
            4,
            "--no-warmup",
            "--no-adapt-prompt",
            "--skip-coherence",
        ]
        command += ["--extra-body", "return_token_ids=null", "--exit-on-first-fail"]
        _run([*command, "--format", "json", "--save-result", tmp_path / "found.json"], tmp_path)
        server.shutdown()
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert [one["concurrency"] for one in found] == [1, 4] and all(one["ttfr"]["mean"] > 0 for one in found)
    assert fresh.metric("mmedge_answers_total") == 3 + 12


def _run(command: Sequence[object], home: Path) -> None:
    env = os.environ | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)  # it has packages of its own
    said = subprocess.run([str(one) for one in command], capture_output=True, text=True, env=env, timeout=300)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]


def _written(running: Running) -> int:
    """Return how many tokens were written."""
    return sum(line.get("tokens", 0) for line in running.log())


def test_memory_does_not_grow_with_requests(fresh: Running, tmp_path: Path) -> None:
    process, tenth = psutil.Process(fresh.process.pid), ALL // 10
    assert _hey(fresh, tmp_path, tenth, 10) == {"200": tenth}
    before = process.memory_info().rss
    for _ in range(3):
        assert _hey(fresh, tmp_path, 3 * tenth, 10) == {"200": 3 * tenth}
    grown = process.memory_info().rss - before
    print(f"{before / 2**20:.1f} MB after {tenth} requests, {grown / 2**20:+.1f} MB after {ALL}")
    assert grown <= MOST_GROWTH, f"{grown / 2**20:.1f} MB"
