"""Experiment trackers, through accelerate: all metrics also go to TensorBoard, Weights & Biases, MLflow or Trackio.

Nothing leaves the machine unless the environment says so (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`): TensorBoard's files
are in each stage's folder, those of the others in the run's.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mmedge.errors import MmedgeError
from mmedge.storage import Json

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "mmedge"


class StageTracker:
    """Sends one stage's metrics to a tracker.

    Args:
        kind: Which tracker.
        run: The run's folder.
        folder: The stage's, somewhere in it.
        stage: Stands in front of every metric's name.
        step: The last step whose metrics are kept; TensorBoard drops later ones, which are logged again.

    Raises:
        MmedgeError: The tracker is not installed.
    """

    def __init__(self, kind: TrackerName, run: Path, folder: Path, stage: str, step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if find_spec(kind) is None or kind not in LOGGER_TYPE_TO_CLASS:
            raise MmedgeError(f"training.tracker: {kind} is not installed", f"pip install -U {kind} accelerate, or set it to none")
        place = run.resolve()
        name = "-".join((place.name, *folder.resolve().relative_to(place).parts))
        if kind == "tensorboard":
            arguments: dict[str, Any] = {"run_name": "tensorboard", "logging_dir": folder, "purge_step": step + 1}
        elif kind == "wandb":
            os.environ.setdefault("WANDB_MODE", "offline")
            os.environ.setdefault("WANDB_SILENT", "true")
            arguments = {"run_name": PROJECT, "dir": str(place), "name": name}
        elif kind == "mlflow":
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
            arguments = {"experiment_name": PROJECT, "logging_dir": str(place / "mlflow"), "run_name": name}
        else:
            os.environ.setdefault("TRACKIO_DIR", str(place / "trackio"))
            arguments = {"run_name": PROJECT, "name": name}
        self._stage = stage
        self._tracker: Any = LOGGER_TYPE_TO_CLASS[kind](**arguments)
        self._tracker.start()

    def log(self, entry: Json) -> None:
        """Log every number of an entry of the stage's log."""
        self._tracker.log({f"{self._stage}/{name}": value for name, value in _numbers(entry)}, step=entry["step"])

    def close(self) -> None:
        """Write what is not written yet."""
        self._tracker.finish()


def _numbers(entry: Json, prefix: str = "") -> list[tuple[str, float]]:
    """Return every number of a nested record with its path."""
    found: list[tuple[str, float]] = []
    for name, value in entry.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
