"""Function calls from labels and a teacher's texts to a student that writes nothing else: distil, export, run, bench."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmedge import AnswerOptions, Student
from mmedge.bundle import read_manifest, seal
from mmedge.cli.asking import Abstention
from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError
from mmedge.export.confidence import fitted, fitted_fields
from mmedge.runtime.confidence import Confidence, fields_of
from mmedge.runtime.strategies import Strategy
from mmedge.tasks import Example
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe

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


def test_every_field_of_an_answer_has_a_confidence_and_one_in_doubt_withholds_it(student: Student) -> None:
    questions = [f"Buy {count} pears." for count in range(2, 9)]
    answers = student.answer_all(questions, constrained=True)
    for question, answer in zip(questions, answers, strict=True):
        assert answer.value is not None and answer.fields is not None
        call = json.loads(answer.value)
        assert answer.fields.keys() == {"name", *(f"{call['name']}.{key}" for key in call["arguments"])}
        assert all(0 <= value <= 1 for value in answer.fields.values())
        alone = student.answer(question, constrained=True).fields
        assert alone is not None and dict(alone) == pytest.approx(dict(answer.fields), abs=1e-5)
    least = [min((answer.fields or {}).values()) for answer in answers]
    threshold = sorted(least)[len(least) // 2]
    given = student.answer_all(questions, constrained=True, abstain_field_below=threshold)
    assert [answer.withheld for answer in given] == [value < threshold for value in least]
    assert all(answer.guess == before.value for answer, before in zip(given, answers, strict=True) if answer.withheld)
    names = sorted((answer.fields or {})["name"] for answer in answers)
    by_name = student.answer_all(questions, constrained=True, abstain_field_below={"name": names[3]})
    assert [answer.withheld for answer in by_name] == [(answer.fields or {})["name"] < names[3] for answer in answers]
    everything = student.answer_all(questions, constrained=True, abstain_field_below={"count": 0.0, "name": 0.0, "*": 1.0})
    assert [answer.withheld for answer in everything] == ["BuyThings.thing" in (answer.fields or {}) for answer in answers]
    inside = student.answer_all(questions, constrained=True, abstain_field_below={"BuyThings": 1.0})
    assert [answer.withheld for answer in inside] == ["BuyThings.thing" in (answer.fields or {}) for answer in answers]
    invalid = student.answer("What is the capital of France?", constrained=False, abstain_field_below={"name": 1e-9})
    assert invalid.withheld and student.answer("What is the capital of France?", constrained=False).value is None
    assert hash(AnswerOptions(abstain_field_below={"name": 0.5})) == hash(
        AnswerOptions(**Abstention(abstain_field_below=["0.5"]).changes())
    )
    with pytest.raises(MmedgeError, match="answers have no field 'colour'"):
        student.answer("Buy 2 pears.", abstain_field_below={"colour": 0.5})


def test_fields_are_calibrated_by_what_their_tokens_show() -> None:
    rng = np.random.default_rng(4)
    evidence, right = [], []
    for _ in range(200):
        truth = {path: bool(rng.random() < 0.7) for path in ("name", "Buy.count")}
        shown = {path: -float(np.exp(rng.normal(-2 if one else 0.5, 0.7))) for path, one in truth.items()}
        evidence.append(Evidence(sum(shown.values()), 0.0, fields=shown))
        right.append(truth)
    inside = [number >= 20 for number in range(200)]
    found = fitted_fields(evidence, right, inside)
    assert found is not None and found["auroc"] > 0.9 and found["calibration_error"] < 0.08
    assert (found["fields"], found["questions"]) == (400, 200)
    assert fitted_fields(evidence[:5], right[:5], inside[:5]) is None  # too few wrong ones to learn from
    whole = fitted(evidence, [all(one.values()) for one in right]) | {"fields": found}
    confidence = Confidence.from_manifest(json.loads(json.dumps(whole)))
    sure = fields_of(confidence, Evidence(-0.02, fields={"name": -0.01, "Buy.count": -2.0}))
    assert sure is not None and sure["name"] > 0.8 > 0.5 > sure["Buy.count"]
    assert confidence is not None
    names = [(fields_of(confidence, one) or {})["name"] for one, known in zip(evidence, inside, strict=True) if known]
    for share in (0.0, 0.04, 0.05, 1.0):
        threshold = confidence.field_threshold("name", share)
        assert sum(name < threshold - 1e-12 for name in names) == min(179, int(share * 180)), share
    with pytest.raises(MmedgeError, match=r"field 'colour' on validation questions are known\s+→ known are name, Buy\.count"):
        confidence.field_threshold("colour", 0.1)
    for spoilt in ({"map": whole["fields"]["map"], "given": given} for given in ({"name": [float("nan")]}, {"name": 1}, [1])):
        with pytest.raises(MmedgeError, match="confidence is invalid"):
            Confidence.from_manifest({**whole, "fields": spoilt})
    with pytest.raises(MmedgeError, match="confidence is invalid"):
        Confidence.from_manifest({**whole, "fields": {"map": {"kind": "logistic", "weights": [float("nan"), 1.0], "bias": 0.0}}})


def test_a_threshold_for_fields_needs_answers_with_fields(tiny_run: Path) -> None:
    found = mmedge("run", tiny_run / "bundle-int8", "How many?", "--abstain-field-below", "0.5")
    assert is_one_line_error(found) and "answers have no fields" in found.err


def test_a_threshold_for_one_field_is_stated_by_its_name(run: Path) -> None:
    asked = ("run", run / "bundle-int8", "Buy 3 pears.", "--constrained", "--json")
    whole = json.loads(mmedge(*asked).out)
    found = mmedge(*asked, "--abstain-field-below", "name=1", "--abstain-field-below", "0")
    assert json.loads(found.out)["withheld"] is (whole["fields"]["name"] < 1)
    for wrong, complaint in (
        ("name=x", "FIELD=NUMBER"),
        ("name=1.5", "name must be from 0 to 1"),
        ("colour=0.5", "no field 'colour'"),
    ):
        found = mmedge(*asked, "--abstain-field-below", wrong)
        assert is_one_line_error(found) and complaint in found.err


def test_confidence_is_measured_on_the_answers_that_users_get(run: Path, tmp_path: Path) -> None:
    """Constrained where the bundle is."""
    questions = [Example(str(n), text) for n, text in enumerate(("What is the capital of France?", "Buy 2 pears.", "x"))]
    for constrained in (False, True):
        bundle = shutil.copytree(run / "bundle-int8", tmp_path / str(constrained) / "bundle-int8")
        manifest = read_manifest(bundle)
        seal(bundle, replace(manifest, answering=replace(manifest.answering, constrained=constrained)))
        student = Student.load(bundle, threads=1)
        shown = [evidence for _, evidence in student.examined(questions)]
        for answer, evidence in zip(student.answer_all(questions), shown, strict=True):
            assert dict(answer.fields or {}) == pytest.approx(fields_of(student.confidence, evidence) or {}, abs=1e-5)
        assert all(evidence.fields for evidence in shown) is constrained
        assert all(evidence.fields for _, evidence in student.examined(questions, constrained=True))
        sampled = [sample.text for samples in student.sampled(questions, Strategy("samples")) for sample in samples]
        read = [student.bundle.form.canonical(text) is not None for text in sampled]
        assert len(read) == 15 and all(read) is constrained


def _calibrated(bundle: Path) -> Path:
    """Give a bundle a confidence that says of 100 validation questions how sure it was of their functions: 0, 0.01, …"""
    manifest = read_manifest(bundle)
    of_answers = {"kind": "platt", "weights": [1.0], "bias": 0.0}
    signal = {"map": of_answers, "confidences": [0.5] * 100, "given": [0.5] * 100}
    of_fields = {"map": {"kind": "logistic", "weights": [1.0, 0.0], "bias": 0.0}, "given": {"name": [n / 100 for n in range(100)]}}
    known = {"signals": {"answer": signal}, "chosen": "answer", "default": "answer", "right": [1] * 50 + [0] * 50}
    seal(bundle, replace(manifest, confidence={**known, "fields": of_fields}))
    return bundle


def test_a_share_of_validation_questions_sets_the_threshold_of_a_field(run: Path, tmp_path: Path) -> None:
    bundle = _calibrated(shutil.copytree(run / "bundle-int8", tmp_path / "bundle-int8"))
    student = Student.load(bundle, threads=1)
    assert student.settled(AnswerOptions(), max_withheld_by_field={"name": 0.3}).abstain_field_below == {"name": 0.3}
    both = student.settled(AnswerOptions(), max_withheld_by_field={"name": 0.3}, abstain_field_below={"*": 0.2}, abstain_below=0.1)
    assert both.abstain_field_below == {"*": 0.2, "name": 0.3} and both.abstain_below == 0.1
    with pytest.raises(MmedgeError, match=r"must be shares by field, got 0\.3"):
        student.settled(AnswerOptions(), max_withheld_by_field=0.3)  # type: ignore[arg-type]
    asked = ("run", bundle, "Buy 3 pears.", "--constrained", "--json")
    name = json.loads(mmedge(*asked).out)["fields"]["name"]
    for share in (0.0, 1.0):
        found = json.loads(mmedge(*asked, "--max-withheld-by-field", f"name={share}").out)
        assert found.get("withheld", False) is (share == 1.0 and name < 0.99)
    for wrong, complaint in (
        ("name=1.5", "name must be from 0 to 1"),
        ("0.5", "must be FIELD=SHARE"),
        ("name=", "FIELD=NUMBER"),
        ("count=0.5", "no confidences of the field 'count'"),
    ):
        found = mmedge(*asked, "--max-withheld-by-field", wrong)
        assert is_one_line_error(found) and complaint in found.err, found.err
    found = mmedge(*asked, "--max-withheld-by-field", "name=0.1", "--abstain-field-below", "name=0.1")
    assert is_one_line_error(found) and "contradict each other" in found.err
    plain = _uncalibrated(shutil.copytree(run / "bundle-int8", tmp_path / "plain" / "bundle-int8"))
    found = mmedge("run", plain, "Buy 3 pears.", "--max-withheld-by-field", "name=0.1")
    assert is_one_line_error(found) and "not calibrated" in found.err


def _uncalibrated(bundle: Path) -> Path:
    """Take a bundle's calibration away."""
    seal(bundle, replace(read_manifest(bundle), confidence={"signals": {}, "why": "too few questions"}))
    return bundle


def test_the_function_that_is_meant_tells_what_is_out_of_scope(run: Path, tmp_path: Path) -> None:
    bundle = _calibrated(shutil.copytree(run / "bundle-int8", tmp_path / "bundle-int8"))
    lines = (run / "evaluation.jsonl").read_text().splitlines()
    known = sum(json.loads(line).get("split") == "test" for line in lines)
    strange = [
        json.dumps({"kind": "question", "split": "test", "id": f"s{n}", "question": f"Sing {n} songs", "out_of_scope": True})
        for n in range(4)
    ]
    (tmp_path / "evaluation.jsonl").write_text("\n".join([*lines, *strange, ""]))
    for file in run.glob("*.json"):
        shutil.copy(file, tmp_path)
    done = mmedge("evaluate", bundle, "--samples", "0", "--timed", "0", "--json", "-q", "--out", tmp_path / "found")
    assert done.code == 0, done.err
    found = json.loads(done.out)["out_of_scope"]
    assert (found["questions"], found["in_scope"]) == (4, known) and "name" in found["auroc"]
    chosen, fixed = found["by_name"][:4], found["by_name"][4:]
    assert [(one["max_withheld"], one["threshold"]) for one in chosen] == [(share, share) for share in (0.02, 0.05, 0.1, 0.2)]
    shares = [level["withheld_out_of_scope"]["value"] for level in fixed]
    assert shares == sorted(shares) and [level["threshold"] for level in fixed] == [0.5, 0.8, 0.9, 0.95, 0.99]
    assert "the 4 questions out of scope with certainty" in (tmp_path / "found" / "evaluate-int8.md").read_text()


def test_the_command_line_answers_in_calls(run: Path) -> None:
    pytest.importorskip("llguidance")
    done = mmedge("run", run / "bundle-int8", "Buy 3 pears.", "--constrained", "--json")
    assert done.code == 0, done.err
    assert set(json.loads(json.loads(done.out)["value"])) == {"name", "arguments"}


def test_bench_judges_calls(run: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(run / "bundle-int8", tmp_path / "bundle-int8")
    manifest = read_manifest(bundle)
    seal(bundle, replace(manifest, answering=replace(manifest.answering, constrained=True)))
    for name in ("evaluation.jsonl", "tools.json"):
        shutil.copy(run / name, tmp_path)
    done = mmedge("bench", bundle, "--questions", 4, "--verdicts", 2, "--out", tmp_path, "-q", "--json")
    assert done.code == 0, done.err
    row = json.loads(done.out)["variants"][0]
    assert row["answer_accuracy"]["test"]["total"] == 4
    scores = row["answer_scores"]["test"]
    assert scores["answers"] == 4 and scores["valid"] == 1
    calls = [json.loads(said) for said in row["samples"]["answers"]["test"]]
    assert len(calls) == 4 and all(call["name"] for call in calls), "as JSON, whatever the student writes"
    assert scores["fields"]["BuyThings.thing"]["labels"] == 4 and scores["all_fields"]["labels"] == 12
