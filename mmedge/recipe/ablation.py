"""Ablation: what `mmedge ablate` compares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from mmedge.sections import Section

RowName = Literal["standard", "one_cot", "one_cot_self_evaluation", "all_labels", "cots", "cots_self_evaluation"]
ROWS: tuple[RowName, ...] = ("standard", "one_cot", "one_cot_self_evaluation", "all_labels", "cots", "cots_self_evaluation")
NEEDS_SELF_EVALUATION = {"rehearsal", "evaluation_weight", "balance_verdicts", "contrast_verdicts", "schedule"}


class AblationSection(Section):
    """What `mmedge ablate` compares. Every row is trained with each kind of labels and from every seed.

    No row stops early (`patience`), all validate equally often, and all end with their last weights (`training.keep`).
    """

    rows: tuple[RowName, ...] = Field(
        default=ROWS,
        description="The paper's methods, or none of them where `more` has rows: labels only; one chain of thought, without and"
        " with self-evaluation; all chains of thought, without and with self-evaluation. They use all of a question's chains of"
        " thought, whatever `method.keep` says. With pseudo-labels `standard` has one of each question; `all_labels`, which the"
        " paper lacks, has those of all chains of thought and no rationale. With other labels the two are the same, and are trained"
        " once.",
    )
    more: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="Further rows by name: the recipe's `method` with self-evaluation and with these settings changed, such as"
        " `paper_schedule: {rehearsal: 0}`.",
    )
    labels: Annotated[tuple[Literal["pseudo", "majority", "human"], ...], Field(min_length=1)] = Field(
        default=("pseudo", "human"), description="Kinds of labels; see `method.labels`."
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = Field(
        default=(0, 1, 2),
        description="Random seeds; every row is trained once with each. Each seed holds out different questions; on the embedded"
        " task it has questions of its own.",
    )
    equal: Literal["lessons", "steps", "stage2", "none"] = Field(
        default="lessons",
        description="The budget that all rows share: as many lessons (visits to a question or a chain of thought, over all stages)"
        " as the last of the paper's rows takes; as many optimizer steps; as many steps of stage 2, with stage 1 on top; or none:"
        " the recipe's own lengths, as epochs over each row's own lessons.",
    )
    epochs: dict[str, tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]] = Field(
        default_factory=dict, description="With `equal: none`: epochs of stage 1 and stage 2 by row, as the paper sets them."
    )
    own_questions: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Questions of each test on which students that learn verdicts also write rationales and judge them, which shows"
        " how well their verdicts tell their own right answers from their wrong ones. 0: none.",
    )
    oracle_samples: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0,
        description="Answers sampled at temperature 0.7 for each of the first `own_questions` of each test (for all if that is 0)."
        " How often one of them is right is the most that choosing among samples could reach. 0: none.",
    )
    keep_students: bool = Field(default=False, description="Keep the student of every training.")

    @model_validator(mode="after")
    def _there_is_a_row(self) -> AblationSection:
        if not self.rows and not self.more:
            raise ValueError("rows: name at least one, or add one with `more`")
        return self
