"""Decisions: stored for good, taken back without a trace lost, heeded by annotate, review and distill."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.decisions import Decisions, Item, dropped
from mmedge.annotations.questions import task_of
from mmedge.annotations.reading import AnnotatedExample, read_annotations
from mmedge.annotations.selection import judged_correct, select
from mmedge.annotations.store import AnnotationStore
from mmedge.distill.labels import majority_labels, reference, trusted_answer
from mmedge.distill.material import Material, prepare
from mmedge.folders import Run
from mmedge.progress import Progress
from mmedge.recipe import Recipe, validate
from mmedge.recipe.method import MethodSection
from tests.conftest import mmedge, tiny_recipe, write_recipe

QUESTIONS = 12


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of a task of labels with three chains of thought each; the second judges itself wrong."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_recipe(folder / "recipe.yaml", values(tmp_path))
    with AnnotationStore(folder / "annotations.sqlite") as store:
        for number in range(QUESTIONS):
            for sample, answer in enumerate(("yes", "no", "yes")):
                text = f"Text {sample} of {number}. The answer is {answer}."
                verdict = ("correct", "wrong", "correct")[sample]
                store.add([Annotation(f"q{number}", "cot", sample, 0, text, None, "t", "test")])
                store.add([Annotation(f"q{number}", "evaluation", sample, 0, "So it is.", verdict, "t", "test")])
    return Run(folder)


def values(folder: Path) -> dict[str, object]:
    lines = [json.dumps({"id": f"q{n}", "question": f"Is it {n}?"}) for n in range(QUESTIONS)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    form = {"kind": "label", "labels": ["yes", "no"]}
    texts = [{"id": f"q{n}", "sample": 0, "text": "The answer is yes."} for n in range(QUESTIONS)]
    (folder / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    return tiny_recipe(
        name="decided",
        task={"kind": "jsonl", "train_file": str(folder / "train.jsonl"), "form": form},
        teacher={"kind": "recorded", "cots": str(folder / "c.jsonl")},
        method={"self_evaluation": False},
        split={"validation": 2, "verdict_test": 1},
    )


@pytest.fixture
def decisions(run: Run) -> Iterator[Decisions]:
    with AnnotationStore(run.annotations) as store:
        yield Decisions(store)


def recipe_of(run: Run) -> Recipe:
    return validate(values(run.folder.parent), "r")


def read(run: Run, example_id: str) -> AnnotatedExample:
    task = task_of(recipe_of(run), run)
    with AnnotationStore(run.annotations) as store:
        found, _ = read_annotations(store, task, [one for one in task.load().train if one.id == example_id])
    return found[0]


def test_every_decision_stays_and_can_be_taken_back(decisions: Decisions, run: Run) -> None:
    item, text = Item("q1", "question"), Item("q1", "cot", 1)
    decisions.decide(item, "accept", "ann")
    decisions.decide(item, "mend", "bob", label="no", question="Is it one?\ud800")
    decisions.decide(text, "drop", "ann")
    assert decisions.last() == text
    assert decisions.current()[item].who == "bob" and decisions.current()[item].question == "Is it one??"
    assert decisions.undo(text, "cy") and not decisions.undo(text, "cy")
    assert decisions.last() == item
    assert decisions.undo(item, "cy")
    assert decisions.current() == {item: decisions.current()[item]} and decisions.current()[item].what == "accept"
    assert decisions.undo(item, "cy") and decisions.current() == {} and decisions.last() is None
    with closing(sqlite3.connect(run.annotations)) as connection:
        rows = connection.execute("SELECT what, who, time > 0 FROM decisions ORDER BY number").fetchall()
    assert [row[:2] for row in rows] == [
        *(("accept", "ann"), ("mend", "bob"), ("drop", "ann")),
        *(("undo", "cy"), ("undo", "cy"), ("undo", "cy")),
    ]
    assert all(row[2] for row in rows)


def test_texts_are_read_as_people_left_them(decisions: Decisions, run: Run) -> None:
    decisions.decide(Item("q1", "cot", 0), "drop", "ann")
    decisions.decide(Item("q1", "cot", 1), "mend", "ann", text="Better. The answer is yes.")
    decisions.decide(Item("q1", "evaluation", 1), "mend", "ann", text="Now it is.", verdict="correct")
    decisions.decide(Item("q1", "evaluation", 2), "drop", "ann")
    found = read(run, "q1")
    assert [(one.sample, one.cot.pseudo_label, one.accepted) for one in found.cots] == [(1, "yes", True), (2, "yes", False)]
    assert found.cots[0].evaluations[0].rationale == "Now it is." and found.cots[0].evaluations[0].verdict == "correct"
    assert found.cots[1].evaluations == ()
    assert len(read(run, "q2").cots) == 3


def test_a_label_of_a_person_counts_whatever_is_learned(decisions: Decisions, run: Run) -> None:
    decisions.decide(Item("q1", "question"), "mend", "ann", label="No.", question="Is it really 1?")
    found, other = read(run, "q1"), read(run, "q2")
    form = task_of(recipe_of(run), run).form
    assert found.example.question == "Is it really 1?" and found.example.label == "no" and found.decided
    assert [one.cot.pseudo_label for one in select([found], "all", form)[0].cots] == ["no"]
    assert select([found], "judged_correct", form)[0].cots == ()  # the only one that agrees judges itself wrong
    assert majority_labels([found, other], form) == {"q1": "no", "q2": "yes"}
    for labels in ("pseudo", "majority", "human"):
        assert reference(found, form, MethodSection(labels=labels)) == "no"
    assert trusted_answer(found, form, human=False) == "no"
    decisions.decide(Item("q1", "cot", 1), "accept", "ann")
    kept = select([read(run, "q1")], "judged_correct", form)[0].cots
    assert [one.sample for one in kept] == [1] and judged_correct(kept[0])


def material(run: Run) -> Material:
    return prepare(recipe_of(run), run, Progress(quiet=True))


def test_dropped_questions_are_neither_asked_nor_learned_and_a_run_s_hash_knows(tmp_path: Path) -> None:
    recipe = values(tmp_path)
    path = write_recipe(tmp_path / "r.yaml", recipe)
    assert mmedge("annotate", path, "--out", tmp_path / "run", "-q").code == 0
    run = Run(tmp_path / "run")
    before = material(run)
    assert material(run).hash == before.hash
    chosen = before.train[0].example.id
    with AnnotationStore(run.annotations) as store:
        Decisions(store).decide(Item(chosen, "question"), "drop", "ann")
        assert dropped(Decisions(store).current()) == {chosen}
    after = material(run)
    ids = [[one.example.id for one in part] for part in (after.train, after.validation, after.verdict_test)]
    assert ids[0] == [one.example.id for one in before.train if one.example.id != chosen]
    assert ids[1:] == [[one.example.id for one in part] for part in (before.validation, before.verdict_test)]  # the split stays
    assert after.hash != before.hash
    with AnnotationStore(run.annotations) as store:
        Decisions(store).undo(Item(chosen, "question"), "ann")
    assert material(run).hash == before.hash
    with AnnotationStore(run.annotations) as store:
        Decisions(store).decide(Item(chosen, "question"), "accept", "ann", label="no")
    assert material(run).hash not in (before.hash, after.hash)
    distilled = mmedge("distill", path, "--out", run.folder, "-q")
    assert distilled.code == 0, distilled.err
