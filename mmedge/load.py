"""How busy the machine is, and what processes use of it: processor time, memory, peaks.

    read_load().busy           seconds that all processors have worked
    peak_memory()              the largest resident size of this process, in bytes

Asks the kernel where psutil does not report, and psutil, which is imported where it is needed, for the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from mmedge.machine import ROOT, text_of


@dataclass(frozen=True)
class Load:
    """How busy the machine was until now.

    Attributes:
        busy: Seconds that all processors have worked, together.
        stolen: Seconds that the host has taken from this virtual machine; 0 where that is not known.
        total: Seconds that all processors had.
        processes: Seconds of processor time of each process that was asked about and runs.
        frequency_ghz: The highest of all cores now.
        temperature_c: The highest of all sensors now.
    """

    busy: float
    stolen: float
    total: float
    processes: dict[int, float]
    frequency_ghz: float | None
    temperature_c: float | None


def read_load(pids: Iterable[int] = ()) -> Load:
    """Return how busy the machine and some of its processes were until now."""
    import psutil

    times = psutil.cpu_times()
    stolen = getattr(times, "steal", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    total = sum(times[:8])  # on Linux, the ninth and tenth stand in the first two already
    speeds: list[float] = []
    heats: list[float] = []
    with suppress(OSError, RuntimeError, AttributeError, NotImplementedError):
        speeds = [core.current / 1000 for core in psutil.cpu_freq(percpu=True) or () if core.current]
    with suppress(OSError, RuntimeError, AttributeError, NotImplementedError):
        heats = [sensor.current for sensors in psutil.sensors_temperatures().values() for sensor in sensors if sensor.current]
    processes = {pid: used for pid in pids if (used := processor_seconds(pid)) is not None}
    return Load(total - idle - stolen, stolen, total, processes, max(speeds, default=None), max(heats, default=None))


def processor_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used, all its threads together; None where it has ended."""
    import psutil

    with suppress(psutil.Error):
        used = psutil.Process(pid).cpu_times()
        return float(used.user + used.system)
    return None


def _status(pid: int | None, field: str) -> int | None:
    """Return a size from /proc/PID/status in bytes; None where there is none."""
    for line in text_of(ROOT / "proc" / str(pid or "self") / "status").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def peak_memory(pid: int | None = None) -> int | None:
    """Return the largest resident size that a process, or this one, has had, in bytes; None where the system does not tell.

    The kernel keeps it itself, so no peak between two looks is missed; psutil does not report it. getrusage would
    count what the parent held when it started a process.
    """
    found = _status(pid, "VmHWM")
    if found is not None:
        return found
    if pid is not None or sys.platform == "win32":
        import psutil

        with suppress(psutil.Error):
            sizes = psutil.Process(pid).memory_info()
            return int(getattr(sizes, "peak_wset", sizes.rss))  # macOS: of another process, what it has now
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory(pid: int | None = None) -> int:
    """Return the resident size of a process, or of this one, in bytes.

    Without psutil on Linux, so that a process that measures itself does not grow by it.
    """
    found = _status(pid, "VmRSS")
    if found is not None:
        return found
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
