"""Recipes: a closed schema whose errors name the field and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mmedge.errors import MmedgeError, Notice
from mmedge.recipe import Recipe, load_recipe, recipe_values, validate
from mmedge.recipe.ablation import AblationSection
from tests.conftest import REPOSITORY, tiny_recipe, write_recipe

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_opens_with_its_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDGE_DATA", "anywhere")
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    asked = recipe.teacher is not None and recipe.teacher.kind in ("openai", "local")
    verb = "annotate" if asked else "distill"
    verb = "ablate" if path.stem.startswith("ablation-") else verb
    assert f"mmedge {verb} recipes/{path.name} --out runs/{path.stem}" in path.read_text(encoding="utf-8")


def test_settings_override_fields_and_make_sections(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    recipe = load_recipe(path, ["training.stage2.max_steps=7", "bench.verdicts=3", "training.stage1.learning_rate=1e-3"])
    assert recipe.training.stage2.max_steps == 7
    assert recipe.bench.verdicts == 3
    assert recipe.training.stage1.learning_rate == 1e-3


def test_the_resolved_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", tiny_recipe()))
    assert validate(yaml.safe_load(yaml.safe_dump(recipe_values(recipe))), "again") == recipe


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("trainin.x=1", "unknown field 'trainin'"),
        ("training.stage1.max_step=3", "did you mean 'max_steps'?"),
        ("task.kind=foo", "must be one of"),
        ("task.kind=arithmetic2", "did you mean 'arithmetic'?"),
        ("seed=abc", "field 'seed' must be a whole number, found 'abc'"),
        ("seed=", "field 'seed' must be a whole number, found nothing"),
        ("task.train=0", "field 'task.train' must be greater than 0, found 0"),
        ("method=3", "field 'method' must be a section, with lines of `field: value`, found 3"),
        ("method.rationales=perhaps", "field 'method.rationales' must be true or false, found 'perhaps'"),
        ("method.labels=humn", "'pseudo', 'majority' or 'human', found 'humn'\n  → did you mean 'human'?"),
        ("method.own_folds=1", "method.own_folds: one fold leaves nothing"),
        ("method.objectives={inline_verdict: {}}", "field 'method.objectives.inline_verdict.share' is missing\n  → Share of"),
        ("method.objectives={inline_verdict: {share: 1, wrong_wait: 1}}", "did you mean 'wrong_weight'?"),
        ("method.objectives={inline_verdicts: {share: 1}}", "did you mean 'inline_verdict'?"),
        ("teacher={kind: openai, model: 7}", "field 'teacher.model' must be text, found 7\n  → put it in quotes"),
        ("teacher={kind: recorded, cots: 3}", "field 'teacher.cots' must be text or a list, such as [a, b], found 3"),
        ("teacher={kind: recorded, cots: [a, '']}", "field 'teacher.cots.1' must not be empty"),
        ("teacher={kind: openai}", "field 'teacher.model' is missing\n  → Name of the model"),
        ("student.lora={rnk: 4}", "did you mean 'rank'?"),
        ("student.lora={targets: some}", "field 'student.lora.targets' must be 'all-linear' or a list"),
        ("student.date=today", "field 'student.date' must be a date such as 2025-01-31, found 'today'"),
        ("export.precisions=int8", "field 'export.precisions' must be a list, such as [a, b], found 'int8'"),
        ("export.precisions=[int9]", "did you mean 'int8'?"),
        ("ablation.epochs={cots: [1]}", "field 'ablation.epochs.cots' has too few items"),
        ("training.stage1.learning_rate=.nan", "must be a finite number"),
        ("task.trian=5", "did you mean 'train'?"),
        ("student.source=${HOME}/x", "unknown variable ${HOME}"),
        ("teacher.flawed_share=2", "field 'teacher.flawed_share' must be at most 1, found 2"),
        ("training.max_input_tokens=-1", "field 'training.max_input_tokens' must be greater than 0, found -1"),
        (
            "training.max_input_tokens=1000000000000",
            "field 'training.max_input_tokens' must be at most 1000000, found 100",
        ),
        ("generation.max_answer_tokens=0", "field 'generation.max_answer_tokens' must be greater than 0, found 0"),
        ("generation.max_rationale_tokens=9999999999", "'generation.max_rationale_tokens' must be at most 1000000, found"),
        ("training.threads=100000", "field 'training.threads' must be at most 1024, found 100000"),
        ("student.scratch={heads: 100000}", "field 'student.scratch.heads' must be at most 1024, found 100000"),
        ("student.scratch={d_model: 100000000}", "field 'student.scratch.d_model' must be at most 65536, found"),
        ("name=../x", "field 'name'"),
        ("noequals", "expected section.field=value"),
        ("name.x=3", "'name' is a value, not a section"),
    ],
)
def test_an_error_names_the_field_and_what_is_allowed(tmp_path: Path, override: str, complaint: str) -> None:
    path = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    with pytest.raises(MmedgeError) as caught:
        load_recipe(path, [override])
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert not any(word in str(caught.value) for word in ("Input", "Extra", "Field required", "Section", "function", "should"))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    for content, complaint in (
        ("a: [", "not valid YAML(.|\n)*same column"),
        ("- 1", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        with pytest.raises(MmedgeError, match=complaint):
            load_recipe(path)
    with pytest.raises(MmedgeError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(MmedgeError, match="is a folder"):
        load_recipe(tmp_path)


def test_yaml_tags_execute_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(MmedgeError, match="not valid YAML"):
        load_recipe(path)
    assert not (tmp_path / "made").exists()


def test_the_data_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDGE_DATA", str(tmp_path))
    recipe = load_recipe(REPOSITORY / "recipes" / "svamp-smollm2.yaml")
    assert recipe.task.data == f"{tmp_path}/svamp"  # type: ignore[union-attr]


def test_a_length_that_is_set_replaces_the_other_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDGE_DATA", "anywhere")
    path = tmp_path / "r.yaml"
    path.write_text((REPOSITORY / "recipes" / "svamp-t5-base.yaml").read_text())
    stage = load_recipe(path, ["training.stage1.max_steps=3"]).training.stage1
    assert (stage.max_steps, stage.epochs) == (3, None)
    path.write_text(path.read_text().replace("epochs: 50", "epochs: 50, max_steps: 3"))
    with pytest.raises(MmedgeError, match="exactly one of max_steps and epochs"):
        load_recipe(path)


def _without_description(schema: dict[str, Any]) -> list[str]:
    sections = {"Recipe": schema, **schema["$defs"]}
    return [
        f"{section}.{name}"
        for section, stated in sections.items()
        for name, field in stated.get("properties", {}).items()
        if not (field.get("description") or schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {}).get("description"))
    ]


def test_every_field_of_the_schema_says_what_it_is() -> None:
    assert _without_description(Recipe.model_json_schema()) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_editor_accepts_the_recipes(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(values, Recipe.model_json_schema())
    jsonschema.validate({name: value for name, value in values.items() if name != "name"}, Recipe.model_json_schema())


def test_an_editor_knows_the_entries_of_registries() -> None:
    schema = Recipe.model_json_schema()
    precisions = schema["$defs"]["ExportSection"]["properties"]["precisions"]["items"]["enum"]
    assert {"fp32", "int8", "bnb-nf4"} <= set(precisions)
    forms = schema["$defs"]["JsonlSection"]["properties"]["form"]["anyOf"]
    assert {"expression", "choice", "label", "exact"} <= set(forms[0]["enum"])


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ("poem", "unknown name 'poem'; known: expression, choice, label, exact"),
        ({"kind": "label"}, "task.form.labels' is missing"),
        ({"kind": "label", "labels": ["yes", False]}, "put the label in quotes"),
        ({"kind": "exact", "labels": ["x"]}, "unknown field 'task.form.labels'"),
        (3, "expected a name or a mapping"),
    ],
)
def test_a_wrong_form_is_named(form: object, complaint: str) -> None:
    task = {"kind": "jsonl", "train_file": "q.jsonl", "form": form}
    with pytest.raises(MmedgeError) as caught:
        validate(tiny_recipe(task=task, teacher=None, method={}), "r.yaml")
    assert complaint in str(caught.value) and "task.form" in str(caught.value)


def test_older_names_are_read_with_a_notice() -> None:
    task = {"kind": "jsonl", "train_file": "q.jsonl", "judge": "label", "labels": ["yes", "no"]}
    with pytest.warns(Notice, match=r"task\.judge is now called task\.form"):
        recipe = validate(tiny_recipe(task=task, teacher=None, method={}), "r.yaml")
    assert recipe_values(recipe)["task"]["form"] == {"kind": "label", "labels": ["yes", "no"], "spelling": "whole"}
    with pytest.warns(Notice, match="max_withheld"):
        recipe = validate(tiny_recipe(answering={"max_handed_on": 0.3}), "r.yaml")
    assert recipe.answering.max_withheld == 0.3


def test_a_comparison_may_have_rows_of_its_own_alone() -> None:
    more = {"filter_only": {"self_evaluation": False, "keep": "judged_correct"}}
    assert AblationSection.model_validate({"rows": [], "more": more}).rows == ()
    with pytest.raises(ValueError, match="rows: name at least one"):
        AblationSection.model_validate({"rows": []})
