"""Trainings side by side on Ray: the results of one after the other, whatever is killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmedge.distill.cluster import TrainingJob, train_side_by_side
from mmedge.errors import MmedgeError
from mmedge.recipe import validate
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe

pytestmark = pytest.mark.cluster
THREADS = {"threads": 1}  # results are the same to the bit with as many threads alone


def _recipe(**training: object) -> dict[str, object]:
    compared = {
        "seeds": [0, 1],
        "labels": ["pseudo"],
        "rows": ["cots", "cots_self_evaluation"],
        "more": {"paper": {"rehearsal": 0}},
    }
    values: dict[str, Any] = tiny_recipe(ablation=compared)
    values["training"] = values["training"] | THREADS | training
    return values


def _results(run: Path) -> dict[str, Any]:
    """Return what every training of a comparison ended with, without its times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(one) for name, one in value.items() if "seconds" not in name}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return {path.parent.name: timeless(json.loads(path.read_text())) for path in run.glob("ablation/rows/*/result.json")}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cluster")
    recipe = write_recipe(folder / "r.yaml", _recipe())
    done = mmedge("ablate", recipe, "--out", folder / "run", "-q")
    assert done.code == 0, done.err
    return recipe, _results(folder / "run")


def _side_by_side(recipe: Path, run: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmedge", "ablate", recipe, "--out", run, "--workers", workers, "-q"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that train, and not those that Ray keeps ready."""
    try:
        return [one for one in psutil.Process(driver.pid).children(recursive=True) if one.cmdline()[:1] == ["ray::_train"]]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize(("workers", "kills"), [(2, 3), pytest.param(4, 10, marks=pytest.mark.slow)])
def test_killed_workers_are_repeated_and_a_killed_driver_continues(
    in_turn: tuple[Path, dict[str, Any]], tmp_path: Path, workers: int, kills: int
) -> None:
    recipe, expected = in_turn
    run, rng = tmp_path / "run", random.Random(5)
    driver = _side_by_side(recipe, run, workers)
    deadline = time.monotonic() + 600
    while len(_results(run)) < 2:  # then the driver itself is killed
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    driver, killed = _side_by_side(recipe, run, workers), 0
    while driver.poll() is None:
        assert time.monotonic() < deadline
        if killed < kills and (found := _workers_of(driver)):
            time.sleep(rng.uniform(0, 2))
            victim = rng.choice(found)
            if victim.is_running():
                victim.kill()
                killed += 1
        time.sleep(0.1)
    assert driver.stderr is not None
    assert driver.returncode == 0, driver.stderr.read().decode()
    assert killed and _results(run) == expected


def test_what_a_training_refuses_is_one_line(tmp_path: Path) -> None:
    stage = {"max_steps": 12, "batch_size": 8, "learning_rate": 1e9, "evaluate_every": 4}
    values = _recipe(stage2=stage, stage1={**stage, "max_steps": 6, "evaluate_every": 3}, optimizer="adamw")
    found = mmedge("ablate", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run", "--workers", "1", fresh=True)
    assert is_one_line_error(found) and "row " in found.err and "NaN" in found.err, found.err


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    jobs = [TrainingJob(0, "a training")]
    with pytest.raises(MmedgeError, match=r"cannot connect to the Ray cluster at 127\.0\.0\.1:1"):
        list(train_side_by_side(validate(_recipe(), "test"), tmp_path, jobs, 1))


def test_two_trainings_of_one_stage_wait_for_each_other(in_turn: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe, expected = in_turn
    run = tmp_path / "run"
    done = mmedge("ablate", recipe, "--out", run, "--workers", "2", "-q", fresh=True)
    assert done.code == 0, done.err
    assert len(list((run / "ablation" / "stage1").iterdir())) == 2  # one for each seed, shared by two rows
    assert _results(run) == expected
    shutil.rmtree(run)
