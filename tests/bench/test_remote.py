"""Bench on another machine: over a real sshd on loopback, with every way in which that fails, and nothing left behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from mmedge.bench.remote.agent import satisfies
from mmedge.bench.remote.core_wheel import write_core_wheel
from mmedge.bench.remote.session import agent_command, bundles_of, run_remote
from mmedge.engines.native.build import LIBRARY
from mmedge.errors import MmedgeError
from mmedge.installation import requirements
from mmedge.progress import Progress
from tests.bench.ssh_server import SSHD, Cable, Server, free_port, new_key, ssh_server
from tests.conftest import REPOSITORY, is_one_line_error, mmedge

needs_sshd = pytest.mark.skipif(SSHD is None, reason="there is no sshd: apt install openssh-server")
PYTHON = f'#!/bin/sh\nexport PATH="$PATH:/usr/bin:/bin"\nexec "{sys.executable}" "$@"\n'  # that which runs these tests
ASKED = ["--questions", "2", "--verdicts", "2", "--warmup", "1"]


def path_with(folder: Path, python: str | None) -> str:
    """Return a PATH that holds one script as `python3`, or no Python at all."""
    folder.mkdir()
    if python is not None:
        (folder / "python3").write_text(python)
        (folder / "python3").chmod(0o755)
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A board whose Python has the packages of the core already: the one that runs these tests."""
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "tmp").mkdir()
    here = path_with(folder / "bin", PYTHON)
    with ssh_server(folder / "server", here, folder / "tmp") as running:
        yield running


def left_behind(server: Server) -> list[str]:
    """Return what a measurement left on the board, once it had time to go."""
    deadline = time.monotonic() + 20
    while (found := [entry.name for entry in server.temporary.iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def complaint(server: Server, bundle: Path, config: Path) -> MmedgeError:
    """Return the error of a measurement that must fail."""
    with pytest.raises(MmedgeError) as caught:
        run_remote("board", [bundle], None, ASKED, Progress(quiet=True), config)
    assert "\n" not in caught.value.what and "\n" not in caught.value.hint
    return caught.value


@needs_sshd
def test_a_bundle_is_measured_on_another_machine_and_nothing_stays_there(server: Server, tiny_run: Path, tmp_path: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    there = "ssh://board"
    done = mmedge("bench", bundle, "--remote", there, "--ssh-config", server.config, *ASKED, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "bench.json").read_text())
    assert report["variants"][0]["name"] == "onnxruntime int8" and report["variants"][0]["latency_ms"]["count"] == 4
    assert report["variants"][0]["folder"] == "bundle-int8"
    assert report["remote"]["host"] == there and "already" in report["remote"]["packages"]
    assert "ssh://board: opening" in done.err
    assert left_behind(server) == []


@needs_sshd
def test_a_host_that_cannot_be_reached_and_a_key_that_is_refused_are_one_line(server: Server, tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    wrong_key = new_key(server.folder / "wrong")
    open_key = server.folder / "open"
    shutil.copy(server.folder / "key", open_key)
    open_key.chmod(0o644)
    cases = [
        (server.client("nobody", Port=free_port()), "no SSH server answers"),
        (server.client("nowhere", HostName="board.invalid"), "no host of this name"),
        (server.client("wrong-key", IdentityFile=wrong_key), "rejected this user and key"),
        (server.client("open-key", IdentityFile=open_key), "others can read your private key"),
        (server.client("stranger", UserKnownHostsFile="/dev/null"), "host key that is not known"),
    ]
    for config, expected in cases:
        assert expected in complaint(server, bundle, config).what
    done = mmedge("bench", bundle, "--remote", "board", "--ssh-config", cases[2][0], *ASKED, "-q")
    assert is_one_line_error(done) and "ssh-copy-id" in done.err


@needs_sshd
@pytest.mark.parametrize(
    ("python", "expected"),
    [(None, "has no Python 3.11 or newer"), ("#!/bin/sh\necho Python 3.6.9\nexit 1\n", "there is Python 3.6.9")],
)
def test_no_python_there_or_one_too_old_is_one_line(python: str | None, expected: str, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with ssh_server(tmp_path / "server", path_with(tmp_path / "bin", python), tmp_path / "tmp") as server:
        assert expected in complaint(server, tiny_run / "bundle-int8", server.config).what


@needs_sshd
def test_no_space_there_is_one_line_before_anything_is_copied(tiny_run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        here = path_with(tmp_path / "bin", PYTHON)
        with ssh_server(tmp_path / "server", here, small) as server:
            assert "no space on board" in complaint(server, tiny_run / "bundle-int8", server.config).what
            assert left_behind(server) == []
    finally:
        subprocess.run(["umount", small], check=True)


@needs_sshd
def test_what_fails_over_there_is_told_in_its_own_words(server: Server, tiny_run: Path, tmp_path: Path) -> None:
    questions = tmp_path / "empty.jsonl"
    questions.write_text((tiny_run / "evaluation.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(MmedgeError, match="on board: the evaluation set has no test questions"):
        run_remote("board", [tiny_run / "bundle-int8"], questions, ASKED, Progress(quiet=True), server.config)
    assert left_behind(server) == []


@needs_sshd
@pytest.mark.parametrize("moment", ["copying", "measuring"])
def test_a_connection_that_is_cut_half_way_leaves_nothing(server: Server, tiny_run: Path, moment: str) -> None:
    cable = Cable(server.port)
    known = server.folder / f"known-{moment}"
    known.write_text(f"[127.0.0.1]:{cable.port} {(server.folder / 'host.pub').read_text()}")
    config = server.client(f"cut-{moment}", Port=cable.port, UserKnownHostsFile=known)

    class Cutting(Progress):
        """Cuts the cable when a line says that the moment has come."""

        def line(self, text: str) -> None:
            if moment == "measuring" and "opening" in text:
                assert any(server.temporary.iterdir())
                cable.cut()

    bundle = tiny_run / "bundle-int8"
    if moment == "copying":
        large = server.folder / "large"
        shutil.copytree(bundle, large)
        (large / "weights.data").write_bytes(bytes(400_000_000))
        bundle = large
        threading.Thread(target=cut_while_copying, args=(server, cable), daemon=True).start()
    with pytest.raises(MmedgeError, match="the connection to board was cut while"):
        run_remote("board", [bundle], tiny_run / "evaluation.jsonl", ["--questions", "12"], Cutting(quiet=True), config)
    assert left_behind(server) == []
    assert not running_under(server.temporary)


def cut_while_copying(server: Server, cable: Cable) -> None:
    """Cut a cable when the first bytes of a large file have arrived."""
    deadline = time.monotonic() + 60
    while not any(server.temporary.glob("*/bundles/0/large/weights.data")) and time.monotonic() < deadline:
        time.sleep(0.005)
    cable.cut()


def running_under(folder: Path) -> list[str]:
    """Return the command lines of processes that work in a folder or name it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = (entry / "cwd").readlink().is_relative_to(folder)
        except OSError:
            continue
        if inside or f"{folder}/mmedge-bench-" in line:
            found.append(line)
    return found


@needs_sshd
def test_an_interrupt_here_ends_the_measurement_there(server: Server, tiny_run: Path) -> None:
    arguments = ["bench", tiny_run / "bundle-int8", "--remote", "board", "--ssh-config", server.config, "--questions", "12"]
    command = [sys.executable, "-m", "mmedge", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("opening" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate()[1] and process.returncode == 130
    assert left_behind(server) == [] and not running_under(server.temporary)


# ----------------------------------------------------------------------------------------------- the agent without ssh


def agent(temporary: Path, changed: tuple[str, str] = ("", ""), limit: int | None = None) -> subprocess.Popen[bytes]:
    """Start the agent as ssh would; perhaps with another constant, or with a limit on the size of files."""
    script = resources.files("mmedge.bench.remote").joinpath("agent.py").read_text()
    assert changed[0] in script
    script = script.replace(*changed) if changed[0] else script

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=limited,
    )


def next_message(running: subprocess.Popen[bytes]) -> dict[str, object]:
    """Return what the agent says next."""
    assert running.stdout is not None
    found: dict[str, object] = json.loads(running.stdout.readline().removeprefix(b"mmedge:"))
    return found


def vanishes(folder: Path) -> bool:
    """Whether a folder is gone soon."""
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not folder.exists()


def file_frame(name: str, data: bytes) -> bytes:
    """Return a file as it is sent."""
    digest = hashlib.sha256(data).hexdigest()
    return json.dumps({"kind": "file", "name": name, "bytes": len(data), "sha256": digest}).encode() + b"\n" + data


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_an_agent_that_is_killed_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    with agent(tmp_path) as running:
        folder = Path(str(next_message(running)["folder"]))
        assert folder.is_dir()
        running.send_signal(how)
        assert vanishes(folder)


def test_an_agent_that_hears_nothing_more_leaves_by_itself(tmp_path: Path) -> None:
    with agent(tmp_path, ("SILENCE = 60.0", "SILENCE = 0.5")) as running:
        folder = Path(str(next_message(running)["folder"]))
        assert vanishes(folder) and running.wait(timeout=20) == 1


@pytest.mark.parametrize(
    ("frame", "limit", "expected"),
    [
        (file_frame("../escaped", b"x"), None, "points outside the folder"),
        (file_frame("/tmp/escaped", b"x"), None, "points outside the folder"),
        (file_frame("weights.data", bytes(2_000_000)), 1_000_000, "weights.data cannot be written: File too large"),
        (file_frame("a", b"whole").replace(b"whole", b"other"), None, "a was damaged in transfer"),
    ],
)
def test_what_cannot_be_received_is_one_line(frame: bytes, limit: int | None, expected: str, tmp_path: Path) -> None:
    with agent(tmp_path / "tmp", limit=limit) as running:
        next_message(running)
        assert running.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            running.stdin.write(frame)
            running.stdin.flush()
        told = next_message(running)
        assert told["kind"] == "problem" and expected in str(told["what"])
        assert next_message(running) == {"kind": "left"}
    assert [entry.name for entry in tmp_path.rglob("*")] == ["tmp"]


def asked_to_run(wheel: Path, **requirements: str) -> bytes:
    """Return the frames of a wheel and of a bench with it."""
    run = {"kind": "run", "wheel": wheel.name, "requirements": requirements, "arguments": ["--help"]}
    return file_frame(wheel.name, wheel.read_bytes()) + json.dumps(run).encode() + b"\n"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (("400_000_000", "10**18"), "no space to install no-such-package"),
        (('"-m", "', '"-m", "no_'), "there is neither venv nor pip"),
        pytest.param(("", ""), "pip there cannot install no-such-package", marks=pytest.mark.slow),  # a whole venv
        (('"-m", "venv"', '"-m", "no_venv"'), "pip there cannot install no-such-package"),
    ],
)
def test_packages_that_cannot_be_installed_there_are_one_line(
    changed: tuple[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as on a board without a network
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    wheel = write_core_wheel(tmp_path)
    with agent(tmp_path / "tmp", changed) as running:
        next_message(running)
        assert running.stdin is not None
        running.stdin.write(asked_to_run(wheel, **{"no-such-package": ">=1"}))
        running.stdin.flush()
        while (told := next_message(running))["kind"] == "line":
            pass
        assert told["kind"] == "problem" and expected in str(told["what"]), told
        assert next_message(running) == {"kind": "left"}
    assert not list((tmp_path / "tmp").iterdir())


def test_places_that_are_no_bundles_are_refused_before_anything_connects(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    refused = ((tiny_run / "student", "is a student"), (tmp_path / "none", "no such folder"), (tmp_path, "no bundle yet"))
    for place, expected in refused:
        with pytest.raises(MmedgeError, match=expected):
            run_remote("board.invalid", [place], None, [], Progress(quiet=True))
    for host in ("-oProxyCommand=true", "", "a b"):
        with pytest.raises(MmedgeError, match="invalid host"):
            run_remote(host, [tiny_run / "bundle-int8"], None, [], Progress(quiet=True))


def test_a_run_means_its_bundles(tiny_run: Path) -> None:
    assert bundles_of([tiny_run, tiny_run / "bundle-int8"]) == [tiny_run / "bundle-fp32", tiny_run / "bundle-int8"]


def test_the_wheel_is_one_that_pip_installs_and_holds_every_module(tmp_path: Path) -> None:
    wheel = write_core_wheel(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    assert write_core_wheel(again).read_bytes() == wheel.read_bytes()
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(tmp_path / "there")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True, capture_output=True)
    modules = {file.relative_to(REPOSITORY) for file in (REPOSITORY / "mmedge").rglob("*.py")}
    assert modules == {file.relative_to(tmp_path / "there") for file in (tmp_path / "there" / "mmedge").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None


def test_no_library_is_sent_that_was_compiled_for_another_machine(tmp_path: Path) -> None:
    foreign = LIBRARY.parent / "libmmedge-native-foreign.so"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"\x7fELF")
    try:
        wheel = write_core_wheel(tmp_path)
    finally:
        foreign.unlink()
    compiled = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")  # Linux, Windows, macOS
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "compiled/" in name or archive.read(name).startswith(compiled)]
        assert b"Tag: py3-none-any\n" in archive.read(next(name for name in archive.namelist() if name.endswith("/WHEEL")))


def test_what_the_core_requires_is_read_from_its_metadata() -> None:
    assert {"numpy", "onnxruntime", "tokenizers"} <= requirements().keys() and "torch" not in requirements()
    assert requirements()["numpy"].startswith(">=") and "torch" in requirements("distill")
    for version, limits, expected in [
        ("1.26.4", ">=1.26", True),
        ("1.25", ">=1.26", False),
        ("5.17.0", ">=4.57,<4.58", False),
        ("2", ">=2.0", True),
        ("1.32.0.dev3", ">=1.22", True),
        ("0.1.0", "==0.1.0", True),
    ]:
        assert satisfies(version, limits) is expected
        assert SpecifierSet(limits).contains(version, prereleases=True) is expected


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "ksh", "fish", "busybox ash"])
def test_the_agent_starts_whatever_the_login_shell_is(shell: str, tmp_path: Path) -> None:
    command = shell.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {shell}")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "-c", agent_command()], stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    assert done.stdout.startswith(b'mmedge:{"kind": "ready"'), done.stderr
    assert not list(tmp_path.glob("mmedge-bench-*"))
    assert len(agent_command()) < 100_000  # a single argument may have 128 KiB on Linux


@needs_sshd
@pytest.mark.slow
def test_a_python_without_packages_gets_a_venv(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = path_with(tmp_path / "bin", PYTHON.replace(sys.executable, str(base)))
    with ssh_server(tmp_path / "server", here, tmp_path / "tmp") as server:
        report = run_remote("board", [tiny_run / "bundle-int8"], None, ASKED, Progress(quiet=True), server.config)
        assert report.remote is not None and "venv" in report.remote.packages
        assert left_behind(server) == []
