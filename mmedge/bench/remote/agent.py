"""Runs on the other machine during `mmedge bench --remote`: the standard library and nothing else, sent over as text.

    python3 -c "$(cat agent.py)"        reads frames on standard input, writes marked JSON lines on standard output

A frame is one line of JSON; one of kind `file` is followed by as many bytes as it says. They come in order: every `file`, then
`run`; and `alive` now and then. Lines that begin with `mmedge:` go back; a login shell may print what it likes in between.

Everything is written in one temporary folder. It is removed at the end, and by a watchdog process when this one dies in any
manner, when standard input ends (the connection was cut), or when nothing was received for `SILENCE` seconds.
"""

# ASCII, without backslashes and single quotes: this text is an argument that has to pass through any login shell unchanged

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

SILENCE = 60.0  # seconds; `alive` comes every few
ARROW = chr(0x2192)  # stands in front of the advice in an error
NEEDED_TO_INSTALL = 400_000_000  # bytes: onnxruntime, numpy and the rest, unpacked
LONGEST_TEXT = 400


class AgentError(Exception):
    """A failure that is reported: what is wrong, and what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


_sending = threading.Lock()


def send(kind: str, **values: Any) -> None:
    """Send one message back."""
    with _sending:
        sys.stdout.write("mmedge:" + json.dumps({"kind": kind, **values}) + chr(10))
        sys.stdout.flush()


class Workspace:
    """The temporary folder, the process that measures, and the watchdog over both."""

    def __init__(self) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="mmedge-bench-"))
        except OSError as error:
            raise AgentError(f"no temporary folder can be made: {error.strerror or error}", "set TMPDIR there") from None
        self._group = 0
        self._changing = threading.Lock()
        self._removed = False
        read, self._tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(self._tell)
            _watch(read, self.folder)
        os.close(read)
        self._watchdog = child

    def start(self, command: list[str], environment: dict[str, str], output: Any, complaints: int) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own, which ends with this workspace."""
        with self._changing:
            if self._removed:
                raise EOFError
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=complaints,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
            self._tell_group(process.pid)
        return process

    def ended(self) -> None:
        """Note that the command has ended."""
        with self._changing:
            self._tell_group(0)

    def _tell_group(self, group: int) -> None:
        self._group = group
        if not self._removed:
            os.write(self._tell, f"{group} ".encode())

    def remove(self) -> None:
        """End what runs, remove the folder, and release the watchdog."""
        with self._changing:
            _end(self._group)
            _remove(self.folder)
            if not self._removed:
                self._tell_group(0)
                self._removed = True
                os.close(self._tell)
                os.waitpid(self._watchdog, 0)


def _watch(read: int, folder: Path) -> NoReturn:
    """Wait until the process that started this one is gone, and clean up after it."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends as soon as its parent does, and not before
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    told = b""
    while part := os.read(read, 4096):
        told = (told + part)[-64:]
    words = told.split()
    _end(int(words[-1]) if words else 0)
    _remove(folder)
    os._exit(0)


def _end(group: int) -> None:
    if group:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def _remove(folder: Path) -> None:
    for _ in range(20):  # a process that is just being killed may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------------- receiving


def receive(workspace: Workspace) -> dict[str, Any]:
    """Write the files that come, and return the `run` frame.

    Raises:
        AgentError: The disk is full, a file was damaged in transfer, or a name points outside the folder.
    """
    while line := sys.stdin.buffer.readline(1 << 20):
        frame: dict[str, Any] = json.loads(line)
        if frame["kind"] == "run":
            return frame
        if frame["kind"] == "file":
            _receive_file(workspace.folder, frame)
    raise EOFError


def _receive_file(folder: Path, frame: dict[str, Any]) -> None:
    name = PurePosixPath(frame["name"])
    if name.is_absolute() or ".." in name.parts:
        raise AgentError(f"the name {name} points outside the folder")
    target, left, digest = folder / name, int(frame["bytes"]), hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            while left:
                part = sys.stdin.buffer.read(min(left, 1 << 20))
                if not part:
                    raise EOFError
                file.write(part)
                digest.update(part)
                left -= len(part)
                note_contact()
    except OSError as error:
        raise AgentError(
            f"{target.name} cannot be written: {error.strerror or error}", "free some space there, or set TMPDIR"
        ) from None
    if digest.hexdigest() != frame["sha256"]:
        raise AgentError(f"{target.name} was damaged in transfer", "run it again")


_last_contact = [time.monotonic()]


def note_contact() -> None:
    """Record that the connection is alive."""
    _last_contact[0] = time.monotonic()


def end_when_silent(workspace: Workspace) -> None:
    """Remove the workspace and end when nothing was received for too long."""

    def watch() -> None:
        while time.monotonic() - _last_contact[0] < SILENCE:
            time.sleep(1)
        workspace.remove()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_when_disconnected(workspace: Workspace) -> None:
    """Remove the workspace and end when the connection is closed or cut."""

    def read() -> None:
        while True:
            try:
                part = os.read(0, 4096)
            except OSError:
                part = b""
            if not part:
                workspace.remove()
                os._exit(1)
            note_contact()

    threading.Thread(target=read, daemon=True).start()


# ------------------------------------------------------------------------------------------------------------- installing


def missing_packages(requirements: dict[str, str]) -> list[str]:
    """Return the packages that this Python lacks, or has in another version than required."""
    found = []
    for name, limits in requirements.items():
        try:
            if not satisfies(metadata.version(name), limits):
                found.append(name)
        except metadata.PackageNotFoundError:
            found.append(name)
    return found


def satisfies(version: str, limits: str) -> bool:
    """Whether a version is within limits such as `>=1.26,<3`; only numbers are compared."""

    def numbers(text: str) -> list[int]:
        release = re.match("[0-9]+([.][0-9]+)*", text.strip())
        parts = [int(part) for part in release[0].split(".")] if release else []
        while parts and parts[-1] == 0:
            parts.pop()
        return parts

    have = numbers(version)
    for limit in filter(None, limits.split(",")):
        match = re.match("(>=|<=|==|<|>)(.*)", limit.strip())
        if match is None:
            continue
        want = numbers(match[2])
        ok = {">=": have >= want, "<=": have <= want, "==": have == want, "<": have < want, ">": have > want}[match[1]]
        if not ok:
            return False
    return True


def install(workspace: Workspace, wheel: Path, requirements: dict[str, str], environment: dict[str, str]) -> tuple[str, str]:
    """Make the core importable; return the interpreter to run, and how it was done.

    Where this Python has every package already, it is used as it is, with the core beside it in the folder; otherwise a venv is
    made and pip installs into it what it can reach; where there is no venv, into a folder.

    Raises:
        AgentError: There is no venv, no space, or pip cannot get a package.
    """
    missing = missing_packages(requirements)
    if not missing:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(workspace.folder / "core")
        environment["PYTHONPATH"] = str(workspace.folder / "core")
        return sys.executable, "the packages that its Python had already"
    free, names = shutil.disk_usage(workspace.folder).free, ", ".join(missing)
    if free < NEEDED_TO_INSTALL:
        raise AgentError(
            f"no space to install {names}: {free / 1e6:.0f} MB free in {workspace.folder.parent}, "
            f"{NEEDED_TO_INSTALL / 1e6:.0f} MB needed",
            "free some space there, or set TMPDIR to a larger file system",
        )
    send("line", text=f"installs {names} into the folder")
    venv = workspace.folder / "venv"
    python, target = str(venv / "bin" / "python"), []
    how = "a venv of its own, into which pip installed the packages"
    made = run(workspace, [sys.executable, "-m", "venv", str(venv)], environment)
    if made[0]:  # Debian leaves ensurepip out, but pip by itself may be there
        if run(workspace, [sys.executable, "-m", "pip", "--version"], environment)[0]:
            raise AgentError(
                f"packages cannot be installed: there is neither venv nor pip ({last(made[1])})",
                "install one of the two there; on Debian: apt install python3-venv python3-pip",
            )
        python, target = sys.executable, ["--target", str(workspace.folder / "packages")]
        environment["PYTHONPATH"] = target[1]
        how = "a folder of its own, into which pip installed the packages (there is no venv)"
    options = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off", *target]
    done = run(workspace, [python, "-m", "pip", "install", *options, str(wheel)], environment)
    if done[0]:
        wrong = [line for line in done[1] if line.startswith("ERROR")] or done[1]
        raise AgentError(
            f"pip there cannot install {names}: {last(wrong)}",
            "give it a network or a package index, or install the packages there beforehand",
        )
    return python, how


def last(lines: list[str]) -> str:
    """Return the last line that is not blank."""
    return next((line.strip()[:LONGEST_TEXT] for line in reversed(lines) if line.strip()), "no reason given")


def run(workspace: Workspace, command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command to its end in a process group of its own; return its exit code and what it wrote."""
    process = workspace.start(command, environment, subprocess.PIPE, subprocess.STDOUT)
    lines = process.communicate()[0].splitlines()
    workspace.ended()
    return process.returncode, lines


# ------------------------------------------------------------------------------------------------------------- measuring


def measure(workspace: Workspace, command: list[str], environment: dict[str, str]) -> str:
    """Run the bench, pass on its progress line by line, and return what it wrote on standard output.

    Raises:
        AgentError: It failed; with its own words.
    """
    with open(workspace.folder / "report.json", "w+", encoding="utf-8") as report:
        process = workspace.start(command, environment, report, subprocess.PIPE)
        lines: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            lines = [*lines[-50:], line.rstrip()]
            if not line.startswith(("error: ", "  " + ARROW)):
                send("line", text=line.rstrip()[:LONGEST_TEXT])
        code = process.wait()
        workspace.ended()
        if code < 0:
            ended = signal.Signals(-code).name
            memory = ", as it is when memory runs out" if ended == "SIGKILL" else ""
            raise AgentError(f"the bench was ended by {ended}{memory}")
        if code:
            what = next((line[len("error: ") :] for line in reversed(lines) if line.startswith("error: ")), last(lines))
            hint = next((line.strip()[1:].strip() for line in reversed(lines) if line.startswith("  " + ARROW)), "")
            raise AgentError(what, hint)
        report.seek(0)
        return report.read()


def main() -> None:
    """Receive, install, measure, send back, remove the workspace."""
    workspace: Workspace | None = None
    try:
        workspace = Workspace()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(1))
        end_when_silent(workspace)
        send(
            "ready",
            folder=str(workspace.folder),
            free=shutil.disk_usage(workspace.folder).free,
            python=".".join(map(str, sys.version_info[:3])),
            machine=os.uname().machine,
        )
        asked = receive(workspace)
        end_when_disconnected(workspace)
        temporary = workspace.folder / "tmp"
        temporary.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            "TMPDIR": str(temporary),
            "PYTHONPYCACHEPREFIX": str(workspace.folder / "pycache"),
            "PYTHONUTF8": "1",
        }
        python, how = install(workspace, workspace.folder / asked["wheel"], asked["requirements"], environment)
        send("line", text=f"measures with {how}")
        text = measure(workspace, [python, "-m", "mmedge", "bench", *asked["arguments"]], environment)
        send("report", text=text, packages=how)
    except AgentError as problem:
        send("problem", what=problem.what, hint=problem.hint)
    except (EOFError, BrokenPipeError):
        pass  # the connection is gone
    finally:
        if workspace is not None:
            workspace.remove()
    send("left")
    os._exit(0)  # the thread that reads would keep the process alive


if __name__ == "__main__":
    main()
