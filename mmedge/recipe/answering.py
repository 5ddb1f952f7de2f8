"""Answering: how a bundle answers by default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmedge.sections import Section, Share, renamed


class AnsweringSection(Section):
    """How a bundle answers by default; the bundle carries these settings, with the threshold that export chose."""

    strategy: Literal["answer", "confidence", "samples", "retry"] = Field(
        "answer",
        description="answer: answer at once. confidence: also judge the answer. samples: sample several chains of thought, whose"
        " answers vote. retry: sample only where the confidence is low.",
    )
    samples: Annotated[int, Field(ge=1, le=64)] = Field(5, description="Chains of thought to sample.")
    choose_by: Literal["majority", "self_evaluation", "both"] = Field("both", description="How the sampled answers vote.")
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(0.7, description="Sampling temperature.")
    seed: int = Field(0, description="Sampling seed.")
    retry_below: Share = Field(0.5, description="Confidence below which the strategy retry samples more.")
    constrained: bool = Field(False, description="Allow only answers of the task's form.")
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Withhold just enough answers for the rest to reach this accuracy on validation questions."
    )
    max_withheld: Share | None = Field(None, description="Withhold the least confident answers, at most this share.")

    @model_validator(mode="before")
    @classmethod
    def _read_older_names(cls, values: Any) -> Any:
        return renamed(values, "max_handed_on", "max_withheld", "answering")

    @model_validator(mode="after")
    def _one_aim(self) -> AnsweringSection:
        if self.target_accuracy is not None and self.max_withheld is not None:
            raise ValueError("give target_accuracy or max_withheld, not both")
        if self.strategy in ("samples", "retry") and (self.target_accuracy is not None or self.max_withheld is not None):
            raise ValueError(f"thresholds are chosen for answering at once, not for the strategy {self.strategy!r}")
        return self
