"""Training: how long, at which rate, on which device; what is held out; how long texts may be."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmedge.sections import Positive, Section, Share, Threads, TokenLimit

COMPUTE_ONLY = (  # settings of training that change how it is computed, and not what is learned
    "checkpoint_minutes",
    "threads",
    "device",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile",
    "tracker",
    "untrained",
)


class StageSection(Section):
    """How long one stage trains, and at which rate."""

    max_steps: Positive | None = Field(default=None, description="Length in optimizer steps. Give either this or `epochs`.")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Length in visits to every lesson. Default: 3, where `max_steps` is not given either."
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate; it falls linearly to zero.")
    batch_size: Positive = Field(default=16, description="Lessons of the stage's main objective in one step.")
    warmup_share: Share = Field(default=0.05, description="Share of the steps in which the learning rate rises linearly.")
    evaluate_every: Positive | None = Field(
        default=None,
        description="Steps between validations. Default: five validations in all, and one in every epoch of ten steps or more.",
    )
    patience: Positive | None = Field(
        default=None, description="Stop after this many validations in a row without a better score. Default: never."
    )

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("max_steps") is None and values.get("epochs") is None:
            return values | {"epochs": 3.0}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> StageSection:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError("give exactly one of max_steps and epochs")
        return self


class TrainingSection(Section):
    """The stages, and what they share. A stage that the method does not have needs no section."""

    stage1: StageSection = Field(
        default=StageSection(epochs=1),
        description="Stage 1, which learns to judge. Default: one visit to every chain of thought.",
    )
    stage2: StageSection = Field(
        default=StageSection(epochs=3), description="Stage 2, which learns to reason, or labels alone. Default: three epochs."
    )
    stage3: StageSection | None = Field(
        default=None, description="Stage 3, which learns from the student's own chains of thought. Needed with `method.own_cots`."
    )
    max_input_tokens: TokenLimit = Field(default=512, description="Longest input, in tokens; longer ones are cut.")
    max_target_tokens: TokenLimit = Field(
        default=256, description="Longest target, in tokens; longer ones are cut and have no end token."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon is for students from scratch; adamw suits pretrained weights."
    )
    position_rate: float = Field(
        default=1.0,
        gt=0,
        description="Multiplies the learning rate of T5's position biases; above 1 for students from scratch.",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay of matrices.")
    adam_beta2: float = Field(default=0.999, gt=0, lt=1, description="Decay of Adam's second moment.")
    select_by: Literal["answers", "answers_and_verdicts"] = Field(
        default="answers",
        description="How stage 2's best checkpoint is chosen: by the best answers on validation questions, or by the best"
        " mean of answers and verdicts (balanced accuracy). The former may have forgotten how to judge.",
    )
    untrained: Literal["brief", "full"] = Field(
        default="brief",
        description="How much the student answers before it is trained. brief: 64 questions of each split, and the rest"
        " unless these already show that fewer than a tenth would be right. full: all of them.",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="The weights that a stage ends with: those of the best validation, or the last ones, as comparisons do.",
    )
    max_gradient_norm: float = Field(default=1.0, gt=0, description="Longer gradients are scaled down to this norm.")
    checkpoint_minutes: float = Field(default=5.0, ge=0, description="Minutes between checkpoints; the most that a kill loses.")
    threads: Threads | None = Field(default=None, description="CPU threads of torch. Default: torch's.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train; auto: on a GPU where there is one.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Dtype that passes compute in; weights, optimizer states and the loss stay float32 (mixed precision).",
    )
    micro_batch_tokens: Positive | None = Field(
        default=None,
        description="Most tokens of one pass, padding included; a step takes as many passes as its batch needs, so this changes"
        " memory and speed, not the result. A pass that does not fit is halved. Default: 4,096 on a CPU, 16,384 on a GPU.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Compute activations twice instead of keeping them.")
    compile: bool = Field(
        default=False, description="Compile passes with torch.compile, which pays off in long trainings on a GPU."
    )
    quantize: Literal["int4", "int2"] | None = Field(
        default=None,
        description="In the last part of the last stage, learn with weights rounded as export will round them, and end with these"
        " (quantization-aware training). Default: export rounds a float student.",
    )
    quantize_share: float = Field(default=0.3, gt=0, le=1, description="How much of the stage's steps that is.")
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        default="none",
        description="Experiment tracker that also gets all metrics. Its files stay in the run's folder and nothing leaves the"
        " machine, unless the tracker's environment variables say otherwise.",
    )

    @model_validator(mode="before")
    @classmethod
    def _tracker_by_its_old_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "tensorboard" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "tensorboard"}
        warnings.warn(
            "training.tensorboard is now training.tracker: tensorboard; the old name will be refused in the next version",
            FutureWarning,
            stacklevel=2,
        )
        return {"tracker": "tensorboard"} | rest if values["tensorboard"] else rest


class SplitSection(Section):
    """What is held out of the training questions."""

    validation: Positive | None = Field(
        default=None,
        description="Questions for every choice: checkpoints, early stopping, export's verification, thresholds. Default: 100; a"
        " fifth where there are fewer than 300 questions.",
    )
    verdict_test: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Questions whose chains of thought measure verdicts at the end, and nothing else. Default: 50; a tenth where"
        " there are fewer than 300 questions; 0 without a teacher.",
    )
    seed: int = Field(default=0, description="Random seed of which questions are held out.")


class GenerationSection(Section):
    """How long the student's texts may be."""

    max_answer_tokens: TokenLimit = Field(default=32, description="Longest answer, in tokens.")
    max_rationale_tokens: TokenLimit = Field(default=128, description="Longest rationale or evaluation, in tokens.")
