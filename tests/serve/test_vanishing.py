"""Clients that go away: nothing more is written for them, whatever they asked for and whichever way they left."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.bundle import read_manifest, seal
from mmedge.runtime import AnswerOptions
from mmedge.runtime.strategies import Strategy
from mmedge.serve.models import open_models
from mmedge.serve.scheduler import GivenUp
from mmedge.tasks.base import Example
from tests.serve.malformed import posted
from tests.serve.running import QUESTION, Running, serving

MODEL = "own/long"
TOKENS = 300  # of an answer, at most
LONG: dict[str, object] = {"model": MODEL, "temperature": 2, "seed": 3, "n": 8, "mmedge": {"constrained": False}}
ASKED = {
    "/v1/completions": LONG | {"prompt": QUESTION},
    "/v1/chat/completions": LONG | {"messages": [{"role": "user", "content": QUESTION}]},
}
WANTED = [
    AnswerOptions(),
    AnswerOptions(explain=True, evaluate=True),
    AnswerOptions(strategy=Strategy("samples", samples=3)),
    AnswerOptions(strategy=Strategy("retry", samples=3, retry_below=1.0)),
]


@pytest.mark.parametrize("wanted", WANTED, ids=["answer", "everything", "samples", "retry"])
@pytest.mark.parametrize("run", ["tiny_run", "llama_run"])
def test_not_one_more_step_is_made_for_who_is_gone(run: str, wanted: AnswerOptions, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(run)
    ((_, model),) = open_models([folder / "bundle-int8"]).items()
    asked, steps = 0, list[int]()
    model.share(16, 64 << 20, steps.append)

    def check(most: int) -> None:
        nonlocal asked
        asked += 1
        if asked > most:
            raise GivenUp

    examples, settled = [Example("q", QUESTION, None)], model.settled(wanted)
    for most in (0, 1, 4, 9):
        asked = 0
        steps.clear()
        try:
            model.asked_by(lambda most=most: check(most), None).answered(examples, settled)  # type: ignore[misc]
            assert 0 < asked <= most, "it was done before"
        except GivenUp:
            assert asked == most + 1 and len(steps) <= most
    assert model.asked_by(lambda: None, None).answered(examples, settled)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, llama_run: Path) -> Iterator[Running]:
    """A server whose student writes long answers."""
    folder = tmp_path_factory.mktemp("vanishing")
    shutil.copytree(llama_run / "bundle-int8", folder / "long")
    seal(folder / "long", replace(read_manifest(folder / "long"), max_answer_tokens=TOKENS))
    with serving(folder, [folder / "long"], "--max-rows", 2) as running:
        yield running


def _steps(running: Running) -> float:
    return running.metric("mmedge_batch_rows_count")


def _until_nobody_is_answered(running: Running) -> None:
    deadline = time.monotonic() + 30
    while running.metric("mmedge_running"):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "reset"), zip(ASKED, (False, True), strict=True), ids=["closed", "reset"])
def test_a_client_that_vanishes_frees_its_row(long: Running, path: str, stream: bool, reset: bool) -> None:
    before = _steps(long)
    assert long.post(path, ASKED[path]).status == 200
    whole = _steps(long) - before
    assert whole > 100, "8 answers, two at once"
    body = json.dumps(ASKED[path] | {"stream": stream}).encode()
    fewest, vanished = whole, long.metric("mmedge_vanished_total")
    for _ in range(3):  # what it takes to notice depends on how busy the machine is
        before = _steps(long)
        with socket.create_connection(("127.0.0.1", long.port), 10) as connection:
            connection.sendall(posted(path, body))
            while _steps(long) < before + 3:
                time.sleep(0.001)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _until_nobody_is_answered(long)
        fewest = min(fewest, _steps(long) - before)
    assert fewest < whole / 2, (fewest, whole)
    assert long.metric("mmedge_vanished_total") == vanished + 3
    deadline = time.monotonic() + 10
    while True:  # a line is written last
        lines = [line for line in long.log() if line["route"] == path][-3:]
        if all(line.get("vanished") if stream else line["status"] == 499 for line in lines):
            break
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)
    assert long.post(path, ASKED[path]).status == 200
