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

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def core_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has the core alone, installed from a wheel, without pip and setuptools."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--constraint", "constraints.txt", "."], cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
    return python


def test_the_core_takes_at_most_240_megabytes_with_bytecode(core_python: Path) -> None:
    (packages,) = (core_python.parent.parent / "lib").glob("python3*/site-packages")
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert any(packages.rglob("*.pyc"))
    assert size <= 240e6


def _without_network() -> list[str]:
    """Return the prefix of a command that cuts its network, where this machine can do that."""
    prefix = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    return []


def test_a_bundle_answers_with_the_core_alone_and_without_network(core_python: Path, tiny_run: Path, tmp_path: Path) -> None:
    program = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'].lower() for d in m.distributions()]))"
    names = set(json.loads(subprocess.run([core_python, "-c", program], capture_output=True, check=True).stdout))
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
