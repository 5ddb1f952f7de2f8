"""Questions with choices over HTTP: answers are among them, and choices that nobody could choose from are refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.bundle import read_manifest, seal
from mmedge.manifest import TaskPart
from tests.serve.running import Reply, Running, serving

PICKS = "own/picks"


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory, llama_run: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("choosing")
    shutil.copytree(llama_run / "bundle-int8", folder / "picks")
    seal(folder / "picks", replace(read_manifest(folder / "picks"), task=TaskPart("picks", "choice", {}, ())))
    with serving(folder, [folder / "picks"]) as running:
        yield running


def _asked(running: Running, choices: object, **more: object) -> Reply:
    return running.post("/v1/answer", {"question": "Which?", "choices": choices, "constrained": True, **more})


def test_an_answer_is_one_of_the_choices(choosing: Running) -> None:
    assert _asked(choosing, ["yes", "no"]).json["answer"] in ("yes", "no")
    own = {"choices": ["yes", "no"], "constrained": True}
    reply = choosing.post("/v1/completions", {"model": PICKS, "prompt": "Which?", "mmedge": own})
    assert reply.json["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize("choices", [["only"], "only", ["", "b"], [" ", "\n"], ["x"] * 27, [1, 2], {"a": 1}, None], ids=repr)
def test_what_cannot_be_chosen_from_is_refused(choosing: Running, choices: object) -> None:
    reply = _asked(choosing, choices)
    assert reply.status == 400 and reply.error["param"] == "choices"


def test_choices_of_a_megabyte_take_no_time(choosing: Running) -> None:
    began = time.monotonic()
    assert _asked(choosing, [f"{place} " * 10_000 for place in range(26)], cut=True, explain=True, evaluate=True).status == 200
    assert time.monotonic() - began < 3
