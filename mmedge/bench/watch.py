"""The machine, watched while it measures: other load, frequency, temperature.

    watch = Watch(); watch.look(pids); …; watch.look(pids)
    watch.summary().noisy     ["other processes used 0.52 cores"]

It is looked at between measurements, when nothing is timed. What the system does not report (a virtual machine has no temperature)
is None, and then says nothing about noise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mmedge.load import Load, read_load

STEAL = 0.02  # of all processor time: more makes a run noisy
OTHER_LOAD = 0.1  # of one core, that the machine's other processes use
SLOWER = 0.9  # of the highest frequency seen
HOT = 95.0  # °C
_EVERY = 0.25  # seconds between looks, at least


@dataclass(frozen=True)
class WatchSummary:
    """What was seen: means over time, extremes, and every reason to distrust the times.

    Attributes:
        looks: How many.
        other_load_cores: Cores that other processes used.
        steal_share: Share of all processor time that the host took.
        frequency_ghz: Lowest and highest.
        temperature_c: Lowest and highest.
        noisy: The reasons, in words.
        samples: What each look saw.
    """

    looks: int
    other_load_cores: float | None
    steal_share: float | None
    frequency_ghz: tuple[float, float] | None
    temperature_c: tuple[float, float] | None
    noisy: list[str]
    samples: list[dict[str, float]]


@dataclass(frozen=True)
class _Look:
    """What was seen since the look before; `at` is in seconds, on the monotonic clock."""

    seconds: float
    at: float
    other_load_cores: float | None
    steal_share: float | None
    frequency_ghz: float | None
    temperature_c: float | None


class Watch:
    """Samples the state of the machine now and then."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._next = 0.0
        self._last: tuple[float, Load] | None = None

    def look(self, pids: Iterable[int], force: bool = False) -> None:
        """Take a sample, unless the last one was a moment ago.

        Args:
            pids: The processes that measure; this one is added. All other processor time is other load.
            force: Take it in any case.
        """
        now = time.monotonic()
        if now < self._next and not force:
            return
        load = read_load([os.getpid(), *pids])
        if self._last is not None and now - self._last[0] > 0.05:
            self._note(now, load)
        self._last, self._next = (now, load), now + _EVERY

    def _note(self, now: float, load: Load) -> None:
        assert self._last is not None
        before, earlier = self._last
        seconds, other, steal = now - before, None, None
        if load.total > earlier.total:
            mine = sum(used - earlier.processes.get(pid, 0.0) for pid, used in load.processes.items())
            other = max(0.0, load.busy - earlier.busy - mine) / seconds
            steal = (load.stolen - earlier.stolen) / (load.total - earlier.total)
        self._looks.append(_Look(seconds, now, other, steal, load.frequency_ghz, load.temperature_c))

    def summary(self) -> WatchSummary:
        """Return what was seen until now."""

        def mean(values: list[float | None]) -> float | None:
            known = [(value, look.seconds) for value, look in zip(values, self._looks, strict=True) if value is not None]
            return sum(value * seconds for value, seconds in known) / sum(seconds for _, seconds in known) if known else None

        def extremes(values: list[float | None]) -> tuple[float, float] | None:
            known = [value for value in values if value is not None]
            return (min(known), max(known)) if known else None

        load, steal = mean([look.other_load_cores for look in self._looks]), mean([look.steal_share for look in self._looks])
        speeds = extremes([look.frequency_ghz for look in self._looks])
        heats = extremes([look.temperature_c for look in self._looks])
        noisy = []
        if load is not None and load > OTHER_LOAD:
            noisy.append(f"other processes used {load:.2f} cores")
        if steal is not None and steal > STEAL:
            noisy.append(f"the host took {100 * steal:.1f} % of the processors' time")
        if speeds is not None and speeds[0] < SLOWER * speeds[1]:
            noisy.append(f"the processor ran at {speeds[0]:.2f} to {speeds[1]:.2f} GHz")
        if heats is not None and heats[1] >= HOT:
            noisy.append(f"the processor reached {heats[1]:.0f} °C")
        begun = self._looks[0].at if self._looks else 0.0
        samples = [
            {name: round(value, 4) for name, value in {**asdict(look), "at": look.at - begun}.items() if value is not None}
            for look in self._looks
        ]
        return WatchSummary(len(self._looks), load, steal, speeds, heats, noisy, samples)
