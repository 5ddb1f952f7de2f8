"""What a server takes: from its start to its first answer, and while nobody asks. For a machine that does nothing else."""

from __future__ import annotations

import http.client
import time
from pathlib import Path

import pytest

from tests.serve.conftest import T5
from tests.serve.running import serving

IDLE = 10.0  # seconds
MOST_IDLE = 0.010  # seconds of one core in them
FIRST = 1.0  # seconds until the first answer
STARTS = 5


def _on_cores(pid: int) -> float:
    """Return the seconds that a process's threads have been on a core (Linux)."""
    files = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    if not files:
        pytest.skip("this system does not say how long threads have run")
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def test_a_server_that_nobody_asks_uses_no_processor(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--threads", 2, fresh=True) as running:
        for _ in range(20):
            running.chat(T5, stream=True)
        waiting = http.client.HTTPConnection("127.0.0.1", running.port)
        waiting.request("GET", "/v1/models")
        waiting.getresponse().read()  # and stays open
        time.sleep(0.5)
        before = _on_cores(running.process.pid)
        time.sleep(IDLE)
        used = _on_cores(running.process.pid) - before
        waiting.close()
    assert used <= MOST_IDLE, f"{1000 * used:.1f} ms in {IDLE:g} s"


def test_the_first_answer_comes_within_a_second(tmp_path: Path, tiny_run: Path) -> None:
    found = []
    for _ in range(STARTS):
        began = time.monotonic()
        with serving(tmp_path, [tiny_run / "bundle-int8"], fresh=True) as running:
            assert running.chat(T5).status == 200
            found.append(time.monotonic() - began)
        running.err.unlink()
    assert min(found) <= FIRST, found
