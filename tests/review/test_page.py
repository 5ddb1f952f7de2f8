"""The page: decisions through its server, refusals of everybody else, text that is only text; and Argilla's records."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.store import AnnotationStore
from mmedge.review.app import PAGE
from mmedge.serve.page import policy_of
from mmedge.tasks.synthesized import NewQuestion, write_questions
from tests.commands import start
from tests.conftest import is_one_line_error, made_once, mmedge, tiny_recipe, write_recipe

JSON = {"Content-Type": "application/json"}
EVIL = "</textarea><script>alert(1)</script> \"'&"


@dataclass
class Shown:
    """A page that is served.

    Attributes:
        port: Where.
        token: What addresses begin with.
        folder: The run.
    """

    port: int
    token: str
    folder: Path

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, ({} if body is None else JSON) | given)
            response = connection.getresponse()
            content = response.read()
            kind = response.headers.get("content-type", "")
            found = json.loads(content) if kind.startswith("application/json") else content.decode()
            return response.status, found, {name.lower(): value for name, value in response.headers.items()}
        finally:
            connection.close()

    def decide(self, **asked: Any) -> Any:
        status, found, _ = self.ask("POST", f"/{self.token}/decide", asked)
        return found if status == 200 else found["error"]["message"]


@pytest.fixture(scope="session")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "reviewed", _write_run)


def _write_run(folder: Path) -> None:
    lines = [json.dumps({"id": f"q{n}", "question": f"Is it {n}? {EVIL}", "label": "yes"}) for n in range(14)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text(json.dumps({"id": "t0", "question": "Is it tested?", "label": "yes"}))
    files = {"train_file": str(folder / "train.jsonl"), "test_files": {"test": str(folder / "test.jsonl")}}
    task = {"kind": "jsonl", **files, "form": {"kind": "label", "labels": ["yes", "no"]}}
    teacher = {"kind": "recorded", "cots": "c.jsonl"}
    (folder / "run").mkdir()
    write_recipe(folder / "run" / "recipe.yaml", tiny_recipe(name="shown", task=task, teacher=teacher))
    write_questions(folder / "run" / "synthesized.jsonl", [NewQuestion("synthesized-no-0", "Is it new?", (), "no", "m")])
    with AnnotationStore(folder / "run" / "annotations.sqlite") as store:
        for id_ in (*(f"q{n}" for n in range(14)), "synthesized-no-0"):
            store.add(
                [
                    Annotation(id_, "cot", s, 0, f"{EVIL} The answer is {a}.", None, "t", "")
                    for s, a in enumerate(("yes", "no", "no"))
                ]
            )
            store.add([Annotation(id_, "evaluation", 0, 0, "It is.", "correct", "t", "")])


@pytest.fixture
def run(reviewed: Path, tmp_path: Path) -> Path:
    shutil.copytree(reviewed / "run", tmp_path / "run")
    return tmp_path / "run"


@contextmanager
def page_of(run: Path, err: Path) -> Iterator[Shown]:
    """Serve the page of a run; it must end in order."""
    err.write_text("")
    process = start(["review", run, "--page", "--reviewer", "ann"], stderr=err)
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", err.read_text())):
        assert process.poll() is None and time.monotonic() < deadline, err.read_text()
        time.sleep(0.01)
    yield Shown(int(found[1]), found[2], run)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, err.read_text()


@pytest.fixture
def shown(run: Path, tmp_path: Path) -> Iterator[Shown]:
    with page_of(run, tmp_path / "err") as found:
        yield found


@pytest.fixture(scope="module")
def page(reviewed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A page whose run is not changed."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(reviewed / "run", folder / "run")
    with page_of(folder / "run", folder / "err") as found:
        yield found


def test_questions_are_accepted_mended_dropped_and_undone(shown: Shown) -> None:
    status, page, headers = shown.ask("GET", f"/{shown.token}/")
    assert status == 200 and page == PAGE and headers["content-security-policy"] == policy_of(PAGE)
    assert "src=" not in page and "http://" not in page and "innerHTML" not in page
    _, listed, _ = shown.ask("GET", f"/{shown.token}/questions?show=undecided")
    assert listed["total"] == 15 and len(listed["questions"]) == 10 and listed["decided"] == 0 and listed["labels"] == ["yes", "no"]
    first = listed["questions"][0]
    assert first["question"].endswith(EVIL) and first["label"] == "yes" and first["suggestion"] == "no"
    assert first["agreement"] == pytest.approx(2 / 3) and [text["answer"] for text in first["texts"] if text["answer"]] == [
        "yes",
        "no",
        "no",
    ]
    accepted = shown.decide(id="q0", kind="question", what="accept", label="no")
    assert accepted["decision"]["who"] == "ann" and accepted["decision"]["label"] == "no"
    assert shown.decide(id="q1", kind="question", what="drop")["decision"]["what"] == "drop"
    mended = shown.decide(id="q2", kind="cot", sample=1, what="mend", text="Oh. The answer is yes.")
    assert [text["answer"] for text in mended["texts"] if text["kind"] == "cot"] == ["yes", "yes", "no"]
    judged = shown.decide(id="q2", kind="evaluation", sample=0, what="mend", text="Not so.", verdict="wrong")
    assert [text["verdict"] for text in judged["texts"] if text["kind"] == "evaluation"] == ["wrong"]
    for show, count in (("undecided", 12), ("decided", 3), ("new", 1), ("all", 15)):
        assert shown.ask("GET", f"/{shown.token}/questions?show={show}")[1]["total"] == count
    _, undone, _ = shown.ask("POST", f"/{shown.token}/undo", {})
    assert undone["question"]["id"] == "q2"
    _, undone, _ = shown.ask("POST", f"/{shown.token}/undo", {"id": "q1", "kind": "question"})
    assert undone["question"]["decision"] is None
    assert shown.ask("POST", f"/{shown.token}/undo", {"id": "q9", "kind": "question"})[1] == {"question": None}
    report = mmedge("review", shown.folder, "--json", "-q")  # while the page is open
    assert report.code == 0, report.err


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"id": "q99", "kind": "question", "what": "accept"}, "unknown question 'q99'"),
        ({"id": "q1", "kind": "cot", "sample": 7, "what": "drop"}, "question 'q1' has no cot with these numbers"),
        ({"id": "q1", "kind": "poem", "what": "drop"}, "kind must be one of"),
        ({"id": "q1", "kind": "question", "what": "burn"}, "what must be one of"),
        ({"id": "q1", "kind": "question", "what": "mend"}, "nothing is mended"),
        (
            {"id": "q1", "kind": "question", "what": "mend", "question": f"is  it 2? {EVIL}"},
            "question 'q2' has this wording",
        ),
        ({"id": "q1", "kind": "question", "what": "mend", "question": "Is it tested?"}, "the test question 't0' has this wording"),
        ({"id": "q1", "kind": "question", "what": "drop", "label": "no"}, "label does not go with drop"),
        ({"id": "q1", "kind": "question", "what": "accept", "label": "perhaps"}, "the label is not an answer of this form"),
        ({"id": "q1", "kind": "question", "what": "accept", "label": 5}, "label must be text"),
        ({"id": "q1", "kind": "question", "what": "mend", "question": "x" * 20_001}, "at most 20,000 characters"),
        ({"id": "q1", "kind": "cot", "sample": 0, "what": "mend", "text": "Who knows?"}, "the text cannot be read"),
        ({"id": "q1", "kind": "evaluation", "what": "mend", "text": "x", "verdict": "maybe"}, "verdict must be one of"),
        ([], "the body must be a JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(page: Shown, asked: Any, complaint: str) -> None:
    status, found, _ = page.ask("POST", f"/{page.token}/decide", asked)
    assert status == 400 and complaint in found["error"]["message"] and "\n" not in found["error"]["message"]


def test_other_pages_and_machines_are_refused(page: Shown) -> None:
    body = {"id": "q1", "kind": "question", "what": "drop"}
    decide, port = f"/{page.token}/decide", page.port
    assert page.ask("GET", "/")[0] == page.ask("GET", "/questions")[0] == page.ask("GET", f"/{page.token}")[0] == 404
    assert page.ask("GET", f"/{page.token[:-1]}x/questions")[0] == 404
    assert page.ask("POST", decide, body, Host="evil.example")[0] == 403  # a name that an attacker points here
    assert page.ask("GET", f"/{page.token}/", Host=f"evil.example:{port}")[0] == 403
    assert page.ask("POST", decide, body, Origin="https://evil.example")[0] == 403
    assert page.ask("POST", decide, body, Origin="null")[0] == 403
    assert page.ask("POST", decide, body, Sec_Fetch_Site="cross-site")[0] == 403
    assert page.ask("POST", decide, body, Content_Type="text/plain")[0] == 415  # what a form of another site may send
    assert page.ask("POST", decide, b"{" + b" " * 200_000 + b"}")[0] == 413
    assert page.ask("GET", decide)[0] == 405 and page.ask("GET", f"/{page.token}/../etc")[0] == 404
    assert page.ask("GET", f"/{page.token}/questions?start=-1")[0] == page.ask("GET", f"/{page.token}/questions?show=x")[0] == 400
    status, _, headers = page.ask(
        "GET", f"/{page.token}/questions", Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin"
    )
    assert status == 200 and headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert page.ask("GET", f"/{page.token}/questions?show=decided")[1]["total"] == 0


def test_records_go_to_argilla_and_come_back(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    assert mmedge("review", run, "--to-argilla", out).out.strip().endswith("15 records")
    records = json.loads(out.read_text())
    assert records[0].keys() == {"id", "fields", "metadata", "suggestions", "responses", "vectors", "_server_id"}
    assert records[0]["fields"]["question"].endswith(EVIL) and records[0]["suggestions"]["answer"]["value"] == "yes"
    assert (
        records[-1]["metadata"] == {"source": "synthesized", "kind": "no"} and records[-1]["suggestions"]["answer"]["value"] == "no"
    )
    assert is_one_line_error(mmedge("review", run, "--to-argilla", out))
    one, two, three = (str(uuid.UUID(int=number)) for number in range(3))

    def said(**answers: str) -> dict[str, list[dict[str, str]]]:
        return {name: [{"value": value, "user_id": one}] for name, value in answers.items()}

    records[0]["responses"] = said(decision="accept", answer="no")
    records[1]["responses"] = said(decision="drop", answer="no")
    records[2]["responses"] = said(wording="Is it two?")
    records[3]["responses"] = {"decision": [{"value": "accept", "user_id": one}, {"value": "drop", "user_id": two}]}
    records[4]["responses"] = {
        "decision": [{"value": v, "user_id": u} for v, u in (("drop", one), ("accept", two), ("drop", three))]
    }
    records[5]["id"] = "somebody else's"
    back = tmp_path / "back.json"
    back.write_text(json.dumps(records))
    found = mmedge("review", run, "--from-argilla", back)
    assert found.out.strip().endswith("4 decisions stored, 9 without a response, 1 disputed, 1 unknown"), found.out + found.err
    assert "0 decisions stored, 4 stored before" in mmedge("review", run, "--from-argilla", back).out
    again = tmp_path / "again.json"
    assert mmedge("review", run, "--to-argilla", again, "--only", "decided").out.strip().endswith("4 records")
    answers = {
        record["id"]: {name: given[0]["value"] for name, given in record["responses"].items()}
        for record in json.loads(again.read_text())
    }
    assert answers == {
        "q0": {"decision": "accept", "answer": "no"},
        "q1": {"decision": "drop"},
        "q2": {"decision": "mend", "wording": "Is it two?"},
        "q4": {"decision": "drop"},
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a JSON list of records"),
        ('[{"fields": {}}]', "[0]: expected a record with 'id'"),
        ('[{"id": "q0", "responses": {"decision": [{"value": "burn"}]}}]', "[0]: a response to 'decision' must be one of"),
        ('[{"id": "q0", "responses": {"answer": [{"value": 3}]}}]', "[0]: a response to 'answer' must be text"),
        ('[{"id": "q0", "responses": {"answer": [{"value": null}]}}]', "must be text, found null"),
        ('[{"id": "q1", "responses": {"answer": "no"}}]', "[0]: the responses to 'answer' must be a list"),
        ('[{"id": "q0", "responses": {"wording": [{"value": "a \\ud800 lamp"}]}}]', "question has broken or control characters"),
        (
            '[{"id": "q0", "responses": {"wording": [{"value": "a \\u001b[31m lamp"}]}}]',
            "question has broken or control characters",
        ),
        (
            '[{"id": "q0", "responses": {"decision": [{"value": "drop"}]}}, {"id": "q0"}]',
            "[1]: the question 'q0' was already at 0",
        ),
        (
            '[{"id": "q1", "responses": {"answer": [{"value": "no"}]}},'
            ' {"id": "q0", "responses": {"answer": [{"value": "perhaps"}]}}]',
            "): the label is not an answer",
        ),
    ],
)
def test_broken_records_are_one_line_and_store_nothing(run: Path, tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "r.json").write_text(content)
    found = mmedge("review", run, "--from-argilla", tmp_path / "r.json")
    assert is_one_line_error(found) and complaint in found.err
    assert mmedge("review", run, "--to-argilla", tmp_path / "out.json", "--only", "decided").out.strip().endswith("0 records")


def test_synthesized_questions_are_exported_for_a_recorded_teacher(run: Path, tmp_path: Path) -> None:
    found = mmedge("review", run, "--export", tmp_path / "texts", "-q")
    assert found.code == 0, found.err
    record = {"id": "synthesized-no-0", "kind": "no", "teacher": "m", "text": "Question: Is it new?"}
    assert json.loads((tmp_path / "texts" / "questions.jsonl").read_text()) == record
