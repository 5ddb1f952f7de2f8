"""Answering: how a bundle answers where a call says nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmedge.sections import Section, Share


class AnsweringSection(Section):
    """How a bundle answers where a call says nothing else; the bundle carries it.

    `strategy`: `answer` at once; `confidence` judges itself; `samples` draws so many chains of thought at `temperature` and lets
    them vote (`choose_by` `majority`, `self_evaluation`, or `both`); `retry` does so where the confidence is below `retry_below`.
    `constrained` answers have the task's form. Answers below a confidence are withheld where `target_accuracy` (of the answers
    given) or `max_handed_on` (the share withheld) is given: export chooses the threshold on validation questions.
    """

    strategy: Literal["answer", "confidence", "samples", "retry"] = "answer"
    samples: Annotated[int, Field(ge=1, le=64)] = 5
    choose_by: Literal["majority", "self_evaluation", "both"] = "both"
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    seed: int = 0
    retry_below: Share = 0.5
    constrained: bool = False
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    max_handed_on: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> AnsweringSection:
        if self.target_accuracy is not None and self.max_handed_on is not None:
            raise ValueError("give target_accuracy or max_handed_on, not both")
        if self.strategy in ("samples", "retry") and (self.target_accuracy is not None or self.max_handed_on is not None):
            raise ValueError(f"thresholds are chosen for answering at once, not for strategy {self.strategy!r}")
        return self
