"""What a store is worth: the figures, the page, the estimate before anything is asked, and the commands that show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.collection import Collection
from mmedge.annotations.report import page
from mmedge.annotations.store import AnnotationStore
from mmedge.annotations.summary import examples_to_show, refresh, report
from mmedge.progress import Progress
from mmedge.recipe import OpenAITeacherSection, validate
from mmedge.reports.formats import share
from mmedge.statistics import ClusteredShare
from mmedge.tasks import build_task
from mmedge.teachers.collect import prompts_of
from mmedge.teachers.estimate import estimate
from mmedge.teachers.plan import collection_plan
from tests.conftest import is_one_line_error, mmedge, write_recipe
from tests.teachers.endpoint import Endpoint
from tests.teachers.test_collector import COTS, EVALUATIONS, QUESTIONS, collect, values


def _store(folder: Path, texts: list[list[tuple[str, list[str]]]]) -> tuple[Any, Any, AnnotationStore]:
    """Fill a store with chains of thought and their evaluations, question by question of the embedded task."""
    recipe = validate(values("http://127.0.0.1:9/v1"), "r")
    task = build_task(recipe.task.model_dump())
    store = AnnotationStore(folder / "annotations.sqlite")
    for example, cots in zip(task.load().train, texts, strict=False):
        for sample, (text, evaluations) in enumerate(cots):
            store.add([Annotation(example.id, "cot", sample, 0, text, None, "t", "o")])
            store.add(Annotation(example.id, "evaluation", sample, n, said, None, "t", "o") for n, said in enumerate(evaluations))
    return recipe, task, store


def test_the_figures_are_those_that_can_be_counted_by_hand(tmp_path: Path) -> None:
    recipe, task, _ = _store(tmp_path / "empty", [])
    labels = [example.label for example in task.load().train]
    right = [f"We work it out. The answer is ({label})." for label in labels]
    _, _, store = _store(
        tmp_path,
        [
            [
                (right[0], ["Verdict: correct", "Verdict: wrong"]),
                (right[0] + " ", ["Verdict: correct"]),
                ("The answer is 99999.", ["Verdict: wrong"]),
            ],
            [("The answer is 88888.", ["Verdict: correct"]), ("No telling.", ["Nothing"])],
            [("", [])],
        ],
    )
    assert refresh(recipe, task, store, Progress(quiet=True)) == 3
    assert refresh(recipe, task, store, Progress(quiet=True)) == 0
    found = report(recipe, store).to_json()
    assert found["questions"] == 3 and found["bill"] is None
    assert found["cots"] == {
        "stored": 6,
        "parsed": 4,
        "unparsed": {"no answer found": 1, "empty": 1},
        "distinct": 3,
        "questions_by_count": {"0": 1, "1": 1, "3": 1},
    }
    assert found["evaluations"]["parsed"] == 5 and found["evaluations"]["unparsed"] == {"no verdict": 1}
    assert (found["agreement"]["successes"], found["agreement"]["total"]) == (2, 3)
    assert (found["pseudo_label_accuracy"]["successes"], found["pseudo_label_accuracy"]["total"]) == (2, 4)
    assert (found["majority_vote_accuracy"]["successes"], found["majority_vote_accuracy"]["total"]) == (1, 2)
    assert found["verdict_confusion"] == {
        "correct": {"right": 2, "wrong": 1},
        "wrong": {"right": 1, "wrong": 1},
        "uncertain": {"right": 0, "wrong": 0},
    }
    assert found["verdict_balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    keeps = {
        how: (kept["cots"], kept["questions"], kept["pseudo_label_accuracy"]["successes"]) for how, kept in found["keep"].items()
    }
    assert keeps == {"all": (4, 2, 2), "self_consistent": (3, 2, 2), "judged_correct": (2, 2, 1)}
    store.add([Annotation(task.load().train[2].id, "cot", 1, 0, right[2], None, "t", "o")])
    assert refresh(recipe, task, store, Progress(quiet=True)) == 1  # only what has changed is read again
    assert report(recipe, store).cots.parsed == 5


def test_texts_about_unknown_questions_are_counted_apart(tmp_path: Path) -> None:
    recipe, task, store = _store(tmp_path, [[("The answer is 4.", [])]])
    store.add([Annotation("nobody-knows", "cot", 0, 0, "The answer is 4.", None, "t", "o")])
    refresh(recipe, task, store, Progress(quiet=True))
    found = report(recipe, store)
    assert (found.questions, found.foreign, found.cots.stored) == (1, 1, 1)


def test_answers_to_one_question_are_no_independent_trials() -> None:
    alike, apart = ClusteredShare(), ClusteredShare()
    for question in range(100):
        alike.add(5 if question % 2 else 0, 5)
        apart.add(2 + question % 2, 5)
    assert alike.value == apart.value == 0.5
    assert alike.effective == pytest.approx(100, rel=0.02)  # five answers that always agree are worth one
    assert apart.effective == 500
    assert alike.interval[1] - alike.interval[0] > 2 * (apart.interval[1] - apart.interval[0])
    assert share(ClusteredShare().value, ClusteredShare().interval) == "–"


def test_the_page_shows_texts_and_runs_none_of_them(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> \x1b[31m \u202e & <img src=x onerror=alert(2)> " + "long " * 3000 + "The answer is 4."
    recipe, task, store = _store(tmp_path, [[(evil, ["<b>bold</b>\nVerdict: wrong"])]])
    refresh(recipe, task, store, Progress(quiet=True))
    text = page(report(recipe, store), examples_to_show(recipe, store, task, 12), task.form).text()
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "&lt;script&gt;alert(1)" in text and "evaluation of 0: wrong" in text
    assert "\x1b" not in text and "\u202e" not in text and "more characters)" in text
    assert "http:" not in text and "https:" not in text  # nothing is fetched


def test_an_estimate_before_and_the_bill_after_agree(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        recipe = validate(values(endpoint.url, prices={"input": 1.0, "output": 2.0}), "r")
        task = build_task(recipe.task.model_dump())
        examples = task.load().train
        assert isinstance(recipe.teacher, OpenAITeacherSection)
        prompts, plan = prompts_of(recipe.teacher, task), collection_plan(recipe.teacher)
        before = estimate(examples, prompts, plan, None)
        assert (before.cots, before.evaluations) == (QUESTIONS * COTS, QUESTIONS * COTS * EVALUATIONS)
        assert before.requests == QUESTIONS + QUESTIONS * COTS and not before.measured
        assert before.cost < before.cost_at_most
        collect(tmp_path, recipe)
        assert len(endpoint.served) >= before.requests
        with AnnotationStore(tmp_path / "annotations.sqlite") as store:
            after = estimate(examples, prompts, plan, store)
            assert (after.cots, after.evaluations, after.requests, after.cost) == (0, 0, 0, 0.0)
            assert after.measured and Collection(store).spent().cost <= before.cost_at_most


def test_the_commands_that_send_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values("http://127.0.0.1:9/v1", prices={"input": 1.0, "output": 2.0}))
    dry = mmedge("annotate", recipe, "--dry-run", "--out", tmp_path / "run")
    assert dry.code == 0 and "missing: 100 chains of thought, 200 self-evaluations" in dry.out and "USD" in dry.out
    assert json.loads(mmedge("annotate", recipe, "--dry-run", "--json").out)["requests"] == 120
    prompts = mmedge("annotate", recipe, "--show-prompts")
    question = build_task(validate(values("http://x/"), "r").task.model_dump()).load().train[0].question
    assert prompts.code == 0 and question in prompts.out and "=== system" in prompts.out and "Verdict: correct" in prompts.out
    copied = mmedge("annotate", recipe, "--copy-prompts", tmp_path / "mine")
    assert copied.code == 0 and (tmp_path / "mine" / "arithmetic.cot.txt").is_file()
    assert is_one_line_error(mmedge("annotate", recipe, "--copy-prompts", tmp_path / "mine"))  # nothing is overwritten
    assert not (tmp_path / "run").exists()


def test_prompts_of_ones_own_are_sent(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("=== user\nVerbatim, and then {question}")
    with Endpoint() as endpoint:
        recipe = validate(values(endpoint.url, evaluations_per_cot=0, prompts={"cot": str(tmp_path / "mine.txt")}), "r")
        collect(tmp_path, recipe)
        assert all(request["messages"][0]["content"].startswith("Verbatim, and then ") for request in endpoint.served)


def test_a_collection_is_shown_in_the_terminal_as_json_and_as_a_page(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, prices={"input": 1.0, "output": 2.0}))
        collected = mmedge("annotate", recipe, "--out", tmp_path / "run")
    assert collected.code == 0 and "chains of thought: accepted: 100" in collected.out and "bill: " in collected.out
    shown = mmedge("review", tmp_path / "run", "--html", tmp_path / "a.html", "--export", tmp_path / "texts")
    assert shown.code == 0, shown.err
    for words in ("100 chains of thought and 200 self-evaluations of 20 questions", "judged correct", "agreement", "cost"):
        assert words in shown.out, shown.out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert len((tmp_path / "texts" / "cots.jsonl").read_text().splitlines()) == 100
    found = json.loads(mmedge("review", tmp_path / "run", "--json").out)
    assert found["bill"]["texts"]["cot"]["accepted"] == 100 and found["bill"]["currency"] == "USD"
    assert found["keep"]["all"]["cots"] == 100
    limited = mmedge("annotate", recipe, "--out", tmp_path / "other", "--max-requests", "0")
    assert limited.code == 3 and "could exceed --max-requests 0" in limited.err


def test_commands_about_runs_that_are_none(tmp_path: Path) -> None:
    assert is_one_line_error(mmedge("review", tmp_path))
    old = mmedge("annotations", tmp_path)
    assert is_one_line_error(old) and "notice: annotations is now called review" in old.err
    recipe = write_recipe(tmp_path / "recipe.yaml", values("http://127.0.0.1:9/v1"))
    found = mmedge("review", tmp_path)
    assert is_one_line_error(found) and "has no annotations" in found.err, (found.err, recipe)
