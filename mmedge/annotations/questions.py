"""The questions of a run: those of its recipe's task, and those that were synthesized for it."""

from __future__ import annotations

from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.folders import Run
from mmedge.recipe import Recipe
from mmedge.tasks import Task, build_task
from mmedge.tasks.synthesized import WithSynthesized


def task_of(recipe: Recipe, run: Run) -> Task:
    """Return the task of a run.

    Args:
        recipe: The recipe; `synthesis.file` names the file of new questions, or else it is the run's own.
        run: The run.

    Raises:
        MmedgeError: A file that the recipe names is missing.
    """
    task = build_task(recipe.task.model_dump())
    named = recipe.synthesis.file
    path = Path(named) if named else run.synthesized
    if path.is_file():
        return WithSynthesized(task, path)
    if named:
        raise MmedgeError(f"synthesis.file: no such file: {path}", "leave it out, or write it: mmedge synthesize RECIPE")
    return task
