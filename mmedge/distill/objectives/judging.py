"""Judging: from a question and a chain of thought to the verdict and the evaluation that it deserves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.annotations.selection import with_shuffled_evaluations
from mmedge.distill.lessons import Lesson, Segment, Target, by_share
from mmedge.distill.objectives.objective import LessonSource, Objective
from mmedge.errors import MmedgeError
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import Example
from mmedge.tasks.prompts import VERDICT_MARK

LARGEST_FACTOR = 4.0  # the largest weight of a verdict where verdicts are balanced: a handful of rare ones must not dominate


class Judging(Objective):
    """Self-evaluation, the paper's stage 1: one lesson for every chain of thought that has an evaluation.

    `predict:` gives the verdict, `explain:` the evaluation. `method.balance_verdicts` weighs verdicts so that each has the same
    weight in total; the mean weight stays 1. `method.contrast_verdicts` takes only questions whose chains of thought were judged
    differently: what is learned is then what tells them apart, not which questions are hard.
    """

    stages: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3")
    words: ClassVar[Mapping[str, str]] = {"predict": "verdict", "explain": "evaluation"}
    log_name: ClassVar[str] = "evaluation"
    judges: ClassVar[bool] = True

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        contrast = source.method.contrast_verdicts
        self._lessons = self._of(evaluated_cots(source.examples, contrast=contrast))
        if not self._lessons and contrast:
            raise MmedgeError(
                "method.contrast_verdicts: no question has chains of thought that were judged differently", "set it to false"
            )
        if not self._lessons:
            raise MmedgeError("the annotations contain no self-evaluations", "collect some, or set method.self_evaluation to false")

    def lessons(self, epoch: int) -> Sequence[Lesson]:
        return self._lessons

    def _of(self, judged: Sequence[tuple[Example, EvaluatedCot]]) -> list[Lesson]:
        if self.source.method.shuffle_evaluations:
            learned = with_shuffled_evaluations([evaluated for _, evaluated in judged])
            judged = [(example, evaluated) for (example, _), evaluated in zip(judged, learned, strict=True)]
        counts = Counter(evaluation.verdict.value for _, evaluated in judged for evaluation in evaluated.evaluations)
        factors = balanced(counts) if self.source.method.balance_verdicts else dict.fromkeys(counts, 1.0)
        prompts = self.source.encoder.prompts
        lessons = []
        for example, evaluated in judged:
            shares = Counter(evaluation.verdict.value for evaluation in evaluated.evaluations)
            weights = {verdict: count / len(evaluated.evaluations) for verdict, count in shares.items()}
            verdicts = [Target.verdict(verdict, share * factors[verdict], share) for verdict, share in weights.items()]
            texts = [evaluation.rationale for evaluation in evaluated.evaluations if evaluation.rationale]
            context = prompts.evaluation_context(example, evaluated.cot)
            targets = self._reasoned(evaluated, factors) if prompts.reasoned else (*verdicts, *by_share(texts, "explain"))
            lessons.append(Lesson(context, tuple(targets)))
        return lessons

    def _reasoned(self, evaluated: EvaluatedCot, factors: Mapping[str, float]) -> list[Target]:
        """Return a branch for each evaluation: its text, followed by the verdict."""
        share = 1 / len(evaluated.evaluations)
        branches = []
        for found in evaluated.evaluations:
            verdict = found.verdict.value
            said = Segment(verdict, share * factors[verdict], "predict", share, verdict=True)
            texts = (found.rationale, self.source.encoder.prompts.reasoned)
            read = [Segment(text, share, "explain") for text in texts if text]
            branches.append(Target("explain", (*read, said)))
        return branches


class EvaluationFirst(Judging):
    """Self-evaluation whose verdict follows the evaluation, in the same branch: `explain: … verdict: wrong`.

    The verdict sees the evaluation's text and can follow from it; in the paper the two do not see each other. Asked for a verdict,
    the student writes the evaluation first, which costs as much as a rationale.
    """

    prompts: ClassVar[Mapping[str, str]] = {"reasoned": VERDICT_MARK}


def balanced(counts: Counter[str]) -> dict[str, float]:
    """Return a weight for each verdict, so that all have as much in total; the mean over all verdicts given is 1.

    Args:
        counts: How often each was given.
    """
    wanted = {verdict: min(LARGEST_FACTOR, counts.total() / len(counts) / count) for verdict, count in counts.items()}
    mean = sum(wanted[verdict] * count for verdict, count in counts.items()) / max(1, counts.total())
    return {verdict: weight / mean for verdict, weight in wanted.items()}


def evaluated_cots(examples: Sequence[AnnotatedExample], *, contrast: bool) -> list[tuple[Example, EvaluatedCot]]:
    """Return the chains of thought that have an evaluation, with their questions.

    Args:
        examples: The questions.
        contrast: Take only questions whose chains of thought were judged differently.
    """
    if contrast:
        examples = [
            one for one in examples if len({found.verdict for evaluated in one.cots for found in evaluated.evaluations}) > 1
        ]
    return [(one.example, evaluated) for one in examples for evaluated in one.cots if evaluated.evaluations]


class JudgingOneself(Judging):
    """The same on the student's own chains of thought beside the teacher's, whatever the verdicts of their questions."""

    stages: ClassVar[tuple[str, ...]] = ("stage3",)

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        Objective.__init__(self, section, source)
        own = source.own or [()] * len(source.examples)
        examples = [replace(one, cots=(*one.cots, *more)) for one, more in zip(source.examples, own, strict=True)]
        self._lessons = self._of(evaluated_cots(examples, contrast=False))
