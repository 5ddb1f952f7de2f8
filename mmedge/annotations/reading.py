"""Reading a store: what a task can parse of the texts, example by example, and counts of what it cannot, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.store import AnnotationStore
from mmedge.recipe import Recipe, SampledTeacherSection
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Task, Unparsed
from mmedge.tasks.reading import read_self_evaluation


@dataclass(frozen=True)
class EvaluatedCot:
    """A parsed chain of thought with its parsed self-evaluations."""

    sample: int
    cot: ChainOfThought
    evaluations: tuple[SelfEvaluation, ...]


@dataclass(frozen=True)
class AnnotatedExample:
    """An example with everything about it that could be read."""

    example: Example
    cots: tuple[EvaluatedCot, ...]


class ReadingLimits(NamedTuple):
    """How much of a store is read: the first few of each kind; None for all.

    Attributes:
        cots: Chains of thought per question.
        evaluations: Evaluations per chain of thought.
    """

    cots: int | None = None
    evaluations: int | None = None

    def include(self, annotation: Annotation) -> bool:
        """Whether an annotation is read."""
        within = self.cots is None or annotation.sample < self.cots
        return within and (self.evaluations is None or annotation.kind == "cot" or annotation.evaluation < self.evaluations)


EVERYTHING = ReadingLimits()


def reading_limits(recipe: Recipe) -> ReadingLimits:
    """Return how much of its store a recipe uses: a sampled teacher may have been asked for more before."""
    section = recipe.teacher
    if isinstance(section, SampledTeacherSection):
        return ReadingLimits(section.cots_per_question, section.evaluations_per_cot)
    return EVERYTHING


@dataclass
class ReadingReport:
    """How much of a store could be read.

    Attributes:
        cots: Counts of chains of thought by `parsed` or by the reason why not.
        evaluations: The same for self-evaluations, whatever became of the chain of thought that they judge.
    """

    cots: Counter[str] = field(default_factory=Counter)
    evaluations: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, dict[str, int]]:
        return {"cots": dict(self.cots), "evaluations": dict(self.evaluations)}


def read_annotations(
    store: AnnotationStore,
    task: Task,
    examples: Sequence[Example],
    limits: ReadingLimits = EVERYTHING,
    *,
    some: bool = False,
    each: dict[str, ReadingReport] | None = None,
) -> tuple[list[AnnotatedExample], ReadingReport]:
    """Read everything a store holds about some examples.

    Args:
        store: The store.
        task: Says how texts are read.
        examples: The questions.
        limits: How much is read at most.
        some: Whether these are few of the store's questions, so that the others are not even looked at.
        each: Filled with a report for every question, where given.

    Returns:
        The examples in their order with what could be read of them, and the counts of what could not.
    """
    report = ReadingReport()
    known = {example.id: example for example in examples}
    ids = list(known) if some else None

    def stored(kind: str) -> Iterator[tuple[Annotation, list[ReadingReport]]]:
        for annotation in store.annotations(kind, ids):
            if annotation.example_id in known and limits.include(annotation):
                of_question = [] if each is None else [each.setdefault(annotation.example_id, ReadingReport())]
                yield annotation, [report, *of_question]

    evaluations: dict[tuple[str, int], list[SelfEvaluation]] = {}
    for annotation, reports in stored("evaluation"):
        evaluation = read_self_evaluation(annotation.text, annotation.verdict)
        for counted in reports:
            counted.evaluations[evaluation.value if isinstance(evaluation, Unparsed) else "parsed"] += 1
        if not isinstance(evaluation, Unparsed):
            evaluations.setdefault((annotation.example_id, annotation.sample), []).append(evaluation)
    cots: dict[str, list[EvaluatedCot]] = {}
    for annotation, reports in stored("cot"):
        cot = task.form.read(annotation.text, known[annotation.example_id])
        for counted in reports:
            counted.cots[cot.value if isinstance(cot, Unparsed) else "parsed"] += 1
        if not isinstance(cot, Unparsed):
            judged = tuple(evaluations.get((annotation.example_id, annotation.sample), ()))
            cots.setdefault(annotation.example_id, []).append(EvaluatedCot(annotation.sample, cot, judged))
    return [AnnotatedExample(example, tuple(cots.get(example.id, ()))) for example in examples], report
