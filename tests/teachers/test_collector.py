"""Collections that are disturbed in every way end as undisturbed ones do: nothing lost, nothing twice, nothing paid twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmedge.annotations.collection import Collection
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import Recipe, validate
from mmedge.tasks import build_task
from mmedge.teachers.collect import annotate
from mmedge.teachers.collector import CollectionResult
from mmedge.teachers.plan import Limits
from tests.conftest import REPOSITORY, is_one_line_error, mmedge, write_recipe
from tests.teachers.endpoint import Endpoint, completion
from tests.teachers.faulty_proxy import FAULTS, FaultyProxy

QUESTIONS, COTS, EVALUATIONS = 20, 5, 2


def values(url: str, **teacher: Any) -> dict[str, Any]:
    """A recipe for the embedded task's questions, asked of an endpoint."""
    stage = {"max_steps": 1}
    asked = {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "timeout_seconds": 5}
    counts = {"cots_per_question": COTS, "evaluations_per_cot": EVALUATIONS, "attempts": 8}
    return {
        "name": "asked",
        "task": {"kind": "arithmetic", "train": QUESTIONS, "test": 2},
        "teacher": asked | counts | teacher,
        "student": {"source": "scratch"},
        "training": {"stage1": stage, "stage2": stage},
    }


def collect(folder: Path, recipe: Recipe, limits: Limits | None = None) -> CollectionResult:
    task = build_task(recipe.task.model_dump())
    with AnnotationStore(folder / "annotations.sqlite") as store:
        found = annotate(recipe, task, task.load().train, store, Progress(quiet=True), limits or Limits())
    assert found is not None
    return found


def held(folder: Path) -> dict[str, Any]:
    """What a store holds, without what differs from run to run: times, numbers of collectors and requests."""
    with closing(sqlite3.connect(folder / "annotations.sqlite")) as connection:
        rows = {
            "annotations": "SELECT * FROM annotations ORDER BY example_id, kind, sample, evaluation",
            "responses": "SELECT example_id, kind, sample, draw, finish, outcome, text FROM responses ORDER BY 1, 2, 3, 4",
            "subjects": "SELECT example_id, kind, sample, wanted, state FROM subjects ORDER BY 1, 2, 3",
            "outcomes": "SELECT * FROM outcomes WHERE count > 0 ORDER BY 1, 2",
        }
        return {name: connection.execute(query).fetchall() for name, query in rows.items()}


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmedge.teachers.pace.FIRST_RETRY", 0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with Endpoint() as endpoint:
        assert collect(folder, validate(values(endpoint.url), "r")).complete
    return held(folder)


def test_everything_that_was_asked_for_is_there(undisturbed: dict[str, Any]) -> None:
    kinds = Counter(row[1] for row in undisturbed["annotations"])
    assert kinds == {"cot": QUESTIONS * COTS, "evaluation": QUESTIONS * COTS * EVALUATIONS}
    assert {row[4] for row in undisturbed["subjects"]} == {"done"}
    texts: dict[str, set[str]] = {}
    for row in undisturbed["annotations"]:
        if row[1] == "cot":
            texts.setdefault(row[0], set()).add(row[4])
    assert all(len(found) == COTS for found in texts.values())  # distinct means distinct
    outcomes = {(kind, outcome): count for kind, outcome, count in undisturbed["outcomes"]}
    assert outcomes["cot", "identical"] > 0 and outcomes["cot", "no answer found"] > 0  # both were drawn again


def test_a_server_that_does_not_know_n_gives_as_many_texts(tmp_path: Path) -> None:
    with Endpoint(knows_n=False) as endpoint:
        assert collect(tmp_path, validate(values(endpoint.url), "r")).complete
        assert sum(request.get("n", 1) > 1 for request in endpoint.served) <= 2  # it is asked for several until it shows
    kinds = Counter(row[1] for row in held(tmp_path)["annotations"])
    assert kinds == {"cot": QUESTIONS * COTS, "evaluation": QUESTIONS * COTS * EVALUATIONS}


def test_faults_of_all_kinds_change_nothing(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Endpoint() as endpoint, FaultyProxy(endpoint.port, share=0.3, seed=3, stall=30) as proxy:
        found = collect(tmp_path, validate(values(proxy.url, timeout_seconds=0.5), "r"))
        assert found.complete and not found.postponed
        assert held(tmp_path) == undisturbed
        assert set(proxy.faults) == set(FAULTS)
        with closing(sqlite3.connect(tmp_path / "annotations.sqlite")) as connection:
            statuses = dict(connection.execute("SELECT status, COUNT(*) FROM requests GROUP BY status").fetchall())
    assert statuses.pop("ok") == proxy.passed  # every whole answer was taken, once
    assert sum(statuses.values()) == sum(proxy.faults.values()) == found.requests - proxy.passed
    assert statuses["garbage"] == proxy.faults["garbage"] and statuses["timeout"] == proxy.faults["stall"]


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmedge", "annotate", str(recipe), "--out", str(folder), "--quiet", "--json"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_collection_killed_ten_times_equals_an_undisturbed_one(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    rng = random.Random(5)
    with Endpoint(delay=0.02) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, concurrency=4))
        stored: set[int] = set()
        asked_again, kills = 0, 0
        while True:
            before = len(endpoint.served)
            process = start(recipe, tmp_path)
            if kills == 10:
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, err
            else:
                wanted = before + rng.randint(2, 24)
                while len(endpoint.served) < wanted and process.poll() is None:
                    time.sleep(rng.random() * 0.01)
                process.kill()
                process.communicate()
            asked_again += sum(request["seed"] in stored for request in endpoint.served[before:])
            if (tmp_path / "annotations.sqlite").is_file():
                with closing(sqlite3.connect(tmp_path / "annotations.sqlite")) as connection:
                    stored = {row[0] for row in connection.execute("SELECT seed FROM requests WHERE status = 'ok'")}
            if kills == 10:
                break
            kills += 1
    assert held(tmp_path) == undisturbed
    assert asked_again == 0  # what was finished was not sent again
    bill = json.loads(out)["bill"]
    assert bill["requests"] == len(stored)
    assert 0 < bill["in_flight_when_killed"]["requests_at_most"] <= 10 * 8


def test_two_collectors_share_one_store_without_overlap(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Endpoint(delay=0.1) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, concurrency=4))
        both = [start(recipe, tmp_path), start(recipe, tmp_path)]
        for process in both:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        seeds = Counter(request["seed"] for request in endpoint.served)
    assert held(tmp_path) == undisturbed
    assert max(seeds.values()) == 1
    with closing(sqlite3.connect(tmp_path / "annotations.sqlite")) as connection:
        shares = [row[0] for row in connection.execute("SELECT COUNT(*) FROM requests GROUP BY collector")]
        assert connection.execute("SELECT COUNT(*) FROM collectors WHERE ended IS NULL").fetchone()[0] == 0
    assert len(shares) == 2 and min(shares) > 10


def test_an_interrupted_collection_waits_for_what_it_has_sent(tmp_path: Path) -> None:
    with Endpoint(delay=0.4) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url))
        process = start(recipe, tmp_path)
        while endpoint.in_flight < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        served = len(endpoint.served)
    assert process.returncode == 130 and "run the same command again" in err and "Traceback" not in err
    with closing(sqlite3.connect(tmp_path / "annotations.sqlite")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM requests WHERE status = 'ok'").fetchone()[0] == served
        assert connection.execute("SELECT COUNT(*) FROM subjects WHERE collector IS NOT NULL").fetchone()[0] == 0


# ------------------------------------------------------------------------------------------------------ limits


def test_a_collection_stops_before_its_limit_of_requests_and_goes_on_when_it_is_raised(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    with Endpoint(delay=0.01) as endpoint:
        recipe = validate(values(endpoint.url), "r")
        first = collect(tmp_path, recipe, Limits(max_requests=37))
        assert not first.complete and first.stopped == "--max-requests 37"
        assert len(endpoint.served) == first.spent.requests == 37
        assert collect(tmp_path, recipe, Limits(max_requests=37)).requests == 0
        assert collect(tmp_path, recipe, Limits(max_requests=10_000)).complete
    assert held(tmp_path) == undisturbed


def test_the_bill_never_exceeds_the_maximal_cost(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Endpoint(delay=0.01) as endpoint:
        prices = {"input": 10.0, "output": 30.0}  # a request for one text: 100 and 20 tokens, 0.0016
        recipe = validate(values(endpoint.url, prices=prices, max_cot_tokens=40, max_evaluation_tokens=40), "r")
        found = collect(tmp_path, recipe, Limits(max_cost=0.1))
        assert not found.complete and found.stopped == "--max-cost 0.1"
        assert 0.08 < found.spent.cost <= 0.1  # close to it, and not beyond
        billed = sum(1e-6 * (100 * 10 + 20 * request.get("n", 1) * 30) for request in endpoint.served)
        assert found.spent.cost == pytest.approx(billed)
        assert collect(tmp_path, recipe).complete
    assert held(tmp_path) == undisturbed


def test_another_teacher_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        collect(tmp_path, validate(values(endpoint.url, cots_per_question=1, evaluations_per_cot=0), "r"))
        with pytest.raises(MmedgeError, match=r"differs in temperature \(0.7, now 0.9\)"):
            collect(tmp_path, validate(values(endpoint.url, temperature=0.9), "r"))
        same = values(endpoint.url, cots_per_question=1, evaluations_per_cot=0, concurrency=3, timeout_seconds=9)
        assert collect(tmp_path, validate(same, "r")).requests == 0  # how it is reached decides nothing


def test_a_maximal_cost_without_prices_is_refused(tmp_path: Path) -> None:
    with Endpoint() as endpoint, pytest.raises(MmedgeError, match="a maximum cost requires"):
        collect(tmp_path, validate(values(endpoint.url), "r"), Limits(max_cost=1.0))
    assert endpoint.served == []


def test_what_a_killed_collector_may_have_spent_counts_against_the_limit(tmp_path: Path) -> None:
    with Endpoint(delay=5) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, max_requests=10, timeout_seconds=30))
        process = start(recipe, tmp_path)
        while not endpoint.in_flight:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        endpoint.delay = 0.0
        found = collect(tmp_path, validate(values(endpoint.url), "r"), Limits(max_requests=10))
    assert found.stopped and found.spent.requests < 10  # the one that was in flight is taken for sent


def test_more_may_be_asked_for_later_and_what_is_there_stays(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Endpoint() as endpoint:
        assert collect(tmp_path, validate(values(endpoint.url, cots_per_question=2, evaluations_per_cot=0), "r")).complete
        few = held(tmp_path)["annotations"]
        assert len(few) == QUESTIONS * 2
        assert collect(tmp_path, validate(values(endpoint.url, cots_per_question=5, evaluations_per_cot=2), "r")).complete
    more = held(tmp_path)["annotations"]
    assert set(few) <= set(more) and len(more) == len(undisturbed["annotations"])


# ----------------------------------------------------------------------------------------------- what goes wrong


def test_the_endpoint_decides_how_many_requests_are_in_flight(tmp_path: Path) -> None:
    room = 6

    def crowded(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        return (429, {}, b"{}") if endpoint.in_flight > room else None

    with Endpoint(handler=crowded, delay=0.02) as endpoint:
        found = collect(tmp_path, validate(values(endpoint.url, concurrency=256, evaluations_per_cot=1), "r"))
        assert found.complete
        refused = found.errors.get("rate limited", 0)
        assert refused < 0.6 * found.requests, found


def test_a_question_that_always_fails_is_left_for_the_next_run(tmp_path: Path) -> None:
    broken = True

    def picky(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        return (500, {}, b"{}") if broken and words in asked["messages"][-1]["content"] else None

    with Endpoint(handler=picky) as endpoint:
        recipe = validate(values(endpoint.url, cots_per_question=1, evaluations_per_cot=0), "r")
        words = build_task(recipe.task.model_dump()).load().train[7].question
        found = collect(tmp_path, recipe)
        assert not found.complete and found.postponed == 1 and found.errors == {"server error 500": 8}
        broken = False
        assert collect(tmp_path, recipe).complete
    assert len(held(tmp_path)["annotations"]) == QUESTIONS


def test_an_endpoint_that_always_says_the_same_is_noticed(tmp_path: Path) -> None:
    with Endpoint(handler=lambda _: (200, {}, completion("3 + 4 = 7. The answer is 7."))) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, evaluations_per_cot=0, attempts=2))
        found = mmedge("annotate", recipe, "--out", tmp_path / "run")
    assert found.code == 0 and "does the endpoint honour teacher.temperature?" in found.out
    assert f"{QUESTIONS} questions or chains of thought have fewer texts than wanted" in found.out


def test_texts_that_are_no_answers_are_kept_apart_and_given_up_at_last(tmp_path: Path) -> None:
    with Endpoint(handler=lambda _: (200, {}, completion("I cannot", "", finish="length"))) as endpoint:
        found = collect(tmp_path, validate(values(endpoint.url, attempts=2), "r"))
    assert found.complete and found.given_up == QUESTIONS
    everything = held(tmp_path)
    assert everything["annotations"] == [] and len(everything["responses"]) == 2 * COTS * QUESTIONS
    assert {row[5] for row in everything["responses"]} == {"truncated"}


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (401, b'{"error": {"message": "bad key"}}', "refuses requests without a key"),
        (404, b'{"error": {"message": "no model m"}}', "does not know the model 'm'"),
        (400, b'{"error": {"message": "unsupported"}}', "rejects every request: unsupported"),
        (200, b"<html>", "does teacher.base_url name an OpenAI-compatible endpoint?"),
    ],
)
def test_a_hopeless_endpoint_ends_the_command_with_one_line(tmp_path: Path, status: int, body: bytes, complaint: str) -> None:
    with Endpoint(handler=lambda _: (status, {}, body)) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url))
        found = mmedge("annotate", recipe, "--out", tmp_path)
        assert len(endpoint.served) <= 6
    assert is_one_line_error(found) and complaint in found.err, found.err
    with AnnotationStore(tmp_path / "annotations.sqlite") as store:  # it opens afterwards
        assert Collection(store).spent().requests == len(endpoint.served)


def test_a_few_questions_that_are_all_rejected_say_why(tmp_path: Path) -> None:
    with Endpoint(handler=lambda _: (413, {}, b'{"error": {"message": "too long"}}')) as endpoint:
        recipe = values(endpoint.url)
        recipe["task"]["train"] = 2
        with pytest.raises(MmedgeError, match="rejects every request: too long"):
            collect(tmp_path, validate(recipe, "r"))
        endpoint.handler = None  # it was the recipe's fault, or the endpoint's: no question is given up for it
        assert collect(tmp_path, validate(recipe, "r")).complete
    assert Counter(row[1] for row in held(tmp_path)["annotations"]) == {"cot": 2 * COTS, "evaluation": 2 * COTS * EVALUATIONS}


def test_one_question_that_is_rejected_is_given_up_alone(tmp_path: Path) -> None:
    recipe = validate(values("http://x/"), "r")
    words = build_task(recipe.task.model_dump()).load().train[0].question

    def picky(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        return (400, {}, b"{}") if words in asked["messages"][-1]["content"] else None

    with Endpoint(handler=picky) as endpoint:
        found = collect(tmp_path, validate(values(endpoint.url, evaluations_per_cot=0), "r"))
        assert found.complete and found.given_up == 1
    assert len(held(tmp_path)["annotations"]) == (QUESTIONS - 1) * COTS


def test_what_may_have_been_billed_though_it_did_not_arrive_is_in_the_bill(tmp_path: Path) -> None:
    turns: Iterator[tuple[int, dict[str, str], bytes] | None] = iter([None, (200, {}, b"{half"), (429, {}, b"{}")])
    with Endpoint(handler=lambda _: next(turns, None)) as endpoint:
        recipe = values(endpoint.url, prices={"input": 10.0, "output": 30.0}, max_cot_tokens=40, evaluations_per_cot=0)
        found = collect(tmp_path, validate(recipe, "r"))
        whole = sum(1e-6 * (100 * 10 + 20 * request.get("n", 1) * 30) for request in endpoint.served) - 2 * 1e-6 * (1000 + 3000)
    lost = found.spent.cost - whole
    assert found.errors == {"garbage": 1, "rate limited": 1}
    assert 1e-6 * 5 * 40 * 30 < lost < 0.01  # its texts at their longest, and its prompt


def test_an_endpoint_out_of_reach_ends_the_command_with_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values("http://127.0.0.1:9/v1"))
    found = mmedge("annotate", recipe, "--out", tmp_path)
    assert is_one_line_error(found) and "is the server running" in found.err, found.err


def test_a_key_stands_nowhere_in_the_run(tmp_path: Path) -> None:
    key = "sk-never-to-be-written-0123456789"
    os.environ["MMEDGE_TEST_KEY"] = key
    said = json.dumps({"error": {"message": f"slow down, {key}"}}).encode()
    turns = iter([(429, {"Retry-After": "0"}, said), (500, {}, said)])
    with Endpoint(handler=lambda _: next(turns, None)) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, api_key_env="MMEDGE_TEST_KEY"))
        found = mmedge("annotate", recipe, "--out", tmp_path / "run")
        assert found.code == 0 and key in endpoint.served[0]["_head"]
    assert key not in found.out + found.err
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


# ------------------------------------------------------------------------------------------------------ the store


def test_a_full_disk_ends_with_one_line_and_a_store_that_goes_on(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Endpoint() as endpoint:
        recipe = validate(values(endpoint.url), "r")
        task = build_task(recipe.task.model_dump())
        with AnnotationStore(tmp_path / "annotations.sqlite") as store:
            store.query("PRAGMA max_page_count = 40")  # SQLite itself then says that the disk is full
            with pytest.raises(MmedgeError) as caught:
                annotate(recipe, task, task.load().train, store, Progress(quiet=True))
        assert "full" in str(caught.value) and "free some disk space and run the same command again" in str(caught.value)
        assert collect(tmp_path, recipe).complete
    assert held(tmp_path) == undisturbed


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount a small file system")
def test_a_disk_that_is_really_full(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(small)], check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        with Endpoint() as endpoint:
            recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url))
            found = mmedge("annotate", recipe, "--out", small / "run")
            assert is_one_line_error(found) and "free some disk space" in found.err, found.err
            subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
            again = mmedge("annotate", recipe, "--out", small / "run")
            assert again.code == 0, again.err
        assert held(small / "run") == undisturbed
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        read_only = mmedge("review", small / "run")
        assert is_one_line_error(read_only) and "a folder that you may write to" in read_only.err, read_only.err
    finally:
        subprocess.run(["umount", str(small)], check=False)


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [
        ({"base_url": "http://me:secret@localhost/v1"}, "carries a password or key"),
        ({"base_url": "http://localhost/v1?api_key=secret"}, "carries a password or key"),
        ({"extra": {"n": 7}}, "'n' is set by other fields"),
        ({"extra": {"max_tokens": 100000}}, "'max_tokens' is set by other fields"),
    ],
)
def test_recipes_that_would_write_a_secret_or_break_a_limit(tmp_path: Path, teacher: dict[str, Any], complaint: str) -> None:
    recipe = values("http://localhost/v1") | {"teacher": values("http://localhost/v1")["teacher"] | teacher}
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", recipe), "--out", tmp_path / "run")
    assert is_one_line_error(found) and complaint in found.err and "secret" not in found.err, found.err
    assert not (tmp_path / "run").exists()


def test_many_read_while_one_writes(tmp_path: Path) -> None:
    with Endpoint(delay=0.02) as endpoint:
        recipe = write_recipe(tmp_path / "r.yaml", values(endpoint.url, concurrency=4))
        process = start(recipe, tmp_path)
        counts = []
        while process.poll() is None:
            if (tmp_path / "annotations.sqlite").is_file() and endpoint.served:
                with closing(sqlite3.connect(f"file:{tmp_path}/annotations.sqlite?mode=ro", uri=True)) as connection:
                    counts.append(connection.execute("SELECT COUNT(*) FROM annotations").fetchone()[0])
            time.sleep(0.02)
        process.communicate()
    assert process.returncode == 0 and counts == sorted(counts) and len(set(counts)) > 3
