"""Answers to questions that a student has not seen: each fold's student is trained on the other folds' questions.

A student's answers to the very questions that it was just trained on are nearly all right, and what is wrong with them is memory.
So the questions are cut into folds, and each fold is answered by a student of its own, trained like the student itself, in
proportion to its questions. Its answers are kept, its weights are not.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.durable import once
from mmedge.distill.labels import trusted_answer
from mmedge.distill.objectives import OBJECTIVES, UnseenSection
from mmedge.distill.own import graded_own_cots
from mmedge.distill.scoring import own_answers
from mmedge.recipe import MethodSection, StageSection, TrainingSection
from mmedge.storage import read_json
from mmedge.students.student import TorchStudent

if TYPE_CHECKING:
    from mmedge.distill.chain import StageChain


def folds_of(ids: Sequence[str], folds: int, seed: int) -> list[int]:
    """Return the fold of each question; folds differ by at most one question, and the same seed gives the same."""
    order = sorted(range(len(ids)), key=lambda place: ids[place])
    random.Random(f"folds/{seed}").shuffle(order)
    found = [0] * len(ids)
    for turn, place in enumerate(order):
        found[place] = turn % folds
    return found


@dataclass(frozen=True)
class Fold:
    """A fold of the training questions, and the student that has not seen them.

    Attributes:
        rows: Places of its questions among all training questions.
        questions: Its questions.
        chain: The training of its student.
        place: Where what is finished is kept.
        name: What it is called in what is shown.
    """

    rows: Sequence[int]
    questions: Sequence[AnnotatedExample]
    chain: StageChain
    place: Path
    name: str

    def student(self, path: Path, key: str) -> TorchStudent | None:
        """Train its student; None where what it is to write is already in a file, under a key."""
        if self.chain.session.devices.from_main(lambda: path.is_file() and read_json(path).get("key") == key):
            return None
        self.chain.session.progress.line(
            f"{self.name}: a student of {len(self.chain.material.train)} questions writes for the other {len(self.rows)}"
        )
        student = self.chain.student()
        for stage in self.chain.stages:
            self.chain.train(stage, student, self.place / stage.name)
        return student

    def forget(self) -> None:
        """Remove the student's weights."""
        if self.chain.session.devices.main:
            for stage in self.chain.stages:
                shutil.rmtree(self.place / stage.name / "best", ignore_errors=True)


def folds_for(chain: StageChain, count: int, folder: Path, method: MethodSection) -> Iterator[Fold]:
    """Yield the folds of a training's questions.

    Args:
        chain: The training.
        count: How many folds.
        folder: Where what is finished is kept.
        method: What their students learn, for as many steps as their share of the questions takes.
    """
    train = chain.learned.train
    place_of = folds_of([annotated.example.id for annotated in train], count, chain.recipe.seed)
    recipe = chain.recipe.model_copy(update={"method": method, "training": shortened(chain.recipe.training, (count - 1) / count)})
    for number in range(count):
        rows = [place for place, fold in enumerate(place_of) if fold == number]
        rest = [annotated for annotated, fold in zip(train, place_of, strict=True) if fold != number]
        material = replace(chain.material, train=rest, hash=f"{chain.material.hash}/fold {number} of {count}")
        own = [train[row] for row in rows]
        name = f"fold {number + 1} of {count}"
        yield Fold(rows, own, replace(chain, recipe=recipe, material=material), folder / f"fold{number + 1}", name)


def shortened(training: TrainingSection, share: float) -> TrainingSection:
    """Return a training whose stages 1 and 2 have this share of their steps, validate once, and keep their last weights."""
    changes: dict[str, Any] = {"keep": "last"}
    for name in ("stage1", "stage2"):
        stage: StageSection = getattr(training, name)
        if stage.max_steps is not None:
            steps = max(1, round(stage.max_steps * share))
            changes[name] = stage.model_copy(update={"max_steps": steps, "evaluate_every": steps})
    return training.model_copy(update=changes)


def unseen_answers(chain: StageChain, section: UnseenSection, folder: Path) -> list[tuple[str, ...]]:
    """Let fold students, which learn to reason alone, answer the training questions.

    Args:
        chain: The training that they are part of.
        section: How many folds there are, and how many answers each question gets.
        folder: Where what is finished is kept; a killed training continues in it.

    Returns:
        For each training question, its answers, the first one greedy.
    """
    method, train = chain.recipe.method, chain.learned.train
    kept = {name: one for name, one in method.objectives.items() if not OBJECTIVES[name].unseen and one.stage != "stage3"}
    reasoning = method.model_copy(update={"objectives": kept, "self_evaluation": False, "own_cots": 0, "own_folds": 0})
    found: list[tuple[str, ...]] = [()] * len(train)
    for fold in folds_for(chain, section.folds, folder, reasoning):
        for row, answers in zip(fold.rows, _answers_of(fold, section), strict=True):
            found[row] = tuple(answers)
    form, human = chain.material.task.form, method.labels == "human"
    graded = [
        form.agrees(answer, trusted, annotated.example.choices)
        for annotated, answers in zip(train, found, strict=True)
        if (trusted := trusted_answer(annotated, form, human=human)) is not None
        for answer in answers
    ]
    chain.session.progress.line(f"answers to unseen questions: {len(graded)} can be graded, of which {sum(graded)} are right")
    return found


def _answers_of(fold: Fold, section: UnseenSection) -> list[list[str]]:
    """Return what a fold's student answers."""
    path, chain = fold.place / "answers.json", fold.chain
    key = f"{chain.key()}/{section.answers}/{section.temperature}"
    student = fold.student(path, key)

    def write() -> list[list[str]]:
        assert student is not None
        examples, seed = [annotated.example for annotated in fold.questions], chain.recipe.seed * 1000
        limit, form, progress = chain.recipe.generation.max_answer_tokens, chain.material.task.form, chain.session.progress
        columns = [
            own_answers(student, form, examples, limit, section.temperature if number else 0.0, seed + number, progress)
            for number in range(section.answers)
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    answers: list[list[str]] = chain.session.devices.from_main(lambda: once(path, key, write))
    fold.forget()
    return answers


def unseen_cots(chain: StageChain, folder: Path) -> list[tuple[EvaluatedCot, ...]]:
    """Let fold students, which learn all that comes before stage 3, write chains of thought for the training questions.

    Returns:
        For each training question, its chains of thought, graded; see `graded_own_cots`.
    """
    method = chain.recipe.method
    kept = {name: one for name, one in method.objectives.items() if one.stage != "stage3"}
    before = method.model_copy(update={"objectives": kept, "own_cots": 0, "own_folds": 0})
    found: list[tuple[EvaluatedCot, ...]] = [()] * len(chain.learned.train)
    for fold in folds_for(chain, method.own_folds, folder, before):
        path, session = fold.place / "own.json", chain.session
        key = f"{fold.chain.key()}/{method.own_cots}/{method.own_temperature}"
        student, material = fold.student(path, key), replace(chain.material, train=list(fold.questions))
        graded = graded_own_cots(student, chain.recipe, material, path, key, session.devices, session.progress)
        fold.forget()
        for row, cots in zip(fold.rows, graded, strict=True):
            found[row] = cots
    return found
