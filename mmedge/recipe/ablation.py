"""Ablation: what `mmedge ablate` compares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from mmedge.sections import Section

RowName = Literal["standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation"]
ROWS: tuple[RowName, ...] = ("standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation")


OF_SELF_EVALUATION = {"rehearsal", "evaluation_weight", "balance_verdicts", "contrast_verdicts", "schedule"}


class AblationSection(Section):
    """What `mmedge ablate` compares.

    `rows` are the paper's methods: labels only, one CoT, one CoT with self-evaluation, all CoTs, all CoTs with self-evaluation;
    they learn from all of a question's chains of thought, whatever `method.keep` says. `more` are further rows by name, each
    the recipe's `method` with self-evaluation and with other settings, such as `paper_schedule: {rehearsal: 0}`. Every row is
    trained with each of `labels` and from every one of `seeds`.

    `equal` is the budget that all rows share: `lessons` (as many visits to a question or a chain of thought, over both stages,
    as the last of the paper's rows takes), `steps` (as many optimizer steps over both stages), `stage2` (as many steps of
    stage 2, with stage 1 on top), or `none`: the recipe's own lengths, as epochs of each row's own material (`epochs` may give
    a row its own for both stages, as the paper does). No row stops early (`patience`), and all validate equally often.
    """

    rows: Annotated[tuple[RowName, ...], Field(min_length=1)] = ROWS
    more: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], dict[str, JsonValue]] = Field(default_factory=dict)
    labels: Annotated[tuple[Literal["pseudo", "majority", "human"], ...], Field(min_length=1)] = ("pseudo", "human")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0, 1, 2)
    equal: Literal["lessons", "steps", "stage2", "none"] = "lessons"
    epochs: dict[str, tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]] = Field(default_factory=dict)
    keep_students: bool = False
