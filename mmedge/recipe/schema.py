"""Recipes: one YAML file that names task, teacher, student, method, training and export; a closed, validated schema.

    recipe = load_recipe(Path("recipes/quickstart.yaml"), ["training.stage2.max_steps=100"])

An unknown field, a wrong type or a value out of range is an error that names the field and what is allowed. `${MMEDGE_DATA}`
in a path is replaced by the environment variable of that name; other variables are not expanded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from mmedge.errors import MmedgeError
from mmedge.recipe.ablation import NEEDS_SELF_EVALUATION, ROWS, AblationSection
from mmedge.recipe.answering import AnsweringSection
from mmedge.recipe.bench import BenchSection
from mmedge.recipe.complaints import complaint
from mmedge.recipe.export import ExportSection
from mmedge.recipe.method import MethodSection
from mmedge.recipe.student import StudentSection
from mmedge.recipe.synthesis import SynthesisSection
from mmedge.recipe.teacher import TeacherSection
from mmedge.recipe.training import GenerationSection, SplitSection, TrainingSection
from mmedge.sections import Section
from mmedge.storage import read_text, write_text
from mmedge.tasks.settings import TaskSection


def _without_a_name(schema: dict[str, Any]) -> None:
    """Leave `name` out of what an editor requires: `load_recipe` takes the file's."""
    schema["required"].remove("name")


class Recipe(Section):
    """A whole recipe."""

    model_config = ConfigDict(json_schema_extra=_without_a_name)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")] = Field(
        description="What the recipe and, by default, its run are called. Default: the file's name."
    )
    seed: int = Field(0, description="Random seed of initial weights, order of lessons and dropout.")
    task: TaskSection = Field(description="Where questions come from, and what answers look like.")
    teacher: TeacherSection | None = Field(
        None, description="Who writes chains of thought and evaluations; without one, human labels are learned."
    )
    synthesis: SynthesisSection = Field(
        SynthesisSection(), description="New questions that the teacher writes: `mmedge synthesize`."
    )
    student: StudentSection = Field(description="Where the student's weights come from.")
    method: MethodSection = Field(MethodSection(), description="What is learned from.")
    training: TrainingSection = Field(TrainingSection(), description="How long, at which rate, on which device.")
    split: SplitSection = Field(SplitSection(), description="What is held out of the training questions.")
    generation: GenerationSection = Field(GenerationSection(), description="How long answers and rationales may be.")
    export: ExportSection = Field(ExportSection(), description="Which bundles to write, and how close they must be to the student.")
    answering: AnsweringSection = Field(AnsweringSection(), description="How a bundle answers by default.")
    bench: BenchSection = Field(BenchSection(), description="How much to measure.")
    ablation: AblationSection = Field(AblationSection(), description="What `mmedge ablate` compares.")

    @model_validator(mode="before")
    @classmethod
    def _labels_alone_without_a_teacher(cls, values: Any) -> Any:
        """Without a teacher, the defaults are those of plain fine-tuning on human labels."""
        method = values.get("method", {}) if isinstance(values, dict) else None
        if not isinstance(method, dict) or values.get("teacher") is not None:
            return values
        return values | {"method": {"labels": "human", "rationales": False, "self_evaluation": False} | method}

    @model_validator(mode="after")
    def _needs_a_teacher(self) -> Recipe:
        method = self.method
        wanted = {"labels": method.labels != "human", "rationales": method.rationales, "self_evaluation": method.self_evaluation}
        if self.teacher is None and any(wanted.values()):
            name = next(name for name, needed in wanted.items() if needed)
            raise ValueError(f"method.{name}: {getattr(method, name)!r} needs a teacher; add a teacher section")
        return self

    @model_validator(mode="after")
    def _teacher_fits_task(self) -> Recipe:
        if self.teacher is not None and self.teacher.kind == "embedded" and self.task.kind != "arithmetic":
            raise ValueError("teacher.kind: 'embedded' works with the task 'arithmetic' only; use another teacher")
        return self

    @model_validator(mode="after")
    def _evaluation_is_weighed(self) -> Recipe:
        if self.method.evaluation_weight is not None and not self.method.rehearsal:
            raise ValueError("method.evaluation_weight: requires method.rehearsal")
        return self

    @model_validator(mode="after")
    def _rounded_weights_are_trained(self) -> Recipe:
        if self.training.quantize is not None:
            given = {
                "student.lora": self.student.lora is not None,
                "student.frozen_layers": self.student.frozen_layers > 0,
                "training.compile": self.training.compile,
            }
            if name := next((name for name, wanted in given.items() if wanted), None):
                raise ValueError(f"training.quantize: cannot be combined with {name}")
        return self

    @model_validator(mode="after")
    def _stage_3_has_a_length(self) -> Recipe:
        if (needed_by := _needs_stage3(self.method)) and self.training.stage3 is None:
            raise ValueError(f"method.{needed_by}: requires training.stage3, which says how long stage 3 trains")
        if self.method.own_cots and not self.method.self_evaluation:
            raise ValueError("method.own_cots: requires method.self_evaluation")
        return self

    @model_validator(mode="after")
    def _rows_are_methods(self) -> Recipe:
        for name, settings in self.ablation.more.items():
            if name in ROWS:
                raise ValueError(f"ablation.more: {name!r} is one of the built-in rows; choose another name")
            if unknown := sorted(settings.keys() - MethodSection.model_fields.keys()):
                raise ValueError(f"ablation.more.{name}: unknown setting of method: {unknown[0]!r}")
            if "labels" in settings:
                raise ValueError(f"ablation.more.{name}: every row is trained with each of ablation.labels; set labels there")
            method = MethodSection.model_validate(self.method.model_dump() | settings)
            if (needed_by := _needs_stage3(method)) and self.training.stage3 is None:
                raise ValueError(f"ablation.more.{name}: {needed_by} requires training.stage3, which says how long stage 3 trains")
            vain = sorted(one for one in settings.keys() & NEEDS_SELF_EVALUATION if settings[one])
            if vain and not method.self_evaluation:
                raise ValueError(f"ablation.more.{name}: {vain[0]} requires self_evaluation")
            if not method.rehearsal and settings.get("evaluation_weight") is not None:
                raise ValueError(f"ablation.more.{name}: evaluation_weight requires rehearsal")
        if self.ablation.epochs and self.ablation.equal != "none":
            raise ValueError("ablation.epochs: requires ablation.equal: none")
        for name in ("rows", "labels", "seeds"):
            if len(set(getattr(self.ablation, name))) < len(getattr(self.ablation, name)):
                raise ValueError(f"ablation.{name}: a value is listed twice")
        if unknown := sorted(self.ablation.epochs.keys() - {*ROWS, *self.ablation.more}):
            raise ValueError(f"ablation.epochs: unknown row {unknown[0]!r}")
        return self


def _needs_stage3(method: MethodSection) -> str | None:
    """Return the field of a method that needs stage 3; None where nothing does."""
    if method.own_cots:
        return "own_cots"
    return next((f"objectives.{name}" for name, section in method.objectives.items() if section.stage == "stage3"), None)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: The YAML file.
        overrides: `section.field=value` settings that replace or add fields; values are read as YAML.

    Raises:
        MmedgeError: The file is missing or not YAML, or a field is unknown or has an invalid value.
    """
    if path.is_dir():
        raise MmedgeError(f"{path} is a folder, not a recipe", "name a YAML file, such as recipes/quickstart.yaml")
    text = read_text(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise MmedgeError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}",
            "check this line and the one above it; fields of one section begin in the same column, after spaces and not tabs",
        ) from None
    except RecursionError:
        raise MmedgeError(f"{path}: YAML nested too deeply") from None
    if not isinstance(values, dict):
        raise MmedgeError(f"{path}: a recipe is a mapping of sections", "see recipes/quickstart.yaml")
    for override in overrides or []:
        _override(values, override)
    values.setdefault("name", re.sub(r"[^a-z0-9._]+", "-", path.stem.lower()).strip("-._") or "recipe")
    return validate(values, str(path))


def validate(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's values; errors name the field and what is allowed."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise complaint(error, Recipe, values, where) from None


_EITHER = {"max_steps": "epochs", "epochs": "max_steps"}


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise MmedgeError(f"--set {override!r}: expected section.field=value", "for example --set training.stage2.max_steps=100")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    target = values
    for part in parts[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise MmedgeError(f"--set {override!r}: {part!r} is a value, not a section")
        target = inner
    if value is not None and parts[-1] in _EITHER:
        target.pop(_EITHER[parts[-1]], None)  # a stage has one length: the new one replaces the file's
    target[parts[-1]] = value


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as plain values, every default written out."""
    return recipe.model_dump(mode="json")


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True))
