"""Training: how long, at which rate, on which device; what is held out; how long texts may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmedge.sections import Positive, Section, Share


class StageSection(Section):
    """How long one stage trains, at which rate."""

    max_steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    batch_size: Positive = 16
    warmup_share: Share = 0.05
    evaluate_every: Positive | None = None
    patience: Positive | None = None

    @model_validator(mode="after")
    def _one_length(self) -> StageSection:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        return self


HOW_NOT_WHAT = (  # settings of training that change how it is computed, and not what is learned
    "checkpoint_minutes",
    "threads",
    "device",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile",
    "tensorboard",
)


class TrainingSection(Section):
    """The stages (the third for `method.own_cots`), and what they share.

    `optimizer: muon` and a `position_rate` above 1, which multiplies the learning rate of T5's position biases, are for
    students from scratch. `select_by` says what stage 2's best checkpoint is: the one with the best answers on validation
    questions, or with the best mean of answers and verdicts (balanced); the former may have forgotten how to judge.

    `precision` is the number type that the passes compute in; weights, their moments and the loss stay float32 (mixed
    precision). `micro_batch_tokens` bounds the padded tokens of one pass: a step's gradient is accumulated over as many passes
    as its batch needs, so it changes memory and speed but no result; a pass that does not fit is halved. `gradient_checkpointing`
    computes activations twice instead of keeping them. `compile` lets `torch.compile` build the passes, which pays for long
    trainings on a GPU. `tensorboard` writes event files beside the metrics.
    """

    stage1: StageSection
    stage2: StageSection
    stage3: StageSection | None = None
    max_input_tokens: Positive = 512
    max_target_tokens: Positive = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    position_rate: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    select_by: Literal["answers", "answers_and_verdicts"] = "answers"
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    threads: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch_tokens: Positive | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    tensorboard: bool = False


class SplitSection(Section):
    """What is held out of the training questions, as counts of questions.

    `validation` is for every choice (checkpoint, early stop, export's verification); the CoTs of `verdict_test` are for the
    final verdict accuracy only.
    """

    validation: Positive = 100
    verdict_test: Annotated[int, Field(ge=0)] = 50
    seed: int = 0


class GenerationSection(Section):
    """Limits of what a student writes."""

    max_answer_tokens: Positive = 32
    max_rationale_tokens: Positive = 128
