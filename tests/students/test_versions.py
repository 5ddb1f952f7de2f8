"""What one version of transformers writes, the other reads as the same model: checkpoints of all kinds, and whole students.

    make test-optimum

runs this with transformers 4.57, and names in MMEDGE_TRANSFORMERS_5 the Python of an environment with transformers 5.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.conftest import REPOSITORY
from tests.export.test_fused import IN_BOTH
from tests.students import checkpoints

FIVE = os.environ.get("MMEDGE_TRANSFORMERS_5")
pytestmark = [
    pytest.mark.versions,
    pytest.mark.skipif(
        not FIVE or not transformers.__version__.startswith("4."), reason="one transformers alone: make test-optimum"
    ),
]


def with_5(*arguments: object) -> None:
    """Run tests.students.checkpoints with transformers 5."""
    done = subprocess.run(
        [str(FIVE), "-m", "tests.students.checkpoints", *map(str, arguments)],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def written_by_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written_by_5")
    with_5("write", folder)
    return folder


@pytest.mark.parametrize("kind", checkpoints.KINDS)
@pytest.mark.parametrize("name", IN_BOTH)
def test_logits_and_greedy_tokens_are_those_of_transformers_5(name: str, kind: str, written_by_5: Path) -> None:
    config = json.loads((written_by_5 / f"{IN_BOTH.index(name)}-{kind}" / "config.json").read_text())
    assert config["transformers_version"].startswith("5.") and config["dtype"] == kind
    checkpoints.read(written_by_5, name, kind)


def test_transformers_5_reads_what_4_wrote(tmp_path: Path) -> None:
    checkpoints.write(tmp_path)
    with_5("read", tmp_path)


@pytest.mark.parametrize("name", ["tiny_run", "llama_run"])
def test_a_student_that_was_trained_with_4_gives_the_same_logits_with_5(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    with_5("answer", run, tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    for part, expected in checkpoints.answer(run).items():
        assert np.allclose(found[part], expected, atol=1e-4), part
