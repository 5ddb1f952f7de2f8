"""The cascade: what the student doubts goes to a bigger model; whatever that does, clients get an answer."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.runtime.escalation import EscalatedAnswer
from mmedge.serve.cascade import Cascade
from mmedge.tasks.base import Example
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.forms.expression import ExpressionForm
from tests.serve.conftest import T5
from tests.serve.running import QUESTION, serving

RIGHT = json.dumps(
    {
        "choices": [{"message": {"content": "She adds.\nThe answer is: 3 + 4"}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
    }
).encode()
DEEP = b'{"choices": ' + b"[" * 100_000
HALF = json.dumps({"choices": [{"message": {"content": "She adds \ud800.\nThe answer is: 3 + 4"}}]}).encode()
ASKED = {"model": T5, "question": QUESTION}
DOUBT = ("--abstain-below", 1.0, "--escalate-model", "big", "--escalate-timeout", 0.5)


@contextmanager
def bigger(kind: str) -> Iterator[str]:
    """An endpoint that answers, or does what bad endpoints do."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if kind == "drips":
                return self.drip([b"HTTP/1.1 200 OK\r\nX: "], b"y")
            if kind == "endless headers":
                return self.drip([b"HTTP/1.1 200 OK\r\n"], b"X: y\r\n" * 100)
            if kind == "endless chunks":
                return self.drip([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], b"3E8\r\n" + b" " * 1000 + b"\r\n")
            if kind == "endless":
                return self.drip([b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"], b" " * 1000)
            if kind == "slow":
                time.sleep(1.5)
            self.send_response({"redirects": 302, "fails": 500, "echoes": 401}.get(kind, 200))
            if kind == "redirects":
                self.send_header("Location", f"http://127.0.0.1:{found.server_port}/v1/chat/completions")
            said = json.dumps({"error": {"message": f"not this key: {self.headers['Authorization']}"}}).encode()
            bodies = {"answers": RIGHT, "slow": RIGHT, "deep": DEEP, "half a character": HALF, "echoes": said}
            body = bodies.get(kind, b"nonsense")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def drip(self, first: list[bytes], piece: bytes) -> None:
            for part in [*first, *[piece] * 100]:
                self.wfile.write(part)
                time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # clients that went away

    found = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    found.server_close()


def test_what_the_student_doubts_the_bigger_model_answers(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "secret-123")
    with bigger("answers") as url:
        options = [*DOUBT, "--escalate-to", url, "--escalate-key", "BIG_KEY", "--price-input", 2, "--price-output", 10]
        with serving(tmp_path, [tiny_run / "bundle-int8"], *options) as running:
            reply = running.chat(T5)
            choice = reply.json["choices"][0]
            assert choice["message"]["content"] == "3 + 4" and choice["mmedge"]["source"] == "big"
            assert choice["mmedge"]["value"] == "7" and choice["mmedge"]["guess"]
            assert reply.headers["x-mmedge-source"] == "big" and "x-mmedge-degraded" not in reply.headers
            assert float(reply.headers["x-mmedge-cost"]) == pytest.approx(0.003)
            assert running.metric("mmedge_escalation_cost_total") == pytest.approx(0.003)
            chunks = running.chat(T5, stream=True).events()[:-1]
            assert "".join(chunk["choices"][0]["delta"].get("content") or "" for _, chunk in chunks) == "3 + 4"
            assert running.log(1)[0]["source"] == "big" and "degraded" not in running.log()[0]
            assert "secret" not in running.out.read_text(encoding="utf-8") + running.err.read_text(encoding="utf-8")


BAD = ["fails", "redirects", "nonsense", "slow", "endless", "drips", "endless headers", "endless chunks", "deep", "echoes", "dead"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_bigger_model_leaves_the_students_answer_marked(
    kind: str, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "secret-123")
    with bigger(kind) as url:
        url = "http://127.0.0.1:9/v1" if kind == "dead" else url
        with serving(tmp_path, [tiny_run / "bundle-int8"], *DOUBT, "--escalate-to", url, "--escalate-key", "BIG_KEY") as running:
            reply = running.post("/v1/answer", ASKED)
            found = reply.json
            assert reply.status == 200 and reply.headers["x-mmedge-source"] == "student" == found["source"]
            assert reply.headers["x-mmedge-degraded"] == "true" and found["degraded"]
            assert found["answer"] == found["guess"] and not found["withheld"]
            assert found["problem"] == "the bigger model did not answer" and url.encode() not in reply.body
            assert found["seconds"] < 4
            running.stop()
            assert running.log()[-1]["problem"] and running.log()[-1]["degraded"] and running.log()[-1]["source"] == "student"
            assert "secret" not in running.out.read_text(encoding="utf-8") + running.err.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "header"), [("org/big:8b", "org/big:8b"), ("größer, 2", "gr%C3%B6%C3%9Fer%2C%202")])
def test_header_and_body_name_the_same_source(name: str, header: str, tmp_path: Path, tiny_run: Path) -> None:
    options = ["--abstain-below", 1.0, "--escalate-model", name, "--escalate-to"]
    with bigger("answers") as url, serving(tmp_path, [tiny_run / "bundle-int8"], *options, url) as running:
        reply = running.post("/v1/answer", ASKED)
        assert reply.json["source"] == name and reply.headers["x-mmedge-source"] == header


def test_half_a_character_of_a_bigger_model_is_replaced(tmp_path: Path, tiny_run: Path) -> None:
    options = [*DOUBT, "--escalate-to"]
    with bigger("half a character") as url, serving(tmp_path, [tiny_run / "bundle-int8"], *options, url) as running:
        found = running.post("/v1/answer", ASKED | {"explain": True}).json
        assert found["answer"] == "3 + 4" and found["rationale"] == "She adds \ufffd."


def test_a_server_that_escalates_to_itself_answers(tmp_path: Path, tiny_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--abstain-below", 1.0, "--escalate-to", f"http://127.0.0.1:{port}/v1", "--escalate-model", T5, "--port", port]
    with serving(tmp_path, [tiny_run / "bundle-int8"], *options) as running:
        found = running.post("/v1/answer", ASKED).json
        assert found["degraded"] and found["answer"] == found["guess"]
        assert running.metric("mmedge_requests_total") <= 8  # it asked itself, and there it ended


def test_a_loop_that_hides_itself_ends(tmp_path: Path, tiny_run: Path) -> None:
    """A proxy between a server and itself drops the header that tells of an escalation."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read()
            connection.close()
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{proxy.server_port}/v1"
    options = ["--abstain-below", 1.0, "--escalate-to", url, "--escalate-model", T5, "--port", port]
    with serving(tmp_path, [tiny_run / "bundle-int8"], *options) as running:
        found = running.post("/v1/answer", ASKED)
        assert found.status == 200 and found.json["answer"] == found.json["guess"]
        assert running.metric("mmedge_requests_total") < 30
    proxy.shutdown()
    proxy.server_close()


class _Failing:
    name = "big"
    asked = 0

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        self.asked += 1
        raise MmedgeError("it is down")


def test_a_model_that_keeps_failing_is_left_alone_for_a_while() -> None:
    failing = _Failing()
    cascade = Cascade(failing, rest=0.2)
    for complaint in ("down", "down", "down", "left alone", "left alone"):
        with pytest.raises(MmedgeError, match=complaint):
            cascade.ask(Example("q", QUESTION), ExpressionForm())
    assert failing.asked == 3
    time.sleep(0.25)
    with pytest.raises(MmedgeError, match="down"):
        cascade.ask(Example("q", QUESTION), ExpressionForm())


def test_only_so_many_questions_are_in_flight() -> None:
    gate, inside = threading.Event(), threading.Event()

    class Slow:
        name = "big"

        def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
            inside.set()
            gate.wait(10)
            return EscalatedAnswer("1", "", 0, 0, 0.0, 0.0)

    cascade = Cascade(Slow(), at_once=1)
    first = threading.Thread(target=cascade.ask, args=(Example("q", QUESTION), ExpressionForm()))
    first.start()
    inside.wait(10)
    with pytest.raises(MmedgeError, match="already"):
        cascade.ask(Example("q", QUESTION), ExpressionForm())
    gate.set()
    first.join()
