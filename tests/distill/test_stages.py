"""Stages: what they depend on, how their lessons are shared, and a training on labels alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmedge import Student
from mmedge.distill.stages import STAGES, lessons_per_step, parts_of
from mmedge.errors import MmedgeError
from mmedge.recipe import MethodSection, Recipe, load_recipe, validate
from tests.conftest import REPOSITORY, TINY_SCRATCH, is_one_line_error, mmedge, tiny_recipe


def test_every_field_of_the_method_is_read_by_one_stage() -> None:
    read = [path.removeprefix("method.") for stage in STAGES for path in stage.reads if path.startswith("method.")]
    assert sorted([*read, "objectives"]) == sorted(MethodSection.model_fields)


def test_objectives_that_a_recipe_adds_take_their_share() -> None:
    added = {"self_evaluation": {"share": 0.25, "stage": "stage2"}}
    method = MethodSection.model_validate({"rehearsal": 0.25, "objectives": added})
    parts = parts_of(STAGES[1], method)
    assert [(part.objective, part.share, part.weight) for part in parts] == [
        ("reasoning", 0.5, 0.5),
        ("self_evaluation", 0.25, 0.25),
        ("self_evaluation", 0.25, 0.25),
    ]
    assert lessons_per_step(parts, 16) == [16, 8, 8]
    assert [part.prefix for part in parts] == ["", "evaluation_", "self_evaluation_"]
    alone = MethodSection.model_validate({"objectives": {"self_evaluation": {"share": 1.0, "stage": "stage2"}}})
    assert [part.objective for part in parts_of(STAGES[1], alone)] == ["self_evaluation"]
    assert lessons_per_step(parts_of(STAGES[1], alone), 16) == [16]


@pytest.mark.parametrize(
    ("objectives", "complaint"),
    [
        ({"nothing": {"share": 0.5}}, "unknown objective 'nothing'; known: reasoning"),
        ({"self_evaluation": {}}, "field 'method.objectives.self_evaluation.share' is missing"),
        ({"self_evaluation": {"share": 0.5, "sharee": 1}}, "self_evaluation.sharee"),
        ({"reasoning": {"share": 0.5, "stage": "stage1"}}, "must be stage2 or stage3, found 'stage1'"),
        ({"self_evaluation": {"share": 0.9, "stage": "stage2"}}, "their shares of stage2 add up to more than 1"),
        ({"self_evaluation": {"share": 0.5, "weight": 0.9, "stage": "stage2"}}, "leave nothing for reasoning"),
        ({"self_evaluation": {"share": 0.5, "stage": "stage3"}}, "requires training.stage3"),
    ],
)
def test_objectives_that_make_no_sense_are_one_line(objectives: dict[str, object], complaint: str) -> None:
    values = tiny_recipe(method={"rehearsal": 0.25, "objectives": objectives})
    with pytest.raises(MmedgeError) as caught:
        validate(values, "r.yaml")
    assert complaint in str(caught.value) and "\n" not in caught.value.what


def test_recipes_are_validated_without_torch() -> None:
    code = (
        "import sys; from mmedge.recipe import MethodSection; "
        "MethodSection.model_validate({'objectives': {'self_evaluation': {'share': 0.5}}}); "
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _questions(folder: Path, count: int, *, labelled: bool = True) -> Path:
    path = folder / "questions.jsonl"
    records = [{"question": f"What is {n} and {n + 1}?"} | ({"label": f"{n} + {n + 1}"} if labelled else {}) for n in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _labels_only(folder: Path, count: int) -> Path:
    path = folder / "Sums of two.yaml"
    task = {"kind": "jsonl", "train_file": str(_questions(folder, count)), "judge": "expression"}
    path.write_text(yaml.safe_dump({"task": task, "student": {"source": "scratch", "scratch": TINY_SCRATCH}}))
    return path


def test_task_and_student_alone_are_a_recipe_that_learns_from_labels(tmp_path: Path) -> None:
    recipe, run = _labels_only(tmp_path, 40), tmp_path / "run"
    loaded = load_recipe(recipe)
    assert loaded.name == "sums-of-two" and loaded.teacher is None
    method = loaded.method
    assert (method.labels, method.rationales, method.self_evaluation) == ("human", False, False)
    done = mmedge("distill", recipe, "--out", run, "--set", "generation.max_answer_tokens=8")
    assert done.code == 0, done.err
    assert "32 training questions, 8 for validation" in done.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["stage2"] and metrics["stages"]["stage2"]["steps"] == 6  # three visits of 32 in 16
    assert done.err.count("stage2 step") == 3  # not one line a step
    assert not (run / "annotations.sqlite").exists()
    again = mmedge("distill", run / "recipe.yaml", "--out", run)
    assert again.code == 0 and "already distilled" in again.err
    exported = mmedge("export", run, "--fp32")
    assert exported.code == 0, exported.err
    assert exported.out.count("answers match") == 1 and "answers match" not in exported.err  # the result is said once
    for option, complaint in (("--explain", "learned answers alone"), ("--evaluate", "did not learn to judge")):
        refused = mmedge("run", run / "bundle-fp32", "What is 1 and 2?", option)
        assert is_one_line_error(refused) and f"error: {option}: this student {complaint}" in refused.err
    with pytest.raises(MmedgeError, match="explain: this student learned answers alone"):
        Student.load(run / "bundle-fp32").answer("What is 1 and 2?", explain=True)
    for command in ("annotate", "ablate"):
        refused = mmedge(command, recipe, "--out", tmp_path / command, "-q")
        assert is_one_line_error(refused) and "has no teacher" in refused.err


def test_what_needs_a_teacher_says_so(tmp_path: Path) -> None:
    recipe = _labels_only(tmp_path, 40)
    for name, value in (("labels", "pseudo"), ("rationales", "true"), ("self_evaluation", "true")):
        with pytest.raises(MmedgeError, match=f"method.{name}: .* needs a teacher"):
            load_recipe(recipe, [f"method.{name}={value}"])


def test_defaults_with_a_teacher_are_the_papers() -> None:
    values = {name: value for name, value in tiny_recipe().items() if name not in ("method", "training", "split")}
    recipe: Recipe = validate(values, "r.yaml")
    assert recipe.method == MethodSection()
    assert (recipe.training.stage1.epochs, recipe.training.stage2.epochs, recipe.training.stage3) == (1, 3, None)
