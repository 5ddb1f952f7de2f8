"""`mmedge bench --remote user@host`: bundles measured on the machine that they are for, with nothing but Python on it.

One ssh connection carries everything. It starts the text of `agent.py` over there, given to Python as an argument; the agent
gets the core as a wheel, the bundles and the evaluation set through its standard input, and sends progress and the report
back through its standard output. It removes what it was given when it is done, or when the connection is gone.

    mmedge bench runs/quickstart/bundle-int8 --remote pi@board.local --questions 20
    mmedge bench runs/quickstart/bundle-int8 --remote ssh://pi@board.local:2222

ssh is the system's own: keys, agents, jump hosts and names come from its configuration. Passwords are never asked for. The
login shell there must read `'quoted text'` as sh does: bash, zsh, dash, ash, ksh and fish do, csh does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from mmedge.bench.remote.core_wheel import write_core_wheel
from mmedge.bench.results import BenchReport, RemoteFacts
from mmedge.bundle import read_manifest
from mmedge.errors import MmedgeError, printable
from mmedge.folders import bundles_in
from mmedge.installation import requirements
from mmedge.progress import Progress
from mmedge.tasks.evaluation_set import FILE_NAME

ALIVE_SECONDS = 5.0  # how often the agent is told that the connection is alive
READY_SECONDS = 90.0  # a connection, a login and the start of Python on a slow board
ENDS_SECONDS = 20.0  # what the agent may take to remove its folder
MARK = b"mmedge:"
LONGEST_LINE = 1 << 29  # bytes; the report, with every raw sample, is one line

_OPTIONS = {
    "BatchMode": "yes",  # a password could not be typed in
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "ForwardAgent": "no",
    "LogLevel": "ERROR",
    "ServerAliveCountMax": "6",
    "ServerAliveInterval": "5",
}

_FIND_PYTHON = """found=
for python in python3 python3.14 python3.13 python3.12 python3.11 python; do
  command -v "$python" >/dev/null 2>&1 || continue
  if "$python" -c "import sys; raise SystemExit(sys.version_info < (3, 11))" >/dev/null 2>&1; then exec "$python" -c "$1"; fi
  found="$found$("$python" -V 2>&1), "
done
echo "mmedge-no-python:$found"
"""

_SWITCHED_ON = "is it on, and on this network?"
_KNOWN_HOSTS = "ssh to it once by hand, and compare its fingerprint"
_REASONS = (  # what ssh writes, what that means, what to do
    (
        "Could not resolve hostname",
        "cannot be reached: unknown host name",
        "check the name, or its entry in ~/.ssh/config",
    ),
    (
        "Connection refused",
        "cannot be reached: no SSH server answers on this port",
        "start sshd there, or name the port: ssh://USER@HOST:PORT",
    ),
    ("timed out", "cannot be reached: it does not answer", _SWITCHED_ON),
    ("No route to host", "cannot be reached: there is no route to it", _SWITCHED_ON),
    ("Network is unreachable", "cannot be reached: there is no route to it", "is this machine on a network?"),
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "has a different host key than before",
        f"if it was reinstalled: ssh-keygen -R HOST, then {_KNOWN_HOSTS}",
    ),
    ("Host key verification failed", "has a host key that is not known here", _KNOWN_HOSTS),
    (
        "UNPROTECTED PRIVATE KEY FILE",
        "was not contacted: others can read your private key, so ssh refuses it",
        "chmod 600 the key",
    ),
    ("Permission denied", "rejected this user and key", "ssh-copy-id to it first, or load the key: ssh-add"),
    (
        "Too many authentication failures",
        "rejected this user and key",
        "name one key for it in ~/.ssh/config: IdentityFile",
    ),
    (
        "Bad configuration option",
        "was not contacted: ssh cannot read its configuration",
        "connect with ssh by hand, and see what it says",
    ),
)


def agent_command() -> str:
    """Return the command for the login shell over there: find a Python that is new enough, and let it run `agent.py`."""
    agent = resources.files("mmedge.bench.remote").joinpath("agent.py").read_text(encoding="ascii")
    return f"exec /bin/sh -c {shlex.quote(_FIND_PYTHON)} sh {shlex.quote(agent)}"


class Connection:
    """One ssh connection with the agent at its end.

    Args:
        host: As ssh takes it: a name from its configuration, `user@host`, or `ssh://user@host:port`.
        config: An ssh configuration file instead of the user's own.

    Raises:
        MmedgeError: No ssh client is installed, or the host is invalid.
    """

    def __init__(self, host: str, config: Path | None = None) -> None:
        if not host or host.startswith("-") or not host.isprintable() or " " in host:
            raise MmedgeError(f"invalid host {host!r}", "name it as ssh does: USER@HOST, or ssh://USER@HOST:PORT")
        ssh = shutil.which("ssh")
        if ssh is None:
            raise MmedgeError("ssh is not installed on this machine", "install it; on Debian: apt install openssh-client")
        self.host = host
        options = [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
        chosen = ["-F", str(config)] if config else []
        self._process = subprocess.Popen(
            [ssh, "-T", "-x", *chosen, *options, "--", host, agent_command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # an interrupt ends this process first, which then closes the connection
        )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._complaints: list[str] = []
        self._found = ""  # Pythons that are too old
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=task, daemon=True) for task in (self._read_messages, self._read_complaints, self._stay_alive)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        try:
            with self._writing:
                assert self._process.stdin is not None
                self._process.stdin.close()
        except OSError:
            pass  # the connection was gone already
        try:
            self._process.wait(timeout=ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(LONGEST_LINE):
            if line.startswith(MARK):
                try:
                    message = json.loads(line[len(MARK) :])
                except ValueError:
                    continue
                if isinstance(message, dict):
                    self._messages.put(message)
            elif line.startswith(b"mmedge-no-python:"):
                versions = [part.strip() for part in printable(line.decode("utf-8", "replace")).partition(":")[2].split(",")]
                self._found = ", ".join(dict.fromkeys(version for version in versions if version.startswith("Python")))
                self._messages.put({"kind": "no python"})
        self._messages.put(None)

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints = [*self._complaints[-50:], printable(line.decode("utf-8", "replace").strip())]

    def _stay_alive(self) -> None:
        while not self._closing.wait(ALIVE_SECONDS):
            try:
                self.send({"kind": "alive"})
            except MmedgeError:
                return

    def send(self, frame: dict[str, Any], data: Iterable[bytes] = ()) -> None:
        """Send a frame, and the bytes that belong to it.

        Raises:
            MmedgeError: The connection is closed.
        """
        try:
            with self._writing:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(frame).encode() + b"\n")
                for part in data:
                    self._process.stdin.write(part)
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise MmedgeError(f"the connection to {self.host} is closed") from None

    def receive(self, doing: str, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message.

        Args:
            doing: What is being done, for the error.
            timeout: Seconds; None for as long as the connection holds.

        Raises:
            MmedgeError: The host cannot be reached, refuses, has no Python, reports a problem, or the connection was cut.
        """
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            raise MmedgeError(
                f"{self.host} does not respond after the login", "connect with ssh by hand, and see what happens"
            ) from None
        if message is None:
            raise self._gone(doing)
        if message["kind"] == "no python":
            found = f"; there is {self._found}" if self._found else ""
            raise MmedgeError(f"{self.host} has no Python 3.11 or newer{found}", "install python3 there, 3.11 or newer")
        if message["kind"] == "problem":
            what, hint = (printable(str(message.get(name, "")))[:1000] for name in ("what", "hint"))
            raise MmedgeError(f"on {self.host}: {what}", hint)
        return message

    def _gone(self, doing: str) -> MmedgeError:
        """Return the error for a connection that has ended too soon."""
        self._process.wait()
        self._threads[1].join(timeout=5)
        said = "\n".join(self._complaints)
        if doing == "connecting":
            for pattern, meaning, hint in _REASONS:
                if pattern in said:
                    return MmedgeError(f"{self.host} {meaning}", hint)
        last = next((line for line in reversed(self._complaints) if line), f"ssh ended with {self._process.returncode}")
        if doing == "connecting":
            return MmedgeError(f"measuring on {self.host} failed: {last[:300]}", "connect with ssh by hand, and see what it says")
        return MmedgeError(
            f"the connection to {self.host} was cut while {doing}: {last[:300]}",
            "what was copied there removes itself; run it again",
        )


def bundles_of(places: Sequence[Path]) -> list[Path]:
    """Return the bundles that places mean: themselves, or those in a run.

    Raises:
        MmedgeError: A place is neither a bundle nor a run with bundles, or a manifest is damaged.
    """
    found = [bundle for place in places for bundle in bundles_in(place)]
    for folder in found:
        read_manifest(folder)
    if not found:
        raise MmedgeError("no bundle to measure", "name one: mmedge bench BUNDLE --remote HOST")
    return list(dict.fromkeys(found))


def run_remote(
    host: str,
    places: Sequence[Path],
    evaluation: Path | None,
    arguments: Sequence[str],
    progress: Progress,
    config: Path | None = None,
) -> BenchReport:
    """Measure bundles on another machine.

    Args:
        host: See `Connection`.
        places: Bundle folders, or runs, whose bundles are meant.
        evaluation: The evaluation set; that beside the first bundle by default.
        arguments: Further arguments of `mmedge bench` over there, without places, `--evaluation`, `--out` and `--json`.
        progress: Where progress is shown.
        config: See `Connection`.

    Returns:
        The report, with `remote` in it: the host, its Python, and how the packages came to be there. Folders in it have the
        names that they have here.

    Raises:
        MmedgeError: A place is not a bundle, or see `Connection.receive`.
    """
    folders = bundles_of(places)
    names = {folder: f"bundles/{number}/{folder.resolve().name}" for number, folder in enumerate(folders)}
    questions = evaluation or folders[0].resolve().parent / FILE_NAME
    if not questions.is_file():
        raise MmedgeError(f"no evaluation set: {questions}", "name it with --evaluation FILE")
    with tempfile.TemporaryDirectory(prefix="mmedge-wheel-") as temporary, Connection(host, config) as connection:
        wheel = write_core_wheel(Path(temporary))
        ready = connection.receive("connecting", READY_SECONDS)
        files = [(wheel, wheel.name), (questions, FILE_NAME)]
        for folder, name in names.items():
            files += [
                (file, f"{name}/{file.relative_to(folder).as_posix()}") for file in sorted(folder.rglob("*")) if file.is_file()
            ]
        _copy(connection, files, int(ready["free"]), progress)
        command = [*names.values(), "--evaluation", FILE_NAME, "--out", "out", "--json", *arguments]
        run = {"kind": "run", "wheel": wheel.name, "requirements": requirements(), "arguments": command}
        _told(connection, run)
        report, packages = _report(connection, progress)
    there = {f"{place}{name}": str(folder) for folder, name in names.items() for place in (f"{ready['folder']}/", "")}
    facts = RemoteFacts(host=host, python=ready["python"], machine=ready["machine"], packages=packages)
    return BenchReport.from_json(_renamed(report, there), f"what {host} sent").model_copy(update={"remote": facts})


def _copy(connection: Connection, files: Sequence[tuple[Path, str]], free: int, progress: Progress) -> None:
    """Send files, each with its name over there."""
    total = sum(file.stat().st_size for file, _ in files)
    if total > free:
        raise MmedgeError(
            f"no space on {connection.host}: {total / 1e6:.1f} MB must be copied, and only {free / 1e6:.1f} MB are free in its "
            "temporary folder",
            "free some space there, or set TMPDIR to a larger file system",
        )
    with progress.task(f"copies to {connection.host} (kB)", total=total // 1000) as step:

        def parts(file: Path) -> Iterator[bytes]:
            with open(file, "rb") as source:
                while part := source.read(1 << 18):
                    yield part
                    step.advance(len(part) // 1000)

        for file, name in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            frame = {"kind": "file", "name": name, "bytes": file.stat().st_size, "sha256": digest}
            _told(connection, frame, parts(file))


def _told(connection: Connection, frame: dict[str, Any], data: Iterable[bytes] = ()) -> None:
    """Send; if that fails, raise the agent's own error."""
    try:
        connection.send(frame, data)
    except MmedgeError:
        while True:
            connection.receive("files were copied")  # ends with the error


def _report(connection: Connection, progress: Progress) -> tuple[Any, str]:
    """Pass progress on until the report is there and the agent has removed its folder."""
    report: Any = None
    packages = ""
    while True:
        message = connection.receive("it measured")
        if message["kind"] == "line":
            progress.line(f"{connection.host}: {printable(str(message.get('text', '')))}")
        elif message["kind"] == "report":
            try:
                report = json.loads(message["text"])
            except (ValueError, KeyError):
                raise MmedgeError(
                    f"the report from {connection.host} is not JSON", "run it again; if it happens again, report it"
                ) from None
            packages = printable(str(message.get("packages", "")))
        elif message["kind"] == "left":
            if not isinstance(report, dict):
                raise MmedgeError(f"{connection.host} sent no report", "run it again")
            return report, packages


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Return a JSON value with folders named as they are here, and texts that can be shown."""
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        value = printable(value)  # another machine wrote it
        for there, here in names.items():
            if value == there or value.startswith(there + os.sep):
                return here + value[len(there) :]
    return value
