"""The runtime: checked bundles, batches that answer like single questions, and the same tokens as torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmedge import Student
from mmedge.bundle import open_bundle
from mmedge.errors import MmedgeError
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.evaluation_set import read_evaluation_set
from tests.conftest import is_one_line_error, killed_when_lines_are_there, mmedge

RUNS = ["tiny_run", "llama_run"]


def _questions(run: Path) -> list[Example]:
    found = read_evaluation_set(run / "evaluation.jsonl")
    return [example for examples in found.questions.values() for example in examples]


@pytest.mark.parametrize("name", RUNS)
def test_a_batch_of_unequal_lengths_answers_as_one_by_one(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    student = Student.load(run / "bundle-fp32")
    questions = [*_questions(run)[:7], Example("short", "2 + 2?"), Example("long", "Ann has 3 apples. " * 6)]
    together = student.answer_all(questions, explain=True, evaluate=True)
    for question, answer in zip(questions, together, strict=True):
        alone = student.answer(question, explain=True, evaluate=True)
        assert (alone.text, alone.rationale) == (answer.text, answer.rationale)
        assert alone.verdict == answer.verdict is not None
        assert alone.probability_correct == pytest.approx(answer.probability_correct, abs=1e-4)
        assert alone.confidence == pytest.approx(answer.confidence, abs=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_the_bundle_writes_the_tokens_that_torch_writes(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch")
    from mmedge.engines.torch_decoding import torch_speaker
    from mmedge.students.saved import open_student

    run: Path = request.getfixturevalue(name)
    edge, torch_student = Student.load(run / "bundle-fp32"), open_student(run / "student")
    speaker = torch_speaker(torch_student)
    engine, device = speaker.engine, edge.speaker
    contexts = [edge.bundle.manifest.prompts.reasoning_context(example.question) for example in _questions(run)[:8]]
    for kind in ("predict", "explain"):
        prompts = [device.prompt(kind, context) for context in contexts]
        assert prompts == [torch_student.encoder.prompt(kind, context) for context in contexts]
        left, right = device.engine.generate(prompts, 24), engine.generate(prompts, 24)
        assert left.tokens == right.tokens
        assert left.steps == right.steps
        forced = [engine.forced_logits(prompts[0], [5, 9, 4]), device.engine.forced_logits(prompts[0], [5, 9, 4])]
        assert np.abs(forced[0] - forced[1]).max() < 1e-3
    example = _questions(run)[0]
    cot = ChainOfThought("Because 3 and 4.", "3 + 4")
    judged = edge.judge([example.question], [cot])[0]
    expected = speaker.verdict_probabilities([speaker.prompt("predict", speaker.evaluation_context(example.question, cot))])
    assert judged.probability_correct == pytest.approx(float(expected[0, 0]), abs=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_each_file_with_one_flipped_byte_is_refused(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(name)
    bundle = tmp_path / "bundle"
    shutil.copytree(run / "bundle-int8", bundle)
    for path in sorted(bundle.iterdir()):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(MmedgeError):
            open_bundle(bundle)
        path.write_bytes(content)
    open_bundle(bundle)
    (bundle / "extra.txt").write_text("x")
    with pytest.raises(MmedgeError, match=r"extra\.txt does not belong"):
        open_bundle(bundle)


def test_a_changed_manifest_and_a_missing_file_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"precision": "fp32"}))
    with pytest.raises(MmedgeError, match="was changed after export"):
        open_bundle(bundle)
    for format_, hint in ((99, "update mmedge"), (4, "mmedge export RUN")):
        (bundle / "manifest.json").write_text(json.dumps(manifest | {"format": format_}))
        with pytest.raises(MmedgeError, match=f"has format {format_}") as caught:
            open_bundle(bundle)
        assert hint in caught.value.hint
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(MmedgeError, match=r"tokenizer\.json is missing"):
        open_bundle(bundle)


HOSTILE = ["\x00\x01", "\ud800 unpaired", "你好" * 50, "{question} {cot}", "predict: explain: solution: answer:", "9" * 3000]


@pytest.mark.parametrize("name", RUNS)
def test_hostile_questions_get_an_answer(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    student = Student.load(run / "bundle-int8")
    answers = student.answer_all(HOSTILE, evaluate=True)
    assert len(answers) == len(HOSTILE)
    assert all(isinstance(answer.text, str) for answer in answers)
    assert student.answer_all([]) == []


def test_one_question_on_the_command_line(tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    plain = mmedge("run", bundle, "Ann has 3 apples and buys 4 more. How many apples are there now?")
    answer, confidence = plain.out.strip().splitlines()
    assert plain.code == 0 and answer and confidence.startswith("confidence: 0.")
    full = mmedge("run", bundle, "Ann has 3 apples.", "--explain", "--evaluate", "--json")
    found = json.loads(full.out)
    assert {"answer", "rationale", "verdict", "probability_correct", "evaluation"} <= set(found)
    assert 0 <= found["probability_correct"] <= 1


def test_json_lines_through_pipes_and_files(tiny_run: Path, tmp_path: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    lines = [json.dumps({"id": f"q{i}", "question": f"Ann has {i} apples. How many?"}) for i in range(11)]
    piped = mmedge("run", bundle, "--batch", "4", stdin="\n".join(lines) + "\n")
    assert piped.code == 0, piped.err
    answers = [json.loads(line) for line in piped.out.splitlines()]
    assert [answer["id"] for answer in answers] == [f"q{i}" for i in range(11)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    filed = mmedge("run", bundle, "--input", source, "--output", target)
    assert filed.code == 0, filed.err
    assert [json.loads(line) for line in target.read_text().splitlines()] == answers


def test_a_cut_off_line_in_a_pipe_is_named(tiny_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    lines = '{"question": "fine"}\n{"question": "cut o'
    found = mmedge("run", tiny_run / "bundle-int8", "--input", "-", "--output", target, stdin=lines)
    assert is_one_line_error(found) and "standard input:2: not a complete JSON object" in found.err
    assert not target.exists()


def test_a_dialogue_in_a_terminal(tiny_run: Path) -> None:
    import os
    import pty
    import subprocess
    import sys

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "mmedge", "run", str(tiny_run / "bundle-int8")]
    process = subprocess.Popen(command, stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(child)
    os.write(parent, b"Ann has 3 apples. How many?\n\n")
    out, err = process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 0, err
    assert "Type a question; an empty line" in err and out.startswith("? ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere", "x"], "no such bundle"),
        (["{run}", "x"], "is not a bundle"),
        (["{run}", "x"], "name one of its bundles"),
        (["{run}/bundle-int8", " "], "the question is empty"),
        (["{run}/bundle-int8", "--input", "nowhere.jsonl"], "no such file"),
        (["{run}/bundle-int8", "x", "--input", "-"], "not both"),
        (["{run}/bundle-int8", "x", "--output", "answers.jsonl"], "--output is for the answers"),
    ],
)
def test_wrong_uses_of_run_are_one_line(tiny_run: Path, arguments: list[str], complaint: str) -> None:
    found = mmedge("run", *(argument.replace("{run}", str(tiny_run)) for argument in arguments))
    assert is_one_line_error(found) and complaint in found.err


def test_answers_to_a_file_continue_after_a_kill(tiny_run: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps({"id": i, "question": f"Ann has {i} apples. How many?"}) + "\n" for i in range(400)))
    arguments = ["run", tiny_run / "bundle-fp32", "--input", source, "--output", target, "--batch", "2"]
    killed_when_lines_are_there(arguments, tmp_path / ".answers.jsonl.journal", 10)
    assert not target.exists()
    done = mmedge(*arguments)
    assert done.code == 0, done.err
    assert "batches are already answered" in done.err
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [str(i) for i in range(400)]
    whole = mmedge("run", tiny_run / "bundle-fp32", "--input", source, "--output", "-", "--batch", "2")
    assert whole.out == target.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "questions.jsonl"]


def test_a_device_imports_neither_pydantic_nor_yaml_to_answer(tiny_run: Path) -> None:
    code = (
        "import sys\nfrom mmedge import Student\n"
        f"Student.load({str(tiny_run / 'bundle-int8')!r}).answer('Ann has 3 apples.', explain=True)\n"
        "print(sorted(sys.modules.keys() & {'pydantic', 'yaml', 'torch', 'transformers', 'psutil', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
