"""What a folder is, what lies in it, and who may work on a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmedge.errors import MmedgeError
from mmedge.folders import (
    Kind,
    Run,
    bundles_in,
    kind_of,
    load_run_recipe,
    peer_engine,
    shipped_recipe,
    student_in,
    variants_in,
    work_on,
)
from mmedge.recipe import load_recipe, validate
from tests.conftest import tiny_recipe


def _made(folder: Path, *names: str) -> Path:
    """Make empty files, with the folders they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["recipe.yaml"], Kind.RUN),
        (["student/mmedge.json", "evaluation.jsonl"], Kind.RUN),
        (["recipe.yaml", "ablation/rows/x/result.json"], Kind.COMPARISON),
        (["mmedge.json", "config.json"], Kind.STUDENT),
        (["manifest.json", "model.onnx"], Kind.BUNDLE),
        (["genai_config.json", "model.onnx"], Kind.PEER),
        (["config.json", "model.safetensors"], Kind.OTHER),
        ([], Kind.OTHER),
    ],
)
def test_a_folder_says_what_it_is(tmp_path: Path, files: list[str], kind: Kind) -> None:
    assert kind_of(_made(tmp_path, *files)) is kind


def test_files_and_missing_paths_have_a_kind_too(tmp_path: Path) -> None:
    _made(tmp_path, "model.gguf", "x.yaml")
    assert kind_of(tmp_path / "model.gguf") is Kind.PEER and peer_engine(tmp_path / "model.gguf") == "llama.cpp"
    assert kind_of(tmp_path / "x.yaml") is Kind.OTHER
    assert kind_of(tmp_path / "none") is Kind.MISSING


def test_a_quantized_student_is_told_from_a_student(tmp_path: Path) -> None:
    (tmp_path / "mmedge.json").write_text(json.dumps({"rounded": {"precision": "bnb-nf4"}}))
    assert kind_of(tmp_path) is Kind.QUANTIZED_STUDENT
    (tmp_path / "mmedge.json").write_text("damaged")
    assert kind_of(tmp_path) is Kind.STUDENT


def test_a_run_lists_everything_that_answers_finest_first(tmp_path: Path) -> None:
    bundles = [f"bundle-{precision}" for precision in ("toy", "int4", "fp16", "int8", "fp32")]
    names = [f"{name}/manifest.json" for name in bundles]
    run = Run(_made(tmp_path, "recipe.yaml", "student/mmedge.json", "student-bnb-nf4/mmedge.json", *names, "stage3/state.json"))
    (tmp_path / "bundle-half-made").mkdir()
    assert [path.name for path in run.stages] == ["stage3"]
    students = ["student", "student-bnb-nf4"]
    finest_first = ["bundle-fp32", "bundle-fp16", "bundle-int8", "bundle-int4", "bundle-toy"]
    assert [path.name for path in variants_in(tmp_path)] == students + finest_first
    assert [path.name for path in bundles_in(tmp_path)] == finest_first
    assert student_in(tmp_path) == student_in(tmp_path / "student") == tmp_path / "student"
    assert variants_in(tmp_path / "bundle-toy") == bundles_in(tmp_path / "bundle-toy") == (tmp_path / "bundle-toy",)


def test_a_place_that_is_something_else_is_refused_with_what_it_is(tmp_path: Path) -> None:
    _made(tmp_path, "run/recipe.yaml", "student/mmedge.json", "bundle/manifest.json", "genai/genai_config.json", "empty/x")
    for place, find, complaint in (
        ("run", variants_in, "no student and no bundle yet"),
        ("run", student_in, "no student yet"),
        ("run", bundles_in, "no bundle yet"),
        ("student", bundles_in, "is a student, not a run or a bundle\n  → export it"),
        ("bundle", student_in, "is a bundle, not a run or a student"),
        ("genai", variants_in, "export for genai, not a run, a student or a bundle\n  → name it as genai:"),
        ("empty", variants_in, "is not a run, a student or a bundle"),
        ("none", student_in, "no such folder"),
    ):
        with pytest.raises(MmedgeError, match=complaint):
            find(tmp_path / place)


def test_the_quickstart_recipe_comes_with_mmedge() -> None:
    assert load_recipe(shipped_recipe("quickstart")).name == "quickstart"
    with pytest.raises(MmedgeError, match="is not installed"):
        shipped_recipe("none")


def test_collectors_share_a_run_and_training_excludes_them(tmp_path: Path) -> None:
    recipe, folder = validate(tiny_recipe(), "here"), tmp_path / "run"
    refused = pytest.raises(MmedgeError, match="another process is using")
    with work_on(folder, recipe, shared=True), work_on(folder, recipe, shared=True), refused, work_on(folder, recipe):
        pass
    for shared in (True, False):
        refused = pytest.raises(MmedgeError, match="another process is using")
        with work_on(folder, recipe), refused, work_on(folder, recipe, shared=shared):
            pass


def test_a_killed_process_leaves_its_run_free(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mmedge.storage import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    recipe = validate(tiny_recipe(), "here")
    with pytest.raises(MmedgeError, match="another process is using"), work_on(tmp_path, recipe, shared=True):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with work_on(tmp_path, recipe):
        pass


def test_a_begun_run_keeps_its_recipe(tmp_path: Path) -> None:
    with work_on(tmp_path, validate(tiny_recipe(), "here")) as run:
        (run.folder / "stage1").mkdir()
    with (
        pytest.raises(MmedgeError, match="was made with seed = 0, not 1"),
        work_on(tmp_path, validate(tiny_recipe(seed=1), "here")),
    ):
        pass


def test_a_run_of_another_version_says_so_where_its_recipe_is_no_longer_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recipe.write_text(yaml.safe_dump(tiny_recipe(of_old="x")))
    run.explanation.write_text(json.dumps({"machine": {"mmedge": "0.0.1"}}))
    with pytest.raises(MmedgeError, match=r"unknown field 'of_old'\n(.|\n)*made by mmedge 0\.0\.1"):
        load_run_recipe(run)


def test_an_older_run_is_read_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    task = {"kind": "jsonl", "train_file": "questions.jsonl", "judge": "choice"}
    values = tiny_recipe(task=task, teacher={"kind": "recorded", "cots": "cots.jsonl"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    task_read = load_run_recipe(Run(tmp_path)).task
    assert task_read.kind == "jsonl" and task_read.form.kind == "choice"
    assert not recwarn.list
