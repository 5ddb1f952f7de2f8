"""Recordings in the forms in which they are published, and the form in which a store is exported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmedge.annotations.exporting import export_annotations
from mmedge.annotations.reading import read_annotations
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import validate
from mmedge.tasks import Example, Unparsed, build_task
from mmedge.tasks.files import FileTask, svamp
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.reading import read_self_evaluation
from mmedge.teachers.collect import annotate
from mmedge.teachers.recorded import RecordedTeacher
from tests.conftest import is_one_line_error, mmedge, own_recipe, write_recipe

LUKE = Example("a", "Luke scored 84 points after 2 rounds. How many per round?", "42")


def _log(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(tree))
    return path


def _tree(**changes: Any) -> dict[str, Any]:
    step = {
        "x": '"input":"Luke scored 84 points after 2 rounds.\\nHow many  per round?"\n',
        "new_ys": ["84 / 2 = 42. The answer is (84 / 2).", "The answer is 41."],
        "value_outputs_list": [["Evaluation result: the given answer is correct."] * 2, ["It is wrong.\nVerdict: wrong"]],
    }
    return {"steps": [step | changes]}


def test_a_tree_of_thought_log_gives_texts_and_evaluations(tmp_path: Path) -> None:
    unknown = _tree(x='"input":"Another question?"')
    teacher = RecordedTeacher((_log(tmp_path, [unknown, _tree()]),))
    cots = list(teacher.chains_of_thought([LUKE]))
    assert [(cot.example_id, cot.sample, cot.origin) for cot in cots] == [
        ("a", 0, "log.json[1].new_ys[0]"),
        ("a", 1, "log.json[1].new_ys[1]"),
    ]
    evaluations = list(teacher.self_evaluations([(LUKE, cot) for cot in cots]))
    assert [(each.sample, each.evaluation) for each in evaluations] == [(0, 0), (0, 1), (1, 0)]
    verdicts = [read_self_evaluation(each.text, each.verdict) for each in evaluations]
    assert [found if isinstance(found, Unparsed) else found.verdict.value for found in verdicts] == ["correct", "correct", "wrong"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"steps": []}, "expected a JSON list of trees"),
        ([{"steps": []}], "log.json[0]: a tree has no steps"),
        ([_tree(x=5)], "log.json[0]: 'x' contains no question"),
        ([_tree(x='"input":"cut')], "log.json[0]: 'x' contains no question"),
        ([_tree(new_ys=[5])], "log.json[0]: 'new_ys' must be a list of texts"),
        ([_tree(value_outputs_list=[[5]])], "log.json[0]: the evaluations of text 0"),
    ],
)
def test_a_broken_log_is_named_by_place(tmp_path: Path, document: Any, complaint: str) -> None:
    teacher = RecordedTeacher((_log(tmp_path, document),), format="tree_of_thought")
    with pytest.raises(MmedgeError) as caught:
        list(teacher.chains_of_thought([LUKE]))
    assert complaint in str(caught.value)


def test_the_papers_published_logs_are_imported(data: Path, tmp_path: Path) -> None:
    values = own_values(tmp_path, str(data / "minds_mirror_release" / "svamp_tree1" / "llm" / "train_CoT_0.json"))
    values["task"] = {"kind": "svamp", "data": str(data / "svamp")}
    recipe = validate(values, "r")
    task = build_task(recipe.task.model_dump())
    examples = task.load().train
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotate(recipe, task, examples, store, Progress(quiet=True))
        read, report = read_annotations(store, task, examples)
    assert report.to_json() == {"cots": {"parsed": 10}, "evaluations": {"parsed": 50}}
    evaluated = [annotated for annotated in read if annotated.cots]
    assert [len(annotated.cots) for annotated in evaluated] == [5, 5]
    verdicts = Counter(e.verdict.value for annotated in evaluated for cot in annotated.cots for e in cot.evaluations)
    labels = json_lines(data / "minds_mirror_release" / "svamp_tree2" / "svamp_tree2_train.json")
    assert verdicts == Counter(record["label"] for record in labels)  # what the authors read out of the same texts


def test_distilling_step_by_steps_lists_are_imported_in_the_order_of_the_questions(data: Path) -> None:
    folder = data / "step_by_step_release" / "svamp"
    task = svamp(data / "svamp")
    examples = task.load().train
    teacher = RecordedTeacher((folder / "train_CoT_0.json", folder / "train_CoT_1.json"))
    texts = {cot.example_id: cot.text for cot in teacher.chains_of_thought(examples)}
    assert len(texts) == len(examples)
    same = RecordedTeacher((data / "svamp" / "teacher_cots.jsonl",), max_cots=1)
    assert texts == {cot.example_id: cot.text for cot in same.chains_of_thought(examples)}
    with pytest.raises(MmedgeError, match=f"{len(examples)} texts, but the task has 10"):
        list(teacher.chains_of_thought(examples[:10]))


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def own_values(folder: Path, *cots: str, evaluations: str | None = None) -> dict[str, Any]:
    stage = {"max_steps": 1}
    return {
        "name": "recorded",
        "task": {"kind": "jsonl", "train_file": str(folder / "train.jsonl"), "judge": "expression"},
        "teacher": {"kind": "recorded", "cots": list(cots), "evaluations": evaluations},
        "student": {"source": "scratch"},
        "training": {"stage1": stage, "stage2": stage},
    }


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_exported_store_is_the_next_runs_recording(tmp_path: Path, own_task: dict[str, Path], form: Any) -> None:
    recipe = validate(own_recipe(own_task, tmp_path), "r")
    task = build_task(recipe.task.model_dump())
    examples = task.load().train
    with AnnotationStore(tmp_path / "one.sqlite") as store:
        annotate(recipe, task, examples, store, Progress(quiet=True))
        written = export_annotations(store, tmp_path / "out", form)
        expected = read_annotations(store, task, examples)
    assert {path.name: count for path, count in written.items()} == {
        f"cots.{form}": expected[1].cots.total() if hasattr(Counter, "total") else sum(expected[1].cots.values()),
        f"evaluations.{form}": sum(expected[1].evaluations.values()),
    }
    values = own_recipe(own_task, tmp_path)
    values["teacher"] = {
        "kind": "recorded",
        "cots": str(tmp_path / "out" / f"cots.{form}"),
        "evaluations": str(tmp_path / "out" / f"evaluations.{form}"),
    }
    again = validate(values, "r")
    with AnnotationStore(tmp_path / "two.sqlite") as store:
        annotate(again, task, examples, store, Progress(quiet=True))
        assert read_annotations(store, task, examples) == expected


def test_what_is_no_parquet_file_is_one_line(tmp_path: Path, own_task: dict[str, Path]) -> None:
    values = own_recipe(own_task, tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    values["teacher"] = {"kind": "recorded", "cots": str(tmp_path / "broken.parquet")}
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run")
    assert is_one_line_error(found) and "is not a Parquet file" in found.err


def test_a_recording_that_was_mended_is_read_anew(tmp_path: Path, own_task: dict[str, Path]) -> None:
    recipe = validate(own_recipe(own_task, tmp_path), "r")
    task = build_task(recipe.task.model_dump())
    examples = task.load().train
    values = own_recipe(own_task, tmp_path)
    path = tmp_path / "mine.jsonl"
    values["teacher"] = {"kind": "recorded", "cots": str(path)}
    path.write_text(json.dumps({"id": examples[0].id, "sample": 0, "text": "The answer is 4."}) + "\n{broken\n")
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        with pytest.raises(MmedgeError, match=r"mine\.jsonl:2"):
            annotate(validate(values, "r"), task, examples, store, Progress(quiet=True))
        path.write_text(json.dumps({"id": examples[0].id, "sample": 0, "text": "The answer is 5."}) + "\n")
        annotate(validate(values, "r"), task, examples, store, Progress(quiet=True))
        assert [cot.text for cot in store.annotations("cot")] == ["The answer is 5."]


def test_a_list_that_is_longer_than_the_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(["The answer is 42.", "The answer is 43."]))
    task = FileTask("mine", ExpressionForm(), tmp_path / "unused")
    assert task.form.lacks_answer("The answer is 42.", LUKE) is None
    with pytest.raises(MmedgeError, match="2 texts, but the task has 1 training questions"):
        list(RecordedTeacher((path,)).chains_of_thought([LUKE]))
