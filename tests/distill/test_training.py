"""Training: a kill changes nothing, other settings are refused, and the loss is what the method says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmedge.distill.optimizers import build_optimizers, learning_rate_factor
from mmedge.distill.step import step_seed
from mmedge.storage import locked
from tests.commands import kill_when
from tests.conftest import is_one_line_error, mmedge, own_recipe, tiny_recipe, write_recipe


def _scores(run: Path) -> dict[str, object]:
    """Return everything in a run's metrics that does not depend on the clock."""
    metrics = json.loads((run / "metrics.json").read_text())
    for stage in metrics["stages"].values():
        del stage["seconds"]
    del metrics["machine"]
    return dict(metrics)


def _steps_logged(run: Path, stage: str) -> int:
    path = run / stage / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_stage_continues_and_ends_as_if_nothing_had_happened(tmp_path: Path, stage: str) -> None:
    values = tiny_recipe()
    training = dict(values["training"])  # type: ignore[call-overload]
    training |= {
        "checkpoint_minutes": 0,
        "stage1": {"max_steps": 24, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 12},
        "stage2": {"max_steps": 24, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 8},
    }
    recipe = write_recipe(tmp_path / "r.yaml", values | {"training": training})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = mmedge("distill", recipe, "--out", whole, "-q")
    assert done.code == 0, done.err
    command = ["distill", str(recipe), "--out", str(cut), "-q"]
    kill_when(command, lambda: (cut / stage / "checkpoint" / "state.json").is_file() and _steps_logged(cut, stage) >= 1)
    assert not (cut / stage / "done.json").exists()
    again = mmedge("distill", recipe, "--out", cut)
    assert again.code == 0, again.err
    assert f"{stage}: continuing from step" in again.err
    assert _scores(cut) == _scores(whole)
    weights = "student/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    lines = [json.loads(line)["step"] for line in (cut / stage / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)


def test_a_finished_run_is_kept_and_other_settings_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    recipe = tiny_run / "recipe.yaml"
    before = (tiny_run / "student" / "model.safetensors").stat().st_mtime_ns
    again = mmedge("distill", recipe, "--out", tiny_run)
    assert again.code == 0 and "already distilled, kept" in again.err
    assert (tiny_run / "student" / "model.safetensors").stat().st_mtime_ns == before
    other = mmedge("distill", recipe, "--out", tiny_run, "--set", "method.alpha=0.7")
    assert is_one_line_error(other)
    assert "method.alpha = 0.5, not 0.7" in other.err


def test_a_run_of_another_version_is_refused_before_anything_is_measured(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for path in (run / "metrics.json", run / "before.json", run / "stage2" / "done.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "key": "0" * 64}))
    measured = (run / "before.json").read_bytes()
    other = mmedge("distill", run / "recipe.yaml", "--out", run)
    assert is_one_line_error(other) and "another version of mmedge" in other.err and "--out" in other.err
    assert (run / "before.json").read_bytes() == measured


def test_changed_data_are_noticed(own_task: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    cots = tmp_path / "cots.jsonl"
    cots.write_bytes(own_task["cots"].read_bytes())
    recipe = write_recipe(tmp_path / "r.yaml", own_recipe({**own_task, "cots": cots}, tiny_llama))
    assert mmedge("annotate", recipe, "--out", tmp_path / "run", "-q").code == 0
    cots.write_text(cots.read_text().replace("The answer is", "So the answer is"))
    again = mmedge("annotate", recipe, "--out", tmp_path / "run", "-q")
    assert is_one_line_error(again) and "its files have changed" in again.err


def test_a_run_says_what_it_was(tiny_run: Path) -> None:
    explanation = json.loads((tiny_run / "run.json").read_text())
    assert explanation["machine"]["packages"]["torch"]
    assert explanation["annotations"]["cots"] == {"parsed": 320}
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for when in ("before", "after"):
        assert set(metrics[when]["answer"]) == {"validation", "new_combinations", "held_out_patterns"}
        assert len(metrics[when]["answer"]["validation"]["interval_95"]) == 2
        assert 0 <= metrics[when]["verdict"]["accuracy"]["value"] <= 1
    assert [entry["step"] for entry in metrics["stages"]["stage2"]["validations"]] == [4, 8, 12]


def test_no_self_evaluation_means_no_stage_1(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(method={"self_evaluation": False, "labels": "human"}))
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "stage1").exists()


def test_early_stop_ends_a_stage_that_no_longer_improves(tmp_path: Path) -> None:
    values = tiny_recipe(method={"self_evaluation": False}, split={"validation": 24, "verdict_test": 8})
    stage2 = {"max_steps": 60, "batch_size": 4, "learning_rate": 1e-9, "evaluate_every": 2, "patience": 3}
    values["training"] = dict(values["training"]) | {"stage2": stage2}  # type: ignore[call-overload]
    recipe = write_recipe(tmp_path / "r.yaml", values)
    assert mmedge("distill", recipe, "--out", tmp_path / "run", "-q").code == 0
    stage = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]["stage2"]
    assert stage["steps"] == 8 and stage["planned_steps"] == 60


def test_the_last_weights_can_be_kept_whatever_the_validations_say(tmp_path: Path) -> None:
    values = tiny_recipe(method={"self_evaluation": False}, split={"validation": 24, "verdict_test": 8})
    stage2 = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-9, "evaluate_every": 2}
    values["training"] = dict(values["training"]) | {"stage2": stage2}  # type: ignore[call-overload]
    recipe = write_recipe(tmp_path / "r.yaml", values)
    for keep, step in (("best", 2), ("last", 6)):  # nothing is learned: all score the same
        run = tmp_path / keep
        assert mmedge("distill", recipe, "--out", run, "-q", "--set", f"training.keep={keep}").code == 0
        assert json.loads((run / "metrics.json").read_text())["stages"]["stage2"]["best"]["step"] == step


def test_two_processes_do_not_work_on_one_run(tiny_run: Path) -> None:
    with locked(tiny_run):
        found = mmedge("distill", tiny_run / "recipe.yaml", "--out", tiny_run)
    assert is_one_line_error(found) and "another process is using" in found.err


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_remove(tiny_run: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "student")
    weights = run / "stage2" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    found = mmedge("distill", run / "recipe.yaml", "--out", run)
    assert is_one_line_error(found) and "remove that folder" in found.err


def test_the_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 10, 4) for step in range(11)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors == [*factors[:5], *sorted(factors[5:], reverse=True)]
    assert factors[10] == 0


def test_each_step_has_its_own_seed() -> None:
    seeds = {step_seed(seed, stage, step) for seed in (0, 1) for stage in ("stage1", "stage2") for step in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)


def test_position_biases_learn_at_a_rate_of_their_own_and_every_parameter_once() -> None:
    from mmedge.recipe import ScratchSection, TrainingSection
    from mmedge.students.scratch import build_scratch
    from tests.conftest import TINY_SCRATCH

    student = build_scratch(ScratchSection(**TINY_SCRATCH), ["some text"], 64, 0)
    stage = {"max_steps": 1}
    for optimizer in ("adamw", "muon"):
        training = TrainingSection(stage1=stage, stage2=stage, optimizer=optimizer, position_rate=20)
        groups = [group for found in build_optimizers(student.model, 1e-3, training) for group in found.param_groups]
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in student.model.parameters())
        faster = [group for group in groups if group.get("rate", 1.0) == 20]
        assert [tuple(parameter.shape) for group in faster for parameter in group["params"]] == [(32, 4), (32, 4)]


def test_a_checkpoint_can_be_selected_by_answers_and_verdicts(tmp_path: Path) -> None:
    values = tiny_recipe()
    values["training"] = dict(values["training"]) | {"select_by": "answers_and_verdicts"}  # type: ignore[call-overload]
    recipe = write_recipe(tmp_path / "r.yaml", values)
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err
    stage = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]["stage2"]
    for entry in stage["validations"]:
        verdict = entry["verdict"]["balanced_accuracy"]
        verdict = entry["verdict"]["accuracy"]["value"] if verdict is None else verdict
        assert entry["score"] == pytest.approx((entry["answer"]["value"] + verdict) / 2)
    assert stage["best"]["score"] == max(entry["score"] for entry in stage["validations"])


def test_nothing_to_contrast_is_one_line(tmp_path: Path) -> None:
    values = tiny_recipe(method={"contrast_verdicts": True})
    values["teacher"] = {"kind": "embedded", "cots_per_question": 1}
    found = mmedge("distill", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run", "-q")
    assert is_one_line_error(found) and "no question has chains of thought that were judged differently" in found.err
