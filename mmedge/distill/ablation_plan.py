"""The trainings of a comparison of methods, and the length of each: all rows have the same budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmedge.distill.material import Material
from mmedge.distill.objectives.judging import evaluated_cots
from mmedge.distill.stages import lessons_per_step, parts_of, stages_of
from mmedge.errors import MmedgeError
from mmedge.recipe import ROWS, MethodSection, Recipe, StageSection, TrainingSection

LARGEST_ROW = "cots_self_evaluation"
SEEDS_APART = 1000  # between the embedded task's seeds of two trainings: recipes' own seeds are small, and must not be met


@dataclass(frozen=True)
class Unit:
    """One training of a comparison.

    Attributes:
        row: Which method.
        labels: Which labels.
        seed: Which seed.
        recipe: The recipe of just this training.
    """

    row: str
    labels: str
    seed: int
    recipe: Recipe


def method_of(recipe: Recipe, row: str, labels: str) -> MethodSection:
    """Return a row's method: a built-in one, all chains of thought kept, or one that the recipe adds.

    The standard row with pseudo-labels learns the label of the first chain of thought, as the row with one does.
    """
    base = recipe.method.model_dump() | {"labels": labels}
    if row not in ROWS:
        return MethodSection.model_validate(base | {"self_evaluation": True} | recipe.ablation.more[row])
    evaluates, one = row.endswith("self_evaluation"), row.startswith("one_cot")
    changes: dict[str, Any] = {"self_evaluation": evaluates, "keep": "all", "max_cots": 1 if one else recipe.method.max_cots}
    changes |= {"rationales": True, "own_cots": 0, "objectives": {}}
    if one and recipe.method.contrast_verdicts:  # a single chain of thought cannot differ from others
        changes |= {"contrast_verdicts": False, "balance_verdicts": True}
    if row == "standard":
        changes |= {"rationales": False, "max_cots": 1 if labels == "pseudo" else recipe.method.max_cots}
    if row == "all_labels":
        changes |= {"rationales": False}
    return MethodSection.model_validate(base | changes)


@contextmanager
def row_named(row: str, labels: str) -> Iterator[None]:
    """Name the row in an error."""
    try:
        yield
    except MmedgeError as error:
        raise MmedgeError(f"row {row} of the comparison, {labels} labels: {error.what}", error.hint) from error


def plan(recipe: Recipe, material: Material) -> list[Unit]:
    """Return every training of a comparison, in the order in which they are done: all rows of a seed before the next seed.

    Args:
        recipe: The comparison's.
        material: What all rows learn from.

    Raises:
        MmedgeError: A row has no stage 2 within the budget that all share, or its stages' lengths cannot be told.
    """
    section, budget = recipe.ablation, _Budget(recipe, material)
    units = []
    for seed in section.seeds:
        of_seed = seeded(recipe, seed)
        for labels in section.labels:
            same = labels != "pseudo" and {"standard", "all_labels"} <= set(section.rows)
            for row in (*section.rows, *section.more):
                if same and row == "all_labels":
                    continue
                method = method_of(recipe, row, labels)
                with row_named(row, labels):
                    training = budget.training(row, method).model_copy(update={"keep": "last"})
                units.append(Unit(row, labels, seed, of_seed.model_copy(update={"method": method, "training": training})))
    return units


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """Return a recipe with another seed, and with what is drawn by chance drawn anew: which questions are held out, and all
    questions of the embedded task with what its teacher writes. Otherwise every training would share the same luck."""
    split = recipe.split.model_copy(update={"seed": recipe.split.seed + seed})
    changes: dict[str, Any] = {"seed": seed, "split": split}
    for name in ("task", "teacher"):
        section = getattr(recipe, name)
        if recipe.task.kind == "arithmetic" and hasattr(section, "seed"):
            changes[name] = section.model_copy(update={"seed": section.seed + SEEDS_APART * seed})
    return recipe.model_copy(update=changes)


class _Budget:
    """How long each row's stages are."""

    def __init__(self, recipe: Recipe, material: Material) -> None:
        self._material, self._training, self._section = material, recipe.training, recipe.ablation
        whole = method_of(recipe, LARGEST_ROW, self._section.labels[0])
        self._steps = self._written(LARGEST_ROW, whole)
        self._lessons = sum(self._steps[name] * count for name, count in self._per_step(whole).items())

    def training(self, row: str, method: MethodSection) -> TrainingSection:
        """Return a row's training: lengths in steps, with as many validations as the recipe's stages have."""
        per_step, steps = self._per_step(method), dict(self._steps)
        if self._section.equal == "none":
            steps = self._written(row, method)
            if "stage1" in per_step and self._section.epochs.get(row, (1, 1))[0] == 0:
                raise MmedgeError("its stage 1 cannot have 0 epochs", f"ablation.epochs.{row}: the first number must be above 0")
        elif self._section.equal == "lessons":
            others = sum(self._length(name) * count for name, count in per_step.items() if name != "stage2")
            steps["stage2"] = round((self._lessons - others) / per_step["stage2"])
            if steps["stage2"] < 1:
                raise MmedgeError(
                    f"its other stages take all of the {self._lessons} lessons of a row",
                    "shorten them (training.stage1, training.stage3), or lengthen training.stage2",
                )
        elif self._section.equal == "steps" and "stage1" not in per_step:
            steps["stage2"] += steps["stage1"]
        return self._training.model_copy(update={name: self._stage(name, count) for name, count in steps.items()})

    def _per_step(self, method: MethodSection) -> dict[str, int]:
        """Return how many lessons a step of each of a method's stages has."""
        found = {}
        for stage in stages_of(method):
            section: StageSection = getattr(self._training, stage.name)
            found[stage.name] = sum(lessons_per_step(parts_of(stage, method), section.batch_size))
        return found

    def _length(self, name: str) -> int:
        """Return the length that a stage beside stage 2 has in every row with it."""
        if name in self._steps:
            return self._steps[name]
        steps = getattr(self._training, name).max_steps
        if steps is None:
            raise MmedgeError(f"training.{name}: a comparison requires its length in steps", "give max_steps instead of epochs")
        return int(steps)

    def _written(self, row: str, method: MethodSection) -> dict[str, int]:
        """Return the lengths of stages 1 and 2 as the recipe writes them, epochs counted in the row's own lessons."""
        training, train = self._training, self._material.limited(method.max_cots).train
        evaluated = len(evaluated_cots(train, contrast=method.contrast_verdicts)) if method.self_evaluation else 0
        own = self._section.epochs.get(row)
        lengths = {}
        for number, (name, section, count) in enumerate(
            (("stage1", training.stage1, evaluated), ("stage2", training.stage2, len(train)))
        ):
            per_epoch = math.ceil(count / section.batch_size)
            if own is not None:
                lengths[name] = max(1, round(own[number] * per_epoch))
            else:
                lengths[name] = section.max_steps or max(1, round((section.epochs or 1) * per_epoch))
        return lengths

    def _stage(self, name: str, steps: int) -> StageSection:
        section: StageSection = getattr(self._training, name)
        validations = max(1, round(self._steps[name] / section.evaluate_every)) if section.evaluate_every else 5
        return section.model_copy(
            update={"max_steps": steps, "epochs": None, "evaluate_every": math.ceil(steps / validations), "patience": None}
        )
