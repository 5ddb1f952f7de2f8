"""Energy: what the machine's own counters measured while something ran, or why they measured nothing.

RAPL (Linux powercap) counts microjoules for each processor package and, on some, its memory; the counters wrap around. They are
root's alone since CVE-2020-8694. NVIDIA's GPUs from Volta on count millijoules (NVML). Both count all that the machine did in that
time, not one process alone; a board without counters needs a power meter.

    meter = EnergyMeter()
    meter.start()
    …
    meter.stop().joules      {"processor (package-0)": 12.3}, empty where nothing is counted
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmedge.errors import MmedgeError
from mmedge.gpus import nvml_problem, open_nvml
from mmedge.machine import ROOT

GLANCE_SECONDS = 10.0  # between readings: at 1 kW a counter of 65,536 J, the smallest range there is, wraps after 65 s


class EnergyCounter(Protocol):
    """Something that counts joules."""

    @property
    def name(self) -> str:
        """What it counts, in words."""
        ...

    def start(self) -> None:
        """Start counting from zero."""
        ...

    def glance(self) -> None:
        """Read the counter, often enough to notice when it wraps around."""
        ...

    def stop(self) -> float | None:
        """Return the joules since the start; None where the counter failed meanwhile."""
        ...


class RaplZone:
    """One counter of Linux's powercap.

    Args:
        name: What it counts, in words.
        folder: Such as `/sys/class/powercap/intel-rapl:0`.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())  # the counter goes from this to zero
        self._last = self._sum = 0
        self._failed = False

    def read(self) -> int:
        """Return the counter, in microjoules."""
        return int(self._counter.read_text())

    def start(self) -> None:
        self._last, self._sum, self._failed = self.read(), 0, False

    def glance(self) -> None:
        try:
            now = self.read()
        except (OSError, ValueError):
            self._failed = True
            return
        step = now - self._last
        self._sum += step if step >= 0 else step + self._range + 1
        self._last = now

    def stop(self) -> float | None:
        self.glance()
        return None if self._failed else self._sum / 1e6


class GpuEnergy:
    """The counter of one NVIDIA GPU: 64 bits of millijoules since the driver was loaded, so that it never wraps around.

    Args:
        nvml: As `gpus.open_nvml` returns it.
        index: The GPU's number.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._device = nvml.nvmlDeviceGetHandleByIndex(index)
        self.name = f"GPU {index} ({nvml.nvmlDeviceGetName(self._device)})"
        self._started = 0

    def read(self) -> int:
        """Return the counter, in millijoules.

        Raises:
            OSError: The GPU has none, or the driver does not answer.
        """
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from None

    def start(self) -> None:
        self._started = self.read()

    def glance(self) -> None:
        pass

    def stop(self) -> float | None:
        try:
            return (self.read() - self._started) / 1e3
        except OSError:
            return None


@dataclass(frozen=True)
class EnergyCounters:
    """What is counted here, and what is not.

    Attributes:
        found: The counters.
        missing: One sentence for each kind that is not available.
    """

    found: tuple[EnergyCounter, ...]
    missing: tuple[str, ...]


@dataclass
class EnergyUse:
    """What was used.

    Attributes:
        seconds: How long it ran.
        joules: By counter.
        total_joules: All counters together; None where there is none.
        failed: Counters that failed meanwhile.
        missing: Why others were not counted.
    """

    seconds: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    total_joules: float | None = None
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_energy_counters(root: Path = ROOT, nvml: Any = None) -> EnergyCounters:
    """Return what is counted on this machine.

    Args:
        root: Where `proc` and `sys` are; another one is for tests.
        nvml: As `gpus.open_nvml` returns it; by default it is opened.
    """
    zones, why_no_zone = _rapl(root / "sys" / "class" / "powercap")
    gpus, why_no_gpu = _nvidia(root, nvml)
    return EnergyCounters((*zones, *gpus), tuple(filter(None, (why_no_zone, why_no_gpu))))


def _rapl(powercap: Path) -> tuple[list[RaplZone], str]:
    """Return a counter for each package, and for memory that is counted beside its package, not in it."""
    if not powercap.is_dir():
        return [], "processor: not available: this system has no powercap (not Linux, a virtual machine, or a kernel without it)"
    found: list[RaplZone] = []
    problem = ""
    # AMD's are called intel-rapl too; -mmio names the same counters a second time; psys contains the packages
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            label = (folder / "name").read_text().strip()
            if not label.startswith("package") and label != "dram":  # core and uncore are in their package
                continue
            within = ""
            if label == "dram":
                within = (powercap / folder.name.rpartition(":")[0] / "name").read_text().strip() + ", "
            zone = RaplZone(f"{'memory' if label == 'dram' else 'processor'} ({within}{label})", folder)
            zone.read()
            found.append(zone)
        except PermissionError:
            problem = f"processor: not available: {folder.name}/energy_uj can be read by root only; as root, or after: chmod a+r"
        except (OSError, ValueError) as error:
            problem = f"processor: not available: {folder.name} cannot be read ({error})"
    if not found and not problem:
        problem = "processor: not available: powercap has no RAPL zone (ARM boards and virtual machines have none)"
    return found, problem if not found else ""


def _nvidia(root: Path, nvml: Any) -> tuple[list[GpuEnergy], str]:
    try:
        nvml = nvml or open_nvml(root)
    except MmedgeError as error:
        return [], f"GPU: not available: {error.what}"
    if nvml is None:
        return [], "GPU: not available: no NVIDIA driver"
    try:
        gpus = [GpuEnergy(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return [], f"GPU: not available: {nvml_problem(error).what}"
    found, silent = [], []
    for gpu in gpus:
        try:
            gpu.read()
            found.append(gpu)
        except OSError:
            silent.append(gpu.name)
    return found, f"GPU: not available: {', '.join(silent)} does not count its energy" if silent and not found else ""


class EnergyMeter:
    """All counters of a machine together, started and stopped around a piece of work, again and again.

    Args:
        counters: By default all that there are.
    """

    def __init__(self, counters: EnergyCounters | None = None) -> None:
        self._counters = find_energy_counters() if counters is None else counters
        self._use = EnergyUse()
        self._running: Sequence[EnergyCounter] = ()
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._begun = 0.0

    def start(self) -> None:
        """Begin, from zero."""
        self._use, running, self._ended = EnergyUse(missing=list(self._counters.missing)), [], threading.Event()
        for counter in self._counters.found:
            try:
                counter.start()
                running.append(counter)
            except (OSError, ValueError):
                self._use.failed.append(counter.name)
        self._running = running
        self._watcher = threading.Thread(target=self._glance, args=(self._ended,), daemon=True)
        self._watcher.start()
        self._begun = time.perf_counter()

    def _glance(self, ended: threading.Event) -> None:
        while not ended.wait(GLANCE_SECONDS):
            for counter in self._running:
                counter.glance()

    def stop(self) -> EnergyUse:
        """End, and return what was used."""
        use = self._use
        use.seconds = time.perf_counter() - self._begun
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()  # from here on only this thread reads
        for counter in self._running:
            joules = counter.stop()
            if joules is None:
                use.failed.append(counter.name)
            else:
                use.joules[counter.name] = joules
        use.total_joules = sum(use.joules.values()) if use.joules else None
        return use
