"""The machine, watched while it measures: what others took of it, how fast it ran, how hot it was.

    watch = Watch(); watch.look(pids); …; watch.look(pids)
    watch.summary()     {"other_load_cores": 0.02, "steal_share": 0.0, "noisy": [], …}

Looks are taken between measurements, when nothing is timed. What the kernel does not tell (a virtual machine has no temperature)
is None, and is then no reason to call a measurement quiet or noisy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEAL = 0.02  # of all processor time: more makes a run noisy
OTHER_LOAD = 0.1  # of one core, that the machine's other processes use
SLOWER = 0.9  # of the highest frequency seen
HOT = 95.0  # °C
_EVERY = 0.25  # seconds between looks, at least
_TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int | str) -> float | None:
    """Return the processor time that a process has used, all its threads together."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, IndexError, ValueError):
        return None


def _machine_seconds() -> tuple[float, float, float] | None:
    """Return the seconds that all processors were busy, were taken by the host, and had in all."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(part) for part in file.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle - ticks[7]) / _TICK, ticks[7] / _TICK, sum(ticks) / _TICK
    except (OSError, IndexError, ValueError):
        return None


def _numbers(pattern: str, scale: float) -> list[float]:
    found = []
    for path in Path("/sys").glob(pattern):
        try:
            found.append(int(path.read_text(encoding="ascii")) / scale)
        except (OSError, ValueError):
            continue
    return found


class Watch:
    """Looks at the machine now and then."""

    def __init__(self) -> None:
        self._looks: list[dict[str, Any]] = []
        self._next = 0.0
        self._last: tuple[float, tuple[float, float, float] | None, dict[int | str, float]] | None = None

    def look(self, pids: Iterable[int], force: bool = False) -> None:
        """Look, unless the last look was a moment ago.

        Args:
            pids: The processes that measure; this one is added. All other processor time is other load.
            force: Look in any case.
        """
        now = time.monotonic()
        if now < self._next and not force:
            return
        whole = _machine_seconds()
        watched: list[int | str] = ["self", *pids]
        own = {pid: used for pid in watched if (used := processor_seconds(pid)) is not None}
        if self._last is not None and now - self._last[0] > 0.05:
            self._note(now, whole, own)
        self._last, self._next = (now, whole, own), now + _EVERY

    def _note(self, now: float, whole: tuple[float, float, float] | None, own: dict[int | str, float]) -> None:
        assert self._last is not None
        before, machine_before, own_before = self._last
        look: dict[str, Any] = {"seconds": now - before, "at": now}
        if whole is not None and machine_before is not None and whole[2] > machine_before[2]:
            mine = sum(used - own_before.get(pid, 0.0) for pid, used in own.items())
            busy, stolen, total = (after - earlier for after, earlier in zip(whole, machine_before, strict=True))
            look |= {"other_load_cores": max(0.0, busy - mine) / (now - before), "steal_share": stolen / total}
        if speeds := _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e6):
            look["frequency_ghz"] = max(speeds)
        if heats := _numbers("class/thermal/thermal_zone*/temp", 1000.0):
            look["temperature_c"] = max(heats)
        self._looks.append(look)

    def _mean(self, name: str) -> float | None:
        known = [(look[name], look["seconds"]) for look in self._looks if name in look]
        return sum(value * seconds for value, seconds in known) / sum(seconds for _, seconds in known) if known else None

    def _all(self, name: str) -> list[float]:
        return [look[name] for look in self._looks if name in look]

    def summary(self) -> dict[str, Any]:
        """Return what was seen: means over time, extremes, and in `noisy` every reason to distrust the times, in words."""
        load, steal = self._mean("other_load_cores"), self._mean("steal_share")
        speeds, heats = self._all("frequency_ghz"), self._all("temperature_c")
        noisy = []
        if load is not None and load > OTHER_LOAD:
            noisy.append(f"other processes used {load:.2f} cores")
        if steal is not None and steal > STEAL:
            noisy.append(f"the host took {100 * steal:.1f} % of the processors' time")
        if speeds and min(speeds) < SLOWER * max(speeds):
            noisy.append(f"the processor ran at {min(speeds):.2f} to {max(speeds):.2f} GHz")
        if heats and max(heats) >= HOT:
            noisy.append(f"it was {max(heats):.0f} °C hot")
        return {
            "looks": len(self._looks),
            "other_load_cores": load,
            "steal_share": steal,
            "frequency_ghz": [min(speeds), max(speeds)] if speeds else None,
            "temperature_c": [min(heats), max(heats)] if heats else None,
            "noisy": noisy,
            "samples": [
                {name: round(value, 4) for name, value in look.items() if name != "at"}
                | {"at": round(look["at"] - self._looks[0]["at"], 3)}
                for look in self._looks
            ],
        }
