"""Trackers get every number that is logged, and keep it on this machine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmedge.recipe import TrainingSection
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe


def test_events_for_tensorboard_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    run = tmp_path / "run"
    done = mmedge("distill", recipe, "--out", run, "-q", "--set", "training.tracker=tensorboard")
    assert done.code == 0, done.err
    events = EventAccumulator(str(run / "stage2" / "tensorboard"))
    events.Reload()
    logged = [json.loads(line) for line in (run / "stage2" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], pytest.approx(line["loss"])) for line in logged if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("stage2/loss")] == losses
    assert len(events.Scalars("stage2/validation/answer/value")) == 3


def test_the_old_name_is_read_with_a_notice() -> None:
    with pytest.warns(FutureWarning, match="training.tensorboard is now training.tracker"):
        assert TrainingSection.model_validate({"tensorboard": True}).tracker == "tensorboard"
    with pytest.warns(FutureWarning):
        assert TrainingSection.model_validate({"tensorboard": False}).tracker == "none"


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line(name: str, tmp_path: Path) -> None:
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(method={"self_evaluation": False}))
    found = mmedge("distill", recipe, "--out", tmp_path / "run", "-q", "--set", f"training.tracker={name}")
    assert is_one_line_error(found) and f"{name} is not installed" in found.err and f"pip install -U {name}" in found.err
