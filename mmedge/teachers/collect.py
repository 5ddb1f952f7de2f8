"""`mmedge annotate`: ask the recipe's teacher for everything the store does not hold yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmedge.progress import Progress
from mmedge.recipe import EmbeddedTeacherSection, Recipe, RecordedTeacherSection
from mmedge.tasks import Example, Task
from mmedge.tasks.arithmetic import ArithmeticTask
from mmedge.teachers.base import Annotation, Teacher
from mmedge.teachers.embedded import EmbeddedTeacher
from mmedge.teachers.recorded import RecordedTeacher
from mmedge.teachers.store import AnnotationStore

BATCH = 2000  # annotations per transaction: a kill loses at most so many, and a disk flush costs little


def build_teacher(recipe: Recipe, task: Task) -> Teacher:
    """Return the teacher that a recipe names."""
    section = recipe.teacher
    if isinstance(section, RecordedTeacherSection):
        evaluations = Path(section.evaluations) if section.evaluations else None
        return RecordedTeacher(Path(section.cots), evaluations, section.max_cots)
    assert isinstance(section, EmbeddedTeacherSection) and isinstance(task, ArithmeticTask)  # the recipe's schema says so
    return EmbeddedTeacher(task, **section.model_dump(exclude={"kind"}))


def annotate(recipe: Recipe, task: Task, examples: tuple[Example, ...], store: AnnotationStore, progress: Progress) -> None:
    """Collect chains of thought and self-evaluations for every example; what is there already is kept.

    Raises:
        MmedgeError: The teacher fails, or the store holds another teacher's annotations.
    """
    teacher = build_teacher(recipe, task)
    fingerprint = teacher.fingerprint()
    if store.begin(fingerprint):
        return
    by_id = {example.id: example for example in examples}
    with progress.task("chains of thought", total=None) as step:
        for batch in _batches(teacher.chains_of_thought(examples)):
            store.add(batch)
            step.advance(len(batch))
    cots = [(by_id[cot.example_id], cot) for cot in store.annotations("cot") if cot.example_id in by_id]
    with progress.task("self-evaluations", total=None) as step:
        for batch in _batches(teacher.self_evaluations(cots)):
            store.add(batch)
            step.advance(len(batch))
    store.finish(fingerprint)


def _batches(annotations: Iterable[Annotation]) -> Iterator[list[Annotation]]:
    batch: list[Annotation] = []
    for annotation in annotations:
        batch.append(annotation)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
