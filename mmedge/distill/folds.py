"""Answers to questions that a student has not seen: each fold's student is trained on the other folds' questions.

A student's answers to the very questions that it was just trained on are nearly all right, and what is wrong with them is memory.
So the questions are cut into folds, and each fold is answered by a student of its own, trained like the student itself, in
proportion to its questions. Its answers are kept, its weights are not.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmedge.distill.durable import once
from mmedge.distill.labels import trusted_answer
from mmedge.distill.objectives import OBJECTIVES, UnseenSection
from mmedge.distill.scoring import own_answers
from mmedge.recipe import Recipe
from mmedge.storage import read_json
from mmedge.tasks import Example

if TYPE_CHECKING:
    from mmedge.distill.chain import StageChain

REASONING = "stage2"


def folds_of(ids: Sequence[str], folds: int, seed: int) -> list[int]:
    """Return the fold of each question; folds differ by at most one question, and the same seed gives the same."""
    order = sorted(range(len(ids)), key=lambda place: ids[place])
    random.Random(f"folds/{seed}").shuffle(order)
    found = [0] * len(ids)
    for turn, place in enumerate(order):
        found[place] = turn % folds
    return found


def fold_recipe(recipe: Recipe, folds: int) -> Recipe:
    """Return the recipe of a fold's student: reasoning alone, as long as its share of the questions takes."""
    kept = {name: section for name, section in recipe.method.objectives.items() if not OBJECTIVES[name].unseen}
    changes = {"objectives": kept, "self_evaluation": False, "own_cots": 0}
    stage = recipe.training.stage2
    if stage.max_steps is not None:
        steps = max(1, round(stage.max_steps * (folds - 1) / folds))
        stage = stage.model_copy(update={"max_steps": steps, "evaluate_every": steps})  # the last weights are taken
    training = recipe.training.model_copy(update={REASONING: stage, "keep": "last"})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update=changes), "training": training})


def unseen_answers(chain: StageChain, section: UnseenSection, folder: Path) -> list[tuple[str, ...]]:
    """Let fold students answer the training questions.

    Args:
        chain: The training that they are part of.
        section: How many folds there are, and how many answers each question gets.
        folder: Where what is finished is kept; a killed training continues in it.

    Returns:
        For each training question, its answers, the first one greedy.
    """
    train, progress = chain.learned.train, chain.session.progress
    place_of = folds_of([annotated.example.id for annotated in train], section.folds, chain.recipe.seed)
    found: list[tuple[str, ...]] = [()] * len(train)
    for number in range(section.folds):
        own = [place for place, fold in enumerate(place_of) if fold == number]
        rest = [annotated for annotated, fold in zip(train, place_of, strict=True) if fold != number]
        material = replace(chain.material, train=rest, hash=f"{chain.material.hash}/fold {number} of {section.folds}")
        fold = replace(chain, recipe=fold_recipe(chain.recipe, section.folds), material=material)
        place = folder / f"fold{number + 1}"
        counts = f"a student of {len(rest)} questions answers the other {len(own)}"
        progress.line(f"fold {number + 1} of {section.folds}: {counts}, {section.answers} times")
        asked = [train[row].example for row in own]
        for row, answers in zip(own, _answers_of(fold, section, asked, place), strict=True):
            found[row] = tuple(answers)
    form, human = chain.material.task.form, chain.recipe.method.labels == "human"
    graded = [
        form.agrees(answer, trusted, annotated.example.choices)
        for annotated, answers in zip(train, found, strict=True)
        if (trusted := trusted_answer(annotated, form, human=human)) is not None
        for answer in answers
    ]
    progress.line(f"answers to unseen questions: {len(graded)} can be graded, of which {sum(graded)} are right")
    return found


def _answers_of(fold: StageChain, section: UnseenSection, examples: Sequence[Example], place: Path) -> list[list[str]]:
    """Return what a fold's student answers to some questions; it is trained where that is not known yet."""
    path, session = place / "answers.json", fold.session
    key = f"{fold.key()}/{section.answers}/{section.temperature}"
    known = session.devices.from_main(lambda: path.is_file() and read_json(path).get("key") == key)
    student = None
    if not known:
        student = fold.student()
        for stage in fold.stages:
            fold.train(stage, student, place / stage.name)

    def write() -> list[list[str]]:
        assert student is not None
        columns = [
            own_answers(
                student,
                fold.material.task.form,
                examples,
                fold.recipe.generation.max_answer_tokens,
                section.temperature if number else 0.0,
                fold.recipe.seed * 1000 + number,
                session.progress,
            )
            for number in range(section.answers)
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    answers: list[list[str]] = session.devices.from_main(lambda: once(path, key, write))
    if session.devices.main:
        shutil.rmtree(place / REASONING / "best", ignore_errors=True)
    return answers
