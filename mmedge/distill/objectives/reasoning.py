"""Reasoning: from a question to its answer and to its rationales, the paper's stage 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.annotations.selection import judged_correct, select
from mmedge.distill.labels import majority_labels, trusted_answer
from mmedge.distill.lessons import Lesson, by_share
from mmedge.distill.objectives.objective import LessonSource, Objective
from mmedge.errors import MmedgeError
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import Verdict
from mmedge.tasks.prompts import Context
from mmedge.tasks.synthesized import is_synthesized

T = TypeVar("T")


class Reasoning(Objective):
    """One lesson for every question: `predict:` gives its answers, `explain:` rationales.

    With pseudo-labels all of a question's answers count at every visit, weighted by their share; with human labels, or those of
    the majority, the label is the only answer; so it is where somebody has given it in a review. Synthesized questions, which have
    no human label, have that of the majority then. `method.cots_per_visit` rationales take turns over the epochs, so that every
    chain of thought that is kept becomes a target. What the student wrote itself and got right is learned with the teacher's.
    """

    stages: ClassVar[tuple[str, ...]] = ("stage2", "stage3")
    words: ClassVar[Mapping[str, str]] = {"predict": "answer", "explain": "rationale"}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        method = source.method
        kept = select(source.examples, method.keep, source.form)
        if method.labels == "pseudo" and not any(annotated.cots for annotated in kept):
            raise MmedgeError(f"method.keep: {method.keep} leaves no chain of thought to learn from", "set it to all")
        if method.labels == "human" and not any(annotated.example.label is not None for annotated in kept):
            raise MmedgeError("method.labels: the training questions have no human labels", "set it to pseudo or majority")
        self._majority = majority_labels(source.examples, source.form) if method.labels == "majority" else {}
        if method.labels == "human":  # new questions have no label of a person
            self._majority = majority_labels([one for one in kept if is_synthesized(one.example.id)], source.form)
        if source.own:
            right = [[cot for cot in own if cot.evaluations[0].verdict is Verdict.CORRECT] for own in source.own]
            kept = [replace(annotated, cots=(*annotated.cots, *own)) for annotated, own in zip(kept, right, strict=True)]
        self._examples = kept
        self._every = {annotated.example.id: annotated for annotated in source.examples}

    def lessons(self, epoch: int) -> Sequence[Lesson]:
        found = [self._lesson(annotated, epoch) for annotated in self._examples]
        return [lesson for lesson in found if lesson.targets]

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        rationales = [evaluated.cot.rationale for evaluated in self._turn(annotated.cots, epoch)]
        targets = by_share(self._answers(annotated), "predict") + by_share(rationales, "explain")
        return Lesson(self._context(annotated), tuple(targets))

    def _context(self, annotated: AnnotatedExample) -> Context:
        return self.source.encoder.prompts.reasoning_context(annotated.example)

    def _turn(self, cots: Sequence[T], epoch: int) -> list[T]:
        """Return the chains of thought of a question whose turn it is."""
        method = self.source.method
        per_visit = min(method.cots_per_visit or len(cots), len(cots)) if method.rationales else 0
        return [cots[(epoch * per_visit + offset) % len(cots)] for offset in range(per_visit)]

    def _wrong(self, annotated: AnnotatedExample) -> list[EvaluatedCot]:
        """Return the chains of thought of a question that the teacher judges wrong, and whose answer is not the trusted one."""
        form, choices = self.source.form, annotated.example.choices
        trusted = trusted_answer(self._every[annotated.example.id], form, human=self.source.method.labels == "human")
        return [
            evaluated
            for evaluated in self._every[annotated.example.id].cots
            if evaluated.evaluations and not judged_correct(evaluated)
            if trusted is None or not form.agrees(evaluated.cot.pseudo_label, trusted, choices)
        ]

    def _answers(self, annotated: AnnotatedExample) -> list[str]:
        example, labels = annotated.example, self.source.method.labels
        if (labels == "human" or annotated.decided) and example.label is not None:
            return [example.label]
        if labels != "pseudo":
            return [self._majority[example.id]] if example.id in self._majority else []
        return [evaluated.cot.pseudo_label for evaluated in annotated.cots]
