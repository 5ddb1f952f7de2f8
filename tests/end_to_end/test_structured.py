"""Function calls from labels and a teacher's texts to a student that writes nothing else: distil, export, run, bench."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mmedge import AnswerOptions, Student
from tests.conftest import mmedge, tiny_recipe, write_recipe

THINGS = ("apples", "pears", "plums", "nuts")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "BuyThings",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"enum": list(THINGS)}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["thing"],
                "additionalProperties": False,
            },
        },
    },
    {"name": "GoHome", "parameters": {"type": "object", "properties": {"who": {"type": "string"}}}},
]


def _lines(path: Path, records: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def _write_task(folder: Path) -> dict[str, str]:
    questions, cots, evaluations = [], [], []
    for number in range(48):
        count, thing = 2 + number % 7, THINGS[number % 4]
        call = {"name": "BuyThings", "arguments": {"count": count, "thing": thing}}
        questions.append({"id": f"q{number}", "question": f"Buy {count} {thing} (order {number}).", "label": call})
        for sample, said in enumerate((count, count + 1)):
            text = f"{said} {thing} are asked for.\nAnswer: " + json.dumps({**call, "arguments": {"thing": thing, "count": said}})
            verdict = "correct" if said == count else "wrong"
            cots.append({"id": f"q{number}", "sample": sample, "teacher": "t", "text": text})
            evaluations.append({"id": f"q{number}", "sample": sample, "evaluation": "It counts what is said.", "verdict": verdict})
    return {
        "train": _lines(folder / "train.jsonl", questions),
        "test": _lines(folder / "test.jsonl", [{**one, "id": f"test-{one['id']}"} for one in questions[:6]]),
        "cots": _lines(folder / "cots.jsonl", cots),
        "evaluations": _lines(folder / "evaluations.jsonl", evaluations),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run whose answers are calls, exported; the recipe's files are gone."""
    folder = tmp_path_factory.mktemp("calls")
    files = _write_task(folder)
    tools = folder / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    values = tiny_recipe(
        name="calls",
        task={
            "kind": "jsonl",
            "train_file": files["train"],
            "test_files": {"test": files["test"]},
            "form": {"kind": "tools", "file": str(tools), "compare": {"who": "casefold"}},
        },
        teacher={"kind": "recorded", "cots": files["cots"], "evaluations": files["evaluations"]},
        student={"source": str(tiny_llama)},
        split={"validation": 8, "verdict_test": 6},
        generation={"max_answer_tokens": 64, "max_rationale_tokens": 20},
        export={"precisions": ["int8"], "max_accuracy_drop": 100},
    )
    stage = {"max_steps": 6, "batch_size": 4, "learning_rate": 2e-3, "evaluate_every": 6}
    values["training"] = {"stage1": stage, "stage2": stage, "max_input_tokens": 160, "max_target_tokens": 96}
    recipe = write_recipe(folder / "recipe.yaml", values)
    done = mmedge("distill", recipe, "--out", folder / "run", "-q")
    assert done.code == 0, done.err
    tools.unlink()
    done = mmedge("export", folder / "run", "-q")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def student(run: Path) -> Student:
    pytest.importorskip("llguidance")
    return Student.load(run / "bundle-int8")


def test_the_bundle_carries_the_functions(run: Path) -> None:
    stated = json.loads((run / "bundle-int8" / "manifest.json").read_text())["task"]
    assert stated["form"] == "tools" and stated["files"] == ["tools.json"] and stated["settings"]["compare"] == {"who": "casefold"}
    assert json.loads((run / "bundle-int8" / "tools.json").read_text()) == TOOLS


def test_constrained_answers_are_calls_in_batches_and_samples(student: Student) -> None:
    questions = [f"Buy {count} pears." for count in range(2, 9)]
    form = student.bundle.form
    options = AnswerOptions(constrained=True)
    together = student.answer_all(questions, options, batch=4)
    for question, answer in zip(questions, together, strict=True):
        assert form.canonical(answer.text) is not None and answer.value is not None, answer.text
        assert json.loads(answer.value)["name"] in ("BuyThings", "GoHome")
        assert student.answer(question, options).text == answer.text
    sampled = student.answer(questions[0], constrained=True, strategy=student.strategy_with("samples", samples=4))
    assert all(form.canonical(sample.text) is not None for sample in sampled.samples or ())


def test_the_command_line_answers_in_calls(run: Path) -> None:
    pytest.importorskip("llguidance")
    done = mmedge("run", run / "bundle-int8", "Buy 3 pears.", "--constrained", "--json")
    assert done.code == 0, done.err
    assert set(json.loads(json.loads(done.out)["value"])) == {"name", "arguments"}


def test_bench_judges_calls(run: Path, tmp_path: Path) -> None:
    done = mmedge("bench", run / "bundle-int8", "--questions", 4, "--verdicts", 2, "--out", tmp_path, "-q", "--json")
    assert done.code == 0, done.err
    row = json.loads(done.out)["variants"][0]
    assert row["answer_accuracy"]["test"]["total"] == 4
    scores = row["answer_scores"]["test"]
    assert scores["answers"] == 4 and 0 <= scores["valid"] <= 1
    assert scores["fields"]["BuyThings.thing"]["labels"] == 4 and scores["all_fields"]["labels"] == 12
