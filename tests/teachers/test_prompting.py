"""Prompts as files: the built-in ones fit their tasks, and a user's own is checked before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.tasks import Example, Unparsed, build_task
from mmedge.tasks.files import FileTask
from mmedge.tasks.forms import open_form
from mmedge.tasks.reading import read_self_evaluation
from mmedge.teachers.prompting import TEMPLATES, load_prompts, read_template, sha256_messages, shown


def _task(name: str, judge: str, labels: tuple[str, ...] = ()) -> FileTask:
    return FileTask(name, open_form({"form": judge, "settings": {"labels": labels} if labels else {}}, Path()), Path("unused"))


TASKS = [
    _task("svamp", "expression"),
    _task("commonsenseqa", "choice"),
    _task("nli", "label", ("entailment", "neutral", "contradiction")),
    _task("arithmetic", "expression"),
    _task("mine", "expression"),
    _task("mine", "choice"),
    _task("mine", "label", ("good", "bad")),
    _task("mine", "exact"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.form.name}")
def test_every_kind_of_task_has_prompts_whose_own_examples_are_read(task: FileTask) -> None:
    prompts = load_prompts(task, None, None)
    example = Example("q", "Does {question} break?", None, ("yes {cot}", "no"))
    messages = prompts.about_question(example)
    assert "Does {question} break?" in messages[-1][1]  # text from a question is never read as a place
    judged = prompts.about_cot(example, "It does. The answer is yes.\n\nQ: the next one")
    assert "It does. The answer is yes." in judged[-1][1] and "the next one" not in judged[-1][1]
    pairs = list(zip(prompts.cot.messages, prompts.cot.messages[1:], strict=False))
    for (_, asked), (role, answered) in pairs:
        if role == "assistant":
            listed = asked.partition("Choices:")[2]
            choices = tuple(part.split(") ", 1)[1].strip() for part in listed.split("(")[1:])
            found = task.form.read(answered, Example("x", asked, None, choices))
            assert not isinstance(found, Unparsed), answered
    evaluated = [read_self_evaluation(text, None) for role, text in prompts.evaluation.messages if role == "assistant"]
    assert not any(isinstance(found, Unparsed) for found in evaluated)


def test_built_in_prompts_show_no_question_of_the_data(real_data: Path) -> None:
    asked = "\n".join(path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.txt"))
    for kind, folder in (("svamp", "svamp"), ("commonsenseqa", "cqa")):
        splits = build_task({"kind": kind, "data": str(real_data / folder)}).load()
        for example in (*splits.train, *splits.tests["test"]):
            assert example.question not in asked


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Solve {question}", "p.txt:1: a prompt must begin with a line such as '=== user'"),
        ("=== boss\nSolve {question}", "p.txt:1: unknown role 'boss'"),
        ("=== user\nSolve {question} {qestion}", "p.txt:2: unknown placeholder {qestion}"),
        ("=== user\n\n=== user\n{question}", "p.txt:1: this message is empty"),
        ("=== user\nSolve it", "the placeholder {question} is missing"),
        ("=== user\n{question}\n=== assistant\nFour.", "the last message must be the user's"),
    ],
)
def test_a_broken_template_is_named_by_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(MmedgeError) as caught:
        read_template(path, ("question",))
    assert complaint in str(caught.value)


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    prompts = load_prompts(TASKS[0], None, None)
    path = tmp_path / "copy.txt"
    path.write_text(shown(prompts.cot.messages))
    assert read_template(path, ("question",)).messages == prompts.cot.messages


def test_the_hash_of_a_prompt_changes_with_any_part_of_it() -> None:
    base = (("system", "a"), ("user", "b"))
    others = [(("system", "ab"), ("user", "")), (("user", "a"), ("user", "b")), (("system", "a"), ("user", "c")), base[1:]]
    assert len({sha256_messages(messages) for messages in (base, *others)}) == 5
