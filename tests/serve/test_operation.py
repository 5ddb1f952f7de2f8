"""How the server is operated: keys, limits, health, metrics, logs, its end, and one-line errors."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import certificate_in
from tests.commands import REPOSITORY
from tests.conftest import is_one_line_error, mmedge
from tests.serve.conftest import T5
from tests.serve.running import JSON, QUESTION, Reply, Running, serving

KEY = "a-long-random-word"
ASKED = {"model": T5, "question": QUESTION}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Iterator[Running]:
    """A server with keys, a small body and short times."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"# of the laboratory\nanother-key\n\n{KEY}\n", encoding="utf-8")
    options = ["--api-key-file", folder / "keys", "--max-body", 2000, "--body-timeout", 0.5, "--max-clients", 4]
    with serving(folder, [tiny_run / "bundle-int8"], *options) as running:
        yield running


def test_without_a_key_nothing_but_health_answers(guarded: Running) -> None:
    assert guarded.get("/healthz").body == b"ok\n" and guarded.get("/readyz").body == b"ready\n"
    for path in ("/", "/metrics", "/v1/models", "/nothing"):
        reply = guarded.get(path)
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key", path
        assert guarded.get(path, Authorization=f"Bearer {KEY}x").status == 401
    assert guarded.post("/v1/answer", ASKED).status == 401
    assert guarded.post("/v1/answer", ASKED, Authorization=f"Bearer {KEY}").status == 200
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()  # what a browser sends when it has asked
    assert guarded.get("/", Authorization=f"Basic {basic}").status == 200
    for wrong in ("Basic !!!", "Basic", "Digest x", f"bearer  {KEY[:-1]}"):
        assert guarded.get("/", Authorization=wrong).status == 401
    assert KEY not in guarded.out.read_text(encoding="utf-8") + guarded.err.read_text(encoding="utf-8")


def test_a_large_body_is_413_and_a_slow_one_408(guarded: Running) -> None:
    headers = JSON | {"Authorization": f"Bearer {KEY}"}
    stated = guarded.ask("POST", "/v1/answer", b"x" * 3000, headers)
    assert stated.status == 413 and stated.error["code"] == "body_too_large"

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 1500] * 4

    chunked = guarded.ask("POST", "/v1/answer", chunks(), headers)  # type: ignore[arg-type]
    assert chunked.status == 413
    with socket.create_connection(("127.0.0.1", guarded.port), 10) as slow:
        head = f"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(100)
    for sent, status in ((b"", b""), (b"P", b" 408 "), (b"POST /v1/answer HTTP/1.1\r\nHo", b" 408 ")):
        with socket.create_connection(("127.0.0.1", guarded.port), 10) as never:  # its head is not there in time
            never.sendall(sent)
            said = b"".join(iter(lambda: never.recv(1000), b""))
            assert (status in said and b'"timeout"' in said) if status else not said


def test_too_many_clients_are_told_to_come_again(guarded: Running) -> None:
    head = f"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    waiting = [socket.create_connection(("127.0.0.1", guarded.port), 10) for _ in range(4)]
    for one in waiting:
        one.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    time.sleep(0.1)
    reply = guarded.get("/v1/models", Authorization=f"Bearer {KEY}")
    assert reply.status == 503 and reply.headers["retry-after"] == "1" and reply.error["code"] == "overloaded"
    assert guarded.get("/healthz").status == 200
    for one in waiting:
        one.close()


def test_a_full_queue_is_429(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--max-rows", 1, "--max-waiting", 0, "--threads", 1) as running:
        statuses: list[int] = []
        slow = {"model": T5, "messages": [{"role": "user", "content": QUESTION}], "temperature": 1, "n": 16}

        def ask() -> None:
            reply = running.post("/v1/chat/completions", slow)
            statuses.append(reply.status)
            assert reply.status == 200 or reply.headers["retry-after"] == "1"

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}


def test_an_answer_that_takes_too_long_is_503(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--timeout", 0.1, "--max-rows", 1) as running:
        slow = {"model": T5, "prompt": [QUESTION * 20] * 16, "mmedge": {"cut": True}}
        asked = [slow | {"stream": place % 2 == 0} for place in range(20)]
        running.post("/v1/completions", slow | {"prompt": QUESTION})  # the first answer of a server takes longest
        for _ in range(10):  # on a busy machine no stream may have begun in time
            threads = [threading.Thread(target=running.post, args=("/v1/completions", one)) for one in asked]
            for thread in threads:
                thread.start()
            reply = running.post("/v1/completions", slow)
            assert reply.status == 503 and reply.error["code"] == "timeout" and "retry-after" in reply.headers
            for thread in threads:
                thread.join()
            if any(line["status"] == 200 and line.get("failed") == "timeout" for line in running.log()):
                return
        raise AssertionError("no stream that had begun was ended")


def test_what_is_logged_and_counted(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"]) as running:
        running.post("/v1/answer", ASKED)
        running.chat(T5, mmedge={"abstain_below": 1.0})
        running.get("/v1/secret-path")
        running.get("/healthz")
        assert running.metric("mmedge_answers_total") == 2 and running.metric("mmedge_request_seconds_count") == 2
        assert running.metric("mmedge_tokens_total") > 0 and running.metric("mmedge_queue_length") == 0
        first, second, third, *_ = running.log(3)
        assert (first["route"], first["status"], first["model"], first["source"]) == ("/v1/answer", 200, T5, "student")
        assert second["source"] == "student" and second["withheld"] and "withheld" not in first
        assert third["route"] == "other" and third["status"] == 404
        text = running.out.read_text(encoding="utf-8")
        assert "apples" not in text and "secret" not in text and "healthz" not in text


def test_a_body_must_say_that_it_is_json(server: Running) -> None:
    reply = server.ask("POST", "/v1/answer", json.dumps(ASKED).encode(), {"Content-Type": "text/plain"})
    assert reply.status == 415 and reply.error["code"] == "unsupported_media_type"


def test_a_local_server_answers_to_its_own_names_alone(server: Running, tmp_path: Path, tiny_run: Path) -> None:
    """Another site's page can make its own name lead to this machine; browsers then take both for one site."""
    for name in ("localhost", f"localhost:{server.port}", "127.0.0.1", "[::1]:80", "a.localhost"):
        assert server.get("/v1/models", Host=name).status == 200, name
    for name in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "localhost.evil.example:80", ""):
        reply = server.get("/v1/models", Host=name)
        assert reply.status == 421 and reply.error["code"] == "wrong_host", name
        assert server.post("/v1/answer", ASKED, Host=name).status == 421 and server.get("/", Host=name).status == 421
    assert server.get("/healthz", Host="evil.example").status == 200
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--allow-host", "Students.example") as running:
        assert running.get("/v1/models", Host="students.example").status == 200
        assert running.get("/v1/models", Host="evil.example").status == 421


def test_headers_of_the_page_and_of_everything_else(server: Running) -> None:
    for path in ("/", "/v1/models", "/healthz", "/nothing"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "frame-ancestors 'none'" in headers["content-security-policy"]
        )
        assert not any(name.startswith("access-control") for name in headers)


def test_the_page_runs_nothing_but_its_own_script(server: Running) -> None:
    reply = server.get("/")
    page, policy = reply.body.decode(), reply.headers["content-security-policy"]
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "http" not in page and "src=" not in page and "innerHTML" not in page and "style=" not in page
    names = re.findall(r'<(?:select|textarea|input type="range") id="(\w+)"', page)
    assert all(f'for="{name}"' in page for name in names) and len(names) >= 3


def test_on_sigterm_what_is_being_answered_is_answered(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"]) as running:
        statuses: list[int] = []

        def ask() -> None:
            asked = {"model": T5, "prompt": [QUESTION * 10] * 16, "mmedge": {"cut": True}}
            statuses.append(running.post("/v1/completions", asked).status)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while running.metric("mmedge_running") + len(statuses) < 6:
            time.sleep(0.01)
        assert running.stop() == 0
        for thread in threads:
            thread.join()
        assert statuses == [200] * 6
        with pytest.raises(OSError):
            running.get("/healthz")


def test_tls(tmp_path: Path, tiny_run: Path) -> None:
    pair = certificate_in(tmp_path)
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--certificate", pair, "--key", pair) as running:
        context = ssl.create_default_context(cafile=str(pair))
        connection = http.client.HTTPSConnection("localhost", running.port, context=context, timeout=30)
        connection.request("POST", "/v1/answer", json.dumps(ASKED), JSON)
        assert connection.getresponse().status == 200
        connection.close()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, tiny_run: Path) -> None:
    pair, locked = certificate_in(tmp_path), tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(pair), "-out", str(locked)]
    subprocess.run(command, capture_output=True, check=True)
    done = mmedge("serve", tiny_run / "bundle-int8", "--certificate", pair, "--key", locked)
    assert is_one_line_error(done) and f"the key {locked} is encrypted" in done.err and "Enter PEM" not in done.out + done.err


def test_what_cannot_be_logged_harms_no_client(tmp_path: Path, tiny_run: Path) -> None:
    """Whoever read the log is gone."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "mmedge", "serve", str(tiny_run / "bundle-int8"), "--port", "0"]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        os.close(writing)
        assert process.stderr is not None
        port = int(process.stderr.readline().strip().rpartition(":")[2])
        os.close(reading)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(3):  # on one connection
            connection.request("POST", "/v1/answer", json.dumps(ASKED), JSON)
            reply = connection.getresponse()
            assert reply.status == 200 and json.loads(reply.read())["answer"] is not None
        connection.close()
        process.terminate()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_not_answered_before_the_server_ends_is_told_so(tmp_path: Path, tiny_run: Path, stream: bool) -> None:
    """The bigger model holds it up for longer than it may."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        options = ["--abstain-below", 1.0, "--escalate-to", url, "--escalate-model", "big", "--drain", 1]
        with serving(tmp_path, [tiny_run / "bundle-int8"], *options) as running:
            replies: list[Reply] = []
            client = threading.Thread(target=lambda: replies.append(running.post("/v1/answer", ASKED | {"stream": stream})))
            client.start()
            silent.accept()
            assert running.stop() == 0
            client.join()
            (reply,) = replies
            if stream:
                assert reply.status == 200 and reply.events()[-1][1]["error"]["code"] == "shutting_down"
            else:
                assert reply.status == 503 and reply.error["code"] == "shutting_down" and reply.headers["retry-after"] == "1"
                assert reply.headers["x-content-type-options"] == "nosniff"
            assert running.log()[-1]["status"] == reply.status
            assert running.log()[-1].get("failed") == ("shutting_down" if stream else None)


def test_a_proxy_may_name_a_client_by_its_address_alone(tmp_path: Path, tiny_run: Path) -> None:
    with serving(tmp_path, [tiny_run / "bundle-int8"]) as running:
        for said in ("192.0.2.7", "secret words", "x" * 9000, "fe80::1%secret"):
            assert running.post("/v1/answer", ASKED, **{"X-Forwarded-For": said}).status == 200
        assert [line["client"] for line in running.log(4)] == ["192.0.2.7", "", "", "fe80::1"]


def test_another_method_is_told_which_there_are(server: Running) -> None:
    for path, methods in (("/v1/answer", {"POST"}), ("/v1/models", {"GET", "HEAD"})):
        reply = server.ask("PUT", path)
        assert reply.status == 405 and set(reply.headers["allow"].split(", ")) == methods


def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path, tiny_run: Path) -> None:
    pair = certificate_in(tmp_path)
    options = ["--certificate", pair, "--key", pair, "--body-timeout", 0.5]
    with serving(tmp_path, [tiny_run / "bundle-int8"], *options) as running:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", running.port), 5) as connection:
                connection.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(1000):
                        pass  # an alert, or nothing; then the end
        running.stop()
        assert running.err.read_text(encoding="utf-8").count("\n") == 1 and not running.log()


def test_what_cannot_be_served_is_one_line(tmp_path: Path, tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    (tmp_path / "empty").write_text("# none\n", encoding="utf-8")
    shutil.copytree(bundle, tmp_path / "deep")
    (tmp_path / "deep" / "manifest.json").write_text("[" * 100_000, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ([tmp_path / "nothing"], "no such bundle"),
            ([bundle, bundle], "two bundles are called tiny/bundle-int8"),
            ([bundle, "--port", port], f"port {port} of 127.0.0.1 is in use"),
            ([bundle, "--host", "203.0.113.7"], "no address 203.0.113.7"),
            ([bundle, "--api-key-file", tmp_path / "none"], "cannot read the keys"),
            ([bundle, "--api-key-file", tmp_path / "empty"], "holds no key"),
            ([bundle, "--certificate", bundle], "--certificate and --key go together"),
            ([bundle, "--certificate", tmp_path / "empty", "--key", tmp_path / "empty"], "cannot use the certificate"),
            ([bundle, "--target-accuracy", 0.9], "not calibrated"),
            ([bundle, "--escalate-to", "http://127.0.0.1:9/v1"], "go together"),
            ([bundle, "--escalate-to", "http://127.0.0.1:9/v1", "--escalate-model", "m"], "requires a confidence threshold"),
            ([bundle, "--abstain-below", 0.5, "--max-withheld", 0.1], "--abstain-below and --max-withheld contradict each other"),
            ([tmp_path / "deep"], "manifest.json: JSON nested too deeply"),
        ]
        for arguments, complaint in cases:
            done = mmedge("serve", *arguments)
            assert is_one_line_error(done) and complaint in done.err and "\n  → " in done.err, (arguments, done.err)
    for option in ("--drain", "--timeout", "--body-timeout", "--escalate-timeout"):
        done = mmedge("serve", bundle, option, "inf")
        assert done.code == 2 and "must be at most 86400" in done.err
