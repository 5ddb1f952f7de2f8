"""Preference: of two chains of thought of one question, the one that the teacher judges correct should gain more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample
from mmedge.annotations.selection import judged_correct
from mmedge.distill.lessons import Lesson, Target
from mmedge.distill.objectives.objective import LessonSource, Objective
from mmedge.errors import MmedgeError
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import ChainOfThought

if TYPE_CHECKING:
    import torch

    from mmedge.students.encoded import EncodedLesson
    from mmedge.students.passes import TokenLosses


class PreferenceSection(ObjectiveSection):
    """Settings of preference."""

    beta: float = Field(default=0.1, gt=0, description="How strongly the student is held to where the stage began.")
    prefer: Literal["answers", "rationales"] = Field(default="answers", description="What is compared.")
    length_normalized: bool = Field(
        default=False, description="Compare mean log-probabilities of tokens instead of sums, so that no text wins by its length."
    )


class Preference(Objective):
    """Direct preference optimization (Rafailov et al. 2023): pairs of a judged-correct and a judged-wrong chain of thought.

    The log-probabilities under the weights that the stage begins with are computed once, in a pass over all pairs. It stands beside
    reasoning, whose likelihood keeps the better text from losing probability together with the worse one. Pairs cost two lessons.
    """

    settings: ClassVar[type[ObjectiveSection]] = PreferenceSection
    stages: ClassVar[tuple[str, ...]] = ("stage3", "stage2")
    group: ClassVar[int] = 2
    reference: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("preference",)
    metrics: ClassVar[tuple[str, ...]] = ("preferred",)
    words: ClassVar[Mapping[str, str]] = {"preference": "preference", "preferred": "pairs in the right order"}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, PreferenceSection)
        self._settings = section
        self._lessons = [lesson for annotated in source.examples for lesson in self._pairs(annotated)]
        if not self._lessons:
            raise MmedgeError("no question has a chain of thought that was judged correct and one that was judged wrong")

    def lessons(self, epoch: int) -> Sequence[Lesson]:
        return self._lessons

    def _pairs(self, annotated: AnnotatedExample) -> list[Lesson]:
        """Return a question's pairs: each wrong chain of thought with a correct one; the correct ones take turns."""
        judged = [evaluated for evaluated in annotated.cots if evaluated.evaluations]
        right = [evaluated.cot for evaluated in judged if judged_correct(evaluated)]
        wrong = [evaluated.cot for evaluated in judged if not judged_correct(evaluated)]
        agrees, choices = self.source.form.agrees, annotated.example.choices
        context = self.source.encoder.prompts.reasoning_context(annotated.example)
        pairs = [(right[number % len(right)], worse) for number, worse in enumerate(wrong)] if right else []
        return [
            Lesson(context, (self._target(cot),))
            for better, worse in pairs
            if not agrees(better.pseudo_label, worse.pseudo_label, choices)
            for cot in (better, worse)
        ]

    def _target(self, cot: ChainOfThought) -> Target:
        """Return what is compared of a chain of thought."""
        kind, text = ("predict", cot.pseudo_label) if self._settings.prefer == "answers" else ("explain", cot.rationale)
        count = len(self.source.encoder.target(text, 100_000)) if self._settings.length_normalized else 1
        return Target.of("predict" if kind == "predict" else "explain", text, 1 / count)

    def totals(self, lessons: Sequence[EncodedLesson]) -> dict[str, float]:
        return {"preference": len(lessons) / 2, "preferred": len(lessons) / 2}

    def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
        import torch

        gained = tokens.log_probabilities - tokens.reference
        margin = self._settings.beta * (gained[0::2] - gained[1::2])
        return {"preference": -torch.nn.functional.logsigmoid(margin).sum(), "preferred": (margin > 0).float().sum()}
