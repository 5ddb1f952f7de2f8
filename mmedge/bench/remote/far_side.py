"""What runs on the other machine during `mmedge bench --remote`: the standard library and nothing else, sent over as it is.

    python3 -c "$(cat far_side.py)"        reads frames on standard input, writes marked JSON lines on standard output

A frame is one line of JSON; one of kind `file` is followed by as many bytes as it says. They come in order: every `file`, then
`run`; and `alive` now and then. Lines that begin with `mmedge:` go back; a login shell may say what it likes in between.

All that is written lies in one temporary folder. It is removed at the end, and by a watchdog process when this one dies in
whatever manner, when standard input ends (the connection was cut), or when nothing was heard for `SILENCE` seconds.
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

SILENCE = 60.0  # seconds; the near side says `alive` every few
ARROW = chr(0x2192)  # stands in front of the advice in an error
NEEDED_TO_INSTALL = 400_000_000  # bytes: onnxruntime, numpy and the rest, unpacked
LONGEST_TEXT = 400


class Problem(Exception):
    """A failure to tell: what is wrong, and what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


_speaking = threading.Lock()


def say(kind: str, **values: Any) -> None:
    """Send one message back."""
    with _speaking:
        sys.stdout.write("mmedge:" + json.dumps({"kind": kind, **values}) + chr(10))
        sys.stdout.flush()


class Place:
    """The temporary folder, the process that measures, and the watchdog over both."""

    def __init__(self) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="mmedge-bench-"))
        except OSError as error:
            raise Problem(f"no temporary folder can be made: {error.strerror or error}", "set TMPDIR there") from None
        self._group = 0
        self._changing = threading.Lock()
        self._left = False
        read, self._tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(self._tell)
            _watch(read, self.folder)
        os.close(read)
        self._watchdog = child

    def start(self, command: list[str], environment: dict[str, str], output: Any, complaints: int) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own, which ends when this place is left."""
        with self._changing:
            if self._left:
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
        if not self._left:
            os.write(self._tell, f"{group} ".encode())

    def leave(self) -> None:
        """End what runs, remove the folder, and let the watchdog go."""
        with self._changing:
            _end(self._group)
            _remove(self.folder)
            if not self._left:
                self._tell_group(0)
                self._left = True
                os.close(self._tell)
                os.waitpid(self._watchdog, 0)


def _watch(read: int, folder: Path) -> NoReturn:
    """Wait until the process that started this one is gone, however it went, and clear up behind it."""
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


def receive(place: Place) -> dict[str, Any]:
    """Write the files that come, and return the `run` frame.

    Raises:
        Problem: The disk is full, a file was damaged on the way, or a name leads out of the folder.
    """
    while line := sys.stdin.buffer.readline(1 << 20):
        frame: dict[str, Any] = json.loads(line)
        if frame["kind"] == "run":
            return frame
        if frame["kind"] == "file":
            _receive_file(place.folder, frame)
    raise EOFError


def _receive_file(folder: Path, frame: dict[str, Any]) -> None:
    name = PurePosixPath(frame["name"])
    if name.is_absolute() or ".." in name.parts:
        raise Problem(f"the name {name} leads out of the folder")
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
                heard()
    except OSError as error:
        raise Problem(
            f"{target.name} cannot be written: {error.strerror or error}", "free some space there, or set TMPDIR"
        ) from None
    if digest.hexdigest() != frame["sha256"]:
        raise Problem(f"{target.name} was damaged on the way", "run it again")


_last_heard = [time.monotonic()]


def heard() -> None:
    """Note that the near side is there."""
    _last_heard[0] = time.monotonic()


def expect_company(place: Place) -> None:
    """Clear up and end when the near side has been silent for too long."""

    def watch() -> None:
        while time.monotonic() - _last_heard[0] < SILENCE:
            time.sleep(1)
        place.leave()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def listen(place: Place) -> None:
    """Clear up and end when the connection is closed, from the near side or by being cut."""

    def read() -> None:
        while True:
            try:
                part = os.read(0, 4096)
            except OSError:
                part = b""
            if not part:
                place.leave()
                os._exit(1)
            heard()

    threading.Thread(target=read, daemon=True).start()


# ------------------------------------------------------------------------------------------------------------- installing


def lacking(requirements: dict[str, str]) -> list[str]:
    """Return which packages this Python has not, or not in the version that is needed."""
    found = []
    for name, limits in requirements.items():
        try:
            if not fits(metadata.version(name), limits):
                found.append(name)
        except metadata.PackageNotFoundError:
            found.append(name)
    return found


def fits(version: str, limits: str) -> bool:
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


def install(place: Place, wheel: Path, requirements: dict[str, str], environment: dict[str, str]) -> tuple[str, str]:
    """Make the core importable, and return the interpreter to run and how that was done.

    Where this Python has every package already, it is used as it is, with the core beside it in the folder; otherwise a venv is
    made and pip installs into it what it can reach; where there is no venv, into a folder.

    Raises:
        Problem: There is no venv, no space, or pip cannot get a package.
    """
    missing = lacking(requirements)
    if not missing:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place.folder / "core")
        environment["PYTHONPATH"] = str(place.folder / "core")
        return sys.executable, "the packages that its Python had already"
    free, names = shutil.disk_usage(place.folder).free, ", ".join(missing)
    if free < NEEDED_TO_INSTALL:
        raise Problem(
            f"no space to install {names}: {free / 1e6:.0f} MB free in {place.folder.parent}, "
            f"{NEEDED_TO_INSTALL / 1e6:.0f} MB needed",
            "free some space there, or set TMPDIR to a larger file system",
        )
    say("line", text=f"installs {names} into the folder")
    venv = place.folder / "venv"
    python, target = str(venv / "bin" / "python"), []
    how = "a venv of its own, into which pip installed the packages"
    made = run(place, [sys.executable, "-m", "venv", str(venv)], environment)
    if made[0]:  # Debian leaves ensurepip out, but pip by itself may be there
        if run(place, [sys.executable, "-m", "pip", "--version"], environment)[0]:
            raise Problem(
                f"packages cannot be installed, there is neither venv nor pip: {last(made[1])}",
                "install them there, on Debian: apt install python3-venv python3-pip",
            )
        python, target = sys.executable, ["--target", str(place.folder / "packages")]
        environment["PYTHONPATH"] = target[1]
        how = "a folder of its own, into which pip installed the packages (there is no venv)"
    options = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off", *target]
    done = run(place, [python, "-m", "pip", "install", *options, str(wheel)], environment)
    if done[0]:
        wrong = [line for line in done[1] if line.startswith("ERROR")] or done[1]
        raise Problem(
            f"pip there cannot install {names}: {last(wrong)}",
            "give it a network or a package index, or install the packages there beforehand",
        )
    return python, how


def last(lines: list[str]) -> str:
    """Return the last line that says something."""
    return next((line.strip()[:LONGEST_TEXT] for line in reversed(lines) if line.strip()), "no reason given")


def run(place: Place, command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command to its end in a process group of its own; return its exit code and what it wrote."""
    process = place.start(command, environment, subprocess.PIPE, subprocess.STDOUT)
    lines = process.communicate()[0].splitlines()
    place.ended()
    return process.returncode, lines


# ------------------------------------------------------------------------------------------------------------- measuring


def measure(place: Place, command: list[str], environment: dict[str, str]) -> str:
    """Run the bench, pass on its progress line by line, and return what it wrote on standard output.

    Raises:
        Problem: It failed; with its own words.
    """
    with open(place.folder / "report.json", "w+", encoding="utf-8") as report:
        process = place.start(command, environment, report, subprocess.PIPE)
        lines: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            lines = [*lines[-50:], line.rstrip()]
            if not line.startswith(("error: ", "  " + ARROW)):
                say("line", text=line.rstrip()[:LONGEST_TEXT])
        code = process.wait()
        place.ended()
        if code < 0:
            ended = signal.Signals(-code).name
            memory = ", as it is when memory runs out" if ended == "SIGKILL" else ""
            raise Problem(f"the bench was ended by {ended}{memory}")
        if code:
            what = next((line[len("error: ") :] for line in reversed(lines) if line.startswith("error: ")), last(lines))
            hint = next((line.strip()[1:].strip() for line in reversed(lines) if line.startswith("  " + ARROW)), "")
            raise Problem(what, hint)
        report.seek(0)
        return report.read()


def main() -> None:
    """Receive, install, measure, send back, clear up."""
    place: Place | None = None
    try:
        place = Place()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(1))
        expect_company(place)
        say(
            "ready",
            folder=str(place.folder),
            free=shutil.disk_usage(place.folder).free,
            python=".".join(map(str, sys.version_info[:3])),
            machine=os.uname().machine,
        )
        asked = receive(place)
        listen(place)
        temporary = place.folder / "tmp"
        temporary.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            "TMPDIR": str(temporary),
            "PYTHONPYCACHEPREFIX": str(place.folder / "pycache"),
            "PYTHONUTF8": "1",
        }
        python, how = install(place, place.folder / asked["wheel"], asked["requirements"], environment)
        say("line", text=f"measures with {how}")
        text = measure(place, [python, "-m", "mmedge", "bench", *asked["arguments"]], environment)
        say("report", text=text, packages=how)
    except Problem as problem:
        say("problem", what=problem.what, hint=problem.hint)
    except (EOFError, BrokenPipeError):
        pass  # nobody is there to be told
    finally:
        if place is not None:
            place.leave()
    say("left")
    os._exit(0)  # the thread that listens would hold the end up


if __name__ == "__main__":
    main()
