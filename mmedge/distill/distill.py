"""`mmedge distill`: recipe → annotations → stage 1 → stage 2 → student, with metrics; resumable at every point."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmedge.distill.lessons import Lesson, evaluation_lessons, reasoning_lessons
from mmedge.distill.scoring import JudgedCot, answer_accuracy, judged_cots, verdict_score
from mmedge.distill.students import Student, load_student, resolve_source, save_student
from mmedge.distill.training import Course, StageTrainer, Validation
from mmedge.errors import MmedgeError
from mmedge.progress import Progress, duration
from mmedge.recipe import Recipe, recipe_values
from mmedge.runs import Run, machine, work_on
from mmedge.statistics import Proportion
from mmedge.storage import atomic_folder, read_json, sha256_json, write_json
from mmedge.tasks import Example, Splits, Task, build_task
from mmedge.tasks.evaluation_set import FILE_NAME, HeldOutCot, evaluation_set_of, write_evaluation_set
from mmedge.tasks.prompts import render_question
from mmedge.teachers.collect import annotate, most_read
from mmedge.teachers.reading import AnnotatedExample, ReadingReport, read_annotations
from mmedge.teachers.selection import select
from mmedge.teachers.store import AnnotationStore

_DECIDES_TRAINING = ("seed", "student", "method", "training", "split", "generation")
LESSON_FORMAT = 2  # counts up when the same recipe would train differently


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
        read, report = read_annotations(store, task, splits.train, most_read(recipe))
    by_id = {annotated.example.id: annotated for annotated in read}
    trained, validated, tested = ([by_id[example.id] for example in part] for part in (train, validation, verdict_test))
    if not report.cots["parsed"]:
        raise MmedgeError(
            "none of the teacher's chains of thought belongs to a question of the task and could be read",
            "do the ids of the annotations match those of the questions, and does each end in an answer?",
        )
    digest = sha256_json([repr([trained, validated, tested]), repr(splits.tests)])
    return Material(task, splits, trained, validated, tested, report, digest)


def reference(annotated: AnnotatedExample) -> str | None:
    """Return what validation takes for the right answer: the human label, or else the pseudo-label of most CoTs."""
    if annotated.example.label is not None:
        return annotated.example.label
    labels = Counter(evaluated.cot.pseudo_label for evaluated in annotated.cots)
    return labels.most_common(1)[0][0] if labels else None


def _tokenizer_texts(material: Material) -> Iterator[str]:
    """Yield the training texts that a tokenizer from scratch learns from."""
    for annotated in material.train[:4000]:
        yield f"predict: explain: correct wrong uncertain {render_question(annotated.example)} solution: answer:"
        for evaluated in annotated.cots:
            yield f"{evaluated.cot.rationale} {evaluated.cot.pseudo_label}"
            for evaluation in evaluated.evaluations:
                yield f"{evaluation.rationale} {evaluation.verdict.value}"


def _device(recipe: Recipe) -> torch.device:
    wanted = recipe.training.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MmedgeError("training.device: no CUDA device here", "set it to auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass
class _Measure:
    """Measures a student on the questions and chains of thought of a run."""

    recipe: Recipe
    material: Material
    progress: Progress

    def __post_init__(self) -> None:
        task = self.material.task
        pairs = [(annotated.example, reference(annotated)) for annotated in self.material.validation]
        self.questions = [example for example, answer in pairs if answer is not None]
        self.references = [answer for _, answer in pairs if answer is not None]
        if not self.questions:
            raise MmedgeError("no validation question has a label or a readable CoT", "raise split.validation")
        self.validation_cots = judged_cots(self.material.validation, task)
        self.test_cots = judged_cots(self.material.verdict_test, task)

    def stage1(self, student: Student) -> Validation:
        """Verdicts on validation CoTs: balanced accuracy, or plain where one class is missing."""
        score = verdict_score(student, self.validation_cots)
        assert score is not None  # stage 1 has lessons, so there are evaluations
        chosen = score.balanced if score.balanced is not None else score.accuracy.value
        text = f"verdict accuracy {score.accuracy}, balanced {chosen:.3f}, on validation CoTs"
        return Validation(chosen, {"verdict": score.to_json()}, text)

    def answers(self, student: Student) -> Proportion:
        """Answers to validation questions."""
        limit = self.recipe.generation.max_answer_tokens
        return answer_accuracy(student, self.material.task, self.questions, self.references, limit)

    def stage2(self, student: Student) -> Validation:
        """Answers to validation questions, and verdicts on validation CoTs too where the recipe selects by both."""
        accuracy = self.answers(student)
        text = f"answer accuracy {accuracy} on validation questions"
        if self.recipe.training.select_by == "answers" or not self.validation_cots:
            return Validation(accuracy.value, {"answer": accuracy.to_json()}, text)
        judged = self.stage1(student)
        details = {"answer": accuracy.to_json(), **judged.details}
        return Validation((accuracy.value + judged.score) / 2, details, f"{text}; {judged.text}")

    def everything(self, student: Student, when: str) -> dict[str, Any]:
        """All final figures: answers on validation and test questions, verdicts on held-out CoTs."""
        limit = self.recipe.generation.max_answer_tokens
        answers = {"validation": self.answers(student).to_json()}
        for name, examples in self.material.splits.tests.items():
            labelled = [example for example in examples if example.label is not None]
            labels = [example.label for example in labelled if example.label is not None]
            found = answer_accuracy(
                student, self.material.task, labelled, labels, limit, self.progress, f"answers to {name}, {when}"
            )
            answers[name] = found.to_json()
            self.progress.line(f"{when}: answer accuracy on {name}: {found}")
        return {"answer": answers, "verdict": self.verdicts(student, when)}

    def verdicts(self, student: Student, when: str) -> dict[str, Any] | None:
        """Verdicts on the chains of thought of the verdict test."""
        cots: list[JudgedCot] = self.test_cots
        found = verdict_score(student, cots)
        if found is None:
            return None
        balanced = "–" if found.balanced is None else f"{found.balanced:.3f}"
        self.progress.line(
            f"{when}: verdict accuracy on {len(cots)} held-out CoTs: {found.accuracy}, balanced {balanced}"
            f" (always 'correct': {found.always_correct})"
        )
        return found.to_json()


def distill(recipe: Recipe, out: Path, progress: Progress) -> dict[str, Any]:
    """Distil a student.

    Args:
        recipe: What to do.
        out: The run's folder; a run that was interrupted continues, a finished one is returned.
        progress: Where progress is shown.

    Returns:
        The metrics as written to `metrics.json`.

    Raises:
        MmedgeError: Anything the user can mend; what was finished is kept.
    """
    with work_on(out, recipe) as run:
        return _distill(recipe, run, progress)


def _distill(recipe: Recipe, run: Run, progress: Progress) -> dict[str, Any]:
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    device = _device(recipe)
    source = resolve_source(recipe.student)
    material = prepare(recipe, run, progress)
    settings = {name: recipe_values(recipe)[name] for name in _DECIDES_TRAINING}
    settings["training"].pop("checkpoint_minutes")
    base = {
        "format": LESSON_FORMAT,
        "data": material.hash,
        "student": source.fingerprint,
        "recipe": settings,
    }
    key = sha256_json(base)
    _write_evaluation_set(run, material)
    if run.metrics.is_file() and run.student.is_dir():
        metrics = read_json(run.metrics)
        if metrics.get("key") == key:
            progress.line(f"{run.folder}: distilled already, kept")
            return dict(metrics)
    write_json(
        run.explanation,
        {"recipe": recipe.name, "seed": recipe.seed, "data_hash": material.hash, "student": source.name, "device": str(device)}
        | {"student_fingerprint": source.fingerprint, "annotations": material.report.to_json(), "machine": machine()},
    )
    progress.line(
        f"{len(material.train)} training questions, {len(material.validation)} for validation, annotations: "
        + ", ".join(f"{count} CoTs {reason}" for reason, count in material.report.cots.items())
    )
    texts = list(_tokenizer_texts(material)) if source.kind == "scratch" else []
    student = load_student(recipe.student, source, recipe.training.max_input_tokens, texts, recipe.seed)
    student.model.to(device)
    progress.line(f"student: {recipe.student.source}, {student.family}, {student.parameters / 1e6:.1f} M parameters, on {device}")
    measure = _Measure(recipe, material, progress)
    before = _once(run.folder / "before.json", key, lambda: measure.everything(student, "untrained"))
    stages: dict[str, Any] = {}
    lessons = _evaluation_lessons(recipe, material, student)
    alpha = recipe.method.alpha
    after_stage1 = None
    if recipe.method.self_evaluation:
        if not lessons:
            raise MmedgeError("the annotations hold no self-evaluations", "collect some, or set method.self_evaluation to false")
        course = Course(lambda _: lessons, recipe.training.stage1.batch_size, alpha, 1.0)
        stages["stage1"] = StageTrainer(
            student=student,
            courses=[course],
            section=recipe.training.stage1,
            training=recipe.training,
            validate=lambda: measure.stage1(student),
            folder=run.stage(1),
            name="stage1",
            key=key,
            seed=recipe.seed,
            progress=progress,
        ).run()
        after_stage1 = _once(run.folder / "after_stage1.json", key, lambda: {"verdict": measure.verdicts(student, "after stage 1")})
    stages["stage2"] = StageTrainer(
        student=student,
        courses=_stage2_courses(recipe, material, student, bool(lessons)),
        section=recipe.training.stage2,
        training=recipe.training,
        validate=lambda: measure.stage2(student),
        folder=run.stage(2),
        name="stage2",
        key=key,
        seed=recipe.seed,
        progress=progress,
    ).run()
    after = measure.everything(student, "distilled")
    metrics = {
        "key": key,
        "before": before,
        "after_stage1": after_stage1,
        "after": after,
        "stages": stages,
        "annotations": material.report.to_json(),
        "machine": machine(),
    }
    with atomic_folder(run.student) as temporary:
        details = {
            "recipe": recipe_values(recipe),
            "metrics": {"before": before, "after_stage1": after_stage1, "after": after},
            "data_hash": material.hash,
        }
        save_student(student, temporary, details)
    write_json(run.metrics, metrics)
    seconds = sum(stage["seconds"] for stage in stages.values())
    progress.line(f"student written to {run.student} (trained for {duration(seconds)})")
    return metrics


def _evaluation_lessons(recipe: Recipe, material: Material, student: Student) -> list[Lesson]:
    method = recipe.method
    lessons = evaluation_lessons(
        material.train,
        student.encoder,
        balance_verdicts=method.balance_verdicts,
        contrast_verdicts=method.contrast_verdicts,
    )
    if method.contrast_verdicts and method.self_evaluation and not lessons:
        raise MmedgeError(
            "method.contrast_verdicts: no question has chains of thought that were judged differently", "set it to false"
        )
    return lessons


def _write_evaluation_set(run: Run, material: Material) -> None:
    """Write what export verifies with and bench measures with, unless it stands beside its student already."""
    path = run.folder / FILE_NAME
    if path.is_file() and run.student.is_dir():
        return
    held = [
        HeldOutCot(judged.example, number, judged.cot, judged.correct, judged.teacher_verdict and judged.teacher_verdict.value)
        for number, judged in enumerate(judged_cots(material.verdict_test, material.task))
    ]
    validation = [annotated.example for annotated in material.validation]
    task = material.task
    evaluation = evaluation_set_of(task.name, task.judge, validation, material.splits.tests, {"verdict_test": held})  # type: ignore[arg-type]
    write_evaluation_set(path, evaluation)


def _stage2_courses(recipe: Recipe, material: Material, student: Student, has_evaluations: bool) -> list[Course]:
    section, method = recipe.training.stage2, recipe.method
    kept = select(material.train, method.keep, material.task.judge)
    if method.labels == "pseudo" and not any(annotated.cots for annotated in kept):
        raise MmedgeError(f"method.keep: {method.keep} leaves no chain of thought to learn from", "set it to all")
    rehearsal = method.rehearsal if method.self_evaluation and has_evaluations else 0.0
    courses = [
        Course(
            lambda epoch: reasoning_lessons(kept, student.encoder, method, epoch),
            section.batch_size,
            method.alpha,
            1 - rehearsal,
        )
    ]
    if rehearsal:
        lessons = _evaluation_lessons(recipe, material, student)
        # as many evaluation lessons in a step as make them the rehearsal share of all its lessons
        batch = max(1, round(section.batch_size * rehearsal / (1 - rehearsal))) if rehearsal < 1 else section.batch_size
        courses.append(Course(lambda _: lessons, batch, method.alpha, rehearsal))
    return courses


def _once(path: Path, key: str, measure: Any) -> Any:
    """Return what was measured before under the same key, or measure it and keep it."""
    if path.is_file():
        kept = read_json(path)
        if kept.get("key") == key:
            return kept["value"]
    value = measure()
    write_json(path, {"key": key, "value": value})
    return value
