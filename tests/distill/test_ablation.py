"""The comparison of methods: every row there, shared work done once, equal budgets, killed and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.distill.ablation_forecast import detectable
from mmedge.distill.ablation_plan import method_of, plan, seeded
from mmedge.distill.ablation_summary import TrainingResult
from mmedge.distill.material import Material
from mmedge.errors import MmedgeError
from mmedge.recipe import ROWS, DataFolderSection, Recipe, validate
from mmedge.tasks import Splits
from tests.commands import kill_when
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe

COMPARED: dict[str, object] = {
    "seeds": [0],
    "more": {"paper_schedule": {"rehearsal": 0.0}},
    "own_questions": 5,
    "oracle_samples": 2,
}


def _recipe(**ablation: object) -> dict[str, object]:
    section = {"seeds": [0, 1], "labels": ["pseudo", "human"], "rows": list(ROWS), **ablation}
    return tiny_recipe(ablation=section)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A comparison that was killed in its middle and run again."""
    folder = tmp_path_factory.mktemp("ablation")
    recipe = write_recipe(folder / "r.yaml", _recipe(**COMPARED))
    run = folder / "run"
    kill_when(["ablate", recipe, "--out", run, "-q"], lambda: len(list(run.glob("ablation/rows/*/result.json"))) >= 3, 300)
    finished = {path: path.stat().st_mtime_ns for path in run.glob("ablation/rows/*/result.json")}
    again = mmedge("ablate", recipe, "--out", run, "--json")
    assert again.code == 0, again.err
    assert f"{len(finished)} of 13 trainings were already done and are kept" in again.err
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    return run, json.loads(again.out)


def test_every_row_is_there_and_compared_with_the_one_above(compared: tuple[Path, dict[str, Any]]) -> None:
    run, found = compared
    pseudo = [*ROWS, "paper_schedule"]
    assert [row["row"] for row in found["rows"]] == [*pseudo, *(row for row in pseudo if row != "all_labels")]
    assert found["trainings"] == {"done": 13, "planned": 13}
    for row in found["rows"]:
        for test in row["tests"].values():
            low, high = test["interval_95"]
            assert 0 <= low <= test["value"] <= high <= 1
            assert ("difference" in test) == (row["row"] != "standard")
        evaluates = "self_evaluation" in row["row"] or row["row"] == "paper_schedule"
        assert (row["verdicts"] is not None) == evaluates == (row["after_stage1"] is not None)
    against = [row["tests"]["new_combinations"].get("difference", {}).get("against") for row in found["rows"][:7]]
    titles = [row["title"] for row in found["rows"][:6]]
    assert against == [None, *titles]
    assert json.loads((run / "ablation.json").read_text()) == found


def test_the_oracle_is_told_of_every_row(compared: tuple[Path, dict[str, Any]]) -> None:
    run, found = compared
    for path in run.glob("ablation/rows/*/result.json"):
        oracle = json.loads(path.read_text())["oracle"]
        assert {name: len(right) for name, right in oracle.items()} == {"new_combinations": 5, "held_out_patterns": 5}
    for row in found["rows"]:
        for test in row["tests"].values():
            assert 0 <= test["oracle"]["value"] <= 1 and "gain" in test["oracle"]
    assert "The most that choosing among samples could reach" in (run / "ablation.html").read_text()


def test_a_finished_comparison_has_nothing_left_to_pay(compared: tuple[Path, dict[str, Any]]) -> None:
    run, found = compared
    plan = json.loads(mmedge("ablate", run / "recipe.yaml", "--out", run, "--plan", "--json").out)
    assert plan["seconds_left"] == 0 and {row["done"] for row in plan["rows"]} == {1}
    lessons = {(row["title"], row["labels"]): row["lessons"] for row in found["rows"]}
    assert {(row["title"], row["labels"]): row["lessons"] for row in plan["rows"]} == lessons
    tokens = {(row["title"], row["labels"]): row["tokens"] for row in found["rows"]}
    for row in plan["rows"]:
        assert row["tokens"] == pytest.approx(tokens[row["title"], row["labels"]], rel=0.15)
    assert "assumed" in plan["spread"] and plan["detectable"].keys() == found["test_questions"].keys()


def test_the_smallest_difference_that_is_found_shrinks_with_seeds_and_questions() -> None:
    rng = np.random.default_rng(0)

    def trained(row: str, seed: int, share: float) -> TrainingResult:
        right = (rng.random(2000) < share).astype(int).tolist()
        return TrainingResult(
            row=row,
            labels="pseudo",
            seed=seed,
            method={},
            stages={},
            lessons=1,
            after_stage1=None,
            tests={"t": right},
            verdicts=None,
        )

    few, why = detectable([], {"t": 100}, 4)
    many, _ = detectable([], {"t": 10_000}, 16)
    assert "assumed" in why and few["t"] > 2 * many["t"]
    # two rows that are right on 60 % each, independently: the difference of a seed has a standard deviation of 1.55 points
    found = [trained(row, seed, 0.6) for seed in range(40) for row in ("a", "b")]
    seen, why = detectable(found, {"t": 2000}, 10)
    assert "finished trainings" in why and seen["t"] == pytest.approx(2.8 * (2 * 0.24 / 2000) ** 0.5 / 10**0.5, rel=0.3)


def test_all_rows_take_as_many_lessons_and_shared_stages_are_trained_once(compared: tuple[Path, dict[str, Any]]) -> None:
    run, found = compared
    lessons = [row["lessons"] for row in found["rows"]]
    assert max(lessons) - min(lessons) <= 8 + 3  # a step of stage 2
    assert len(list((run / "ablation" / "stage1").iterdir())) == 2  # with one CoT and with all; shared by labels and schedules
    assert not list(run.glob("ablation/rows/*/stage2/best"))


def test_the_page_and_the_table_say_what_the_json_says(compared: tuple[Path, dict[str, Any]]) -> None:
    run, found = compared
    page, text = (run / "ablation.html").read_text(), (run / "ablation.md").read_text()
    assert "the last one of each stage is taken" in text
    assert "Seed 0;" in text and "with one seed they do not say how much another training would differ" in text
    for decision in found["decisions"]:
        assert decision["use"] in decision["equal"] and decision["best"] in decision["equal"]
        assert f"Use {decision['use']} with {decision['labels']} labels" in text
    assert len(found["decisions"]) == 2 and page.index('class="lead"') < page.index("<svg") < page.index("How it was measured")
    assert page.count("<svg") >= 4 and (run / "ablation.svg").read_text().startswith("<svg")
    for row in found["rows"]:
        low, high = row["tests"]["new_combinations"]["interval_95"]
        shown = f"{100 * row['tests']['new_combinations']['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        assert shown in page and shown in text and row["title"] in text


def test_further_seeds_continue_and_students_can_be_kept(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = compared
    settings = ["--set", "ablation.rows=[standard]", "--set", "ablation.labels=[human]", "--set", "ablation.more={}"]
    settings += ["--set", "ablation.seeds=[0, 1]", "--set", "ablation.keep_students=true"]
    again = mmedge("ablate", run / "recipe.yaml", "--out", run, "--json", *settings)
    assert again.code == 0, again.err
    assert "1 of 2 trainings were already done and are kept" in again.err
    (row,) = json.loads(again.out)["rows"]
    assert row["seeds"] == [0, 1] and set(row["tests"]["new_combinations"]["by_seed"]) == {"0", "1"}
    (student,) = run.glob("ablation/rows/human-standard-seed1-*/student")
    assert mmedge("inspect", student).code == 0
    exported = mmedge("export", student, "--int8", "-q")
    assert exported.code == 0, exported.err


def _parsed(**changes: object) -> Recipe:
    return validate(tiny_recipe(**changes), "test")


def test_rows_are_the_papers_methods() -> None:
    recipe = _parsed(method={"keep": "judged_correct", "contrast_verdicts": True, "rehearsal": 0.25, "cots_per_visit": 1})
    standard, one, one_evaluates, labels, many, many_evaluates = (method_of(recipe, row, "pseudo") for row in ROWS)
    assert not labels.rationales and labels.max_cots is None and not labels.self_evaluation
    assert not standard.rationales and standard.max_cots == 1 and not standard.self_evaluation
    assert method_of(recipe, "standard", "human").max_cots is None
    assert one.max_cots == 1 and one_evaluates.max_cots == 1 and many.max_cots is None
    assert [method.self_evaluation for method in (one, one_evaluates, many, many_evaluates)] == [False, True, False, True]
    assert all(method.keep == "all" for method in (standard, one, one_evaluates, many, many_evaluates))
    assert many_evaluates.contrast_verdicts and one_evaluates.balance_verdicts and not one_evaluates.contrast_verdicts


@pytest.mark.parametrize(
    ("ablation", "word"),
    [
        ({"more": {"mine": {"rehersal": 0.3}}}, "rehersal"),
        ({"more": {"cots": {"rehearsal": 0.3}}}, "is one of the built-in rows"),
        ({"more": {"mine": {"schedule": "joint", "rehearsal": 0}}}, "rehearsal"),
        ({"equal": "none", "epochs": {"nothing": [1, 2]}}, "unknown row 'nothing'"),
        ({"epochs": {"cots": [1, 2]}}, "requires ablation.equal: none"),
        ({"more": {"mine": {"self_evaluation": False, "rehearsal": 0.3}}}, "rehearsal requires self_evaluation"),
        ({"more": {"mine": {"rehearsal": 0, "evaluation_weight": 0.3}}}, "evaluation_weight requires rehearsal"),
        ({"rows": ["everything"]}, "rows"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "ablation.seeds: a value is listed twice"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_one_line(ablation: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(MmedgeError) as caught:
        _parsed(ablation=ablation)
    assert word in str(caught.value) and "\n" not in caught.value.what


def test_budgets_in_epochs_are_the_rows_own(tmp_path: Path) -> None:
    epochs = {"standard": [0, 2], "cots_self_evaluation": [0.5, 1]}
    values = _recipe(seeds=[0], labels=["human"], rows=["standard", "cots_self_evaluation"], equal="none", epochs=epochs)
    recipe = write_recipe(tmp_path / "r.yaml", values)
    done = mmedge("ablate", recipe, "--out", tmp_path / "run", "--json", "-q")
    assert done.code == 0, done.err
    standard, whole = json.loads(done.out)["rows"]
    per_epoch = -(-(160 - 28) // 8)
    assert standard["steps"] == {"stage2": 2 * per_epoch}
    assert whole["steps"] == {"stage1": round(0.5 * (132 * 2 / 8)), "stage2": per_epoch}


def test_a_row_that_cannot_be_trained_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    rows = {"seeds": [0], "labels": ["human"], "rows": ["standard", "cots_self_evaluation"]}
    flawless = {"kind": "embedded", "cots_per_question": 2, "flawed_share": 0.0, "wrong_evaluation_share": 0.0}
    for changes, row, complaint in (
        ({"equal": "none", "epochs": {"cots_self_evaluation": [0, 1]}}, "cots_self_evaluation", "0 epochs"),
        ({"more": {"contrast": {"contrast_verdicts": True}}}, "contrast", "judged differently"),
    ):
        recipe = write_recipe(tmp_path / "r.yaml", _recipe(**rows, **changes) | {"teacher": flawless})
        found = mmedge("ablate", recipe, "--out", tmp_path / row)
        assert is_one_line_error(found), found.err
        assert f"row {row} of the comparison, human labels: " in found.err and complaint in found.err
        assert not list((tmp_path / row).glob("ablation/*"))


def test_human_labels_that_are_not_there_are_one_line(own_task: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    from tests.conftest import own_recipe

    values = own_recipe(own_task, tiny_llama)
    values["ablation"] = {"seeds": [0], "labels": ["human"], "rows": ["standard"]}
    lines = [json.loads(line) for line in own_task["train"].read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "label"}) + "\n" for line in lines))
    values["task"] = dict(values["task"]) | {"train_file": str(bare)}  # type: ignore[call-overload]
    done = mmedge("ablate", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run", "-q")
    assert is_one_line_error(done) and "row standard" in done.err and "no human labels" in done.err


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for section, complaint in (
        ({"seeds": [99999999999999999999]}, "seeds"),
        ({"more": {"x": {"own_cots": 2}}}, "training.stage3"),
        ({"more": {"x": {"labels": "majority"}}}, "ablation.labels"),
    ):
        found = mmedge("ablate", write_recipe(tmp_path / "r.yaml", _recipe(**section)), "--out", tmp_path / "run")
        assert is_one_line_error(found) and complaint in found.err, found.err
    assert not list((tmp_path / "run").glob("ablation/rows/*"))


def test_another_comparison_and_a_damaged_result_are_told(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared[0], run)
    same = _recipe(**COMPARED)
    other = write_recipe(tmp_path / "other.yaml", {**same, "method": {"alpha": 0.2}})
    table = (run / "ablation.md").read_text()
    for command in ("ablate", "distill"):
        found = mmedge(command, other, "--out", run)
        assert is_one_line_error(found) and "another --out" in found.err, found.err
    assert (run / "ablation.md").read_text() == table and "alpha: 0.2" not in (run / "recipe.yaml").read_text()
    recipe = write_recipe(tmp_path / "r.yaml", same)
    kept = mmedge("ablate", recipe, "--out", run, "--set", "ablation.keep_students=true")
    assert kept.code == 0 and "before keep_students was set" in kept.err
    result = sorted(run.glob("ablation/rows/*/result.json"))[0]
    for text in ("{}", "[]", '{"row": ', ""):
        result.write_text(text)
        found = mmedge("ablate", recipe, "--out", run)
        assert is_one_line_error(found) and f"remove the folder {result.parent}" in found.err, found.err
    result.unlink()  # without it, what is left of that training is not enough: it is done again, and comes out the same
    again = mmedge("ablate", recipe, "--out", run, "--json")
    assert again.code == 0, again.err
    tests = [[row["tests"] for row in found["rows"]] for found in (json.loads(again.out), compared[1])]
    assert tests[0] == tests[1]


def test_rows_of_the_paper_are_the_papers_whatever_the_recipe_adds() -> None:
    recipe = validate(_recipe(), "r")
    recipe = recipe.model_copy(update={"method": recipe.method.model_copy(update={"own_cots": 2, "rationales": False})})
    for row in ROWS:
        method = method_of(recipe, row, "pseudo")
        assert method.own_cots == 0 and method.rationales == (row not in ("standard", "all_labels"))


def test_every_training_ends_with_its_last_weights_and_has_questions_of_its_own() -> None:
    recipe = validate(_recipe(seeds=[0, 1], labels=["pseudo"]), "r")
    material = Material(None, Splits(()), [], [], [], None, "")  # type: ignore[arg-type]
    units = plan(recipe, material)
    assert {unit.recipe.training.keep for unit in units} == {"last"}
    drawn = {unit.seed: (unit.recipe.split.seed, unit.recipe.task.seed, unit.recipe.teacher.seed) for unit in units}  # type: ignore[union-attr]
    assert drawn[0] == (0, 0, 0) and all(one != other for one, other in zip(*drawn.values(), strict=True))
    svamp = recipe.model_copy(update={"task": DataFolderSection(kind="svamp", data="x"), "teacher": None})
    assert seeded(svamp, 1).task == svamp.task and seeded(svamp, 1).split.seed == 1


def test_trainings_of_several_seeds_are_summed_up_over_different_questions(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", _recipe(seeds=[0, 1], labels=["pseudo"], rows=["cots_self_evaluation"]))
    run = tmp_path / "run"
    done = mmedge("ablate", recipe, "--out", run, "--json", "-q")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["seeds"] == [0, 1] and row["verdicts"] is not None
    assert (run / "annotations.sqlite").is_file() and (run / "ablation" / "questions" / "seed1" / "annotations.sqlite").is_file()
    results = [json.loads(path.read_text()) for path in sorted(run.glob("ablation/rows/*/result.json"))]
    assert results[0]["verdicts"]["correct"] != results[1]["verdicts"]["correct"]  # other flaws of other chains of thought
    again = mmedge("ablate", recipe, "--out", run)
    assert again.code == 0 and "2 of 2 trainings were already done" in again.err
