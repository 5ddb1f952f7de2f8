"""The method: what is learned from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmedge.sections import Positive, Section, Share


class MethodSection(Section):
    """Mind's Mirror: what is learned from.

    `labels` says what the right answer is: the pseudo-label of every CoT, weighted by how many say it (the paper without human
    labels), the `majority` of a question's CoTs, or the `human` label. `rationales: false` learns answers alone, the standard
    way to fine-tune. `max_cots` learns from the first so many chains of thought of a question and their evaluations.

    `schedule` is `sequential` (stage 1 learns to evaluate, stage 2 to reason: the paper) or `joint` (one stage learns both at
    once). `rehearsal` is the share of stage 2 that goes on learning to evaluate (0: the paper's schedule; with `joint` the
    share that evaluation has in all). Its lessons count as much as their number says, unless `evaluation_weight` gives them
    another weight in the loss. `alpha` weighs the short task against the long one. `balance_verdicts` gives all verdicts the
    same weight in total, so that a student is not drawn to the most frequent one; `contrast_verdicts` learns to evaluate from
    questions whose chains of thought were judged differently, and from no others.

    `cots_per_visit` is how many of a question's rationales one visit trains; they take turns from epoch to epoch (none given:
    all of them at every visit). `keep` chooses the chains of thought that stage 2 learns from: all of them (the paper), those
    that agree with most others of their question, or those that the teacher itself judged correct; stage 1 learns from all of
    them in any case.

    `own_cots` adds a stage 3 on the student's own mistakes: the student writes so many chains of thought to every training
    question (the first greedily, the others drawn at `own_temperature`), learns to judge them beside the teacher's, and to reason
    from those that came out right. `own_share` is the share of stage 3 that judges.
    """

    labels: Literal["pseudo", "majority", "human"] = "pseudo"
    rationales: bool = True
    max_cots: Positive | None = None
    keep: Literal["all", "self_consistent", "judged_correct"] = "all"
    self_evaluation: bool = True
    schedule: Literal["sequential", "joint"] = "sequential"
    alpha: Share = 0.5
    balance_verdicts: bool = False
    contrast_verdicts: bool = False
    rehearsal: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluation_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    cots_per_visit: Positive | None = None
    own_cots: Annotated[int, Field(ge=0, le=32)] = 0
    own_temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    own_share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _joint_needs_a_share(self) -> MethodSection:
        if self.schedule == "joint" and self.self_evaluation and not self.rehearsal:
            raise ValueError("rehearsal: a joint schedule needs the share that evaluation has in it, such as 0.3")
        return self
