"""What a measured process may use: so many processors, so much memory, as on a smaller device.

Processors are bound by affinity, before anything that counts processors is imported. Memory is bound by a watch: the kernel's
own note of the largest resident size (`VmHWM`, which no moment between two looks escapes) is read often, and a process that
went beyond is ended. Limits of address space or of data would be the wrong ones: a bundle that has 92 MB resident has 357 MB of
address space and 128 MB of data (ONNX Runtime 1.32, Linux), and a torch student's 474 MB hold 208 MB that are mapped from files and
no data. Imports nothing heavy.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading

from mmedge.errors import MmedgeError
from mmedge.machine import peak_memory

LOOKS_PER_SECOND = 50
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """Return a size such as `300M` (300 · 10⁶ bytes), `512MiB` or `1G` in bytes.

    Raises:
        MmedgeError: It is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1e6:
        raise MmedgeError(f"{text!r} is no size", "write a number with M, MiB, G or GiB, such as 300M; a megabyte at least")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_seconds(text: str) -> float:
    """Return a span of time such as `200ms` or `1.5s` in seconds.

    Raises:
        MmedgeError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", text)
    if match is None or not float(match[1]):
        raise MmedgeError(f"{text!r} is no span of time", "write a number with ms or s, such as 200ms")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def parse_share(text: str) -> float:
    """Return a share such as `3%` or `0.03`.

    Raises:
        MmedgeError: It is none, or not between 0 and 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise MmedgeError(f"{text!r} is no share", "write a percentage such as 3%")
    return share


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """Return whole numbers such as `1,8,32`, each once.

    Raises:
        MmedgeError: Some are no positive whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100_000 for part in parts):
        raise MmedgeError(f"{what}: {text!r} are no positive whole numbers", "write them with commas between, such as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


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

    @property
    def exceeded(self) -> bool:
        """Whether it was ended for its size."""
        return self._over.is_set()

    def check(self) -> bool:
        """Look now; return whether it is, or was, too large."""
        if not self._over.is_set() and (peak_memory(self._process.pid) or 0) > self._limit and self._process.poll() is None:
            self._over.set()
            self._process.send_signal(signal.SIGKILL)
        return self._over.is_set()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1 / LOOKS_PER_SECOND):
            if self.check() or self._process.poll() is not None:
                return
