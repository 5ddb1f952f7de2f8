"""A run: the folder that one recipe's execution writes, resumable at every point, which explains itself.

    runs/quickstart/
        recipe.yaml          the resolved recipe
        run.json             versions, machine, hashes of the data
        annotations.sqlite   the teacher's raw texts
        stage1/  stage2/     checkpoints while they train, metrics, the best weights
        student/             the distilled model with mmedge.json
        metrics.json         what it scores, before and after
        bundle-fp32/  bundle-int8/
        bench.json  bench.md  bench.html

One process at a time works on a run.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmedge.errors import MmedgeError
from mmedge.recipe import HOW_NOT_WHAT, Recipe, recipe_values, validate, write_recipe
from mmedge.storage import cannot_write, read_text, remove_leftovers

_DECISIVE = ("name", "seed", "task", "teacher", "student", "method", "training", "split", "generation")


@dataclass(frozen=True)
class Run:
    """The paths of a run."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def explanation(self) -> Path:
        return self.folder / "run.json"

    @property
    def annotations(self) -> Path:
        return self.folder / "annotations.sqlite"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def stage(self, number: int) -> Path:
        return self.folder / f"stage{number}"

    def bundle(self, precision: str) -> Path:
        return self.folder / f"bundle-{precision}"


@contextmanager
def work_on(folder: Path, recipe: Recipe, *, shared: bool = False, comparison: bool = False) -> Iterator[Run]:
    """Open a run for one process, creating it or checking that it is this recipe's.

    Args:
        folder: The run's folder.
        recipe: What it is made by.
        shared: Let others who say so too work on it at the same time, as several collectors do.
        comparison: It is a comparison of methods, whose rows may grow but not what they share.

    Raises:
        MmedgeError: Another process works on it, it was made by a recipe that differs in what decides the result, or the folder
            cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115 (held until the run is left)
    except OSError as error:
        raise cannot_write(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            raise MmedgeError(f"another process works on {folder}", "wait for it, or choose another --out folder") from None
        run = Run(folder)
        if not shared:
            remove_leftovers(folder)
        compared = (folder / "ablation").exists()
        begun = compared or any(path.exists() for path in (run.stage(1), run.stage(2), run.student))
        if compared and not comparison and not shared:
            raise MmedgeError(f"{folder} holds a comparison of methods", "choose another --out folder")
        if run.recipe.is_file() and begun:  # before training, the annotations alone say what they belong to
            _check_same(load_run_recipe(run), recipe, folder)
        write_recipe(recipe, run.recipe)
        yield run


def load_run_recipe(run: Run) -> Recipe:
    """Return the resolved recipe of a run.

    Raises:
        MmedgeError: The folder is no run.
    """
    if not run.recipe.is_file():
        raise MmedgeError(f"{run.folder} is no run: it has no recipe.yaml", "make one: mmedge annotate RECIPE --out FOLDER")
    try:
        values = yaml.safe_load(read_text(run.recipe))
    except yaml.YAMLError as error:
        raise MmedgeError(f"{run.recipe}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise MmedgeError(f"{run.recipe}: a recipe is a mapping of sections")
    return validate(values, str(run.recipe))


def _check_same(old: Recipe, new: Recipe, folder: Path) -> None:
    before, after = _flat(recipe_values(old)), _flat(recipe_values(new))
    for name in sorted(before.keys() | after.keys()):
        if name.split(".")[0] in _DECISIVE and before.get(name) != after.get(name) and name not in _IGNORED:
            raise MmedgeError(
                f"{folder} was made with {name} = {before.get(name)!r}, not {after.get(name)!r}",
                "choose another --out folder, or run it with the same recipe",
            )


_IGNORED = {
    f"training.{name}" for name in HOW_NOT_WHAT
} | {  # how a teacher is reached decides nothing; what it wrote is in the store
    f"teacher.{name}"
    for name in (
        *("base_url", "api_key_env", "concurrency", "timeout_seconds", "patience_minutes", "choices_per_request", "attempts"),
        *("max_cost", "max_requests", "prices.input", "prices.output", "prices.currency"),
        *("device", "batch_size", "threads"),
    )
}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
