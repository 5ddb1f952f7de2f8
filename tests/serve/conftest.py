"""Servers for tests that change nothing about them: one with a student of each family, one with students that write JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.bundle import read_manifest, seal
from mmedge.manifest import TaskPart
from mmedge.tasks.prompts import PLAIN_TURN
from tests.serve.running import Running, serving

T5, LLAMA = "tiny/bundle-int8", "own/bundle-int8"
CALLS, BOOKS, TALKS = "own/calls", "own/books", "own/talks"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "BuyThings",
            "description": "Buy some things.",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"enum": ["apples", "pears"]}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["thing"],
                "additionalProperties": False,
            },
        },
    },
    {"name": "GoHome", "parameters": {"type": "object", "properties": {"fast": {"type": "boolean"}}, "required": ["fast"]}},
]
BOOK = {
    "type": "object",
    "properties": {"title": {"enum": ["Dune", "Emma"]}, "year": {"type": "integer", "minimum": 1800, "maximum": 2000}},
    "required": ["title", "year"],
    "additionalProperties": False,
}
ROOMS = ("the kitchen", "the living room", "the cellar")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, llama_run: Path) -> Iterator[Running]:
    bundles = [tiny_run / "bundle-int8", llama_run / "bundle-int8"]
    with serving(tmp_path_factory.mktemp("serve"), bundles, "--body-timeout", 1) as running:
        yield running


@pytest.fixture(scope="session")
def structured(tmp_path_factory: pytest.TempPathFactory, llama_run: Path) -> Iterator[Running]:
    """A server of students that write calls, books, and calls in dialogues; they have learned none of it, and are constrained."""
    folder = tmp_path_factory.mktemp("structured")
    for name, form, document in (("calls", "tools", TOOLS), ("books", "schema", BOOK), ("talks", "tools", TOOLS)):
        shutil.copytree(llama_run / "bundle-int8", folder / name)
        (folder / name / f"{form}.json").write_text(json.dumps(document), encoding="utf-8")
        task = TaskPart(name, form, {"file": f"{form}.json", "spelling": "compact", "compare": {}}, (f"{form}.json",))
        stated = read_manifest(folder / name)
        learned = replace(stated.student, learned=())
        stated = replace(stated, task=task, student=learned, max_answer_tokens=64)
        turn = PLAIN_TURN if name == "talks" else ""
        seal(folder / name, replace(stated, prompts=replace(stated.prompts, turn=turn)))
    shutil.copytree(llama_run / "bundle-int8", folder / "rooms")
    stated = read_manifest(folder / "rooms")
    labels = TaskPart("rooms", "label", {"labels": list(ROOMS), "spelling": "short"}, ())
    seal(folder / "rooms", replace(stated, task=labels, student=replace(stated.student, learned=())))
    with serving(folder, [folder / "calls", folder / "books", folder / "talks", folder / "rooms"]) as running:
        yield running
