"""A variant in its own process: started under its limits, asked over pipes, and said plainly why it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

from mmedge.bench.limits import MemoryWatch
from mmedge.engines.variants import VariantSpec
from mmedge.errors import MmedgeError
from mmedge.reports.formats import size
from mmedge.storage import Json


class Variant:
    """A variant in its own process.

    Args:
        spec: What it is.
        cpus: How many processors it may use; None for all that this process may.
        memory_limit: Bytes of resident memory at most; None for as much as there is.

    Raises:
        MmedgeError: It cannot be opened, does not fit, or its process dies.
    """

    worker = "mmedge.bench.worker"  # the module that measures; benchmarks/bench_noise.py slows one on purpose

    def __init__(self, spec: VariantSpec, cpus: int | None = None, memory_limit: int | None = None) -> None:
        self.spec = spec
        self._memory_limit = memory_limit
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.worker, json.dumps(spec.to_json()), str(cpus or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self.pid = self._process.pid
        self._watch = MemoryWatch(self._process, memory_limit) if memory_limit else None
        self._complaints: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.opened = self._receive()
        except MmedgeError:
            self.close()
            raise
        self.name = f"{self.opened['engine']} {self.opened['precision']}"
        if self.opened["device"] != "cpu":
            self.name += f" on {self.opened['device']}"

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints = [*self._complaints[-20:], line.rstrip()]

    def _receive(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if self._watch is not None and self._watch.check():
            raise MmedgeError(f"does not fit in {size(self._memory_limit or 0)}", "raise --memory-limit, or export it smaller")
        if not line:
            raise MmedgeError(self._why_it_ended())
        reply = json.loads(line)
        assert isinstance(reply, dict)
        if "error" in reply:
            raise MmedgeError(reply["error"], reply["hint"])
        return reply

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        self._listener.join(timeout=5)
        place = self.spec.place
        if code == -signal.SIGKILL and not self._complaints:
            return f"the process that measures {place} was killed; most likely the machine ran out of memory"
        last = self._complaints[-1] if self._complaints else f"exit code {code}"
        return f"the process that measures {place} ended: {last[:200]}"

    def ask(self, request: Json) -> Json:
        """Send a request and wait for its reply.

        Raises:
            MmedgeError: It cannot answer, or its process ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the read below says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        """End the process."""
        if self._watch is not None:
            self._watch.stop()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
