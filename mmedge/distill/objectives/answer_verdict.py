"""Judging bare answers: a verdict after the answer, taught on answers to questions that their writers had not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample
from mmedge.distill.labels import trusted_answer
from mmedge.distill.lessons import Lesson, Segment, Target
from mmedge.distill.objectives.judging import balanced
from mmedge.distill.objectives.objective import LessonSource, UnseenSection
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.errors import MmedgeError
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import Verdict
from mmedge.tasks.prompts import VERDICT_MARK


class AnswerVerdictSection(UnseenSection):
    """Settings of the verdict on answers."""

    verdict_weight: float = Field(
        default=0.2, gt=0, lt=1, description="Weight of verdicts in its loss; answers and rationales share the rest by `alpha`."
    )


class AnswerVerdict(Reasoning):
    """Reasoning with a verdict on bare answers: `predict: 84 / 2 verdict: correct`, a few tokens on the device.

    The answers that are judged are those of students who had not seen the question (`folds`), graded by the trusted answer: the
    human label where the labels are human, otherwise that of most chains of thought that the teacher judges correct. It replaces
    reasoning and costs a short branch for each distinct answer, and no lesson; training the fold students costs as much as
    reasoning does once more for every fold beyond the first.
    """

    settings: ClassVar[type[ObjectiveSection]] = AnswerVerdictSection
    parts: ClassVar[tuple[str, ...]] = ("predict", "explain", "verdict")
    prompts: ClassVar[Mapping[str, str]] = {"answer_verdict": VERDICT_MARK}
    unseen: ClassVar[bool] = True

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, AnswerVerdictSection)
        self._weight = section.verdict_weight
        human = source.method.labels == "human"
        self._graded: dict[str, Counter[tuple[str, str]]] = {}
        for annotated, answers in zip(source.examples, source.unseen, strict=False):
            trusted, example = trusted_answer(annotated, source.form, human=human), annotated.example
            if trusted is not None:
                right = {answer: source.form.agrees(answer, trusted, example.choices) for answer in answers}
                verdicts = {answer: (Verdict.CORRECT if good else Verdict.WRONG).value for answer, good in right.items()}
                self._graded[example.id] = Counter((answer, verdicts[answer]) for answer in answers)
        if source.unseen and not self._graded:
            raise MmedgeError(
                "no question has a trusted answer to grade others by", "collect self-evaluations, or set method.labels to human"
            )
        counts: Counter[str] = Counter()
        for graded in self._graded.values():
            for (_, verdict), count in graded.items():
                counts[verdict] += count
        self._factors = balanced(counts) if source.method.balance_verdicts else dict.fromkeys(counts, 1.0)

    def weights(self) -> Mapping[str, float]:
        alpha = self.source.method.alpha
        return {"predict": alpha * (1 - self._weight), "explain": (1 - alpha) * (1 - self._weight), "verdict": self._weight}

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        lesson = super()._lesson(annotated, epoch)
        graded = self._graded.get(annotated.example.id, Counter())
        mark = Segment(self.source.encoder.prompts.answer_verdict, 0.0, "verdict")
        judged = []
        for (answer, verdict), count in graded.items():
            share = count / graded.total()
            said = Segment(verdict, share * self._factors[verdict], "verdict", share, verdict=True)
            judged.append(Target("predict", (Segment(answer, 0.0, "verdict"), mark, said)))
        return replace(lesson, targets=(*lesson.targets, *judged))
