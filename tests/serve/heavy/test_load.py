"""Load tools that others wrote, as they are; and memory over a hundred thousand requests."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serve.conftest import T5
from tests.serve.heavy.conftest import needed
from tests.serve.running import QUESTION, Running, serving

BODY = json.dumps({"model": T5, "messages": [{"role": "user", "content": QUESTION}]})
MOST_GROWTH = 10 << 20  # bytes from request 10,000 to 100,000


@pytest.fixture
def fresh(tmp_path: Path, tiny_run: Path) -> Iterator[Running]:
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--no-access-log", fresh=True) as running:
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


def test_memory_does_not_grow_with_requests(fresh: Running, tmp_path: Path) -> None:
    process = psutil.Process(fresh.process.pid)
    assert _hey(fresh, tmp_path, 10_000, 16) == {"200": 10_000}
    before = process.memory_info().rss
    for _ in range(3):
        assert _hey(fresh, tmp_path, 30_000, 15) == {"200": 30_000}
    grown = process.memory_info().rss - before
    assert grown <= MOST_GROWTH, f"{grown / 2**20:.1f} MB"
