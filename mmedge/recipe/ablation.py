"""Ablation: what `mmedge ablate` compares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from mmedge.sections import Section

RowName = Literal["standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation"]
PAPER_ROWS: tuple[RowName, ...] = ("standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation")
NEEDS_SELF_EVALUATION = {"rehearsal", "evaluation_weight", "balance_verdicts", "contrast_verdicts", "schedule"}


class AblationSection(Section):
    """What `mmedge ablate` compares. Every row is trained with each kind of labels and from every seed.

    No row stops early (`patience`), and all validate equally often.
    """

    rows: Annotated[tuple[RowName, ...], Field(min_length=1)] = Field(
        default=PAPER_ROWS,
        description="The paper's methods: labels only; one chain of thought, without and with self-evaluation; all chains of"
        " thought, without and with self-evaluation. They use all of a question's chains of thought, whatever `method.keep` says.",
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
        default=(0, 1, 2), description="Seeds; each is a training of its own."
    )
    equal: Literal["lessons", "steps", "stage2", "none"] = Field(
        default="lessons",
        description="The budget that all rows share: as many lessons (visits to a question or a chain of thought, over all stages)"
        " as the last of the paper's rows takes; as many optimizer steps; as many steps of stage 2, with stage 1 on top; or none:"
        " the recipe's own lengths, as epochs of each row's own material.",
    )
    epochs: dict[str, tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]] = Field(
        default_factory=dict, description="With `equal: none`: epochs of stage 1 and stage 2 by row, as the paper sets them."
    )
    keep_students: bool = Field(default=False, description="Keep the student of every training.")
