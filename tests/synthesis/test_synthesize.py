"""New questions from an endpoint, a recording and the embedded task: diverse, balanced, unlike tests, resumable, within limits."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import validate
from mmedge.synthesis.report import SynthesisReport
from mmedge.synthesis.similarity import similarity
from mmedge.synthesis.synthesize import synthesize
from mmedge.tasks.synthesized import NewQuestion, read_questions, write_questions
from mmedge.teachers.plan import NO_LIMITS, Limits
from tests.commands import kill_when
from tests.conftest import is_one_line_error, mmedge, tiny_recipe, write_recipe
from tests.teachers.endpoint import Endpoint, completion, question_for

TRAIN = {"lights": ["Dim the lamp by the sofa", "Turn on the hall light"], "music": ["Play some jazz", "Skip this song"]}
TESTS = ["Switch off the kitchen lights", "Turn the music down"]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmedge.teachers.pace.FIRST_RETRY", 0.02)


def values(folder: Path, url: str = "http://127.0.0.1:1/v1", **synthesis: Any) -> dict[str, Any]:
    """A recipe of labels, whose teacher is an endpoint."""
    records = [{"question": text, "label": label} for label, texts in TRAIN.items() for text in texts]
    for name, found in (("train", records), ("test", [{"question": text, "label": "music"} for text in TESTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    task = {"kind": "jsonl", "train_file": str(folder / "train.jsonl"), "test_files": {"test": str(folder / "test.jsonl")}}
    teacher = {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "cots_per_question": 2}
    return {
        "name": "few",
        "task": task | {"form": {"kind": "label", "labels": list(TRAIN)}},
        "teacher": teacher,
        "student": {"source": "scratch"},
        "synthesis": {"count": 30} | synthesis,
    }


def made(folder: Path, recipe: dict[str, Any], limits: Limits = NO_LIMITS, count: int | None = None) -> SynthesisReport:
    return synthesize(validate(recipe, "r"), folder, Progress(quiet=True), count, limits)


def test_new_questions_are_balanced_and_unlike_all_others(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        found = made(tmp_path / "run", values(tmp_path, endpoint.url))
        prompts = [json.dumps(request["messages"]) for request in endpoint.served]
    assert found.complete and found.taken == 30 and found.kinds == {"lights": 15, "music": 15}
    questions = read_questions(tmp_path / "run" / "synthesized.jsonl")
    assert Counter(question.kind for question in questions) == found.kinds
    texts = [question.question for question in questions]
    others = [*TESTS, *TRAIN["lights"], *TRAIN["music"]]
    assert all(similarity(text, other) < 0.7 for n, text in enumerate(texts) for other in (*others, *texts[:n]))
    assert all("Dim the lamp" in prompt or "Play some jazz" in prompt for prompt in prompts)
    assert not any("Turn the music down" in prompt for prompt in prompts)  # tests are never shown
    assert found.bill is not None and found.bill.answered == len(prompts)
    assert found.to_json()["bill"]["texts"]["accepted"] == 30
    with Endpoint() as endpoint:  # nothing is left to ask
        assert made(tmp_path / "run", values(tmp_path, endpoint.url)).taken == 30 and not endpoint.served


def test_more_are_added_to_what_is_there(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        made(tmp_path / "run", values(tmp_path, endpoint.url, count=10))
        before = read_questions(tmp_path / "run" / "synthesized.jsonl")
        served = len(endpoint.served)
        assert made(tmp_path / "run", values(tmp_path, endpoint.url), count=30).taken == 30
        assert read_questions(tmp_path / "run" / "synthesized.jsonl")[:10] == before
        made(tmp_path / "at once", values(tmp_path, endpoint.url))
    assert served >= 10
    together = {question.question for question in read_questions(tmp_path / "at once" / "synthesized.jsonl")}
    assert len(together & {question.question for question in before}) == 10  # what is asked does not depend on the count


def test_a_killed_synthesis_continues_without_asking_twice(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        made(tmp_path / "undisturbed", values(tmp_path, endpoint.url))
        asked = len(endpoint.served)
    with Endpoint(delay=0.02) as endpoint:
        recipe = values(tmp_path, endpoint.url)
        recipe["teacher"]["concurrency"] = 2
        path = write_recipe(tmp_path / "r.yaml", recipe)
        kill_when(["synthesize", path, "--out", tmp_path / "run", "-q"], lambda: len(endpoint.served) >= 12)
        done = mmedge("synthesize", path, "--out", tmp_path / "run", "--json")
        assert done.code == 0, done.err
        assert asked <= len(endpoint.served) <= asked + 10  # what was not stored yet is asked again
    assert json.loads(done.out)["taken"] == 30
    files = [(tmp_path / name / "synthesized.jsonl").read_text() for name in ("undisturbed", "run")]
    assert files[0] == files[1]


def test_prompts_that_annotate_would_refuse_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        recipe = values(tmp_path, endpoint.url)
        for wrong, complaint in (({"examples": 3}, "teacher.examples"), ({"prompts": {"cot": "nope.txt"}}, "no such file")):
            with pytest.raises(MmedgeError, match=complaint):
                made(tmp_path / "run", recipe | {"teacher": recipe["teacher"] | wrong})
        assert not endpoint.served


def test_test_questions_and_near_duplicates_are_refused(tmp_path: Path) -> None:
    copied = iter([*TESTS, "Turn the music down!!", "dim the lamp by the SOFA", "Play some jazz."] * 50)

    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        text = next(copied) if len(endpoint.served) < 10 else question_for(random.Random(asked["seed"]))
        return 200, {}, completion(f"Question: {text}")

    with Endpoint(handler=answer) as endpoint:
        recipe = values(tmp_path, endpoint.url, count=20)
        recipe["teacher"]["concurrency"] = 1
        found = made(tmp_path / "run", recipe)
    assert found.taken == 20
    assert found.refused["like a test question"] >= 5 and found.refused["like a training question"] >= 3
    texts = [question.question for question in read_questions(tmp_path / "run" / "synthesized.jsonl")]
    assert not any(similarity(text, test) >= 0.7 for text in texts for test in TESTS)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (completion("Question: Play some jazz!"), "like a training question"),
        (completion("Question: the very same new one"), None),
        (completion(""), "no new question"),
        (completion("I'm sorry, I can't help with that."), "no new question"),
        (completion("Question: and so on and so on", finish="length"), "no new question"),
        (b"<html>nothing</html>", "garbage"),
    ],
)
def test_a_teacher_that_cannot_write_questions_ends_it_soon(tmp_path: Path, reply: bytes, complaint: str | None) -> None:
    with Endpoint(handler=lambda _: (200, {}, reply)) as endpoint:
        recipe = values(tmp_path, endpoint.url)
        if complaint is None:
            found = made(tmp_path / "run", recipe)
            assert found.taken == 1 and found.refused["like another new one"] >= 20
        else:
            with pytest.raises(MmedgeError, match=complaint):
                made(tmp_path / "run", recipe)
        assert len(endpoint.served) <= 2 * 3 * 30


def test_no_more_is_asked_than_a_dry_run_says(tmp_path: Path) -> None:
    """Whether texts repeat each other, hold no question, or are far longer than they may be."""
    huge = completion("x" * 300_000)
    for name, reply in (("same", completion("Question: Put some fado on")), ("none", completion("")), ("huge", huge)):
        with Endpoint(handler=lambda _, reply=reply: (200, {}, reply)) as endpoint:  # type: ignore[misc]
            path = write_recipe(tmp_path / "r.yaml", values(tmp_path, endpoint.url, count=6))
            most = json.loads(mmedge("synthesize", path, "--out", tmp_path / name, "--dry-run", "--json").out)["requests_at_most"]
            done = mmedge("synthesize", path, "--out", tmp_path / name, "-q")
            assert done.code == (3 if name == "same" else 1), done.out + done.err
            assert most == 36 and len(endpoint.served) <= most
            assert name == "same" or len(endpoint.served) == most
    too_many = mmedge("synthesize", path, "--out", tmp_path / "same", "--dry-run", "--count", 100_001)
    assert is_one_line_error(too_many) and "give at most 100,000" in too_many.err
    fewer = json.loads(mmedge("synthesize", path, "--out", tmp_path / "same", "--dry-run", "--json", "--count", 2).out)
    assert fewer["requests_at_most"] == fewer["requests"] == 0  # all that two questions allow was asked
    assert "5 fewer than wanted" in mmedge("synthesize", path, "--out", tmp_path / "same", "-q").err
    assert (tmp_path / "huge" / "synthesis.sqlite").stat().st_size < 36 * 20_000


def test_a_damaged_file_of_new_questions_is_written_again(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        path = write_recipe(tmp_path / "r.yaml", values(tmp_path, endpoint.url, count=6))
        written = tmp_path / "run" / "synthesized.jsonl"
        for _ in range(2):
            assert mmedge("synthesize", path, "--out", tmp_path / "run", "-q").code == 0
            before, asked = written.read_bytes(), len(endpoint.served)
            written.write_bytes(before[:-10])
            found = mmedge("synthesize", path, "--out", tmp_path / "run", "-q")
            assert is_one_line_error(found) and "delete it: what the teacher wrote is in synthesis.sqlite" in found.err
            written.unlink()
        assert mmedge("synthesize", path, "--out", tmp_path / "run", "-q").code == 0
        assert written.read_bytes() == before and len(endpoint.served) == asked


def test_ids_of_new_questions_are_their_own(tmp_path: Path) -> None:
    recipe = values(tmp_path)
    write_questions(tmp_path / "new.jsonl", [NewQuestion("synthesized-lights-0", "put some fado on", (), "music", "me")])
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "synthesized-lights-0", "question": "Make it brighter", "label": "lights"}\n')
    with pytest.raises(MmedgeError, match="ids must not begin with 'synthesized-'"):
        made(tmp_path / "run", recipe)
    recipe["synthesis"]["file"] = str(tmp_path / "new.jsonl")
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", recipe), "--out", tmp_path / "run", "--dry-run")
    assert is_one_line_error(found) and "has the id of a training question" in found.err


def test_nobody_is_paid_for_what_the_method_cannot_learn_from(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        recipe = values(tmp_path, endpoint.url)
        recipe["teacher"]["evaluations_per_cot"] = 0
        found = mmedge("distill", write_recipe(tmp_path / "r.yaml", recipe), "--out", tmp_path / "run", "-q")
        assert is_one_line_error(found) and "teacher.evaluations_per_cot is 0" in found.err and not endpoint.served


def test_a_budget_stops_it_and_counts_annotations_too(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        recipe = values(tmp_path, endpoint.url)
        path = write_recipe(tmp_path / "r.yaml", recipe)
        first = mmedge("synthesize", path, "--out", tmp_path / "run", "--max-requests", 8, "--json")
        assert first.code == 3 and "stopped: one more request could exceed --max-requests 8" in first.err
        served = len(endpoint.served)
        assert served == 8 and 1 <= json.loads(first.out)["taken"] <= 8
        assert set(json.loads(first.out)["kinds"].values()) <= {2, 3, 4}  # balanced at any time
        second = mmedge("annotate", path, "--out", tmp_path / "run", "--max-requests", 10)
        assert second.code == 3 and len(endpoint.served) == 10
        assert mmedge("synthesize", path, "--out", tmp_path / "run", "--max-requests", 10).code == 3
        assert len(endpoint.served) == 10


def test_a_dry_run_and_the_prompts_send_nothing(tmp_path: Path) -> None:
    recipe = values(tmp_path)
    recipe["teacher"]["prices"] = {"input": 1000, "output": 1000}
    path = write_recipe(tmp_path / "r.yaml", recipe)
    dry = mmedge("synthesize", path, "--out", tmp_path / "run", "--dry-run", "--count", 100)
    assert dry.code == 0 and "0 of 100, balanced over 2 labels" in dry.out and "requests: 100, at most 600" in dry.out
    assert "cost: about" in dry.out
    assert json.loads(mmedge("synthesize", path, "--out", tmp_path / "run", "--dry-run", "--json").out)["requests"] == 30
    shown = mmedge("synthesize", path, "--show-prompts", "--out", tmp_path / "run").out
    assert "Dim the lamp by the sofa" in shown and "the right one for it is: lights" in shown and "Input: TEXT" in shown
    copied = mmedge("synthesize", path, "--copy-prompts", tmp_path / "prompts")
    assert copied.code == 0 and (tmp_path / "prompts" / "new_question.txt").is_file()
    assert is_one_line_error(mmedge("synthesize", path, "--copy-prompts", tmp_path / "prompts"))
    assert not (tmp_path / "run").exists()


def test_dialogues_are_not_shown_and_refused_where_there_is_nothing_else(tmp_path: Path) -> None:
    recipe, train = values(tmp_path), tmp_path / "train.jsonl"
    said = [("user", "Put on the radio"), ("assistant", "music"), ("user", "and now the porch")]
    talk = {"messages": [{"role": role, "content": text} for role, text in said], "label": "lights"}
    train.write_text(train.read_text() + f"{json.dumps(talk)}\n")
    path = write_recipe(tmp_path / "r.yaml", recipe)
    dry = mmedge("synthesize", path, "--out", tmp_path / "run", "--dry-run")
    assert dry.out.startswith("5 training questions (with messages, and so not shown: 1); new questions: 0 of 30")
    with Endpoint() as endpoint:
        recipe["teacher"]["base_url"] = endpoint.url
        assert made(tmp_path / "run", recipe).taken == 30
        assert not any(text in json.dumps(request) for request in endpoint.served for text in ("radio", "porch"))
    train.write_text(f"{json.dumps(talk)}\n")
    found = mmedge("synthesize", path, "--out", tmp_path / "all")
    assert is_one_line_error(found) and "every training question ends a dialogue (messages)" in found.err


def test_a_prompt_of_ones_own_is_checked(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("=== user\nLike {seeds}: {reply} {question}\n")
    path = write_recipe(tmp_path / "r.yaml", values(tmp_path, prompt=str(own)))
    found = mmedge("synthesize", path, "--show-prompts")
    assert is_one_line_error(found) and "own.txt:2: unknown placeholder {question}" in found.err


def test_bad_beginnings_are_one_line_before_anything_is_asked(tmp_path: Path) -> None:
    recipe = values(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"id": "t1", "question": "play some JAZZ!", "label": "music"}\n')
    with pytest.raises(MmedgeError, match="also the question 't1' of the split 'test'"):
        made(tmp_path / "run", recipe)
    (tmp_path / "test.jsonl").write_text("".join(f'{{"question": "{t} now", "label": "music"}}\n' for t in chain(*TRAIN.values())))
    with pytest.raises(MmedgeError, match="every training question is similar to a test question"):
        made(tmp_path / "run", recipe)
    with pytest.raises(MmedgeError, match="no teacher"):
        made(tmp_path / "run", values(tmp_path) | {"teacher": None})
    with pytest.raises(MmedgeError, match="recorded teacher has no questions"):
        made(tmp_path / "run", values(tmp_path) | {"teacher": {"kind": "recorded", "cots": "c.jsonl"}})
    assert not (tmp_path / "run").exists()


def test_a_recording_goes_through_the_same_sieve(tmp_path: Path) -> None:
    draw = random.Random(3)
    texts = [question_for(draw) for _ in range(60)]
    texts[:3] = ["Question: Turn the music down", "no question\nat\nall", texts[5]]
    records = [{"id": str(n), "text": text, "kind": ("lights", "music")[n % 2], "teacher": "t"} for n, text in enumerate(texts)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = values(tmp_path, count=20)
    recipe["teacher"] = {"kind": "recorded", "cots": str(tmp_path / "c.jsonl"), "questions": str(tmp_path / "q.jsonl")}
    found = made(tmp_path / "run", recipe)
    assert found.taken == 20 and found.kinds == {"lights": 10, "music": 10} and found.bill is None
    assert found.refused["like a test question"] == 1 and found.refused["no question found"] >= 1
    assert {question.id for question in read_questions(tmp_path / "run" / "synthesized.jsonl")} <= {
        f"synthesized-{n}" for n in range(60)
    }


def test_a_recording_that_names_some_kinds_keeps_them(tmp_path: Path) -> None:
    draw = random.Random(4)
    kinds = {0: "lights", 1: "music", 2: "music", 3: "musik"}
    records = [{"id": str(n), "text": question_for(draw), "kind": kinds.get(n)} for n in range(30)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = values(tmp_path, count=20)
    recipe["teacher"] = {"kind": "recorded", "cots": str(tmp_path / "c.jsonl"), "questions": str(tmp_path / "q.jsonl")}
    found = made(tmp_path / "run", recipe)
    taken = {question.id: question.kind for question in read_questions(tmp_path / "run" / "synthesized.jsonl")}
    assert found.taken == len(taken) == 20  # not balanced: most are of no kind that is known
    assert all(kind == kinds.get(int(id_.split("-")[1]), "").replace("musik", "") for id_, kind in taken.items())
    assert found.kinds == dict.fromkeys(TRAIN, 0) | Counter(filter(None, taken.values()))


def test_the_embedded_task_writes_annotates_and_learns_them(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    path = write_recipe(tmp_path / "r.yaml", recipe)
    first = mmedge("annotate", path, "--out", tmp_path / "run", "-q")  # before there are any new questions
    assert first.code == 0, first.err
    done = mmedge("synthesize", path, "--out", tmp_path / "run", "--count", 12, "--json")
    assert done.code == 0 and json.loads(done.out)["taken"] == 12, done.err
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    again = json.loads(mmedge("annotate", path, "--out", tmp_path / "run", "-q", "--json").out)
    assert again["questions"] == 172 and again["cots"]["stored"] == 344
    distilled = mmedge("distill", path, "--out", tmp_path / "run", "-q")
    assert distilled.code == 0, distilled.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    questions = read_questions(tmp_path / "other" / "synthesized.jsonl")
    write_questions(tmp_path / "other" / "synthesized.jsonl", questions[:-1])
    assert mmedge("distill", path, "--out", tmp_path / "other", "-q").code == 0
    assert json.loads((tmp_path / "other" / "run.json").read_text())["data_hash"] != run["data_hash"]
    changed = mmedge("synthesize", path, "--out", tmp_path / "other", "--count", 30, "-q")
    assert changed.code == 0
    assert is_one_line_error(mmedge("distill", path, "--out", tmp_path / "other", "-q"))  # it was trained on others


def test_a_file_of_new_questions_can_be_named(tmp_path: Path) -> None:
    write_questions(tmp_path / "new.jsonl", [NewQuestion("synthesized-1", "put some fado on", (), "music", "me")])
    recipe = values(tmp_path, file=str(tmp_path / "new.jsonl"))
    with pytest.raises(MmedgeError, match=r"synthesis\.file names questions"):
        made(tmp_path / "run", recipe)
    path = write_recipe(tmp_path / "r.yaml", recipe)
    found = mmedge("annotate", path, "--out", tmp_path / "run", "--dry-run", "--json")
    assert json.loads(found.out)["questions"] == 5
    for line, complaint in (
        ('{"id": "x", "question": "put it on"}', "does not begin with 'synthesized-'"),
        ('{"id": "synthesized-1"}', "field 'question'"),
        ('{"id": "synthesized-1", "question": "q"}\n' * 2, "occurs twice"),
        ('{"id": "synthesized-1", "question": "q", "choices": [1]}', "must be a list of texts"),
        ('{"id": "synthesized-1", "question": "q", "label": "music"}', "a new question has no label"),
        ('{"id": "synthesized-1", "question": "q", "kind": 5}', "field 'kind' must be text, found 5"),
        ('{"id": "synthesized-1", "question": "a \\ud800 lamp"}', "broken or control characters"),
        ('{"id": "synthesized-1", "question": "q", "kind": "musik"}', "is for 'musik', which is no label or function of this task"),
        ('{"id": "synthesized-1", "question": "turn the music down!"}', "is also the test question"),
    ):
        (tmp_path / "new.jsonl").write_text(line + "\n")
        found = mmedge("annotate", path, "--out", tmp_path / "run", "--dry-run")
        assert is_one_line_error(found) and complaint in found.err and "new.jsonl:" in found.err
    (tmp_path / "new.jsonl").unlink()
    assert "no such file" in mmedge("annotate", path, "--dry-run").err
