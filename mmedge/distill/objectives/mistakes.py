"""Learning from answers that the teacher judged wrong: making them unlikely, or keeping them apart by a control word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.lessons import Lesson, Target, by_share
from mmedge.distill.objectives.objective import LessonSource
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.errors import MmedgeError
from mmedge.recipe.method import ObjectiveSection

if TYPE_CHECKING:
    import torch

    from mmedge.students.passes import TokenLosses

RIGHT, WRONG = "right:", "wrong:"
LEAST = 1e-6  # the least probability that is left to all other tokens: beyond it the loss would be infinite


class UnlikelihoodSection(ObjectiveSection):
    """Settings of unlikelihood."""

    strength: float = Field(
        default=0.025,
        gt=0,
        le=1,
        description="Weight of what is made unlikely, beside answers and rationales, which together have 1.",
    )


class Unlikelihood(Reasoning):
    """Reasoning that also makes wrong answers unlikely (Welleck et al. 2020): -log(1 - p) of the token where one goes wrong.

    Of an answer that the teacher judged wrong, what it has in common with a right one is read, and the first token that differs
    loses probability. It replaces reasoning and costs a short branch for each wrong answer, and no lesson.
    """

    settings: ClassVar[type[ObjectiveSection]] = UnlikelihoodSection
    parts: ClassVar[tuple[str, ...]] = ("predict", "explain", "unlikelihood")
    words: ClassVar[Mapping[str, str]] = {**Reasoning.words, "unlikelihood": "wrong answer"}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, UnlikelihoodSection)
        self._strength = section.strength
        if not any(self._unlikely(annotated) for annotated in self._examples):
            raise MmedgeError(
                "unlikelihood: no answer was judged wrong that is not learned as well", "set method.keep to judged_correct"
            )

    def _unlikely(self, annotated: AnnotatedExample) -> list[str]:
        """Return the wrong answers to a question that has a right one; those that are learned as well are not among them."""
        right = self._answers(annotated)
        wrong = [evaluated.cot.pseudo_label for evaluated in self._wrong(annotated)]
        return [answer for answer in wrong if answer not in right] if right else []

    def weights(self) -> Mapping[str, float]:
        return {**super().weights(), "unlikelihood": self._strength}

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        lesson = super()._lesson(annotated, epoch)
        right = tuple(dict.fromkeys(self._answers(annotated)))
        wrong = self._unlikely(annotated)
        if not wrong:
            return lesson
        unlikely = [
            Target(one.kind, tuple(replace(segment, part="unlikelihood", differs_from=right) for segment in one.segments))
            for one in by_share(wrong, "predict")
        ]
        return replace(lesson, targets=(*lesson.targets, *unlikely))

    def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
        import torch

        unlikely = tokens.of_part("unlikelihood")
        left = -torch.expm1(-tokens.losses[unlikely])
        loss = -left.clamp(min=LEAST).log() * tokens.weights[unlikely]
        return {**super().sums(tokens), "unlikelihood": loss.sum()}


class ControlWords(Reasoning):
    """Reasoning from right and wrong chains of thought, told apart by a word after the task word: `predict: right: 84 / 2`.

    Wrong ones are learned after `wrong:`, as themselves, so that what they share with right ones is learned from them too; asked
    for an answer, the student is given `right:` (mistake tuning, ACL 2024). It replaces reasoning; every chain of thought takes its
    turn, whatever `method.keep` says. It costs no lesson, and one or two tokens of every answer.
    """

    prompts: ClassVar[Mapping[str, str]] = {"control": RIGHT}

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        every = self._every[annotated.example.id]
        wrong = self._wrong(annotated)
        answers = [*by_share(self._answers(annotated), "predict")]
        mistakes = [replace(one, control=WRONG) for one in by_share([one.cot.pseudo_label for one in wrong], "predict")]
        share = len(wrong) / max(1, len(every.cots)) if answers else 1.0
        targets = [_weighed(one, 1 - share) for one in answers] + [_weighed(one, share) for one in mistakes]
        turn = self._turn(self._told_apart(annotated, wrong), epoch)
        samples = {evaluated.sample for evaluated in wrong}
        for evaluated in turn:
            rationale = Target.of("explain", evaluated.cot.rationale, 1 / len(turn))
            targets.append(replace(rationale, control=WRONG if evaluated.sample in samples else None))
        return Lesson(self._context(annotated), tuple(targets))

    def _told_apart(self, annotated: AnnotatedExample, wrong: Sequence[EvaluatedCot]) -> list[EvaluatedCot]:
        """Return the chains of thought that are kept, and those that are wrong, in their order."""
        kept = [one for one in annotated.cots if one.sample not in {bad.sample for bad in wrong}]
        return sorted([*kept, *wrong], key=lambda one: one.sample)


def _weighed(target: Target, weight: float) -> Target:
    return replace(target, segments=tuple(replace(one, weight=one.weight * weight) for one in target.segments))
