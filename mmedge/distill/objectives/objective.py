"""What every objective is: an entry that declares itself without torch, and an object that writes lessons and adds up losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.lessons import Lesson
from mmedge.recipe.method import MethodSection, ObjectiveSection
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms import AnswerForm

if TYPE_CHECKING:
    import torch

    from mmedge.students.encoded import EncodedLesson
    from mmedge.students.passes import TokenLosses


class UnseenSection(ObjectiveSection):
    """What an objective is told that learns from answers to questions which their writers had not seen."""

    folds: int = Field(
        default=2,
        ge=2,
        le=10,
        description="Students that write these answers, each trained on all questions but its share, which it answers.",
    )
    answers: int = Field(default=3, ge=1, le=32, description="Answers to every question, the first one greedy.")
    temperature: float = Field(default=1.0, gt=0, le=10, description="Sampling temperature of the others.")


@dataclass(frozen=True)
class LessonSource:
    """What objectives write lessons from.

    Attributes:
        examples: The training questions with what the teacher wrote about them.
        method: The recipe's method.
        form: Says which answers mean the same.
        encoder: The student's prompts.
        own: For each question the chains of thought that the student wrote itself, each with the verdict that it deserves; empty
            in stages without them.
        unseen: For each question the answers of students that had not seen it; empty where no objective of the stage needs them.
    """

    examples: Sequence[AnnotatedExample]
    method: MethodSection
    form: AnswerForm
    encoder: PromptEncoder
    own: Sequence[Sequence[EvaluatedCot]] = ()
    unseen: Sequence[Sequence[str]] = ()


class Objective(ABC):
    """One thing to learn.

    An entry of `OBJECTIVES` is a subclass. Its class attributes are all that a recipe needs to be validated:

        settings    the section that `method.objectives.NAME` is validated by
        stages      the stages that it may be part of; without a choice in the recipe, the first
        group       how many lessons in a row go through the model together, such as 2 for pairs
        reference   whether each target's log-probability under the weights that the stage begins with is needed; it is computed
                    once, kept in the stage's folder, and found in `TokenLosses.reference`
        parts       the parts of its loss; each is divided by its `totals` and weighed by `weights`
        metrics     further figures that are logged, divided by their `totals` too, and not learned
        words       what a reader calls parts and metrics, where their names do not say it
        judges      whether a student learns verdicts on chains of thought from it
        evaluations whether it learns from evaluations, which `method.shuffle_evaluations` then exchanges; all that judge do
        explains    whether a student learns rationales from it even where `method.rationales` is false
        unseen      whether it learns from answers to questions that their writers had not seen; its settings are an `UnseenSection`
        prompts     templates of `StudentPrompts` that a student who learns it has
        log_name    what precedes its parts' names in the log when it is beside a stage's main objective

    Args:
        section: Its settings; None for an objective that is a stage's own and has none but the method's.
        source: What lessons are written from.

    Raises:
        MmedgeError: There is nothing of what it needs.
    """

    settings: ClassVar[type[ObjectiveSection]] = ObjectiveSection
    stages: ClassVar[tuple[str, ...]]
    group: ClassVar[int] = 1
    reference: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("predict", "explain")
    metrics: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[Mapping[str, str]] = {}
    log_name: ClassVar[str] = ""
    judges: ClassVar[bool] = False
    evaluations: ClassVar[bool] = False
    explains: ClassVar[bool] = False
    unseen: ClassVar[bool] = False
    prompts: ClassVar[Mapping[str, str]] = {}

    def __init__(self, section: ObjectiveSection | None, source: LessonSource) -> None:
        self.section, self.source = section, source

    @abstractmethod
    def lessons(self, epoch: int) -> Sequence[Lesson]:
        """Return the lessons of an epoch, from 0; every epoch has as many. `group` lessons in a row belong together."""

    def weights(self) -> Mapping[str, float]:
        """Return the weight of each part in the loss; what has nothing to learn leaves its weight to the others."""
        alpha = self.source.method.alpha
        known = {"predict": alpha, "explain": 1 - alpha}
        return {part: known.get(part, 1.0) for part in self.parts}

    def totals(self, lessons: Sequence[EncodedLesson]) -> dict[str, float]:
        """Return by what a step's sums are divided, for all of the step's lessons: expected weight × tokens of each part."""
        found = dict.fromkeys((*self.parts, *self.metrics), 0.0)
        for lesson in lessons:
            for target in lesson.targets:
                for segment in target.segments:
                    if segment.weight:
                        found[segment.part] += segment.total
        return found

    def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
        """Return the sum of each part and metric over some lessons: the weighted cross entropies of its tokens."""
        return {part: tokens.weighted[tokens.of_part(part)].sum() for part in self.parts}
