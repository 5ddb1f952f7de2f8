"""`mmedge distill`: recipe → annotations → stage 1 → stage 2 → student, with metrics; resumable at every point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.annotations.selection import select
from mmedge.distill.checks import check_targets
from mmedge.distill.curves import write_training_page
from mmedge.distill.devices import Devices
from mmedge.distill.lessons import Lesson, evaluation_lessons, explanations, reasoning_lessons, task_tokens
from mmedge.distill.material import Material, majority_labels, prepare, tokenizer_texts, trusted_answer
from mmedge.distill.measure import Measure
from mmedge.distill.scoring import judged_cots, own_cots
from mmedge.distill.training import Course, StageTrainer
from mmedge.engines.drafting import FILE_NAME as DRAFTS
from mmedge.engines.drafting import PhraseTable
from mmedge.errors import MmedgeError
from mmedge.folders import Run, work_on
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import HOW_NOT_WHAT, MethodSection, Recipe, StageSection, recipe_values
from mmedge.reports.formats import duration
from mmedge.storage import atomic_folder, read_json, sha256_json, write_json
from mmedge.students.adapters import add_adapters, merge_adapters
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.saved import save_student
from mmedge.students.sources import ModelSource
from mmedge.students.student import TorchStudent
from mmedge.tasks.base import ChainOfThought, SelfEvaluation, Verdict
from mmedge.tasks.evaluation_set import FILE_NAME, HeldOutCot, evaluation_set_of, write_evaluation_set

CALIBRATION_QUESTIONS = 64
LESSON_FORMAT = 3  # counts up when the same recipe would train differently
_OF_STAGE_3 = ("own_cots", "own_temperature", "own_share")
_OWN_SAMPLES = 1000  # the first number of the student's own chains of thought, behind all of the teacher's
_OF_STAGE_1 = ("self_evaluation", "max_cots", "alpha", "balance_verdicts", "contrast_verdicts")


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
    with Devices(recipe.training) as devices:
        shown = progress if devices.main else Progress(quiet=True)
        with work_on(out, recipe) if devices.main else nullcontext(Run(out)) as run:
            return _distill(recipe, run, shown, devices)


def prepared(recipe: Recipe, run: Run, progress: Progress, devices: Devices) -> Material:
    """Return a run's material; the main process collects it, and the others read what it has collected."""
    if devices.main:
        material = prepare(recipe, run, progress)
        devices.wait()
        return material
    devices.wait()
    return prepare(recipe, run, progress)


def rehearsed(method: MethodSection, batch: int) -> int:
    """Return how many evaluation lessons stand beside `batch` reasoning lessons: the rehearsal share of them all."""
    return judged_beside(batch, method.rehearsal if method.self_evaluation else 0.0)


def judged_beside(batch: int, share: float) -> int:
    """Return how many lessons stand beside `batch` others so that they are a share of them all."""
    return max(1, round(batch * share / (1 - share))) if share else 0


@dataclass
class Curriculum:
    """Both stages of one method, on one material, from one student.

    Attributes:
        recipe: Method, seed, lengths and rates.
        material: What is learned from.
        source: The student's weights.
        measure: How it is validated.
        progress: Where progress is shown.
        devices: Where it is trained.
        observe: Called when there is something new to look at.
    """

    recipe: Recipe
    material: Material
    source: ModelSource
    measure: Measure
    progress: Progress
    devices: Devices
    observe: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._taught = self.material.limited(self.recipe.method.max_cots)

    # -------------------------------------------------------------------------------------------- what it depends on

    @property
    def has_stage1(self) -> bool:
        """Whether there is a stage of its own for learning to evaluate."""
        return self.recipe.method.self_evaluation and self.recipe.method.schedule == "sequential"

    @property
    def has_stage3(self) -> bool:
        """Whether the student learns from chains of thought of its own at the end."""
        return self.recipe.method.own_cots > 0

    def key1(self) -> str:
        """Return the hash of everything that stage 1 depends on, and nothing else: methods that share it train it once."""
        values = recipe_values(self.recipe)
        later = ("stage2", "stage3", "select_by")
        training = {name: value for name, value in values["training"].items() if name not in (*HOW_NOT_WHAT, *later)}
        method = {name: values["method"][name] for name in _OF_STAGE_1}
        return sha256_json(self._base() | {"stage": 1, "training": training, "method": method})

    def key2(self) -> str:
        """Return the hash of everything that stage 2 depends on."""
        values = recipe_values(self.recipe)
        training = {name: value for name, value in values["training"].items() if name not in (*HOW_NOT_WHAT, "stage3")}
        method = {name: value for name, value in values["method"].items() if name not in _OF_STAGE_3}
        stage1 = self.key1() if self.has_stage1 else None
        rest = {"training": training, "method": method, "generation": values["generation"]}
        return sha256_json(self._base() | {"stage": 2, "stage1": stage1} | rest)

    def key(self) -> str:
        """Return the hash of everything that the finished student depends on."""
        if not self.has_stage3:
            return self.key2()
        values = recipe_values(self.recipe)
        method = {name: values["method"][name] for name in _OF_STAGE_3}
        return sha256_json({"stage": 3, "stage2": self.key2(), "length": values["training"]["stage3"], "method": method})

    def _base(self) -> dict[str, Any]:
        student = self.recipe.student
        return {
            "format": LESSON_FORMAT,
            "data": self.material.hash,
            "seed": self.recipe.seed,
            "student": [self.source.fingerprint, student.lora.model_dump() if student.lora else None],
        }

    # ------------------------------------------------------------------------------------------------------ the work

    def student(self) -> TorchStudent:
        """Return the student that the training starts from."""
        section, seed = self.recipe.student, self.recipe.seed
        texts = list(tokenizer_texts(self.material)) if self.source.kind == "scratch" else []
        student = load_student(section, self.source, self.recipe.training.max_input_tokens, texts, seed)
        if section.lora is not None:
            add_adapters(student, section.lora, seed)
        student.model.to(self.devices.device)
        return student

    def check(self, student: TorchStudent, progress: Progress) -> None:
        """Refuse what would only fail when its stage's turn comes, and warn of what is cut off.

        Raises:
            MmedgeError: The material holds nothing of what a stage learns from, or the student cannot write it.
        """
        check_targets(self.recipe, self._taught, student, progress)
        if self.has_stage1:
            self.evaluation_lessons(student)
        self.stage2_courses(student)

    def evaluation_lessons(self, student: TorchStudent) -> list[Lesson]:
        """Return what stage 1 and rehearsal teach.

        Raises:
            MmedgeError: There is nothing of it.
        """
        method = self.recipe.method
        lessons = evaluation_lessons(
            self._taught.train,
            student.encoder,
            balance_verdicts=method.balance_verdicts,
            contrast_verdicts=method.contrast_verdicts,
        )
        if not lessons and method.contrast_verdicts:
            raise MmedgeError(
                "method.contrast_verdicts: no question has chains of thought that were judged differently", "set it to false"
            )
        if not lessons:
            raise MmedgeError("the annotations hold no self-evaluations", "collect some, or set method.self_evaluation to false")
        return lessons

    def stage1(self, student: TorchStudent, folder: Path) -> dict[str, Any]:
        """Teach a student to evaluate; its weights are those of the best validation afterwards."""
        lessons, section = self.evaluation_lessons(student), self.recipe.training.stage1
        course = Course(lambda _: lessons, section.batch_size, self.recipe.method.alpha, 1.0)
        return self._trainer(student, [course], section, 1, folder).run()

    def stage2(self, student: TorchStudent, folder: Path) -> dict[str, Any]:
        """Teach a student to reason, and by the recipe to go on evaluating."""
        courses = self.stage2_courses(student)
        return self._trainer(student, courses, self.recipe.training.stage2, 2, folder).run()

    def stage3(self, student: TorchStudent, folder: Path) -> dict[str, Any]:
        """Teach a student to judge what it writes itself, and to reason from what of that is right."""
        section, method = self.recipe.training.stage3, self.recipe.method
        assert section is not None  # the recipe sees to it
        taught = self._with_own(student, folder)
        judge = self.material.task.form
        kept = select(self._taught.train, method.keep, judge)
        right = [_right_ones(annotated, len(before.cots)) for annotated, before in zip(taught, self._taught.train, strict=True)]
        reasons = [replace(a, cots=(*a.cots, *own)) for a, own in zip(kept, right, strict=True)]
        majority = majority_labels(self._taught.train, judge) if method.labels == "majority" else None
        evaluations = evaluation_lessons(taught, student.encoder, balance_verdicts=method.balance_verdicts)
        count = judged_beside(section.batch_size, method.own_share)
        courses = [
            Course(
                lambda epoch: reasoning_lessons(reasons, student.encoder, method, epoch, majority),
                section.batch_size,
                method.alpha,
                1 - method.own_share,
            ),
            Course(lambda _: evaluations, count, method.alpha, method.own_share, "evaluation_"),
        ]
        return self._trainer(student, courses, section, 3, folder).run()

    def _with_own(self, student: TorchStudent, folder: Path) -> list[AnnotatedExample]:
        """Return the training questions with the student's own chains of thought behind the teacher's, each with a verdict."""
        method, limits = self.recipe.method, self.recipe.generation
        judge, train = self.material.task.form, self._taught.train
        answers = [trusted_answer(annotated, judge, human=method.labels == "human") for annotated in train]
        examples = [annotated.example for annotated in train]

        def written() -> list[list[list[str]]]:
            tokens = limits.max_answer_tokens, limits.max_rationale_tokens
            found = []
            for number in range(method.own_cots):
                heat = method.own_temperature if number else 0.0
                seed = self.recipe.seed * 1000 + number
                cots = own_cots(student, judge, examples, tokens, heat, seed, self.progress)
                found.append([[cot.rationale, cot.pseudo_label] for cot in cots])
            return found

        own = self.devices.from_main(lambda: once(folder / "own.json", self.key(), written))
        taught, right, total = [], 0, 0
        for place, (annotated, answer) in enumerate(zip(train, answers, strict=True)):
            cots = list(annotated.cots)
            for number, column in enumerate(own):
                if answer is None:
                    continue
                cot = ChainOfThought(*column[place])
                agrees = judge.agrees(cot.pseudo_label, answer, annotated.example.choices)
                right, total = right + agrees, total + 1
                verdict = SelfEvaluation("", Verdict.CORRECT if agrees else Verdict.WRONG)
                cots.append(EvaluatedCot(_OWN_SAMPLES + number, cot, (verdict,)))
            taught.append(replace(annotated, cots=tuple(cots)))
        self.progress.line(f"own chains of thought: {total}, of which {right} come to the trusted answer")
        return taught

    def _trainer(
        self, student: TorchStudent, courses: list[Course], section: StageSection, number: int, folder: Path
    ) -> StageTrainer:
        validate = {1: self.measure.stage1, 2: self.measure.stage2, 3: self.measure.stage3}[number]
        return StageTrainer(
            student=student,
            courses=courses,
            section=section,
            training=self.recipe.training,
            validate=lambda: validate(student),
            folder=folder,
            name=f"stage{number}",
            key={1: self.key1, 2: self.key2, 3: self.key}[number](),
            seed=self.recipe.seed,
            progress=self.progress,
            devices=self.devices,
            observe=self.observe,
        )

    def rehearsed(self) -> int:
        """Return how many evaluation lessons a step of stage 2 has beside its reasoning lessons."""
        return rehearsed(self.recipe.method, self.recipe.training.stage2.batch_size)

    def stage2_courses(self, student: TorchStudent) -> list[Course]:
        """Return what stage 2 teaches: to reason, and to evaluate where that is rehearsed or learned jointly."""
        section, method = self.recipe.training.stage2, self.recipe.method
        judge = self.material.task.form
        kept = select(self._taught.train, method.keep, judge)
        majority = majority_labels(self._taught.train, judge) if method.labels == "majority" else None
        if method.labels == "pseudo" and not any(annotated.cots for annotated in kept):
            raise MmedgeError(f"method.keep: {method.keep} leaves no chain of thought to learn from", "set it to all")
        if method.labels == "human" and not any(annotated.example.label is not None for annotated in kept):
            raise MmedgeError("method.labels: the training questions have no human labels", "set it to pseudo or majority")
        count = self.rehearsed()
        weight = (method.evaluation_weight or method.rehearsal) if count else 0.0
        courses = [
            Course(
                lambda epoch: reasoning_lessons(kept, student.encoder, method, epoch, majority),
                section.batch_size,
                method.alpha,
                1 - weight,
            )
        ]
        if count:
            lessons = self.evaluation_lessons(student)
            courses.append(Course(lambda _: lessons, count, method.alpha, weight, "evaluation_"))
        return courses


def _distill(recipe: Recipe, run: Run, progress: Progress, devices: Devices) -> dict[str, Any]:
    source = resolve_source(recipe.student)
    material = prepared(recipe, run, progress, devices)
    measure = Measure(recipe, material, progress)
    curriculum = Curriculum(recipe, material, source, measure, progress, devices)
    key = curriculum.key()
    if devices.main:
        write_measuring_set(run.folder, material)
    if run.metrics.is_file() and run.student.is_dir():
        metrics = read_json(run.metrics)
        if metrics.get("key") == key:
            progress.line(f"{run.folder}: distilled already, kept")
            return dict(metrics)
    devices.wait()  # or a fellow would find what another is about to write
    if devices.main:
        _write_explanation(recipe, run, material, source, devices)
    progress.line(
        f"{len(material.train)} training questions, {len(material.validation)} for validation, annotations: "
        + ", ".join(f"{count} CoTs {reason}" for reason, count in material.report.cots.items())
    )
    student = curriculum.student()
    curriculum.check(student, progress)
    progress.line(
        f"student: {recipe.student.source}, {student.family}, {student.parameters / 1e6:.1f} M parameters, on {devices.describe()}"
    )
    if devices.main:
        curriculum.observe = lambda: write_training_page(run.folder, title=f"Training of {recipe.name}", finished=False)

    def kept(path: Path, wanted: str, compute: Callable[[], Any]) -> Any:
        return devices.from_main(lambda: once(path, wanted, compute))

    before = kept(run.folder / "before.json", key, lambda: measure.everything(student, "untrained"))
    stages: dict[str, Any] = {}
    after_stage1 = None
    if curriculum.has_stage1:
        stages["stage1"] = curriculum.stage1(student, run.stage(1))
        verdicts = run.folder / "after_stage1.json"
        after_stage1 = kept(verdicts, curriculum.key1(), lambda: {"verdict": measure.verdicts(student, "after stage 1")})
    stages["stage2"] = curriculum.stage2(student, run.stage(2))
    if curriculum.has_stage3:
        stages["stage3"] = curriculum.stage3(student, run.stage(3))
    merge_adapters(student)
    after = devices.from_main(lambda: measure.everything(student, "distilled"))
    metrics = {
        "key": key,
        "before": before,
        "after_stage1": after_stage1,
        "after": after,
        "stages": stages,
        "annotations": material.report.to_json(),
        "machine": machine(),
    }
    if devices.main:
        with atomic_folder(run.student) as temporary:
            details = {
                "recipe": recipe_values(recipe),
                "metrics": {"before": before, "after_stage1": after_stage1, "after": after},
                "data_hash": material.hash,
            }
            write_student(student, temporary, details, material, recipe)
        write_json(run.metrics, metrics)
        write_training_page(run.folder, title=f"Training of {recipe.name}", finished=True)
    devices.wait()
    seconds = sum(stage["seconds"] for stage in stages.values())
    progress.line(f"student written to {run.student} (trained for {duration(seconds)}); curves: {run.folder / 'training.html'}")
    return metrics


def _right_ones(annotated: AnnotatedExample, teachers: int) -> tuple[EvaluatedCot, ...]:
    """Return the student's own chains of thought that are right; the teacher's stand in front of them."""
    return tuple(own for own in annotated.cots[teachers:] if own.evaluations[0].verdict is Verdict.CORRECT)


def _write_explanation(recipe: Recipe, run: Run, material: Material, source: ModelSource, devices: Devices) -> None:
    values = {"recipe": recipe.name, "seed": recipe.seed, "data_hash": material.hash, "student": source.name}
    values |= {"device": devices.describe(), "processes": devices.count, "student_fingerprint": source.fingerprint}
    write_json(run.explanation, values | {"annotations": material.report.to_json(), "machine": machine()})


def write_measuring_set(folder: Path, material: Material) -> None:
    """Write what export verifies with and bench measures with, unless it stands beside its student already."""
    path = folder / FILE_NAME
    if path.is_file() and (folder / "student").is_dir():
        return
    held = [
        HeldOutCot(judged.example, number, judged.cot, judged.correct, judged.teacher_verdict and judged.teacher_verdict.value)
        for number, judged in enumerate(judged_cots(material.verdict_test, material.task))
    ]
    validation = [annotated.example for annotated in material.validation]
    step = max(1, len(material.train) // CALIBRATION_QUESTIONS)
    calibration = [annotated.example for annotated in material.train[::step][:CALIBRATION_QUESTIONS]]
    task, tests = material.task, material.splits.tests
    evaluation = evaluation_set_of(task.name, task.form, validation, calibration, tests, {"verdict_test": held})
    write_evaluation_set(path, evaluation)


def write_student(student: TorchStudent, folder: Path, details: dict[str, Any], material: Material, recipe: Recipe) -> None:
    """Write a student, with what its task is made of: tokens for `export --trim-vocab`, and phrases for the runtime's drafts."""
    examples = [*material.train, *material.validation, *material.verdict_test]
    limit = recipe.training.max_target_tokens
    save_student(student, folder, details, task_tokens(examples, student.encoder, limit))
    PhraseTable.of(explanations(material.train, student.encoder, limit)).save(folder / DRAFTS)


def once(path: Path, key: str, measure: Callable[[], Any]) -> Any:
    """Return what was measured before under the same key, or measure it and keep it."""
    if path.is_file():
        kept = read_json(path)
        if kept.get("key") == key:
            return kept["value"]
    value = measure()
    write_json(path, {"key": key, "value": value})
    return value
