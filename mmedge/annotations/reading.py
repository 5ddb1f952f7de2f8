"""Reading a store: what a task can parse of the texts, example by example, and counts of what it cannot, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.decisions import Decision, Decisions, Item
from mmedge.annotations.store import AnnotationStore
from mmedge.recipe import Recipe, SampledTeacherSection
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Task, Unparsed
from mmedge.tasks.reading import read_self_evaluation


@dataclass(frozen=True)
class EvaluatedCot:
    """A parsed chain of thought with its parsed self-evaluations.

    Attributes:
        sample: Its number.
        cot: The chain of thought.
        evaluations: The self-evaluations.
        accepted: Whether somebody has accepted or mended it.
    """

    sample: int
    cot: ChainOfThought
    evaluations: tuple[SelfEvaluation, ...]
    accepted: bool = field(default=False, repr=False)  # a run's hash is that of texts and decisions


@dataclass(frozen=True)
class AnnotatedExample:
    """An example with everything about it that could be read.

    Attributes:
        example: The question.
        cots: The chains of thought.
        decided: Whether somebody has given the label of the question.
    """

    example: Example
    cots: tuple[EvaluatedCot, ...]
    decided: bool = field(default=False, repr=False)


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
    report, decisions = ReadingReport(), Decisions(store).current()
    known = {example.id: example for example in examples}
    ids = list(known) if some else None

    def stored(kind: str) -> Iterator[tuple[Annotation, list[ReadingReport]]]:
        for annotation in store.annotations(kind, ids):
            if annotation.example_id in known and limits.include(annotation):
                decided = _as_decided(annotation, decisions) if decisions else annotation
                if decided is None:
                    continue
                of_question = [] if each is None else [each.setdefault(annotation.example_id, ReadingReport())]
                yield decided, [report, *of_question]

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
            accepted = Item(annotation.example_id, "cot", annotation.sample) in decisions
            cots.setdefault(annotation.example_id, []).append(EvaluatedCot(annotation.sample, cot, judged, accepted))
    return [as_annotated(example, tuple(cots.get(example.id, ())), decisions) for example in examples], report


def as_annotated(example: Example, cots: tuple[EvaluatedCot, ...], decisions: Mapping[Item, Decision]) -> AnnotatedExample:
    """Return an example with its chains of thought, and with whether somebody has given its label."""
    decision = decisions.get(Item(example.id, "question"))
    return AnnotatedExample(example, cots, decision is not None and decision.what != "drop" and decision.label is not None)


def _as_decided(annotation: Annotation, decisions: Mapping[Item, Decision]) -> Annotation | None:
    """Return a text as somebody has mended it; None where it, or what it judges, was dropped."""
    place = annotation.example_id, annotation.kind, annotation.sample, annotation.evaluation
    decision, cot = decisions.get(Item(*place)), decisions.get(Item(annotation.example_id, "cot", annotation.sample))
    if any(one is not None and one.what == "drop" for one in (decision, cot)):
        return None
    if decision is None or decision.what == "accept":
        return annotation
    return replace(annotation, text=decision.text or annotation.text, verdict=decision.verdict or annotation.verdict)
