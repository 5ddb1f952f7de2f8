"""A variant in its own process: started under its limits, asked over pipes, with a plain reason when it ends.

The worker binds processors by affinity, before it imports anything that counts processors. A watchdog bounds memory:
it reads the kernel's record of the largest resident size (`VmHWM`, which misses no peak) often, and ends a
process that exceeded its limit. Limits of address space or of data would be the wrong ones: a bundle that has 92 MB resident has
357 MB of address space and 128 MB of data (ONNX Runtime 1.32, Linux), and a torch student's 474 MB hold 208 MB that are mapped from
files and no data.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading

from mmedge.engines.variants import VariantSpec
from mmedge.errors import MmedgeError
from mmedge.load import peak_memory
from mmedge.reports.formats import size
from mmedge.storage import Json

LOOKS_PER_SECOND = 50
KILLED = 9  # the signal, which Windows does not know


class MemoryWatch:
    """Ends a process that was ever larger than its limit.

    Args:
        process: What is watched.
        limit: Bytes of resident memory.
    """

    def __init__(self, process: subprocess.Popen[str], limit: int) -> None:
        self._process, self._limit = process, limit
        self._over = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Check now; return whether it is, or was, too large."""
        if not self._over.is_set() and (peak_memory(self._process.pid) or 0) > self._limit and self._process.poll() is None:
            self._over.set()
            self._process.kill()
        return self._over.is_set()

    def stop(self) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1 / LOOKS_PER_SECOND):
            if self.check() or self._process.poll() is not None:
                return


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
            raise MmedgeError(
                f"does not fit in {size(self._memory_limit or 0)}", "raise --memory-limit, or export a smaller bundle"
            )
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
        if code == -KILLED and not self._complaints:
            return f"the process that measures {place} was killed; most likely the machine ran out of memory"
        last = self._complaints[-1] if self._complaints else f"exit code {code}"
        return f"the process that measures {place} ended: {last[:200]}"

    def ask(self, request: Json) -> Json:
        """Send a request and wait for its reply.

        Raises:
            MmedgeError: It cannot answer, or its process ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the read below then says why
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
