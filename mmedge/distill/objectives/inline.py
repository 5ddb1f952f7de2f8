"""Judging inline: rationale, answer and verdict in one branch, so that no lesson is spent on judging."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.annotations.selection import judged_correct, with_shuffled_evaluations
from mmedge.distill.lessons import Lesson, Segment, Target, by_share
from mmedge.distill.objectives.judging import balanced
from mmedge.distill.objectives.objective import LessonSource
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.recipe.method import ObjectiveSection
from mmedge.tasks.base import SelfEvaluation
from mmedge.tasks.prompts import VERDICT_MARK


class InlineVerdictSection(ObjectiveSection):
    """Settings of the inline verdict."""

    verdict_weight: float = Field(
        default=0.2, gt=0, lt=1, description="Weight of verdicts in its loss; answers and rationales share the rest by `alpha`."
    )
    wrong_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of the rationale and the answer of a chain of thought that the teacher judges wrong; 0 learns its"
        " verdict alone.",
    )


class InlineVerdict(Reasoning):
    """Reasoning whose rationales end in their answer and the verdict on both: `explain: … answer: 84 / 2 verdict: correct`.

    It replaces reasoning and self-evaluation at once. Every chain of thought takes its turn, whatever `method.keep` says, because
    those that were judged wrong are read and not learned, and teach their verdict alone; `method.keep` chooses the answers after
    `predict:`. A verdict costs two or three tokens after a rationale that is learned anyway. `method.balance_verdicts` weighs
    verdicts as self-evaluation does.
    """

    settings: ClassVar[type[ObjectiveSection]] = InlineVerdictSection
    parts: ClassVar[tuple[str, ...]] = ("predict", "explain", "verdict")
    judges: ClassVar[bool] = True
    explains: ClassVar[bool] = True
    prompts: ClassVar[Mapping[str, str]] = {"verdict": VERDICT_MARK}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        super().__init__(section, source)
        assert isinstance(section, InlineVerdictSection)
        self._settings = section
        own = source.own or [()] * len(source.examples)
        every = [replace(one, cots=(*one.cots, *more)) for one, more in zip(source.examples, own, strict=True)]
        cots = [evaluated for one in every for evaluated in one.cots]
        learned = iter(with_shuffled_evaluations(cots) if source.method.shuffle_evaluations else cots)
        self._judged = {one.example.id: [(cot, next(learned).evaluations) for cot in one.cots] for one in every}
        counts = Counter(found.verdict.value for one in every for cot in one.cots for found in cot.evaluations)
        balance = source.method.balance_verdicts
        self._factors = balanced(counts) if balance else dict.fromkeys(counts, 1.0)

    def weights(self) -> Mapping[str, float]:
        alpha, verdicts = self.source.method.alpha, self._settings.verdict_weight
        return {"predict": alpha * (1 - verdicts), "explain": (1 - alpha) * (1 - verdicts), "verdict": verdicts}

    def _lesson(self, annotated: AnnotatedExample, epoch: int) -> Lesson:
        targets = by_share(self._answers(annotated), "predict")
        turn = self._turn(self._judged[annotated.example.id], epoch)
        for evaluated, learned in turn:
            targets += self._branches(evaluated, learned, 1 / len(turn))
        return Lesson(self._context(annotated), tuple(targets))

    def _branches(self, evaluated: EvaluatedCot, learned: Sequence[SelfEvaluation], share: float) -> list[Target]:
        """Return a branch for every verdict that a chain of thought was given, or has by the exchange of a control."""
        texts = self.source.encoder.prompts.inline(evaluated.cot)
        if not evaluated.evaluations:
            return [Target("explain", tuple(Segment(text, share, "explain") for text in texts[:2]))]
        weight = share if judged_correct(evaluated) else share * self._settings.wrong_weight
        verdicts = Counter(found.verdict.value for found in learned)
        branches = []
        for verdict, count in verdicts.items():
            part = count / len(learned)
            read = [Segment(text, weight * part, "explain") for text in texts]
            expected = share * part
            read.append(Segment(verdict, expected * self._factors[verdict], "verdict", expected, verdict=True))
            branches.append(Target("explain", tuple(read)))
        return branches
