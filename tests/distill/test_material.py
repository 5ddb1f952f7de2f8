"""What a distillation is measured with: validation questions cut from the annotated ones, and the task's own."""

from __future__ import annotations

from pathlib import Path

from mmedge.distill.material import prepare
from mmedge.folders import work_on
from mmedge.progress import Progress
from mmedge.recipe import Recipe


def test_a_tasks_own_validation_questions_join_those_cut_from_training(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "task": {"kind": "arithmetic", "version": 2, "train": 80, "test": 5, "unfamiliar": 12},
            "teacher": {"kind": "embedded", "cots_per_question": 1},
            "student": {"source": "scratch"},
            "split": {"validation": 10, "verdict_test": 10},
        }
    )
    with work_on(tmp_path / "run", recipe) as run:
        material = prepare(recipe, run, Progress(quiet=True))
    unfamiliar = {example.id for example in material.splits.validation}
    assert len(unfamiliar) == 12 and len(material.validation) == 22
    assert unfamiliar < {annotated.example.id for annotated in material.validation}
    assert not unfamiliar & {annotated.example.id for annotated in (*material.train, *material.verdict_test)}
