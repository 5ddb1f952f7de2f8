"""Commands of mmedge in processes of their own, without importing torch and transformers anew in each.

    started = start(["distill", "r.yaml", "--out", "run"])      a process, forked from one that has imported everything
    started.kill(); started.wait()

One process for each test worker imports what commands import, and forks for every command; where a system cannot fork, each command
is a new interpreter. The forked process runs the same `main`, with arguments, directory, environment and streams of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).parent.parent
CAN_FORK = sys.platform == "linux"
PAUSE = 0.005  # seconds between two looks at a process
# read when a library is imported: with another value, a command needs an interpreter of its own
READ_EARLY = ("OMP_", "GOMP_", "MKL_", "HF_", "CUDA_", "PYTHON", "TORCH_", "LD_", "MALLOC_", "TOKENIZERS_", "ACCELERATE_")
BESIDE = (
    "torch",
    "accelerate",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.t5.modeling_t5",
    "transformers.models.llama.modeling_llama",
)


@dataclass
class Started:
    """A command that was started.

    Attributes:
        pid: Its process.
    """

    pid: int
    _number: int
    _server: _Server

    def poll(self) -> int | None:
        """Return its exit code, -9 and the like where a signal ended it; None while it runs."""
        return self._server.code(self._number)

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It is killed, as it takes longer.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired("mmedge", timeout)
            time.sleep(PAUSE)
        return code

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(
    arguments: Sequence[object],
    *,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    stdout: Path | None = None,
    stderr: Path | None = None,
    fresh: bool = False,
) -> Started | subprocess.Popen[bytes]:
    """Start a command of mmedge.

    Args:
        arguments: What stands behind `mmedge`.
        cwd: Its working directory.
        env: Its environment; this process's by default.
        stdin: What it reads; nothing by default.
        stdout: The file that it writes to; discarded by default.
        stderr: The same for its errors.
        fresh: Start a new interpreter in any case.
    """
    env = dict(os.environ if env is None else env)
    words, files = list(map(str, arguments)), [str(file or os.devnull) for file in (stdin, stdout, stderr)]
    if not fresh and CAN_FORK and _early(env) == _early(os.environ):
        return _server().start(words, str(cwd), env, files)
    with open(files[0], "rb") as given, open(files[1], "wb") as out, open(files[2], "wb") as err:
        return subprocess.Popen([sys.executable, "-m", "mmedge", *words], cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)


def kill_when(arguments: Sequence[object], reached: Callable[[], object], seconds: float = 120) -> None:
    """Start a command and kill it with SIGKILL as soon as `reached()` is true; it must not end before."""
    process = start(arguments)
    deadline = time.monotonic() + seconds
    try:
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(PAUSE)
    finally:
        process.kill()
        process.wait()


def _early(env: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in env.items() if name.startswith(READ_EARLY)}
    paths = found.get("PYTHONPATH", "").split(os.pathsep)  # packages there may add to mmedge's registries
    return found | {"PYTHONPATH": os.pathsep.join(path for path in paths if path not in ("", str(REPOSITORY)))}


class _Server:
    """The process that forks."""

    def __init__(self) -> None:
        mine, other = socket.socketpair()
        command = [sys.executable, "-c", "from tests.commands import serve; serve()"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdin=other.fileno(), env=environment)
        other.close()
        self._lines = mine.makefile("rw", encoding="utf-8")
        self._count = 0
        self._known: dict[int, int] = {}

    def _ask(self, **request: Any) -> Any:
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        return json.loads(self._lines.readline())

    def start(self, words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> Started:
        self._count += 1
        return Started(self._ask(number=self._count, words=words, cwd=cwd, env=env, files=files), self._count, self)

    def code(self, number: int) -> int | None:
        if number not in self._known and (code := self._ask(of=number)) is not None:
            self._known[number] = code
        return self._known.get(number)


@cache
def _server() -> _Server:
    return _Server()


# --------------------------------------------------------------------------------------------- in the process that forks


def serve() -> None:
    """Import everything, then start what is asked for on standard input, a socket, and tell how it ended."""
    asked = socket.socket(fileno=os.dup(0))
    _import_all()
    pids: dict[int, int] = {}
    lines = asked.makefile("rw", encoding="utf-8")
    for line in lines:
        request = json.loads(line)
        if "of" in request:
            answer = _ended(pids[request["of"]])
        elif (answer := os.fork()) == 0:
            asked.close()
            _run(request)
        else:
            pids[request["number"]] = answer
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


def _import_all() -> None:
    import mmedge

    ours = [found.name for found in pkgutil.walk_packages(mmedge.__path__, "mmedge.") if "__main__" not in found.name]
    for name in (*BESIDE, *ours):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _run(request: dict[str, Any]) -> NoReturn:
    """Become the command."""
    import atexit
    import threading
    import traceback

    code: object = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path and path not in sys.path]  # such as a package of plugins
        for number, file in enumerate(request["files"]):
            os.dup2(os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CREAT if number else os.O_RDONLY, 0o644), number)
        random.seed()
        sys.argv = ["mmedge", *request["words"]]
        sys.modules["__main__"].__package__ = None  # help calls the program by its name, not by this module's
        sys.modules["mmedge.cli"].main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter does when it ends
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
