"""What a stage keeps on disk, so that a kill loses minutes and changes nothing.

checkpoint/     what is trained, optimizer and position, replaced whole every few minutes
best/           the weights of the best validation so far
reference-…     log-probabilities under the weights that the stage began with, where an objective needs them
metrics.jsonl   one line every few steps and one for each validation
done.json       what the stage ended with, and the hash of everything that it depends on
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from mmedge.distill.validation import Validated
from mmedge.errors import MmedgeError
from mmedge.storage import Json, atomic_file, atomic_folder, read_json, remove_leftovers, write_json
from mmedge.students.weights import load_weights, read_tensors, save_weights


class Position(BaseModel):
    """How far a stage has come."""

    step: int = 0
    best: Validated | None = None
    seconds: float = 0.0
    tokens: int = 0
    history: list[Validated] = []


class StageResult(BaseModel):
    """What a stage ended with.

    Attributes:
        key: Hash of everything that it depends on.
        steps: How many were taken.
        planned_steps: How many there would have been without an early stop.
        tokens: How many went through the model.
        seconds: How long it took.
        best: The validation whose weights were kept.
        validations: All of them.
    """

    key: str
    steps: int
    planned_steps: int
    tokens: int
    seconds: float
    best: Validated
    validations: list[Validated]


class StageFolder:
    """A stage's folder. Every process reads it; the main one alone writes.

    Args:
        folder: The folder.
        key: Hash of everything that the stage depends on.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key

    def check(self) -> None:
        """Refuse a folder that holds another stage's work.

        Raises:
            MmedgeError: It was trained with other settings, other data or another version.
        """
        for path in (self.folder / "done.json", self.folder / "checkpoint" / "state.json"):
            if path.is_file():
                self._check(read_json(path))

    def open(self) -> None:
        """Make the folder, and remove what a killed writer left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def result(self) -> StageResult | None:
        """Return what the stage ended with, where it has and its weights are there.

        Raises:
            MmedgeError: It was another stage.
        """
        path = self.folder / "done.json"
        if not path.is_file():
            return None
        found = read_json(path)
        self._check(found)
        return StageResult.model_validate(found) if self._best.is_file() else None

    def begin(self) -> None:
        """Remove a result whose weights are gone."""
        (self.folder / "done.json").unlink(missing_ok=True)

    def finish(self, result: StageResult) -> None:
        """Write what the stage ended with; its checkpoint is needed no more."""
        write_json(self.folder / "done.json", result.model_dump())
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    @property
    def _best(self) -> Path:
        return self.folder / "best" / "model.safetensors"

    def save_best(self, model: Any) -> None:
        """Keep a model's weights as the best so far."""
        with atomic_folder(self.folder / "best") as temporary:
            save_weights(model, temporary / "model.safetensors")

    def load_best(self, model: Any) -> None:
        """Put the best weights into a model."""
        load_weights(model, self._best)

    def save_checkpoint(self, model: Any, moments: dict[str, torch.Tensor], position: Position) -> None:
        """Keep everything that the next step depends on."""
        with atomic_folder(self.folder / "checkpoint") as temporary:
            save_weights(model, temporary / "model.safetensors")
            save_file(moments, temporary / "optimizer.safetensors")
            write_json(temporary / "state.json", {"key": self._key, **position.model_dump()})

    def load_checkpoint(self, model: Any) -> tuple[Position, dict[str, torch.Tensor]] | None:
        """Put a checkpoint's weights into a model; return its position and what the optimizers remembered, or None without one.

        Raises:
            MmedgeError: It is another stage's, or damaged.
        """
        folder = self.folder / "checkpoint"
        if not (folder / "state.json").is_file():
            return None
        found = read_json(folder / "state.json")
        self._check(found)
        load_weights(model, folder / "model.safetensors")
        return Position.model_validate(found), read_tensors(folder / "optimizer.safetensors")

    def save_reference(self, values: dict[str, torch.Tensor]) -> None:
        """Keep the log-probabilities under the weights that the stage begins with, by stream."""
        with atomic_file(self._reference) as temporary:
            save_file(values, temporary)

    def load_reference(self) -> dict[str, torch.Tensor] | None:
        """Return what `save_reference` kept, or None.

        Raises:
            MmedgeError: It is damaged.
        """
        return read_tensors(self._reference) if self._reference.is_file() else None

    @property
    def _reference(self) -> Path:
        return self.folder / f"reference-{self._key[:12]}.safetensors"

    def log(self, entry: Json) -> None:
        """Write a line of the log."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop the lines that were logged after a step, since later steps are taken again."""
        if self._log.is_file():
            lines = self._log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            self._log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    @property
    def _log(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _check(self, found: Json) -> None:
        if found.get("key") != self._key:
            raise MmedgeError(
                f"{self.folder} was trained with other settings, other data or another version of mmedge",
                "choose another --out folder",
            )


def once(path: Path, key: str, measure: Callable[[], Any]) -> Any:
    """Return what was measured before under the same key, or measure it and keep it."""
    if path.is_file():
        kept = read_json(path)
        if kept.get("key") == key:
            return kept["value"]
    value = measure()
    write_json(path, {"key": key, "value": value})
    return value
