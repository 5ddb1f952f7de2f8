"""Labelled training questions in the prompt for chains of thought: which ones, what is shown of them, where they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.recipe import validate
from mmedge.tasks import ChainOfThought, Task, build_task
from mmedge.teachers.collect import prompts_of
from mmedge.teachers.prompting import demonstrations, load_prompts
from tests.conftest import is_one_line_error, mmedge, write_recipe
from tests.teachers.endpoint import Endpoint

CALLS = [("GetWeather", {"city": "Oslo"}), ("GetWeather", {}), ("Stop", {}), ("GetWeather", {"city": "Rome"}), ("Stop", {})]


def _values(folder: Path, form: dict[str, Any], labels: list[Any]) -> dict[str, Any]:
    (folder / "tools.json").write_text(
        json.dumps(
            [
                {"name": "GetWeather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
                {"name": "Stop", "parameters": {"type": "object", "properties": {}}},
            ]
        )
    )
    (folder / "book.json").write_text(json.dumps({"type": "object", "properties": {"title": {"type": "string"}}}))
    records = [{"id": f"t{n}", "question": f"number {n} {{question}}", "label": label} for n, label in enumerate(labels)]
    for name, found in (("train", records), ("test", [{"question": "which one?", "label": labels[0]}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    task = {"kind": "jsonl", "train_file": str(folder / "train.jsonl"), "test_files": {"test": str(folder / "test.jsonl")}}
    teacher = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": None, "examples": 3}
    return {"name": "shown", "task": task | {"form": form}, "teacher": teacher, "student": {"source": "scratch"}}


def _tools(folder: Path) -> dict[str, Any]:
    form = {"kind": "tools", "file": str(folder / "tools.json")}
    return _values(folder, form, [{"name": name, "arguments": arguments} for name, arguments in CALLS])


def _task(values: dict[str, Any]) -> Task:
    return build_task(validate(values, "r").task.model_dump())


def test_functions_take_turns_and_their_texts_are_read_as_their_labels(tmp_path: Path) -> None:
    task = _task(_tools(tmp_path))
    shown = demonstrations(task, 3)
    assert [one.id for one in shown] == ["t0", "t2", "t1"]
    assert [one.id for one in demonstrations(task, 9)] == ["t0", "t2", "t1", "t4", "t3"] and demonstrations(task, 0) == ()
    for one in demonstrations(task, 9):
        read = task.form.read(task.form.demonstration(one) or "", one)
        assert isinstance(read, ChainOfThought) and read.pseudo_label == one.label
        assert not read.rationale.endswith("Answer:")
    assert task.form.demonstration(shown[0]) == (
        'It asks for GetWeather with city = "Oslo".\nAnswer: {"name":"GetWeather","arguments":{"city":"Oslo"}}'
    )


def test_a_prompt_shows_them_before_the_question_and_never_its_own(tmp_path: Path) -> None:
    task = _task(_tools(tmp_path))
    prompts = load_prompts(task, None, None, demonstrations(task, 3))
    asked = task.load().train[3]
    messages = prompts.about_question(asked)
    assert [role for role, _ in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert "number 3 {question}" in messages[-1][1] and "number 0 {question}" in messages[1][1]
    own = prompts.about_question(task.load().train[0])
    assert len(own) == len(messages) - 2 and not any("number 0" in text for _, text in own[:-1])
    assert prompts.to_json() != load_prompts(task, None, None).to_json()
    assert load_prompts(task, None, None).about_question(asked) == (messages[0], messages[-1])


def test_records_are_shown_too(tmp_path: Path) -> None:
    form = {"kind": "schema", "file": str(tmp_path / "book.json")}
    task = _task(_values(tmp_path, form, [{"title": "Dune"}, {}]))
    texts = [task.form.demonstration(one) for one in demonstrations(task, 2)]
    assert texts == [
        'It gives a record with title = "Dune".\nAnswer: {"title":"Dune"}',
        "It gives a record without any values.\nAnswer: {}",
    ]
    for text, one in zip(texts, demonstrations(task, 2), strict=True):
        read = task.form.read(text or "", one)
        assert isinstance(read, ChainOfThought) and read.pseudo_label == one.label


def test_the_recipe_says_how_many_and_its_prompts_show_them(tmp_path: Path) -> None:
    values = _tools(tmp_path)
    recipe = validate(values, "r")
    assert recipe.teacher is not None
    assert len(prompts_of(recipe.teacher, _task(values)).examples) == 3  # type: ignore[arg-type]
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", values), "--show-prompts", "--out", tmp_path / "run")
    assert found.code == 0 and 'Answer: {"name":"Stop","arguments":{}}' in found.out, found.err


@pytest.mark.parametrize(
    ("form", "labels", "complaint"),
    [
        ({"kind": "label", "labels": ["a", "b"]}, ["a", "b"], "not for the answer form 'label'"),
        ({"kind": "tools"}, [None], "no training question that stands alone has a label"),
    ],
)
def test_where_there_is_nothing_to_show_it_is_refused(
    tmp_path: Path, form: dict[str, Any], labels: list[Any], complaint: str
) -> None:
    values = _values(tmp_path, form | ({"file": str(tmp_path / "tools.json")} if form["kind"] == "tools" else {}), labels)
    with pytest.raises(MmedgeError, match=complaint):
        demonstrations(_task(values), 2)


def test_a_prompt_of_ones_own_must_end_with_the_question(tmp_path: Path) -> None:
    task = _task(_tools(tmp_path))
    path = tmp_path / "own.txt"
    path.write_text("=== user\nRequest: {question}\n=== assistant\nUnderstood.\n=== user\nNow write the JSON.")
    load_prompts(task, path, None)
    with pytest.raises(MmedgeError, match=r"needs \{question\} in the last message"):
        load_prompts(task, path, None, demonstrations(task, 2))


def test_dialogues_are_not_shown(tmp_path: Path) -> None:
    values = _tools(tmp_path)
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "stop"}]
    record = {"id": "d", "messages": said, "label": {"name": "Stop", "arguments": {}}}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(MmedgeError, match="no training question that stands alone"):
        demonstrations(_task(values), 1)


def test_other_examples_are_another_teacher_and_the_error_says_so(tmp_path: Path) -> None:
    values = _tools(tmp_path)
    with Endpoint() as endpoint:
        values["teacher"]["base_url"] = endpoint.url
        path = write_recipe(tmp_path / "r.yaml", values)
        mmedge("annotate", path, "--out", tmp_path / "run", "-q")
        lines = (tmp_path / "train.jsonl").read_text().splitlines()
        (tmp_path / "train.jsonl").write_text("\n".join(lines[::-1]) + "\n")
        found = mmedge("annotate", path, "--out", tmp_path / "run", "-q")
    assert is_one_line_error(found) and "prompts (the questions that teacher.examples shows)" in found.err
