"""The stages of a training, in their order: what each learns, from whose chains of thought, and how it is validated.

    for stage in stages_of(recipe.method):
        parts_of(stage, recipe.method)        the objectives, each with its share of the lessons and its weight in the loss

Needs no torch: recipes are validated with it, and `mmedge inspect` names stages by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmedge.distill.objectives import OBJECTIVES
from mmedge.recipe.method import MethodSection, ObjectiveSection

if TYPE_CHECKING:
    from mmedge.distill.measure import Measure
    from mmedge.distill.validation import Validation
    from mmedge.students.student import TorchStudent

_NONE_LEFT = 1e-9  # shares are written in decimals, whose sum may miss 1 by a rounding error


@dataclass(frozen=True)
class Part:
    """An objective's part in a stage.

    Attributes:
        objective: Its name.
        share: Its share of the lessons; the main one has what the others leave.
        weight: Its weight in the loss.
        section: Its settings, where the recipe adds it.
        main: It is what the stage is about: the stage's `batch_size` counts its lessons, and the others stand beside them.
    """

    objective: str
    share: float
    weight: float
    section: ObjectiveSection | None = None
    main: bool = False

    @property
    def prefix(self) -> str:
        """The prefix of its losses in the log."""
        if self.main:
            return ""
        return f"{OBJECTIVES[self.objective].log_name if self.section is None else self.objective}_"


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: Of its folder, and of its section in `training`.
        title: What a reader calls it.
        objectives: What it learns by itself, by the method: names, each with its share of the lessons and its weight in the loss;
            the first is what it is about, and has what the others leave. Empty where the method does not need the stage.
        reads: The fields of a recipe that matter from here on, and not before; a section's name is all of it.
        validate: Measures a student on validation data.
        own_cots: Whether lessons are also written from chains of thought of the student's own.
        judged: Whether verdicts on held-out chains of thought are measured when it ends.
    """

    name: str
    title: str
    objectives: Callable[[MethodSection], Sequence[tuple[str, float, float]]]
    reads: tuple[str, ...]
    validate: Callable[[Measure, TorchStudent], Validation]
    own_cots: bool = False
    judged: bool = False


def _judging(method: MethodSection) -> Sequence[tuple[str, float, float]]:
    return [("self_evaluation", 1.0, 1.0)] if method.self_evaluation and method.schedule == "sequential" else []


def _reasoning(method: MethodSection) -> Sequence[tuple[str, float, float]]:
    if not method.self_evaluation or not method.rehearsal:
        return [("reasoning", 1.0, 1.0)]
    return [("reasoning", 1.0, 1.0), ("self_evaluation", method.rehearsal, method.evaluation_weight or method.rehearsal)]


def _own(method: MethodSection) -> Sequence[tuple[str, float, float]]:
    if method.own_cots:
        return [("reasoning", 1.0, 1.0), ("own_verdicts", method.own_share, method.own_share)]
    return [("reasoning", 1.0, 1.0)] if any(one.stage == "stage3" for one in method.objectives.values()) else []


def _own_verdicts(measure: Measure, student: TorchStudent) -> Validation:
    return measure.own_verdicts(student) if measure.recipe.method.own_cots else measure.validation_answers(student)


def _fields(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


STAGES = (
    Stage(
        name="stage1",
        title="Stage 1: self-evaluation",
        objectives=_judging,
        reads=(
            *_fields("method", "self_evaluation", "schedule", "max_cots", "alpha"),
            *_fields("method", "balance_verdicts", "contrast_verdicts", "shuffle_evaluations"),
        ),
        validate=lambda measure, student: measure.validation_verdicts(student),
        judged=True,
    ),
    Stage(
        name="stage2",
        title="Stage 2: reasoning",
        objectives=_reasoning,
        reads=(
            *_fields("method", "labels", "rationales", "keep", "rehearsal", "evaluation_weight", "cots_per_visit"),
            *("training.select_by", "generation"),
        ),
        validate=lambda measure, student: measure.validation_answers(student),
    ),
    Stage(
        name="stage3",
        title="Stage 3: the student's own chains of thought",
        objectives=_own,
        reads=_fields("method", "own_cots", "own_temperature", "own_share", "own_folds"),
        validate=_own_verdicts,
        own_cots=True,
    ),
)


def parts_of(stage: Stage, method: MethodSection) -> list[Part]:
    """Return what a stage learns; empty for a stage that the method does not have.

    Objectives that the recipe adds take their shares of the lessons; with nothing left, the stage's own first one is left out.

    Raises:
        ValueError: The shares are more than there is.
    """
    own = stage.objectives(method)
    others = [Part(name, share, weight) for name, share, weight in own[1:]]
    others += [
        Part(name, section.share, section.weight or section.share, section)
        for name, section in method.objectives.items()
        if section.stage == stage.name
    ]
    left, weights = 1 - sum(part.share for part in others), sum(part.weight for part in others)
    if left < -_NONE_LEFT:
        raise ValueError(f"objectives: their shares of {stage.name} add up to more than 1")
    if not own or left <= _NONE_LEFT:
        return [replace(part, weight=part.weight / weights) for part in others]
    if weights >= 1:
        raise ValueError(f"objectives: their weights in {stage.name} leave nothing for {own[0][0]}; lower them")
    return [Part(own[0][0], left, 1 - weights, main=True), *others]


def judges(method: MethodSection) -> bool:
    """Whether a student learns verdicts on chains of thought."""
    return method.self_evaluation or any(OBJECTIVES[name].judges for name in method.objectives)


def learns_evaluations(method: MethodSection) -> bool:
    """Whether a student learns from evaluations, verdicts or texts."""
    return judges(method) or any(OBJECTIVES[name].evaluations for name in method.objectives)


def learned_texts(method: MethodSection) -> list[str]:
    """Return what a student learns to write besides answers: `rationale`, `verdict`."""
    explains = method.rationales or any(OBJECTIVES[name].explains for name in method.objectives)
    return [name for name, learned in (("rationale", explains), ("verdict", judges(method))) if learned]


def stages_of(method: MethodSection) -> list[Stage]:
    """Return the stages that a method has, in their order."""
    return [stage for stage in STAGES if parts_of(stage, method)]


def lessons_per_step(parts: Sequence[Part], batch: int) -> list[int]:
    """Return how many lessons of each objective a step has, so that the shares hold.

    Args:
        parts: What the stage learns.
        batch: Lessons of its main objective, beside which the others stand; of all together where there is none.
    """
    whole = 1 - sum(part.share for part in parts if not part.main) if parts[0].main else 1.0
    return [batch if part.main else max(1, round(batch * part.share / whole)) for part in parts]


def loss_names(stage: Stage) -> dict[str, str]:
    """Return what a reader calls the losses of a stage's own objectives, by their names in the log without `_loss`."""
    everything = MethodSection(rehearsal=0.5, own_cots=1)
    return {
        f"{part.prefix}{name}": word
        for part in parts_of(stage, everything)
        for name, word in OBJECTIVES[part.objective].words.items()
    }
