"""The method: what is learned from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from mmedge.errors import nearest
from mmedge.sections import Positive, Section, SettingsByName, Share


class ObjectiveSection(Section):
    """What every objective that a recipe adds is told; an objective's own settings derive from it."""

    share: float = Field(gt=0, le=1, description="Share of its stage's lessons.")
    weight: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Weight of its loss in the stage's loss. Default: its share."
    )
    stage: str = Field(default="", description="The stage it is part of. Default: the first one that the objective may be part of.")


class MethodSection(Section):
    """What is learned from, as in Mind's Mirror (Liu et al. 2024).

    Without a teacher, the defaults are those of plain fine-tuning: `labels: human`, `rationales: false`,
    `self_evaluation: false`.
    """

    labels: Literal["pseudo", "majority", "human"] = Field(
        default="pseudo",
        description="What the right answer is: the pseudo-label of every chain of thought, weighted by how many of them agree"
        " (the paper without human labels); the answer of the majority of a question's chains of thought; or the human label"
        " (that of the majority for synthesized questions, which have none). Default: pseudo; human without a teacher.",
    )
    rationales: bool = Field(
        default=True,
        description="Whether rationales are learned too. With false, answers alone are learned, which is standard fine-tuning."
        " Default: true; false without a teacher.",
    )
    max_cots: Positive | None = Field(
        default=None, description="How many chains of thought of a question are used, with their evaluations. Default: all."
    )
    keep: Literal["all", "self_consistent", "judged_correct"] = Field(
        default="all",
        description="The chains of thought that reasoning is learned from: all (the paper), those that agree with most others of"
        " their question, or those that the teacher itself judged correct. Judging is learned from all in any case.",
    )
    self_evaluation: bool = Field(
        default=True, description="Whether the student learns to judge chains of thought. Default: true; false without a teacher."
    )
    schedule: Literal["sequential", "joint"] = Field(
        default="sequential",
        description="sequential: stage 1 learns to judge, stage 2 to reason (the paper). joint: stage 2 learns both at once, and"
        " there is no stage 1; `rehearsal` is then the share of judging.",
    )
    alpha: Share = Field(
        default=0.5,
        description="Weight of answers and verdicts in the loss; rationales and evaluations get the rest.",
    )
    balance_verdicts: bool = Field(
        default=False, description="Give all verdicts the same weight in total, so that the most frequent one is not favoured."
    )
    contrast_verdicts: bool = Field(
        default=False, description="Learn to judge only from questions whose chains of thought were judged differently."
    )
    shuffle_evaluations: bool = Field(
        default=False,
        description="Learn from evaluations that were exchanged at random between chains of thought: the control of a"
        " comparison, which shows what the teacher's verdicts are worth. `keep` and the weights of rationales still read the true"
        " ones.",
    )
    rehearsal: float = Field(
        default=0.0, ge=0, lt=1, description="Share of stage 2's lessons that still teach judging; 0 is the paper's schedule."
    )
    evaluation_weight: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Weight of judging in stage 2's loss. Default: `rehearsal`, its share of the lessons."
    )
    cots_per_visit: Positive | None = Field(
        default=None,
        description="How many of a question's rationales are learned in one visit, in turns from epoch to epoch. Default: all.",
    )
    own_cots: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Chains of thought that the student writes for every training question before stage 3, the first one greedily."
        " Stage 3 learns to judge them beside the teacher's, and to reason from those with the right answer. 0: none.",
    )
    own_temperature: float = Field(
        default=1.0, gt=0, le=10, description="Sampling temperature of the student's own chains of thought."
    )
    own_folds: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Further students, at least 2, that write these chains of thought in the student's place, each for questions"
        " that it was not trained on: after training on a question, few answers to it are wrong. 0: the student itself.",
    )
    own_share: float = Field(default=0.5, gt=0, lt=1, description="Share of stage 3's lessons that judge.")
    objectives: Annotated[dict[str, SerializeAsAny[ObjectiveSection]], SettingsByName("mmedge.distill.objectives:OBJECTIVES")] = (
        Field(
            default_factory=dict,
            description="Further objectives by name, each with `share` and its own settings, such as `inline_verdict: {share: 1}`;"
            " installed packages add objectives.",
        )
    )

    @field_validator("objectives", mode="before")
    @classmethod
    def _settings_of_objectives(cls, found: Any) -> Any:
        """Validate each objective's settings by its own section."""
        from mmedge.distill.objectives import OBJECTIVES  # at first use: entries import sections of recipes

        if not isinstance(found, dict):
            return found
        sections: dict[str, Any] = {}
        for name, values in found.items():
            if name not in OBJECTIVES:
                known = f"{nearest(str(name), OBJECTIVES)}known: {', '.join(OBJECTIVES)}"
                raise ValueError(f"unknown objective {name!r:.40}; {known}")
            entry = OBJECTIVES[name]
            try:
                section = values if isinstance(values, ObjectiveSection) else entry.settings.model_validate(values)
            except ValidationError as error:
                found_there = [
                    InitErrorDetails(type=one["type"], loc=(name, *one["loc"]), input=one["input"], ctx=one.get("ctx") or {})
                    for one in error.errors(include_url=False)
                ]
                raise ValidationError.from_exception_data(name, found_there) from None
            section = section if section.stage else section.model_copy(update={"stage": entry.stages[0]})
            if section.stage not in entry.stages:
                raise ValueError(f"the stage of {name} must be {' or '.join(entry.stages)}, found {section.stage!r}")
            sections[name] = section
        return sections

    @model_validator(mode="after")
    def _shares_are_possible(self) -> MethodSection:
        if self.own_folds == 1:
            raise ValueError("own_folds: one fold leaves nothing to train on; give 2 or more, or 0")
        if self.schedule == "joint" and self.self_evaluation and not self.rehearsal:
            raise ValueError("rehearsal: a joint schedule needs the share of judging, such as 0.3")
        if self.objectives:
            from mmedge.distill.stages import stages_of

            stages_of(self)
        if self.shuffle_evaluations:
            from mmedge.distill.stages import learns_evaluations

            if not learns_evaluations(self):
                raise ValueError("shuffle_evaluations: requires self_evaluation or an objective that learns from evaluations")
        return self
