"""`mmedge distill`: recipe → annotations → the method's stages → student, with metrics; resumable at every point."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from mmedge.distill.chain import StageChain
from mmedge.distill.checks import warn_about_questions
from mmedge.distill.curves import write_training_page
from mmedge.distill.devices import Devices
from mmedge.distill.durable import StageFolder, StageResult, once
from mmedge.distill.material import prepared
from mmedge.distill.measure import Measure
from mmedge.distill.metrics import RunMetrics, Scores, StageVerdicts
from mmedge.distill.student_folder import write_measuring_set, write_student
from mmedge.distill.training import Session
from mmedge.folders import Run, work_on
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.reports.formats import duration
from mmedge.storage import read_json, write_json
from mmedge.students.adapters import finish_training
from mmedge.students.loading import resolve_source
from mmedge.students.student import TorchStudent


def distill(recipe: Recipe, out: Path, progress: Progress) -> RunMetrics:
    """Distil a student.

    Args:
        recipe: What to do.
        out: The run's folder; a run that was interrupted continues, a finished one is returned.
        progress: Where progress is shown.

    Returns:
        The metrics as written to `metrics.json`.

    Raises:
        MmedgeError: Anything the user can fix; what was finished is kept.
    """
    with Devices(recipe.training) as devices:
        session = Session(devices, progress if devices.main else Progress(quiet=True), out)
        with work_on(out, recipe) if devices.main else nullcontext(Run(out)) as run:
            return _distill(recipe, run, session)


def _distill(recipe: Recipe, run: Run, session: Session) -> RunMetrics:
    devices, progress = session.devices, session.progress
    source = resolve_source(recipe.student)
    material = prepared(recipe, run, progress, devices)
    measure = Measure(recipe, material, progress)
    chain = StageChain(recipe, material, source, measure, session)
    key = chain.key()
    if devices.main:
        write_measuring_set(run.folder, material)
    if run.metrics.is_file() and run.student.is_dir():
        found = read_json(run.metrics)
        if found.get("key") == key:
            progress.line(f"{run.folder}: already distilled, kept")
            return RunMetrics.model_validate(found)
    for stage in chain.stages:  # before the student is measured, which takes minutes
        StageFolder(run.folder / stage.name, chain.key(stage)).check()
    devices.wait()  # otherwise another process could find what the main one is about to write
    if devices.main:
        _write_explanation(chain, run)
    read = ", ".join(f"{count} CoTs {reason}" for reason, count in material.report.cots.items())
    progress.line(
        f"{len(material.train)} training questions, {len(material.validation)} for validation, annotations: {read or 'none'}"
    )
    warn_about_questions(material, progress)
    student = chain.student()
    chain.check(student, progress)
    progress.line(
        f"student: {recipe.student.source}, {student.family}, {student.parameters / 1e6:.1f} M parameters, on {devices.describe()}"
    )
    if devices.main:
        session.observe = lambda: write_training_page(run.folder, title=f"Training of {recipe.name}", finished=False)
    before = devices.from_main(
        lambda: once(
            run.folder / "before.json", f"{key} {recipe.training.untrained}", lambda: measure.untrained(student).model_dump()
        )
    )
    stages, after_stage1 = _train(chain, student, run)
    finish_training(student)
    after = devices.from_main(lambda: measure.everything(student, "distilled"))
    metrics = RunMetrics(
        key=key,
        before=Scores.model_validate(before),
        after_stage1=after_stage1,
        after=after,
        stages=stages,
        annotations=material.report.to_json(),
        machine=machine(),
    )
    if devices.main:
        write_student(student, run.student, metrics.model_dump(include={"before", "after_stage1", "after"}), material, recipe)
        write_json(run.metrics, metrics.model_dump())
        write_training_page(run.folder, title=f"Training of {recipe.name}", finished=True)
    devices.wait()
    seconds = sum(stage.seconds for stage in stages.values())
    progress.line(f"student written to {run.student} (trained for {duration(seconds)}); curves: {run.folder / 'training.html'}")
    return metrics


def _train(chain: StageChain, student: TorchStudent, run: Run) -> tuple[dict[str, StageResult], StageVerdicts | None]:
    """Train every stage; return what each ended with, and the verdicts after the stage that learns to judge."""
    stages, judged = {}, None
    for stage in chain.stages:
        stages[stage.name] = chain.train(stage, student, run.folder / stage.name)
        if stage.judged:
            path, key, measure = run.folder / f"after_{stage.name}.json", chain.key(stage), chain.measure
            when = f"after {stage.name.replace('stage', 'stage ')}"
            judged = StageVerdicts.model_validate(
                chain.session.devices.from_main(lambda: once(path, key, lambda: {"verdict": measure.verdicts(student, when)}))  # noqa: B023
            )
    return stages, judged


def _write_explanation(chain: StageChain, run: Run) -> None:
    recipe, material, source, devices = chain.recipe, chain.material, chain.source, chain.session.devices
    values = {"recipe": recipe.name, "seed": recipe.seed, "data_hash": material.hash, "student": source.name}
    values |= {"device": devices.describe(), "processes": devices.count, "student_fingerprint": source.fingerprint}
    write_json(run.explanation, values | {"annotations": material.report.to_json(), "machine": machine()})
