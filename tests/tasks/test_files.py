"""Tasks from JSON-lines files: SVAMP, CommonsenseQA, NLI and a user's own, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.tasks import build_task
from mmedge.tasks.evaluation_set import example_record, read_example
from mmedge.tasks.files import nli
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS, render_question


def _write(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def _own(path: Path, **settings: object) -> dict[str, object]:
    return {"kind": "jsonl", "train_file": str(path), "form": "expression", **settings}


def test_a_users_own_questions_are_read(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "q.jsonl", {"question": "What is 2 + 2?", "label": 4}, {"id": "b", "question": "And 3?", "label": None}
    )
    first, second = build_task(_own(path)).load().train
    assert (first.id, first.label) == ("q-000001", "4")
    assert (second.id, second.label) == ("b", None)


def test_other_fields_of_a_record_are_the_users_own(tmp_path: Path) -> None:
    path = _write(tmp_path / "q.jsonl", {"question": "What is 2 + 2?", "label": 4, "labels": [4], "source": "me", "ids": 3, "": 0})
    assert build_task(_own(path)).load().train[0].label == "4"


def test_names_like_ours_that_change_nothing_are_the_users_own(tmp_path: Path) -> None:
    turn = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "label": 4, "question_id": 3}
    mine = {"uuid": "7", "dialogue_id": 2, "ids": [1], "dialog": "x"}
    path = _write(tmp_path / "q.jsonl", {"question": "What is 2 + 3?", "label": 5} | mine, turn)
    assert [example.label for example in build_task(_own(path)).load().train] == ["5", "4"]


def test_choices_are_lettered_and_labels_may_be_letters(tmp_path: Path) -> None:
    path = _write(tmp_path / "q.jsonl", {"question": "Which?", "choices": ["red", "blue"], "label": "B"})
    example = build_task(_own(path, form="choice")).load().train[0]
    assert example.label == "blue"
    assert render_question(example) == "Which? Choices: (a) red (b) blue"


def test_nli_takes_names_numbers_and_anlis_letters(tmp_path: Path) -> None:
    record = {"premise": "A dog runs.", "hypothesis": "An animal moves."}
    _write(tmp_path / "train.jsonl", *({**record, "label": label} for label in ("entailment", 2, "n")))
    _write(tmp_path / "test_r1.jsonl", {"uid": "x", **record, "label": "c"})
    splits = nli(tmp_path).load()
    assert [example.label for example in splits.train] == ["entailment", "contradiction", "neutral"]
    assert splits.tests["test_r1"][0].id == "x"
    assert splits.train[0].question == "Premise: A dog runs. Hypothesis: An animal moves."


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "cut off', "q.jsonl:2: not a complete JSON object"),
        ("[1, 2]", "q.jsonl:2: expected a JSON object"),
        ('{"label": "4"}', "q.jsonl:2: field 'question' is missing"),
        ('{"question": "", "label": "4"}', "q.jsonl:2: field 'question' must be non-empty"),
        ('{"question": "x", "label": "four"}', "q.jsonl:2: the label 'four' is not an answer of the form 'expression'"),
        ('{"question": "x", "label": [4]}', "q.jsonl:2: field 'label' must be text or a number"),
        ('{"question": "x", "choices": "ab", "label": "4"}', "q.jsonl:2: field 'choices' must be a list"),
        ('{"id": "a", "question": "x", "label": "4"}', "q.jsonl:2: id 'a' was already used"),
        ('{"question": "x", "label": "4", "out_of_scope": true}', "q.jsonl:2: a question out of scope has no label"),
        ('{"question": "x", "out_of_scope": "yes"}', "q.jsonl:2: field 'out_of_scope' must be true or false, found 'yes'"),
        ('{"question": "x", "labl": "4"}', "q.jsonl:2: unknown field 'labl'\n  → did you mean 'label'?"),
        ('{"Question": "x", "label": "4"}', "q.jsonl:2: unknown field 'Question'\n  → did you mean 'question'?"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = _write(tmp_path / "q.jsonl", {"id": "a", "question": "fine", "label": "4"}, line)
    with pytest.raises(MmedgeError) as caught:
        build_task(_own(path)).load()
    assert complaint in str(caught.value)


def test_questions_out_of_scope_are_for_validation_and_never_learned(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "q.jsonl",
        {"id": "blue", "question": "why is the sky blue?", "out_of_scope": True},
        {"id": "a", "question": "What is 2 + 2?", "label": 4, "out_of_scope": False},
        {"id": "b", "question": "What is 2 + 3?", "label": 5},
    )
    splits = build_task(_own(path, limit=1)).load()
    assert [one.id for one in splits.train] == ["a"]
    assert [(one.id, one.out_of_scope, one.label) for one in splits.validation] == [("blue", True, None)]
    record = example_record(splits.validation[0])
    assert read_example(record, path, 1) == splits.validation[0]
    assert "out_of_scope" not in {**example_record(splits.train[0])} and "out_of_scope" not in repr(splits.train[0])
    alone = _write(tmp_path / "alone.jsonl", {"question": "why is the sky blue?", "out_of_scope": True})
    with pytest.raises(MmedgeError, match="nothing but questions out of scope"):
        build_task(_own(alone)).load()


def test_missing_and_empty_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MmedgeError, match=r"task\.train_file: no such file: .*none\.jsonl"):
        build_task(_own(tmp_path / "none.jsonl")).load()
    fine = _write(tmp_path / "fine.jsonl", {"question": "q", "label": "4"})
    with pytest.raises(MmedgeError, match=r"task\.test_files\.hard: no such file: none\.jsonl\n.*relative to the folder that you"):
        build_task(_own(fine) | {"test_files": {"hard": "none.jsonl"}}).load()
    with pytest.raises(MmedgeError, match=r"task\.train_file: this is a folder, not a file"):
        build_task(_own(tmp_path)).load()
    with pytest.raises(MmedgeError, match=r"task\.form\.file: no such file"):
        build_task(_own(fine) | {"form": {"kind": "schema", "file": str(tmp_path / "none.json")}}).load()
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(MmedgeError, match="holds no examples"):
        build_task(_own(tmp_path / "empty.jsonl")).load()
    with pytest.raises(MmedgeError, match="MMEDGE_DATA"):
        build_task({"kind": "svamp", "data": str(tmp_path / "nowhere")})


def test_text_of_a_question_is_never_read_as_a_place_in_the_prompt() -> None:
    assert DECODER_ONLY_PROMPTS.reasoning_context("What is {cot} and {question}?").read == "What is {cot} and {question}?\n"


@pytest.mark.parametrize(("kind", "folder"), [("svamp", "svamp"), ("commonsenseqa", "cqa"), ("nli", "anli")])
def test_published_tasks_load(data: Path, kind: str, folder: str) -> None:
    splits = build_task({"kind": kind, "data": str(data / folder)}).load()
    examples = [*splits.train, *splits.tests["test"]]
    assert len({example.id for example in examples}) == len(examples) > 100
    assert all(example.label and bool(example.choices) == (kind == "commonsenseqa") for example in examples)


def test_real_tasks_load(real_data: Path) -> None:
    splits = build_task({"kind": "svamp", "data": str(real_data / "svamp")}).load()
    assert (len(splits.train), len(splits.tests["test"])) == (800, 200)
    assert splits.train[0].label == "84 / 2"
    choice = build_task({"kind": "commonsenseqa", "data": str(real_data / "cqa"), "limit": 50}).load()
    assert (len(choice.train), len(choice.tests["test"])) == (50, 1221)
