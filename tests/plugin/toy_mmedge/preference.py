"""Direct preference optimization (Rafailov et al. 2023) of chains of thought that the teacher judged correct against wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mmedge.distill.lessons import Lesson, Target
from mmedge.distill.objectives import LessonSource, Objective, ObjectiveSection
from mmedge.tasks.base import Verdict

if TYPE_CHECKING:
    import torch

    from mmedge.students.encoded import EncodedLesson
    from mmedge.students.passes import TokenLosses


class PreferenceSection(ObjectiveSection):
    beta: float = Field(default=0.1, gt=0, description="How far the student may move from where it began.")


class Preference(Objective):
    settings = PreferenceSection
    stages = ("stage3",)
    group = 2
    reference = True
    parts = ("preference",)
    metrics = ("preferred",)

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, PreferenceSection)
        self._beta = section.beta
        self._lessons: list[Lesson] = []
        for annotated in source.examples:
            judged = {found.evaluations[0].verdict: found.cot for found in annotated.cots if found.evaluations}
            if Verdict.CORRECT in judged and Verdict.WRONG in judged:
                context = source.encoder.prompts.reasoning_context(annotated.example)
                for verdict in (Verdict.CORRECT, Verdict.WRONG):
                    self._lessons.append(Lesson(context, (Target.of("explain", judged[verdict].rationale),)))

    def lessons(self, epoch: int) -> Sequence[Lesson]:
        return self._lessons

    def totals(self, lessons: Sequence[EncodedLesson]) -> dict[str, float]:
        return {"preference": len(lessons) / 2, "preferred": len(lessons) / 2}

    def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
        from torch.nn.functional import logsigmoid

        gained = tokens.log_probabilities - tokens.reference
        margin = self._beta * (gained[0::2] - gained[1::2])
        return {"preference": -logsigmoid(margin).sum(), "preferred": (margin > 0).float().sum()}
