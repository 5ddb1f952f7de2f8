"""What a distillation is measured with: validation questions cut from the annotated ones, and the task's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmedge.annotations.decisions import Decisions, Item
from mmedge.annotations.store import AnnotationStore
from mmedge.distill.material import prepare
from mmedge.folders import work_on
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.tasks.synthesized import NewQuestion, write_questions


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


def test_new_questions_whose_answer_is_not_what_they_were_written_for_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("lights", "music")
    trained = [{"id": str(n), "question": f"number {n}", "label": labels[n % 2]} for n in range(6)]
    new = [NewQuestion(f"synthesized-{n}", f"new number {n}", (), "music" if n < 6 else "") for n in range(8)]
    new += [NewQuestion("synthesized-8", "new number 8"), NewQuestion("synthesized-9", "new number 9", (), "music")]
    concluded = {0: ["music"] * 2, 1: ["lights", "lights", "music"], 2: ["lights", "music", "music"], 3: [], 4: ["lights"]}
    concluded |= {
        5: ["lights"],
        6: ["lights"],
        7: ["music"],
    }  # 5: a person says otherwise; 6, 7, 8: written for nothing in particular
    concluded |= {8: ["lights"], 9: ["lights"]}  # 9: a person has accepted the text
    texts = [
        {"id": f"synthesized-{n}", "sample": sample, "text": f"It is so. The answer is {answer}."}
        for n, answers in concluded.items()
        for sample, answer in enumerate(answers)
    ]
    write_questions(tmp_path / "new.jsonl", new)
    for name, records in (("train", trained), ("test", [{"question": "which one?", "label": "music"}]), ("cots", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    values = {
        "name": "small",
        "task": {
            "kind": "jsonl",
            "train_file": str(tmp_path / "train.jsonl"),
            "test_files": {"test": str(tmp_path / "test.jsonl")},
            "form": {"kind": "label", "labels": labels},
        },
        "teacher": {"kind": "recorded", "cots": str(tmp_path / "cots.jsonl")},
        "student": {"source": "scratch"},
        "method": {"labels": "human", "self_evaluation": False},
        "split": {"validation": 1, "verdict_test": 0},
        "synthesis": {"file": str(tmp_path / "new.jsonl")},
    }
    left: dict[bool, set[int]] = {}
    for agree in (True, False):
        recipe = Recipe.model_validate(values | {"synthesis": {"file": str(tmp_path / "new.jsonl"), "agree": agree}})
        with work_on(tmp_path / str(agree), recipe) as run:
            with AnnotationStore(run.annotations) as store:
                Decisions(store).decide(Item("synthesized-5", "question"), "accept", "me", label="lights")
                Decisions(store).decide(Item("synthesized-9", "cot", 0), "accept", "me")
            found = prepare(recipe, run, Progress())
        ids = {one.example.id for one in (*found.train, *found.validation)}
        assert {record["id"] for record in trained} <= ids  # people's questions stay
        left[agree] = {n for n in range(10) if f"synthesized-{n}" not in ids}
        assert ("2 of 4 new questions are left out: their answers are of another label" in capsys.readouterr().err) == agree
    assert left == {True: {1, 4}, False: set()}
