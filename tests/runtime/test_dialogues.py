"""A student that learned dialogues: what refers back is answered from what was said before, in Python and on the command line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmedge import Student
from mmedge.bench.scheduler import records
from mmedge.bench.worker import _examples
from mmedge.bundle import read_manifest
from mmedge.errors import MmedgeError
from mmedge.runtime.escalation import EscalatedAnswer
from mmedge.students.saved import open_student
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import read_evaluation_set
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.prompts import PLAIN_TURN
from tests.commands import start
from tests.conftest import distilled, is_one_line_error, made_once, mmedge, write_recipe
from tests.dialogues import called, dialogue_recipe, user, write_dialogues

TALK = [user("lights red in the hall"), called("hall", "red"), user("for ten minutes")]


@pytest.fixture(scope="session")
def lights_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student from scratch that was trained with dialogues about lights."""

    def make(folder: Path) -> None:
        recipe = write_recipe(folder / "lights.yaml", dialogue_recipe(write_dialogues(folder)))
        distilled(recipe, folder / "run", "--max-accuracy-drop", "100")

    return made_once(tmp_path_factory, "lights", make) / "run"


@pytest.fixture(scope="session")
def student(lights_run: Path) -> Student:
    return Student.load(lights_run / "bundle-int8")


def test_what_refers_back_is_learned_and_nobody_knows_it_otherwise(lights_run: Path) -> None:
    scores = json.loads((lights_run / "student" / "mmedge.json").read_text(encoding="utf-8"))["metrics"]["after"]["answer"]
    assert scores["test"]["value"] >= 0.75
    assert scores["alone"]["value"] <= 0.2  # one of six rooms and one of four states, guessed


def test_a_bundle_reads_what_training_read_token_for_token(lights_run: Path, student: Student) -> None:
    stated = read_manifest(lights_run / "bundle-int8").prompts
    trained = open_student(lights_run / "student").encoder
    assert stated == trained.prompts and stated.turn == PLAIN_TURN
    for example in read_evaluation_set(lights_run / "evaluation.jsonl").questions["test"]:
        expected = trained.context(trained.prompts.reasoning_context(example))
        assert student.speaker.encoder.context(student.speaker.reasoning_context(example)) == expected


def test_messages_are_a_question_like_others(student: Student) -> None:
    answer = student.answer(TALK)
    assert json.loads(answer.value or "")["arguments"]["minutes"] == "ten"
    spelled = [TALK[0], {"role": "assistant", "content": "set; room: hall; state: red"}, TALK[2]]
    alone = student.answer(TALK[2]["content"])
    assert student.answer_all([TALK, TALK[2]["content"], spelled, TALK[:1]], batch=4)[:3] == [answer, alone, answer]
    assert list(student.stream(TALK))[-1] == answer
    assert student.reads_dialogues and not student.reads_system_messages
    with pytest.raises(MmedgeError, match=r"messages\[1\]: must be|messages\[1\] must be the user's"):
        student.answer(TALK[:2])
    with pytest.raises(MmedgeError, match="system message"):
        student.answer([{"role": "system", "content": "Be brief."}, *TALK])
    with pytest.raises(MmedgeError, match="too long"):
        student.answer([user("x" * 1_000_000), *TALK])


def test_an_answer_says_how_many_messages_were_left_out(student: Student) -> None:
    assert "left_out" not in student.answer(TALK).to_json()
    long = [message for _ in range(20) for message in TALK[:2]]
    answer = student.answer([*long, *TALK])
    left_out = answer.to_json()["left_out"]
    assert isinstance(left_out, int) and left_out % 2 == 0 and 30 < left_out < 42
    assert answer.text == student.answer([*long[left_out:], *TALK]).text


def test_other_students_refuse_earlier_messages(tiny_run: Path) -> None:
    single = Student.load(tiny_run / "bundle-int8")
    assert single.answer([user("Ann has 3 apples.")]) == single.answer("Ann has 3 apples.") and not single.reads_dialogues
    with pytest.raises(MmedgeError, match="single questions"):
        single.answer([user("Ann has 3 apples."), {"role": "assistant", "content": "3"}, user("And Ben?")])
    with pytest.raises(MmedgeError, match="messages"):
        single.answer([{"text": "Ann has 3 apples."}])


class _Bigger:
    name = "bigger"

    def __init__(self) -> None:
        self.asked: list[Example] = []

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        self.asked.append(example)
        return EscalatedAnswer("set; room: attic; state: red", "", 1, 1, 0.0, 0.0)


def test_a_bigger_model_is_asked_the_whole_dialogue(student: Student) -> None:
    bigger = _Bigger()
    assert student.answer(TALK, abstain_below=1.0, escalate_to=bigger).source == "bigger"
    assert [turn.role for turn in bigger.asked[0].turns] == ["user", "assistant"]


def test_the_bench_asks_dialogues_in_processes_of_their_own(lights_run: Path) -> None:
    examples = read_evaluation_set(lights_run / "evaluation.jsonl").questions["test"]
    sent = json.loads(json.dumps({"examples": records(examples)}))
    assert _examples(sent) == [replace(example, label=None) for example in examples]


def test_the_command_line_takes_messages(lights_run: Path, tmp_path: Path, student: Student) -> None:
    bundle, path = lights_run / "bundle-int8", tmp_path / "talk.json"
    path.write_text(json.dumps(TALK), encoding="utf-8")
    said = mmedge("run", bundle, "--messages", path, "--json")
    assert json.loads(said.out)["answer"] == student.answer(TALK).text
    lines = mmedge("run", bundle, stdin=json.dumps({"id": "a", "messages": TALK}) + "\n")
    assert json.loads(lines.out)["answer"] == student.answer(TALK).text
    path.write_text(json.dumps(TALK[:2]), encoding="utf-8")
    for found in (
        mmedge("run", bundle, "--messages", path),
        mmedge("run", bundle, "hi", "--messages", path),
        mmedge("run", bundle, stdin=json.dumps({"messages": TALK[:2]}) + "\n"),
    ):
        assert is_one_line_error(found), found.err


def test_a_dialogue_in_a_terminal_remembers(lights_run: Path, tmp_path: Path, student: Student) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    out = tmp_path / "out"
    with open(child, "rb") as terminal:
        started = start(["run", lights_run / "bundle-int8", "--free"], stdin=Path(os.ttyname(terminal.fileno())), stdout=out)
        os.write(parent, f"{TALK[0]['content']}\n{TALK[2]['content']}\n\n".encode())
        assert started.wait(60) == 0
    os.close(parent)
    first = student.answer(TALK[0]["content"], constrained=False)
    talk: list[dict[str, Any]] = [TALK[0], {"role": "assistant", "content": first.text}, TALK[2]]
    assert student.answer(talk, constrained=False).text in out.read_text(encoding="utf-8")


def test_dialogues_that_cannot_be_learned_are_refused_or_warned_of(tmp_path: Path) -> None:
    folder = write_dialogues(tmp_path, train=30, test=30)
    recipe = dialogue_recipe(folder, steps=2, split={"validation": 10})
    short = recipe | {"training": recipe["training"] | {"max_input_tokens": 24}}
    warned = mmedge("distill", write_recipe(tmp_path / "short.yaml", short), "--out", tmp_path / "short")
    assert warned.code == 0 and "dialogues lose their oldest messages at 24 tokens" in warned.err + warned.out
    begun = [
        {"messages": [{"role": "system", "content": "x"}, *TALK[:2], user("again")], "label": "set; room: hall; state: on"}
    ] * 40
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in begun), encoding="utf-8")
    same = mmedge("distill", write_recipe(tmp_path / "same.yaml", recipe), "--out", tmp_path / "same")
    assert is_one_line_error(same) and "dialogue" in same.err
    named = [one | {"dialogue": f"s{number}"} for number, one in enumerate(begun)]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in named), encoding="utf-8")
    system = mmedge("distill", write_recipe(tmp_path / "system.yaml", recipe), "--out", tmp_path / "system")
    assert is_one_line_error(system) and "system message" in system.err
    (folder / "train.jsonl").write_bytes((folder / "alone.jsonl").read_bytes())
    bare = recipe | {"task": recipe["task"] | {"test_files": {"test": str(folder / "test.jsonl")}}}
    single = mmedge("distill", write_recipe(tmp_path / "single.yaml", bare), "--out", tmp_path / "single")
    assert is_one_line_error(single) and "stand alone" in single.err
