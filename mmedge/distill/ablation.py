"""`mmedge ablate`: the paper's comparison of methods on your own task, every row trained with the same budget.

    RUN/ablation/stage1/KEY/       stage 1, trained once for all rows that share it
    RUN/ablation/rows/NAME/        one training: a row, a kind of label, a seed
    RUN/ablation/questions/SEED/   annotations of the embedded task's questions, which differ by seed
    RUN/ablation.json  .md  .html  the comparison so far, rewritten after every training

A killed comparison continues: finished trainings are found by the hash of what they depend on. Which trainings there are:
`ablation_plan`. What they say together: `ablation_summary`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmedge.distill.ablation_forecast import Forecast, RowForecast, detectable, probed_rate, tokens_of_training
from mmedge.distill.ablation_plan import Unit, plan, row_named, seeded
from mmedge.distill.ablation_report import write_reports
from mmedge.distill.ablation_summary import (
    Comparison,
    Judgements,
    TrainingResult,
    compared_rows,
    judgements,
    method_decisions,
    title_of,
)
from mmedge.distill.chain import StageChain
from mmedge.distill.cluster import TrainingJob, train_side_by_side
from mmedge.distill.curves import write_training_page
from mmedge.distill.devices import Devices
from mmedge.distill.durable import StageResult, once
from mmedge.distill.material import Material, prepared
from mmedge.distill.measure import Measure
from mmedge.distill.scoring import Signals, judged_cots
from mmedge.distill.stages import judges
from mmedge.distill.student_folder import write_measuring_set, write_student
from mmedge.distill.training import Session
from mmedge.errors import MmedgeError
from mmedge.folders import Run, work_on
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.reports.formats import duration
from mmedge.statistics import proportion
from mmedge.storage import Json, locked, read_json, write_json
from mmedge.students.adapters import finish_training
from mmedge.students.loading import resolve_source
from mmedge.students.student import TorchStudent
from mmedge.teachers.plan import NO_LIMITS, Limits


def ablate(recipe: Recipe, out: Path, progress: Progress, workers: int | None = None) -> Comparison:
    """Compare the paper's methods.

    Args:
        recipe: Task, teacher, student, training, and what to compare (`ablation`).
        out: The run's folder; a comparison that was interrupted continues.
        progress: Where progress is shown.
        workers: How many trainings run side by side, on Ray; None for one after the other in this process.

    Returns:
        What `ablation.json` says.

    Raises:
        MmedgeError: Anything the user can fix; finished trainings are kept.
    """
    with _opened(recipe, out, progress) as found:
        if workers and found.devices.count > 1:
            raise MmedgeError("--workers trains several students at once, torchrun one on several processes", "use one of the two")
        return found.run(workers)


def forecast(recipe: Recipe, out: Path, progress: Progress) -> Forecast:
    """Return what a comparison will cost and what difference it can see, and train nothing.

    Args:
        recipe: The comparison's.
        out: The run's folder; trainings that have finished there are counted, and their spread is used.
        progress: Where progress is shown.

    Raises:
        MmedgeError: A row cannot be trained, or anything else that the user can fix.
    """
    with _opened(recipe, out, progress, Limits(max_requests=0)) as found:  # what a teacher writes may cost money
        return found.forecast()


def train_one(recipe: Recipe, out: Path, place: int) -> None:
    """Train one of a comparison's trainings, in a worker of a process that holds the comparison's folder.

    Args:
        recipe: The comparison's.
        out: The run's folder.
        place: The training's number in the plan.

    Raises:
        MmedgeError: Anything the user can fix.
    """
    with Devices(recipe.training) as devices:
        _Ablation(recipe, Run(out), Session(devices, Progress(quiet=True), out)).train_one(place)


@contextmanager
def _opened(recipe: Recipe, out: Path, progress: Progress, limits: Limits = NO_LIMITS) -> Iterator[_Ablation]:
    """Open a comparison's folder for this process."""
    if recipe.teacher is None:
        raise MmedgeError("the recipe has no teacher, and this compares methods of learning from one", "add a teacher section")
    with Devices(recipe.training) as devices:
        session = Session(devices, progress if devices.main else Progress(quiet=True), out)
        with work_on(out, recipe, comparison=True) if devices.main else nullcontext(Run(out)) as run:
            yield _Ablation(recipe, run, session, limits)


class _Ablation:
    def __init__(self, recipe: Recipe, run: Run, session: Session, limits: Limits = NO_LIMITS) -> None:
        self.recipe, self.place, self.session, self._limits = recipe, run, session, limits
        self.devices, self.progress = session.devices, session.progress
        self.source = resolve_source(recipe.student)
        self.materials: dict[int, Material] = {}
        self.material = self._of_seed(recipe.ablation.seeds[0])
        most = max((len(annotated.cots) for annotated in self.material.train), default=0)
        self.cots = min(most, recipe.method.max_cots or most)
        tests = self.material.splits.tests
        self.questions = {name: sum(one.label is not None for one in found) for name, found in tests.items()}
        if unlabelled := [name for name, count in self.questions.items() if not count]:
            raise MmedgeError(
                f"ablation: no question of the test split {unlabelled[0]!r} has a label, so nothing can be compared", "give labels"
            )
        self.units = plan(recipe, self.material)
        self.folders: dict[int, Path] = {}

    def _of_seed(self, seed: int) -> Material:
        """Return what the trainings of a seed learn from; where its questions are its own, so are the annotations."""
        if seed not in self.materials:
            recipe = seeded(self.recipe, seed)
            own = recipe.task != self.recipe.task
            run = Run(self.place.comparison / "questions" / f"seed{seed}") if own else self.place
            if own and self.devices.main:
                run.folder.mkdir(parents=True, exist_ok=True)
            self.materials[seed] = prepared(recipe, run, self.progress, self.devices, self._limits)
        return self.materials[seed]

    def run(self, workers: int | None = None) -> Comparison:
        """Train what is missing, one after the other or side by side, and return the comparison."""
        self._check()
        found: dict[int, TrainingResult] = {}
        summary = self._summary([])
        trained, written, took = 0, time.monotonic(), 0.0
        for place, result, is_new in self._side_by_side(workers) if workers else self._in_turn():
            trained += is_new
            if self.devices.main:
                shutil.rmtree(self.folders[place] / "stage2" / "best", ignore_errors=True)  # nothing needs the weights any more
            found[place] = result
            # a summary of many trainings takes a while, so it is only updated now and then
            if len(found) == len(self.units) or (trained and time.monotonic() - written > 20 * took):
                started = time.monotonic()
                summary = self._summary([found[place] for place in sorted(found)])
                if self.devices.main:
                    write_reports(summary, self.place.folder)
                written = time.monotonic()
                took = written - started
        self._say_what_was_kept(len(self.units) - trained)
        return summary

    def forecast(self) -> Forecast:
        """Return what the plan's trainings cost, and what difference they can see."""
        self._check()
        known: dict[int, TrainingResult | None] = {}
        for seed in dict.fromkeys(unit.seed for unit in self.units):
            known |= self._known(seed)
        done = [result for result in known.values() if result is not None]
        first = [unit for unit in self.units if unit.seed == self.units[0].seed]
        chain = self._chain(first[-1])
        student = chain.student()
        tokens = {(unit.row, unit.labels): tokens_of_training(self._chain(unit), student) for unit in first}
        if done:
            rate, measured = sum(one.tokens for one in done) / sum(one.seconds for one in done), "as in the finished trainings"
            # an answer-verdict's folds are in no stage's time, but in the whole one's
            slower = _mean_of([one.wall_seconds / one.seconds for one in done if one.wall_seconds]) or 1.0
        else:
            stage, slower = chain.stages[-1], 1.0
            with tempfile.TemporaryDirectory() as folder:
                rate = probed_rate(chain.trainer(stage, student, Path(folder), chain.streams(stage, student)))
            measured = "timed on a few steps; tests not included"
        rows = []
        for unit in first:
            mine = [place for place, other in enumerate(self.units) if (other.row, other.labels) == (unit.row, unit.labels)]
            finished = [result for place in mine if (result := known[place]) is not None]
            own = _mean_of([one.wall_seconds for one in finished if one.wall_seconds])
            chain, count = self._chain(unit), tokens[unit.row, unit.labels]
            lessons = sum((chain.section(stage).max_steps or 0) * sum(chain.lessons_per_step(stage)) for stage in chain.stages)
            title = title_of(unit.row, self.cots)
            rows.append(RowForecast(title, unit.labels, len(mine), len(finished), lessons, count, own or slower * count / rate))
        differences, spread = detectable(done, self.questions, len(self.recipe.ablation.seeds))
        return Forecast(rows, rate, measured, differences, spread, len(self.recipe.ablation.seeds))

    def _in_turn(self) -> Iterator[tuple[int, TrainingResult, bool]]:
        """Yield the plan's trainings in their order, and whether each was trained now."""
        known: dict[int, TrainingResult | None] = {}
        trained, seconds = 0, 0.0
        for place, unit in enumerate(self.units):
            if place not in known:  # a seed's questions are made when it is its turn
                known |= self._known(unit.seed)
            done = known[place]
            if is_new := done is None:
                rest = sum(known.get(other) is None for other in range(place, len(self.units)))
                left = f", about {duration(seconds / trained * rest)} left" if trained else ""
                self.progress.line(f"training {place + 1} of {len(self.units)}{left}: {self._words(unit)}")
                started = time.monotonic()
                with row_named(unit.row, unit.labels):
                    done = self._train(unit, self.folders[place])
                trained, seconds = trained + 1, seconds + time.monotonic() - started
            assert done is not None
            yield place, done, is_new

    def _side_by_side(self, workers: int) -> Iterator[tuple[int, TrainingResult, bool]]:
        """Yield the trainings that are there, then the others as they end, and whether each was trained now."""
        known: dict[int, TrainingResult | None] = {}
        for seed in dict.fromkeys(unit.seed for unit in self.units):
            known |= self._known(seed)
        yield from ((place, done, False) for place, done in known.items() if done is not None)
        jobs, first = list[TrainingJob](), dict[str, int]()
        for place in sorted(place for place, done in known.items() if done is None):
            unit, chain = self.units[place], self._chain(self.units[place])
            shared = next((chain.key(stage) for stage in chain.stages if stage.judged), None)
            jobs.append(TrainingJob(place, self._words(unit), None if shared is None else first.get(shared)))
            if shared is not None:
                first.setdefault(shared, place)
        started = time.monotonic()
        for count, place in enumerate(train_side_by_side(self.recipe, self.place.folder, jobs, workers), start=1):
            result = _result(self.folders[place] / "result.json", self.questions)
            if result is None:
                raise MmedgeError(
                    f"{self.folders[place]} has no result although its training has ended",
                    "on a cluster, choose an --out folder that all machines see",
                )
            left = (time.monotonic() - started) / count * (len(jobs) - count)
            self.progress.line(
                f"{count} of {len(jobs)} trainings have ended, about {duration(left)} left: {self._words(self.units[place])}"
            )
            yield place, result, True

    def train_one(self, place: int) -> None:
        """Train one of the plan's trainings, unless it is already there."""
        unit = self.units[place]
        folder = self._folder(unit)
        with locked(folder), row_named(unit.row, unit.labels):
            if _result(folder / "result.json", self.questions) is None:
                self._train(unit, folder)

    def _words(self, unit: Unit) -> str:
        return f"{title_of(unit.row, self.cots)}, {unit.labels} labels, seed {unit.seed}"

    def _known(self, seed: int) -> dict[int, TrainingResult | None]:
        """Return by their places the results of a seed's trainings that are there, and note the folders of all of them."""
        found = {}
        for place, unit in enumerate(self.units):
            if unit.seed == seed:
                folder = self.folders[place] = self._folder(unit)
                found[place] = self.devices.from_main(partial(_result, folder / "result.json", self.questions))
        return found

    def _say_what_was_kept(self, kept: int) -> None:
        lost = [folder for folder in self.folders.values() if not (folder / "student").is_dir()]
        if self.recipe.ablation.keep_students and lost:
            self.progress.line(
                f"{len(lost)} trainings ran before keep_students was set; to get their students, remove {lost[0]} and the like"
            )
        if kept:
            self.progress.line(f"{kept} of {len(self.units)} trainings were already done and are kept")

    def _chain(self, unit: Unit) -> StageChain:
        material = self._of_seed(unit.seed)
        measure = Measure(unit.recipe, material, self.progress)
        return StageChain(unit.recipe, material, self.source, measure, replace(self.session))

    def _folder(self, unit: Unit) -> Path:
        name = f"{unit.labels}-{unit.row}-seed{unit.seed}-{self._chain(unit).key()[:12]}"
        return self.place.comparison / "rows" / name

    def _check(self) -> None:
        """Refuse a comparison with a row that cannot be trained, before anything is trained."""
        one_seed = [unit for unit in self.units if unit.seed == self.units[0].seed]
        student = self._chain(one_seed[0]).student()
        for unit in one_seed:
            shown = self.progress if unit is one_seed[-1] else Progress(quiet=True)  # once what all rows share
            with row_named(unit.row, unit.labels):
                self._chain(unit).check(student, shown)

    def _train(self, unit: Unit, folder: Path) -> TrainingResult:
        chain, title, started = self._chain(unit), f"Training of {folder.name}", time.monotonic()
        measure, main = chain.measure, self.devices.main
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            chain.session.observe = lambda: write_training_page(folder, title=title, finished=False)
        student = chain.student()
        stages, middle = self._stages(chain, student, folder)
        finish_training(student)

        def outcomes() -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, Signals], Judgements | None]:
            found = measure.tests(student, "at the end")
            judged = measure.held_out_verdicts(student, "at the end") if judges(unit.recipe.method) else None
            section = self.recipe.ablation
            own = measure.signals(student, found, section.own_questions)
            oracle = measure.oracle(student, section.oracle_samples, section.own_questions) if section.oracle_samples else {}
            return {name: [int(one) for one in answers.right] for name, answers in found.items()}, oracle, own, judgements(judged)

        tests, oracle, signals, verdicts = self.devices.from_main(outcomes)
        result = TrainingResult(
            row=unit.row,
            labels=unit.labels,
            seed=unit.seed,
            method=unit.recipe.method.model_dump(mode="json"),
            stages=stages,
            lessons=sum(stages[stage.name].steps * sum(chain.lessons_per_step(stage)) for stage in chain.stages),
            after_stage1=middle,
            tests=tests,
            oracle=oracle,
            signals=signals,
            verdicts=verdicts,
            wall_seconds=round(time.monotonic() - started, 1),
        )
        if main:
            if self.recipe.ablation.keep_students:
                write_measuring_set(folder, chain.material)
                answers = {name: proportion(list(map(bool, right))).to_json() for name, right in tests.items()}
                write_student(student, folder / "student", {"after": {"answer": answers}}, chain.material, unit.recipe)
            write_training_page(folder, title=title, finished=True)
            write_json(folder / "result.json", result.model_dump())
        self.devices.wait()
        return result

    def _stages(self, chain: StageChain, student: TorchStudent, folder: Path) -> tuple[dict[str, StageResult], Judgements | None]:
        """Train every stage; return what each ended with, and the verdicts after the one that learns to judge."""
        stages, middle = {}, None
        for stage in chain.stages:
            key = chain.key(stage)
            place = self.place.comparison / stage.name / key[:12] if stage.judged else folder / stage.name  # rows share it
            stages[stage.name] = chain.train(stage, student, place)
            if stage.judged:

                def verdicts(name: str = stage.name) -> Json | None:
                    found = judgements(chain.measure.held_out_verdicts(student, f"after {name}"))
                    return found.model_dump() if found else None

                kept: Any = self.devices.from_main(partial(once, place / "verdicts.json", key, verdicts))
                middle = Judgements.model_validate(kept) if kept else None
        return stages, middle

    def _summary(self, found: Sequence[TrainingResult]) -> Comparison:
        """Return the comparison of what has been trained so far."""
        held_out = {
            seed: [judged.example.id for judged in judged_cots(material.verdict_test, material.task)]
            for seed, material in self.materials.items()
        }
        return Comparison(
            recipe=self.recipe.name,
            equal=self.recipe.ablation.equal,
            seeds=sorted({result.seed for result in found}),
            done=len(found),
            planned=len(self.units),
            cots=self.cots,
            test_questions=self.questions,
            verdict_cots=len(held_out[self.recipe.ablation.seeds[0]]),
            rows=compared_rows(self.units, found, self.cots, held_out),
            decisions=method_decisions(found, self.cots, next(iter(self.questions))),
            machine=machine(),
        )


def _mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _result(path: Path, questions: dict[str, int]) -> TrainingResult | None:
    """Return a finished training's result, where there is one.

    Args:
        path: The file.
        questions: How many labelled questions each test has.

    Raises:
        MmedgeError: The file is damaged.
    """
    if not path.is_file():
        return None
    hint = f"remove the folder {path.parent} and run the same command again"
    try:
        found = TrainingResult.model_validate(read_json(path))
    except MmedgeError as error:
        raise MmedgeError(error.what, hint) from None
    except ValidationError:
        raise MmedgeError(f"{path} is not a complete result of a training", hint) from None
    if {name: len(outcomes) for name, outcomes in found.tests.items()} != questions:
        raise MmedgeError(f"{path} is not a complete result of a training", hint)
    return found
