"""What a distillation learns from and is measured with: the task's questions, split, with the teacher's annotations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmedge.annotations.decisions import dropped
from mmedge.annotations.questions import task_of
from mmedge.annotations.reading import AnnotatedExample, ReadingReport, as_annotated, read_annotations, reading_limits
from mmedge.annotations.store import AnnotationStore
from mmedge.distill.devices import Devices
from mmedge.errors import MmedgeError
from mmedge.folders import Run
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.storage import sha256_json
from mmedge.tasks import Example, Splits, Task
from mmedge.tasks.prompts import render_question
from mmedge.teachers.collect import annotate
from mmedge.teachers.plan import NO_LIMITS, Limits

FEW_QUESTIONS = 300  # below it the usual splits would leave less than half of the questions to train on


@dataclass(frozen=True)
class Material:
    """Everything that a distillation learns from and is measured with.

    Attributes:
        task: The task.
        splits: Its examples.
        train: Annotated training questions.
        validation: Annotated questions for every choice, and the task's own validation questions.
        verdict_test: Annotated questions whose chains of thought test verdicts at the end.
        report: How much of the annotations could be read.
        hash: Hash of all of it.
    """

    task: Task
    splits: Splits
    train: list[AnnotatedExample]
    validation: list[AnnotatedExample]
    verdict_test: list[AnnotatedExample]
    report: ReadingReport
    hash: str

    def limited(self, most: int | None) -> Material:
        """Return the same with the first `most` chains of thought of every training question alone; all of them if None."""
        if most is None:
            return self
        train = [replace(a, cots=tuple(sorted(a.cots, key=lambda evaluated: evaluated.sample)[:most])) for a in self.train]
        return replace(self, train=train)


def split_examples(recipe: Recipe, examples: Sequence[Example]) -> tuple[list[Example], list[Example], list[Example]]:
    """Cut training, validation and verdict-test questions out of the annotated ones; the same for the same seed and ids.

    Raises:
        MmedgeError: Fewer than half of the questions would be left to train on.
    """
    validation_count, verdict_count = _held_out(recipe, len(examples))
    held_out = validation_count + verdict_count
    if held_out > len(examples) // 2:
        raise MmedgeError(
            f"split: {held_out} questions held out of {len(examples)} leave too few for training",
            "lower split.validation or split.verdict_test",
        )
    order = sorted(range(len(examples)), key=lambda index: examples[index].id)
    random.Random(f"split/{recipe.split.seed}").shuffle(order)
    validation, verdict_test = order[:validation_count], order[validation_count:held_out]
    rest = sorted(order[held_out:])
    return [examples[i] for i in rest], [examples[i] for i in sorted(validation)], [examples[i] for i in sorted(verdict_test)]


def _held_out(recipe: Recipe, count: int) -> tuple[int, int]:
    """Return how many of so many questions are for validation, and how many for the verdicts at the end."""
    few, split = count < FEW_QUESTIONS, recipe.split
    validation = split.validation if split.validation is not None else max(1, count // 5) if few else 100
    verdicts = 0 if recipe.teacher is None else count // 10 if few else 50
    return validation, split.verdict_test if split.verdict_test is not None else verdicts


def prepare(recipe: Recipe, run: Run, progress: Progress, limits: Limits = NO_LIMITS) -> Material:
    """Load the task, collect what the teacher has not written yet, within limits, and read it."""
    task = task_of(recipe, run)
    splits = task.load()
    without = dropped(task.decisions)  # after the split, which must not depend on what is dropped
    parts = [[one for one in part if one.id not in without] for part in split_examples(recipe, splits.train)]
    if recipe.teacher is None:
        read, report = [as_annotated(example, (), task.decisions) for example in splits.train], ReadingReport()
    else:
        read, report = _annotated(recipe, task, splits.train, run, progress, limits)
    by_id = {one.example.id: one for one in read}
    trained, validated, tested = ([by_id[example.id] for example in part] for part in parts)
    validated += [AnnotatedExample(example, ()) for example in splits.validation]
    decided = [[*item, *decision.content()] for item, decision in sorted(task.decisions.items())]
    digest = sha256_json([repr([trained, validated, tested]), repr(splits.tests), *([decided] if decided else [])])
    return Material(task, splits, trained, validated, tested, report, digest)


def prepared(recipe: Recipe, run: Run, progress: Progress, devices: Devices, limits: Limits = NO_LIMITS) -> Material:
    """Return a run's material; the main process collects it, and the others read what it has collected."""
    if devices.main:
        material = prepare(recipe, run, progress, limits)
        devices.wait()
        return material
    devices.wait()
    return prepare(recipe, run, progress, limits)


def _annotated(
    recipe: Recipe, task: Task, examples: tuple[Example, ...], run: Run, progress: Progress, limits: Limits
) -> tuple[list[AnnotatedExample], ReadingReport]:
    """Collect what the teacher has not written yet, and read all of it."""
    with AnnotationStore(run.annotations) as store:
        collected = annotate(recipe, task, examples, store, progress, limits)
        if collected is not None and not collected.complete:
            progress.line(f"annotations are incomplete ({collected.stopped or 'some failed'}): training on what there is")
        read, report = read_annotations(store, task, examples, reading_limits(recipe))
    if not report.cots["parsed"]:
        raise MmedgeError(
            "none of the teacher's chains of thought could be read, or none belongs to a question of the task",
            "check that the annotations' ids match the questions' and that each chain of thought ends in an answer",
        )
    return read, report


def tokenizer_texts(material: Material) -> Iterator[str]:
    """Yield the training texts that a tokenizer from scratch learns from."""
    labels_alone = not any(annotated.cots for annotated in material.train)
    for annotated in material.train[:4000]:
        yield f"predict: explain: correct wrong uncertain {render_question(annotated.example)} solution: answer:"
        if labels_alone and annotated.example.label is not None:
            yield annotated.example.label
        for evaluated in annotated.cots:
            yield f"{evaluated.cot.rationale} {evaluated.cot.pseudo_label}"
            for evaluation in evaluated.evaluations:
                yield f"{evaluation.rationale} {evaluation.verdict.value}"
