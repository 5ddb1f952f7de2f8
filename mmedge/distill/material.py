"""What a distillation learns from and is measured by: the task's questions, split, with what the teacher wrote about them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmedge.annotations.reading import AnnotatedExample, ReadingReport, read_annotations, reading_limits
from mmedge.annotations.selection import select
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.folders import Run
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.storage import sha256_json
from mmedge.tasks import Example, Splits, Task, build_task
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.prompts import render_question
from mmedge.teachers.collect import annotate


@dataclass(frozen=True)
class Material:
    """Everything a distillation learns from and is measured by.

    Attributes:
        task: The task.
        splits: Its examples.
        train: Annotated training questions.
        validation: Annotated questions for every choice.
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
    held_out = recipe.split.validation + recipe.split.verdict_test
    if held_out > len(examples) // 2:
        raise MmedgeError(
            f"split: {held_out} questions held out of {len(examples)} leave too few to train on",
            "lower split.validation or split.verdict_test",
        )
    order = sorted(range(len(examples)), key=lambda index: examples[index].id)
    random.Random(f"split/{recipe.split.seed}").shuffle(order)
    validation, verdict_test = order[: recipe.split.validation], order[recipe.split.validation : held_out]
    rest = sorted(order[held_out:])
    return [examples[i] for i in rest], [examples[i] for i in sorted(validation)], [examples[i] for i in sorted(verdict_test)]


def prepare(recipe: Recipe, run: Run, progress: Progress) -> Material:
    """Load the task, collect what the teacher has not written yet, and read it."""
    task = build_task(recipe.task.model_dump())
    splits = task.load()
    train, validation, verdict_test = split_examples(recipe, splits.train)
    with AnnotationStore(run.annotations) as store:
        collected = annotate(recipe, task, splits.train, store, progress)
        if collected is not None and not collected.complete:
            progress.line(f"annotations are not complete ({collected.stopped or 'some failed'}): training on those that are there")
        read, report = read_annotations(store, task, splits.train, reading_limits(recipe))
    by_id = {annotated.example.id: annotated for annotated in read}
    trained, validated, tested = ([by_id[example.id] for example in part] for part in (train, validation, verdict_test))
    if not report.cots["parsed"]:
        raise MmedgeError(
            "none of the teacher's chains of thought belongs to a question of the task and could be read",
            "do the ids of the annotations match those of the questions, and does each end in an answer?",
        )
    digest = sha256_json([repr([trained, validated, tested]), repr(splits.tests)])
    return Material(task, splits, trained, validated, tested, report, digest)


def majority_labels(examples: Sequence[AnnotatedExample], judge: AnswerForm) -> dict[str, str]:
    """Return the answer of most chains of thought by the question's id; the first such answer where several are as frequent."""
    kept = select(examples, "self_consistent", judge)
    return {annotated.example.id: annotated.cots[0].cot.pseudo_label for annotated in kept if annotated.cots}


def reference(annotated: AnnotatedExample) -> str | None:
    """Return what validation takes for the right answer: the human label, or else the pseudo-label of most CoTs."""
    if annotated.example.label is not None:
        return annotated.example.label
    labels = Counter(evaluated.cot.pseudo_label for evaluated in annotated.cots)
    return labels.most_common(1)[0][0] if labels else None


def trusted_answer(annotated: AnnotatedExample, judge: AnswerForm, *, human: bool) -> str | None:
    """Return what the student's own answers to a training question are judged by.

    Args:
        annotated: The question.
        judge: Which answers mean the same.
        human: Take the human label where there is one.

    Returns:
        Without human labels, the answer of most of the chains of thought that the teacher itself judges correct; None where there
        are none.
    """
    if human and annotated.example.label is not None:
        return annotated.example.label
    (kept,) = select(select([annotated], "judged_correct", judge), "self_consistent", judge)
    return kept.cots[0].cot.pseudo_label if kept.cots else None


def tokenizer_texts(material: Material) -> Iterator[str]:
    """Yield the training texts that a tokenizer from scratch learns from."""
    for annotated in material.train[:4000]:
        yield f"predict: explain: correct wrong uncertain {render_question(annotated.example)} solution: answer:"
        for evaluated in annotated.cots:
            yield f"{evaluated.cot.rationale} {evaluated.cot.pseudo_label}"
            for evaluation in evaluated.evaluations:
                yield f"{evaluation.rationale} {evaluation.verdict.value}"
