"""The core alone: a venv without torch, a machine without network, and a bundle that answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def core_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new venv that has the core, installed as a user would install it."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt", str(REPOSITORY)],
        check=True,
        capture_output=True,
        timeout=600,
    )
    return python


def _without_network() -> list[str]:
    """Return the prefix of a command that cuts its network, where this machine can do that."""
    prefix = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    return []


def test_a_bundle_answers_with_the_core_alone_and_without_network(core_python: Path, tiny_run: Path, tmp_path: Path) -> None:
    installed = subprocess.run([core_python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {package["name"].lower() for package in json.loads(installed.stdout)}
    assert "onnxruntime" in names and not names & {"torch", "transformers", "onnx", "optimum", "accelerate"}
    shutil.copytree(tiny_run / "bundle-int8", tmp_path / "bundle")
    shutil.copy(tiny_run / "evaluation.jsonl", tmp_path)
    command = core_python.parent / "mmedge"
    offline = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_without_network(), str(command), *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, env=offline, check=False,
        )  # fmt: skip

    answer = run("run", "bundle", "Ann has 3 apples and buys 4 more. How many now?", "--evaluate", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "verdict" in json.loads(answer.stdout)
    measured = run("bench", "bundle", "--questions", "2", "--verdicts", "2", "--json", "-q")
    assert measured.returncode == 0, measured.stderr
    refused = run("distill", str(REPOSITORY / "recipes" / "quickstart.yaml"))
    assert refused.returncode == 1 and "pip install 'mmedge[distill]'" in refused.stderr
    assert sys.version_info[:2] >= (3, 10)
