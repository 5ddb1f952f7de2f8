"""A bundle that is replaced takes over, and no request is lost; one that is damaged does not."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.serve.running import QUESTION, Running, serving

NAME = "tiny/bundle"
ASKED = {"model": NAME, "prompt": QUESTION}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _replace(folder: Path, by: Path) -> None:
    """Put a copy of another bundle in a bundle's place, as a deployment does."""
    shutil.copytree(by, folder.with_name("new"))
    folder.rename(folder.with_name("old"))
    folder.with_name("new").rename(folder)
    shutil.rmtree(folder.with_name("old"))


def _fingerprint(running: Running) -> str:
    return str(running.post("/v1/completions", ASKED).json["system_fingerprint"])


def test_a_replaced_bundle_takes_over_and_a_damaged_one_does_not(tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_run / "bundle-fp32", damaged)
    weights = damaged / "weights.data"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with serving(tmp_path, [folder], "--max-clients", 200) as running:
        statuses, done = list[int](), threading.Event()

        def ask() -> None:
            while not done.is_set():
                statuses.append(running.post("/v1/completions", ASKED).status)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        first = _fingerprint(running)
        _replace(folder, tiny_run / "bundle-fp32")
        _until(lambda: running.metric("mmedge_reloads_total") == 1)
        second = _fingerprint(running)
        assert second != first and running.get(f"/v1/models/{NAME}").json["mmedge"]["precision"] == "fp32"
        _replace(folder, damaged)
        _until(lambda: running.metric("mmedge_reloads_total") == 2)
        assert _fingerprint(running) == second
        (folder / "manifest.json").unlink()  # half gone
        _until(lambda: running.metric("mmedge_reloads_total") == 3)
        assert _fingerprint(running) == second
        _replace(folder, tiny_run / "bundle-int8")
        _until(lambda: _fingerprint(running) == first)
        done.set()
        for client in clients:
            client.join()
        assert len(statuses) > 50 and set(statuses) == {200}
        said = running.err.read_text(encoding="utf-8").splitlines()[1:]
        assert [line.startswith(f"{NAME}: the new bundle is ") for line in said] == [True] * 4
        assert "refused" in said[1] and "refused" in said[2] and "served" in said[0] and "served" in said[3]
        assert "error" not in running.out.read_text(encoding="utf-8")
