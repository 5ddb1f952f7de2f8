"""`mmedge ablate`: the paper's comparison of methods on one's own task, every row trained with the same budget.

    RUN/ablation/stage1/KEY/       stage 1, trained once for all rows that share it
    RUN/ablation/rows/NAME/        one training: a row, a kind of label, a seed
    RUN/ablation.json  .md  .html  the comparison so far, rewritten after every training

A killed comparison continues: finished trainings are found by the hash of what they depend on.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmedge.distill.ablation_report import write_reports
from mmedge.distill.curves import write_training_page
from mmedge.distill.devices import Devices
from mmedge.distill.distill import (
    Curriculum,
    judged_beside,
    once,
    prepared,
    rehearsed,
    write_measuring_set,
    write_student,
)
from mmedge.distill.lessons import evaluation_lessons
from mmedge.distill.material import Material
from mmedge.distill.measure import Measure
from mmedge.distill.scoring import Verdicts, judged_cots
from mmedge.distill.training import selectable
from mmedge.errors import MmedgeError
from mmedge.folders import Run, work_on
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import ROWS, MethodSection, Recipe, StageSection, TrainingSection, recipe_values
from mmedge.reports.formats import duration
from mmedge.statistics import (
    Estimate,
    auroc_over_seeds,
    balanced_accuracy,
    mean_over_seeds,
    paired_difference,
    proportion,
    said_at_best_level,
)
from mmedge.storage import atomic_folder, read_json, write_json
from mmedge.students.adapters import merge_adapters
from mmedge.students.loading import resolve_source
from mmedge.students.sources import ModelSource
from mmedge.students.student import TorchStudent

TITLES = {
    "standard": "labels only",
    "one_cot": "1 CoT",
    "one_cot_self_evaluation": "1 CoT + self-evaluation",
    "cots": "{m} CoTs",
    "cots_self_evaluation": "{m} CoTs + self-evaluation",
}
LARGEST_ROW = "cots_self_evaluation"
_PARTS = {"row", "labels", "seed", "method", "stages", "lessons", "after_stage1", "tests", "verdicts"}


@dataclass(frozen=True)
class Unit:
    """One training of a comparison.

    Attributes:
        row: Which method.
        labels: Which labels.
        seed: Which seed.
        recipe: The recipe of just this training.
    """

    row: str
    labels: str
    seed: int
    recipe: Recipe


def method_of(recipe: Recipe, row: str, labels: str) -> MethodSection:
    """Return a row's method: one of the paper's, all chains of thought kept, or one that the recipe adds.

    The standard row with pseudo-labels learns the label of the first chain of thought, as the row with one does.
    """
    base = recipe.method.model_dump() | {"labels": labels}
    if row not in ROWS:
        return MethodSection.model_validate(base | {"self_evaluation": True} | recipe.ablation.more[row])
    evaluates, one = row.endswith("self_evaluation"), row.startswith("one_cot")
    changes: dict[str, Any] = {"self_evaluation": evaluates, "keep": "all", "max_cots": 1 if one else recipe.method.max_cots}
    changes |= {"rationales": True, "own_cots": 0}
    if one and recipe.method.contrast_verdicts:  # one chain of thought differs from no other
        changes |= {"contrast_verdicts": False, "balance_verdicts": True}
    if row == "standard":
        changes |= {"rationales": False, "max_cots": 1 if labels == "pseudo" else recipe.method.max_cots}
    return MethodSection.model_validate(base | changes)


def plan(recipe: Recipe, material: Material, student: TorchStudent) -> list[Unit]:
    """Return every training of a comparison, in the order in which they are done: all rows of a seed before the next seed.

    Raises:
        MmedgeError: A row has no stage 2 within the budget that all share, or its stages' lengths cannot be told.
    """
    section = recipe.ablation
    budget = _Budget(recipe, material, student)
    units = []
    for seed in section.seeds:
        for labels in section.labels:
            for row in (*section.rows, *section.more):
                method = method_of(recipe, row, labels)
                with _row_named(row, labels):
                    stage1, stage2 = budget.stages(row, method)
                training = recipe.training.model_copy(update={"stage1": stage1, "stage2": stage2})
                units.append(
                    Unit(row, labels, seed, recipe.model_copy(update={"seed": seed, "method": method, "training": training}))
                )
    return units


@contextmanager
def _row_named(row: str, labels: str) -> Iterator[None]:
    """Say of which row an error is."""
    try:
        yield
    except MmedgeError as error:
        raise MmedgeError(f"row {row} of the comparison, {labels} labels: {error.what}", error.hint) from error


class _Budget:
    """How long each row's stages are."""

    def __init__(self, recipe: Recipe, material: Material, student: TorchStudent) -> None:
        self._recipe, self._material, self._student = recipe, material, student
        whole = method_of(recipe, LARGEST_ROW, recipe.ablation.labels[0])
        self._stage1, self._stage2 = self._written(LARGEST_ROW, whole)
        training = recipe.training
        lessons = training.stage2.batch_size + rehearsed(whole, training.stage2.batch_size)
        self._lessons = self._stage1 * training.stage1.batch_size + self._stage2 * lessons

    def stages(self, row: str, method: MethodSection) -> tuple[StageSection, StageSection]:
        """Return both stages of a row, their lengths in steps, with as many validations as the recipe's have."""
        training, equal = self._recipe.training, self._recipe.ablation.equal
        batch = training.stage2.batch_size
        has_stage1 = method.self_evaluation and method.schedule == "sequential"
        stage1, stage2 = self._stage1, self._stage2
        if equal == "none":
            stage1, stage2 = self._written(row, method)
            if has_stage1 and self._recipe.ablation.epochs.get(row, (1, 1))[0] == 0:
                raise MmedgeError("its stage 1 cannot have 0 epochs", f"give ablation.epochs.{row} a first number above 0")
        elif equal == "lessons":
            left = self._lessons - (stage1 * training.stage1.batch_size if has_stage1 else 0) - self._stage3(method)
            stage2 = round(left / (batch + rehearsed(method, batch)))
            if stage2 < 1:
                raise MmedgeError(
                    f"its other stages take all the {self._lessons} lessons that each row has",
                    "shorten them (training.stage1, training.stage3), or lengthen training.stage2",
                )
        elif equal == "steps" and not has_stage1:
            stage2 += stage1
        return self._section(training.stage1, stage1, self._stage1), self._section(training.stage2, stage2, self._stage2)

    def _stage3(self, method: MethodSection) -> int:
        """Return how many lessons a row's third stage takes."""
        section = self._recipe.training.stage3
        if not method.own_cots or section is None:
            return 0
        if section.max_steps is None:
            raise MmedgeError("training.stage3: a comparison needs its length in steps", "give max_steps instead of epochs")
        return section.max_steps * (section.batch_size + judged_beside(section.batch_size, method.own_share))

    def _written(self, row: str, method: MethodSection) -> tuple[int, int]:
        """Return both lengths as the recipe writes them, epochs counted in the row's own lessons."""
        training = self._recipe.training
        taught = self._material.limited(method.max_cots)
        contrast = {"contrast_verdicts": method.contrast_verdicts}
        evaluations = len(evaluation_lessons(taught.train, self._student.encoder, **contrast)) if method.self_evaluation else 0
        own = self._recipe.ablation.epochs.get(row)
        lengths = []
        for number, (section, count) in enumerate(((training.stage1, evaluations), (training.stage2, len(taught.train)))):
            per_epoch = math.ceil(count / section.batch_size)
            if own is not None:
                lengths.append(max(1, round(own[number] * per_epoch)))
            else:
                lengths.append(section.max_steps or max(1, round((section.epochs or 1) * per_epoch)))
        return lengths[0], lengths[1]

    @staticmethod
    def _section(section: StageSection, steps: int, planned: int) -> StageSection:
        validations = max(1, round(planned / section.evaluate_every)) if section.evaluate_every else 5
        return section.model_copy(
            update={"max_steps": steps, "epochs": None, "evaluate_every": math.ceil(steps / validations), "patience": None}
        )


def ablate(recipe: Recipe, out: Path, progress: Progress) -> dict[str, Any]:
    """Compare the paper's methods.

    Args:
        recipe: Task, teacher, student, training, and what to compare (`ablation`).
        out: The run's folder; a comparison that was interrupted continues.
        progress: Where progress is shown.

    Returns:
        What `ablation.json` says.

    Raises:
        MmedgeError: Anything the user can mend; finished trainings are kept.
    """
    with Devices(recipe.training) as devices:
        shown = progress if devices.main else Progress(quiet=True)
        with work_on(out, recipe, comparison=True) if devices.main else nullcontext(Run(out)) as run:
            return _Ablation(recipe, run, shown, devices).run()


class _Ablation:
    def __init__(self, recipe: Recipe, run: Run, progress: Progress, devices: Devices) -> None:
        self.recipe, self.place, self.progress, self.devices = recipe, run, progress, devices
        self.folder = run.folder / "ablation"
        self.source: ModelSource = resolve_source(recipe.student)
        self.material = prepared(recipe, run, progress, devices)
        self.cots = max((len(a.cots) for a in self.material.train), default=0)
        self.held_out = [judged.example.id for judged in judged_cots(self.material.verdict_test, self.material.task)]
        if recipe.method.max_cots:
            self.cots = min(self.cots, recipe.method.max_cots)
        tests = self.material.splits.tests
        self.questions = {name: sum(one.label is not None for one in found) for name, found in tests.items()}
        if unlabelled := [name for name, count in self.questions.items() if not count]:
            raise MmedgeError(
                f"ablation: no question of the test {unlabelled[0]!r} has a label, so nothing could be compared", "give labels"
            )

    def run(self) -> dict[str, Any]:
        student = self._curriculum(self.recipe).student()
        self.units = plan(self.recipe, self.material, student)
        self._check(student)
        del student
        folders = [self._folder(unit) for unit in self.units]
        known = [self.devices.from_main(partial(_result, folder / "result.json", self.questions)) for folder in folders]
        found: list[dict[str, Any]] = []
        results: dict[str, Any] = {}
        trained, seconds = 0, 0.0
        written, took = time.monotonic(), 0.0
        for number, (unit, folder, done) in enumerate(zip(self.units, folders, known, strict=True), start=1):
            if done is None:
                left = f", about {duration(seconds / trained * known[number - 1 :].count(None))} left" if trained else ""
                words = f"{self._title(unit.row)}, {unit.labels} labels, seed {unit.seed}"
                self.progress.line(f"training {number} of {len(self.units)}{left}: {words}")
                started = time.monotonic()
                with _row_named(unit.row, unit.labels):
                    done = self._train(unit, folder)
                trained, seconds = trained + 1, seconds + time.monotonic() - started
            if self.devices.main:
                shutil.rmtree(folder / "stage2" / "best", ignore_errors=True)  # nothing needs the weights any more
            found.append(done)
            # a summary of many trainings takes a while: it is renewed now and then
            if number == len(self.units) or (trained and time.monotonic() - written > 20 * took):
                started = time.monotonic()
                results = self._summary(found)
                if self.devices.main:
                    write_reports(results, self.place.folder)
                written = time.monotonic()
                took = written - started
        kept = len(self.units) - trained
        if self.recipe.ablation.keep_students and (lost := [folder for folder in folders if not (folder / "student").is_dir()]):
            self.progress.line(
                f"{len(lost)} trainings were done before students were kept; to have theirs, remove {lost[0]} and the like"
            )
        if kept:
            self.progress.line(f"{kept} of {len(self.units)} trainings were there already and kept")
        return results

    def _curriculum(self, recipe: Recipe) -> Curriculum:
        measure = Measure(recipe, self.material, self.progress)
        return Curriculum(recipe, self.material, self.source, measure, self.progress, self.devices)

    def _folder(self, unit: Unit) -> Path:
        name = f"{unit.labels}-{unit.row}-seed{unit.seed}-{self._curriculum(unit.recipe).key()[:12]}"
        return self.folder / "rows" / name

    def _check(self, student: TorchStudent) -> None:
        """Refuse, before anything is trained, a comparison of which some row could not be trained."""
        one_seed = [unit for unit in self.units if unit.seed == self.units[0].seed]
        for unit in one_seed:
            shown = self.progress if unit is one_seed[-1] else Progress(quiet=True)  # once what all rows share
            with _row_named(unit.row, unit.labels):
                self._curriculum(unit.recipe).check(student, shown)

    def _title(self, row: str) -> str:
        return TITLES.get(row, row).format(m=self.cots).replace("1 CoTs", "1 CoT")

    def _train(self, unit: Unit, folder: Path) -> dict[str, Any]:
        curriculum = self._curriculum(unit.recipe)
        measure, main = curriculum.measure, self.devices.main
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            curriculum.observe = lambda: write_training_page(folder, title=f"Training of {folder.name}", finished=False)
        student = curriculum.student()
        stages: dict[str, Any] = {}
        middle = None
        if curriculum.has_stage1:
            place = self.folder / "stage1" / curriculum.key1()[:12]
            stages["stage1"] = curriculum.stage1(student, place)
            middle = self.devices.from_main(
                lambda: once(
                    place / "verdicts.json",
                    curriculum.key1(),
                    lambda: _verdicts(measure.held_out_verdicts(student, "after stage 1")),
                )
            )
        stages["stage2"] = curriculum.stage2(student, folder / "stage2")
        if curriculum.has_stage3:
            stages["stage3"] = curriculum.stage3(student, folder / "stage3")
        merge_adapters(student)

        def outcomes() -> dict[str, Any]:
            answers = {name: [int(right) for right in found] for name, found in measure.tests(student, "at the end").items()}
            judged = measure.held_out_verdicts(student, "at the end") if unit.recipe.method.self_evaluation else None
            return {"tests": answers, "verdicts": _verdicts(judged)}

        training, method = unit.recipe.training, unit.recipe.method
        result: dict[str, Any] = {
            "row": unit.row,
            "labels": unit.labels,
            "seed": unit.seed,
            "method": method.model_dump(mode="json"),
            "stages": stages,
            "lessons": sum(
                stage["steps"] * _lessons_of_step(name, training, method, curriculum.rehearsed()) for name, stage in stages.items()
            ),
            "after_stage1": middle,
            **self.devices.from_main(outcomes),
        }
        if main:
            if self.recipe.ablation.keep_students:
                write_measuring_set(folder, self.material)
                after = {"answer": {name: proportion(list(map(bool, right))).to_json() for name, right in result["tests"].items()}}
                details = {"recipe": recipe_values(unit.recipe), "metrics": {"after": after}, "data_hash": self.material.hash}
                with atomic_folder(folder / "student") as temporary:
                    write_student(student, temporary, details, self.material, unit.recipe)
            write_training_page(folder, title=f"Training of {folder.name}", finished=True)
            write_json(folder / "result.json", result)
        self.devices.wait()
        return result

    # ------------------------------------------------------------------------------------------------- the table

    def _summary(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the comparison of what has been trained so far."""
        section = self.recipe.ablation
        rows = []
        for labels in section.labels:
            above: list[dict[str, Any]] = []
            for row in (*section.rows, *section.more):
                results = [result for result in found if result["row"] == row and result["labels"] == labels]
                if not results:
                    continue
                rows.append(self._row(row, labels, results, above))
                if row in ROWS:  # rows of one's own are all compared with the last of the paper's
                    above = results
        return {
            "recipe": self.recipe.name,
            "equal": section.equal,
            "seeds": sorted({result["seed"] for result in found}),
            "trainings": {"done": len(found), "planned": len(self.units)},
            "cots": self.cots,
            "test_questions": {name: len(outcomes) for name, outcomes in found[0]["tests"].items()},
            "verdict_cots": len(self.held_out),
            "rows": rows,
            "machine": machine(),
        }

    def _row(self, row: str, labels: str, results: Sequence[dict[str, Any]], above: Sequence[dict[str, Any]]) -> dict[str, Any]:
        tests: dict[str, Any] = {}
        for name in results[0]["tests"]:
            tests[name] = mean_over_seeds([result["tests"][name] for result in results]).to_json()
            tests[name]["by_seed"] = {str(result["seed"]): _mean(result["tests"][name]) for result in results}
            pairs = [(a, b) for a in results for b in above if a["seed"] == b["seed"]]
            if pairs:
                difference = paired_difference([a["tests"][name] for a, _ in pairs], [b["tests"][name] for _, b in pairs])
                tests[name]["difference"] = difference.to_json() | {"against": self._title(above[0]["row"]), "seeds": len(pairs)}
        trained = [sum(stage["seconds"] for stage in result["stages"].values()) for result in results]
        return {
            "row": row,
            "title": self._title(row),
            "labels": labels,
            "method": results[0]["method"],
            "seeds": [result["seed"] for result in results],
            "tests": tests,
            "after_stage1": self._judged([result["after_stage1"] for result in results]),
            "verdicts": self._judged([result["verdicts"] for result in results]),
            "steps": {name: stage["steps"] for name, stage in results[0]["stages"].items()},
            "lessons": results[0]["lessons"],
            "tokens": round(_mean([sum(stage["tokens"] for stage in result["stages"].values()) for result in results])),
            "seconds": round(_mean(trained), 1),
            "chosen_by_validation": all(selectable(stage["validations"]) for stage in results[0]["stages"].values()),
            "validations": [
                [(entry["step"], entry["answer"]["value"]) for entry in result["stages"]["stage2"]["validations"]]
                for result in results
            ],
        }

    def _judged(self, verdicts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
        """Return how right several trainings' verdicts on the same chains of thought are.

        `accuracy_at_level` is that of P(correct) above a level that was chosen on the other half of the questions.
        """
        known = [found for found in verdicts if found]
        if not known:
            return None
        questions = self.held_out
        order = sorted(set(questions))
        place = {question: number for number, question in enumerate(order)}
        trials = [0] * len(order)
        for question in questions:
            trials[place[question]] += 1

        def share_right(said: Sequence[Sequence[bool]]) -> dict[str, Any]:
            successes = [[0] * len(order) for _ in known]
            for row, ones, found in zip(successes, said, known, strict=True):
                for question, one, true in zip(questions, ones, found["correct"], strict=True):
                    row[place[question]] += bool(one) == bool(true)
            return mean_over_seeds(successes, trials).to_json()

        levelled = [said_at_best_level(found["confidences"], found["correct"], questions) for found in known]
        balanced = [balanced_accuracy(found["said_correct"], found["correct"]) for found in known]
        area = auroc_over_seeds([found["confidences"] for found in known], known[0]["correct"], questions)
        return {
            "accuracy": share_right([found["said_correct"] for found in known]),
            "accuracy_at_level": share_right(levelled),
            "balanced_accuracy": _mean([value for value in balanced if value is not None]) if None not in balanced else None,
            "auroc": area.to_json() if isinstance(area, Estimate) else None,
        }


def _lessons_of_step(stage: str, training: TrainingSection, method: MethodSection, rehearsed: int) -> int:
    if stage == "stage1":
        return training.stage1.batch_size
    if stage == "stage3" and training.stage3 is not None:
        return training.stage3.batch_size + judged_beside(training.stage3.batch_size, method.own_share)
    return training.stage2.batch_size + rehearsed


def _result(path: Path, questions: dict[str, int]) -> dict[str, Any] | None:
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
        found = read_json(path)
        whole = (
            isinstance(found, dict)
            and found.keys() >= _PARTS
            and isinstance(found["stages"], dict)
            and isinstance(found["tests"], dict)
            and {name: len(outcomes) for name, outcomes in found["tests"].items()} == questions
        )
    except MmedgeError as error:
        raise MmedgeError(error.what, hint) from None
    if not whole:
        raise MmedgeError(f"{path} is no whole result of a training", hint)
    return dict(found)


def _verdicts(found: Verdicts | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "confidences": [round(value, 5) for value in found.confidences],
        "correct": [int(value) for value in found.correct],
        "said_correct": [int(value) for value in found.said_correct],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
