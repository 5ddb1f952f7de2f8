"""A package outside mmedge adds an entry to each registry, and the chain runs with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Finished, engine_of_int8, is_one_line_error, tiny_recipe, write_recipe

PLUGIN = REPOSITORY / "tests" / "plugin"
THINGS = ("apples", "pears", "plums", "nuts")


def mmedge(*arguments: object) -> Finished:
    """Run the command line where the package is installed."""
    path = os.pathsep.join([str(PLUGIN), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-m", "mmedge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _write_task(folder: Path) -> None:
    """Write questions whose answers are small records, and what a teacher says about them, some of it wrong."""
    questions, cots, evaluations = [], [], []
    for number in range(48):
        count, thing = 2 + number % 7, THINGS[number % 4]
        label = json.dumps({"count": count, "thing": thing})
        questions.append({"id": f"q{number}", "question": f"Ann buys {count} {thing} (order {number}).", "label": label})
        for sample, said in enumerate((count, count + 1)):
            text = f"She buys {said} {thing}. The answer is:\n" + json.dumps({"thing": thing, "count": said}, indent=2)
            cots.append({"id": f"q{number}", "sample": sample, "teacher": "t", "text": text})
            verdict = "correct" if said == count else "wrong"
            evaluations.append({"id": f"q{number}", "sample": sample, "evaluation": "It counts what is said.", "verdict": verdict})
    _lines(folder / "train.jsonl", questions)
    _lines(folder / "test.jsonl", [{**one, "id": f"test-{one['id']}"} for one in questions[:6]])
    _lines(folder / "cots.jsonl", cots)
    _lines(folder / "evaluations.jsonl", evaluations)
    (folder / "keys.json").write_text(json.dumps(["count", "thing"]))


def _write_student(folder: Path, tiny_llama: Path) -> None:
    """Write a small random student of the package's architecture."""
    code = (
        "import sys, torch, transformers; sys.path.insert(0, sys.argv[1]); from toy_mmedge import scaled\n"
        "source = transformers.AutoConfig.from_pretrained(sys.argv[2]).to_dict()\n"
        "source = {k: v for k, v in source.items() if k not in ('model_type', 'architectures', 'tie_word_embeddings')}\n"
        "torch.manual_seed(0)\n"
        "scaled.ToyScaledForCausalLM(scaled.ToyScaledConfig(**source, tie_word_embeddings=False)).save_pretrained(sys.argv[3])\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[2]).save_pretrained(sys.argv[3])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(PLUGIN), str(tiny_llama), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run whose task, student, precision and method are the package's."""
    folder = tmp_path_factory.mktemp("plugin")
    _write_task(folder)
    _write_student(folder / "llama", tiny_llama)
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test", "cots", "evaluations")}
    values = tiny_recipe(
        name="plugin",
        task={
            "kind": "jsonl",
            "train_file": files["train"],
            "test_files": {"test": files["test"]},
            "form": {"kind": "record", "keys": str(folder / "keys.json")},
        },
        teacher={"kind": "recorded", "cots": files["cots"], "evaluations": files["evaluations"]},
        student={"source": str(folder / "llama")},
        method={"rehearsal": 0.25, "objectives": {"pairs": {"share": 0.5, "beta": 0.2}}},
        split={"validation": 8, "verdict_test": 6},
        generation={"max_answer_tokens": 30, "max_rationale_tokens": 20},
        export={"precisions": ["fp32", "int8-b64"], "max_accuracy_drop": 100},
    )
    stage = {"max_steps": 6, "batch_size": 4, "learning_rate": 2e-3, "evaluate_every": 6}
    values["training"] = {"stage1": stage, "stage2": stage, "stage3": stage, "max_input_tokens": 160, "max_target_tokens": 96}
    recipe = write_recipe(folder / "recipe.yaml", values)
    for command in (["distill", recipe, "--out", folder / "run", "-q"], ["export", folder / "run", "-q"]):
        done = mmedge(*command)
        assert done.code == 0, done.err
    return folder / "run"


def test_the_chain_runs_with_all_of_them(run: Path) -> None:
    stages = [json.loads(line) for line in (run / "stage3" / "metrics.jsonl").read_text().splitlines()]
    assert any("pairs_preferred" in line for line in stages)
    manifest = json.loads((run / "bundle-int8-b64" / "manifest.json").read_text())
    assert manifest["task"]["form"] == "record" and manifest["task"]["files"] == ["keys.json"]
    assert json.loads((run / "bundle-int8-b64" / "keys.json").read_text()) == ["count", "thing"]
    assert "int8" in manifest["quantization"]["layers"]["layers.0.attention.qkv"]
    assert manifest["verification"]["top1_agreement"] >= 0.9
    fp32 = json.loads((run / "bundle-fp32" / "manifest.json").read_text())
    assert fp32["verification"]["same_answers"] == fp32["verification"]["questions"]  # the graph is the model that torch computes


def test_bench_measures_the_engine_whose_rows_join_and_leave(run: Path, tmp_path: Path) -> None:
    options = ("--questions", "3", "--verdicts", "2", "--out", tmp_path, "-q")
    done = mmedge("bench", f"rows:{run / 'student'}", run / "bundle-int8-b64", *options, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["variants"]
    assert [row["engine"] for row in rows] == ["rows", engine_of_int8()]
    assert all(row["answer_accuracy"]["test"]["total"] == 3 for row in rows)


def test_a_bundle_answers_in_lines_that_its_form_reads(run: Path) -> None:
    answer = mmedge("run", run / "bundle-int8-b64", "Ann buys 3 pears (order 5).", "--json", "--explain")
    assert answer.code == 0 and json.loads(answer.out)["answer"] is not None
    looked = mmedge("inspect", run / "bundle-int8-b64", "--json")
    assert looked.code == 0 and json.loads(looked.out)["precision"] == "int8-b64"


def test_without_the_package_its_names_are_unknown(run: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(REPOSITORY)}
    for command in (["run", str(run / "bundle-int8-b64"), "x"], ["bench", f"rows:{run / 'student'}"]):
        done = subprocess.run([sys.executable, "-m", "mmedge", *command], capture_output=True, text=True, env=bare, check=False)
        assert is_one_line_error(Finished(done.returncode, done.stdout, done.stderr)), done.stderr
