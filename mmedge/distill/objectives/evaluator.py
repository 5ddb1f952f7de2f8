"""The evaluator as a teacher: its evaluations explain the question, and correct answers that were all judged wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample
from mmedge.annotations.selection import judged_correct, with_shuffled_evaluations
from mmedge.distill.lessons import Lesson, Segment, by_share
from mmedge.distill.objectives.objective import LessonSource
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import Verdict


class EvaluatorSection(ObjectiveSection):
    """Settings of the evaluator."""

    evaluations: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Weight of a question's evaluations among what explains it; rationales have the rest.",
    )
    correct: bool = Field(
        default=True,
        description="Learn the answer that evaluations come to, where every chain of thought was judged wrong and they agree.",
    )


class Evaluator(Reasoning):
    """Reasoning that also learns from what the teacher wrote when it judged.

    A question's evaluations are further targets of `explain:`. Where none of its chains of thought was judged correct, and the
    evaluations that come to an answer all come to the same one, that is its answer. It replaces reasoning, and costs the tokens of
    one evaluation a visit; no lesson.
    """

    settings: ClassVar[type[ObjectiveSection]] = EvaluatorSection
    evaluations: ClassVar[bool] = True
    words: ClassVar[Mapping[str, str]] = {**Reasoning.words, "explain": "rationale and evaluation"}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, EvaluatorSection)
        self._settings = section
        cots = [evaluated for one in source.examples for evaluated in one.cots]
        learned = iter(with_shuffled_evaluations(cots) if source.method.shuffle_evaluations else cots)
        self._learned = {one.example.id: [next(learned).evaluations for _ in one.cots] for one in source.examples}

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        lesson = super()._lesson(annotated, epoch)
        texts = [found.rationale for each in self._learned[annotated.example.id] for found in each if found.rationale]
        if not texts or not self._settings.evaluations:
            return lesson
        turn = by_share([texts[epoch % len(texts)]], "explain")
        told = any(target.kind == "explain" for target in lesson.targets)
        share = self._settings.evaluations if told else 1.0
        weights = {"explain": 1 - share}
        targets = [_weighed(target.segments, weights.get(target.kind, 1.0)) for target in lesson.targets]
        kept = [replace(target, segments=segments) for target, segments in zip(lesson.targets, targets, strict=True)]
        return replace(lesson, targets=(*kept, *(replace(one, segments=_weighed(one.segments, share)) for one in turn)))

    def _answers(self, annotated: AnnotatedExample) -> list[str]:
        every = self._every[annotated.example.id]
        if self._settings.correct and self.source.method.labels != "human":
            corrected = self._corrected(every)
            if corrected is not None:
                return [corrected]
        return super()._answers(annotated)

    def _corrected(self, annotated: AnnotatedExample) -> str | None:
        """Return the answer that evaluations correct a question's answers to, where they all were judged wrong."""
        form, example = self.source.form, annotated.example
        judged = [evaluated for evaluated in annotated.cots if evaluated.evaluations]
        if not judged or any(judged_correct(evaluated) for evaluated in judged):
            return None
        stated = [
            answer
            for evaluated, learned in zip(annotated.cots, self._learned[example.id], strict=True)
            for found in learned
            if found.verdict is not Verdict.CORRECT and (answer := form.conclusion(found.rationale, example)) is not None
            if not form.agrees(answer, evaluated.cot.pseudo_label, example.choices)
        ]
        same = all(form.agrees(answer, stated[0], example.choices) for answer in stated)
        return stated[0] if stated and same else None


def _weighed(segments: tuple[Segment, ...], weight: float) -> tuple[Segment, ...]:
    return tuple(replace(one, weight=one.weight * weight) for one in segments)
