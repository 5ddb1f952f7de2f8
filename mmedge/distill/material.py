"""What a distillation learns from and is measured with: the task's questions, split, with the teacher's annotations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmedge.annotations.decisions import dropped
from mmedge.annotations.questions import RunTask, task_of
from mmedge.annotations.reading import AnnotatedExample, ReadingReport, as_annotated, read_annotations, reading_limits
from mmedge.annotations.store import AnnotationStore
from mmedge.distill.devices import Devices
from mmedge.distill.labels import majority_labels
from mmedge.errors import MmedgeError
from mmedge.folders import Run
from mmedge.progress import Progress
from mmedge.recipe import Recipe, SampledTeacherSection
from mmedge.storage import sha256_json
from mmedge.tasks import Example, Splits, Task
from mmedge.tasks.dialogue import opening
from mmedge.tasks.prompts import render_question
from mmedge.tasks.reading import plain
from mmedge.tasks.synthesized import read_questions
from mmedge.teachers.collect import annotate
from mmedge.teachers.plan import NO_LIMITS, UNLIMITED, Limits

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

    @property
    def has_dialogues(self) -> bool:
        """Whether there are training questions with earlier messages, so that the student reads dialogues."""
        return any(example.turns for example in self.splits.train)

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
    dialogues = _dialogues(examples)
    random.Random(f"split/{recipe.split.seed}").shuffle(dialogues)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])  # training, validation, verdicts
    for places in dialogues:
        part = 1 if len(parts[1]) < validation_count else 2 if len(parts[2]) < verdict_count else 0
        parts[part].extend(places)
    if len(parts[0]) < len(examples) // 2:
        raise MmedgeError(
            f"split: dialogues are never split, and {len(examples) - len(parts[0])} of {len(examples)} questions are held out with"
            " theirs",
            "give the records of each dialogue a 'dialogue' of its own; without one, those that begin with the same words are one",
        )
    trained, validated, tested = ([examples[place] for place in sorted(part)] for part in parts)
    return trained, validated, tested


def _dialogues(examples: Sequence[Example]) -> list[list[int]]:
    """Return the places of the questions of each dialogue, ordered by ids; a question that stands alone is one by itself.

    Where records do not name their dialogues, those that begin with the same message are one.
    """
    order = sorted(range(len(examples)), key=lambda place: examples[place].id)
    if not any(example.turns or example.dialogue for example in examples):
        return [[place] for place in order]
    found: dict[tuple[str, str], list[int]] = {}
    for place in order:
        name = examples[place].dialogue
        found.setdefault(("named", name) if name else ("begins", plain(opening(examples[place]))), []).append(place)
    return list(found.values())


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
    _check_dialogues(splits)
    without = dropped(task.decisions)  # after the split, which must not depend on what is dropped
    parts = [[one for one in part if one.id not in without] for part in split_examples(recipe, splits.train)]
    if recipe.teacher is None:
        read, report = [as_annotated(example, (), task.decisions) for example in splits.train], ReadingReport()
    else:
        read, report = _annotated(recipe, task, splits.train, run, progress, limits)
    if recipe.synthesis.agree:
        without = without | _of_another_kind(task, [one for one in read if one.example.id not in without], progress)
        parts = [[one for one in part if one.id not in without] for part in parts]
    by_id = {one.example.id: one for one in read}
    trained, validated, tested = ([by_id[example.id] for example in part] for part in parts)
    validated += [AnnotatedExample(example, ()) for example in splits.validation]
    decided = [[*item, *decision.content()] for item, decision in sorted(task.decisions.items())]
    digest = sha256_json([repr([trained, validated, tested]), repr(splits.tests), *([decided] if decided else [])])
    return Material(task, splits, trained, validated, tested, report, digest)


def _of_another_kind(task: RunTask, read: Sequence[AnnotatedExample], progress: Progress) -> set[str]:
    """Return the new questions whose answer is of another label or function than they were written for.

    Those that somebody has looked at, in themselves or in a chain of thought, are not among them.
    """
    if task.new_questions is None:
        return set()
    kinds = set(task.form.kinds())
    looked_at = {item.example_id for item in task.decisions}
    wanted = {one.id: one.kind for one in read_questions(task.new_questions) if one.kind in kinds and one.id not in looked_at}
    answers = majority_labels([one for one in read if one.example.id in wanted], task.form)
    found = {id_ for id_, answer in answers.items() if task.form.kind_of(answer) != wanted[id_]}
    if found:
        progress.line(
            f"{len(found)} of {len(answers)} new questions are left out: their answers are of another "
            f"{'label' if task.form.labels else 'kind'} than they were written for (synthesis.agree)"
        )
    return found


def _check_dialogues(splits: Splits) -> None:
    """Refuse dialogues as test questions of a student that learns from single questions.

    Raises:
        MmedgeError: There is one.
    """
    if any(example.turns for example in splits.train):
        return
    for name, examples in splits.tests.items():
        if found := next((example for example in examples if example.turns), None):
            raise MmedgeError(
                f"the question {found.id!r:.60} of the split {name!r} ends a dialogue, and the training questions all stand alone",
                "give training questions with earlier messages too",
            )


def prepared(recipe: Recipe, run: Run, progress: Progress, devices: Devices, limits: Limits = NO_LIMITS) -> Material:
    """Return a run's material; the main process collects it, and the others read what it has collected."""
    if devices.main:
        material = prepare(recipe, run, progress, limits)
        devices.wait()
        return material
    devices.wait()
    return prepare(recipe, run, progress, limits)


def _check_evaluations(recipe: Recipe, store: AnnotationStore) -> None:
    """Refuse to pay a teacher for chains of thought where the method needs evaluations, and none are asked for.

    Raises:
        MmedgeError: Neither are there any.
    """
    section = recipe.teacher
    if not isinstance(section, SampledTeacherSection) or section.evaluations_per_cot or not recipe.method.self_evaluation:
        return
    if not any(store.counts("evaluation", UNLIMITED, UNLIMITED).values()):
        raise MmedgeError(
            "teacher.evaluations_per_cot is 0, and method.self_evaluation learns from evaluations",
            "set method.self_evaluation to false, or teacher.evaluations_per_cot to 1",
        )


def _annotated(
    recipe: Recipe, task: Task, examples: tuple[Example, ...], run: Run, progress: Progress, limits: Limits
) -> tuple[list[AnnotatedExample], ReadingReport]:
    """Collect what the teacher has not written yet, and read all of it."""
    with AnnotationStore(run.annotations) as store:
        _check_evaluations(recipe, store)
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
        example = annotated.example
        said = [turn.text if turn.role == "assistant" else f"{turn.role}: {turn.text}" for turn in example.turns]
        said += ["user:"] * bool(said)
        question = " ".join([*said, render_question(example)])
        yield f"predict: explain: correct wrong uncertain {question} solution: answer:"
        if labels_alone and annotated.example.label is not None:
            yield annotated.example.label
        for evaluated in annotated.cots:
            yield f"{evaluated.cot.rationale} {evaluated.cot.pseudo_label}"
            for evaluation in evaluated.evaluations:
                yield f"{evaluation.rationale} {evaluation.verdict.value}"
