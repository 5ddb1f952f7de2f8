"""Energy: what the machine's own meters say was used while something ran, or in words why they say nothing.

RAPL (Linux powercap) counts microjoules for each processor package and, on some, its memory; the counters wrap around. It is
root's alone since CVE-2020-8694. A GPU's power is read from nvidia-smi ten times a second and summed up over time. Both count
all that the machine did in that time, not one process alone; a board without a meter needs one at its plug.

    meters = find_meters()
    with measured(meters) as used:
        …
    used.joules      {"processor (package-0)": 12.3}, empty where nothing is metered
    meters.missing   ["processor: /sys/class/powercap holds no RAPL zone"]
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

GLANCE_SECONDS = 10.0  # between readings: at 1 kW a counter of 65,536 J, the smallest range there is, wraps after 65 s
NVIDIA_MILLISECONDS = 100


class Meter(Protocol):
    """Something that counts joules."""

    name: str

    def start(self) -> None:
        """Begin to count, from zero."""
        ...

    def glance(self) -> None:
        """Look often enough that nothing is missed."""
        ...

    def stop(self) -> float | None:
        """Return the joules since the start; None where the meter failed meanwhile."""
        ...


class RaplZone:
    """One counter of Linux's powercap.

    Args:
        name: What it counts, for people.
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


class NvidiaPower:
    """The power of one NVIDIA GPU, as nvidia-smi tells it, summed up over time (trapezoids between readings).

    Args:
        index: The GPU's number.
        name: Its name.
        program: The path of nvidia-smi.
    """

    def __init__(self, index: int, name: str, program: str) -> None:
        self.name = f"GPU {index} ({name})"
        self._command = [
            *(program, f"--id={index}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"),
            f"--loop-ms={NVIDIA_MILLISECONDS}",
        ]
        self._process: subprocess.Popen[str] | None = None
        self._readings: list[tuple[float, float]] = []
        self._listener: threading.Thread | None = None

    def start(self) -> None:
        self._readings = []
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._started = time.perf_counter()
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._readings.append((time.perf_counter(), float(line)))

    def glance(self) -> None:
        pass  # it is read all the time

    def stop(self) -> float | None:
        ended = time.perf_counter()
        assert self._process is not None and self._listener is not None
        self._process.terminate()
        self._process.wait()
        self._listener.join(timeout=5)
        return energy_of(self._readings, self._started, ended)


def energy_of(readings: Sequence[tuple[float, float]], started: float, ended: float) -> float | None:
    """Return the joules between two moments; the first and last power hold up to the ends.

    Args:
        readings: (seconds, watts), in order.
        started: Seconds, on the same clock.
        ended: Seconds.

    Returns:
        None where nothing was read.
    """
    inside = [(moment, watts) for moment, watts in readings if started <= moment <= ended]
    if not inside:
        return None
    points = [(started, inside[0][1]), *inside, (ended, inside[-1][1])]
    return sum((later - sooner) * (a + b) / 2 for (sooner, a), (later, b) in pairwise(points))


@dataclass(frozen=True)
class Meters:
    """What is metered here, and in words what is not.

    Attributes:
        found: The meters.
        missing: One sentence for each kind that is not available.
    """

    found: tuple[Meter, ...]
    missing: tuple[str, ...]


@dataclass
class Energy:
    """What was used.

    Attributes:
        seconds: How long it ran.
        joules: By meter.
        failed: Meters that failed meanwhile.
    """

    seconds: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def total(self) -> float | None:
        """Joules of all meters together; None where there is none."""
        return sum(self.joules.values()) if self.joules else None

    def to_json(self) -> dict[str, object]:
        return {"seconds": self.seconds, "joules": self.joules, "total_joules": self.total, "failed": self.failed}


def find_meters(root: Path = Path("/")) -> Meters:
    """Return what is metered on this machine.

    Args:
        root: Where `sys` is; another one is for tests.
    """
    zones, why_no_zone = _rapl(root / "sys" / "class" / "powercap")
    gpus, why_no_gpu = _nvidia()
    return Meters((*zones, *gpus), tuple(filter(None, (why_no_zone, why_no_gpu))))


def _rapl(powercap: Path) -> tuple[list[Meter], str]:
    """Return a meter for each package, and for memory that stands beside its package, not in it."""
    if not powercap.is_dir():
        return [], "processor: not available: this system has no powercap (no Linux, a virtual machine, or a kernel without it)"
    found: list[Meter] = []
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


def _nvidia() -> tuple[list[Meter], str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "GPU: not available: no nvidia-smi here"
    query = [program, "--query-gpu=index,name,power.draw", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"GPU: not available: nvidia-smi does not run ({type(error).__name__})"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [], f"GPU: not available: nvidia-smi says: {(said or ['nothing'])[-1][:120]}"
    found: list[Meter] = []
    silent = []
    for line in done.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[0].isdecimal():
            continue
        try:
            float(parts[2])
            found.append(NvidiaPower(int(parts[0]), parts[1], program))
        except ValueError:
            silent.append(parts[1])
    return found, f"GPU: not available: {', '.join(silent)} does not tell its power" if silent and not found else ""


class EnergyMeter:
    """All meters of a machine together, started and stopped around a piece of work.

    Args:
        meters: By default all that there are.
    """

    name = "energy"

    def __init__(self, meters: Meters | None = None) -> None:
        self._meters = find_meters() if meters is None else meters
        self._energy = Energy()
        self._running: list[Meter] = []
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._begun = 0.0

    def start(self) -> Energy:
        """Begin; what is returned is complete once `finish` was called."""
        self._energy, self._running, self._ended = Energy(), [], threading.Event()
        for meter in self._meters.found:
            try:
                meter.start()
                self._running.append(meter)
            except (OSError, ValueError):
                self._energy.failed.append(meter.name)
        self._watcher = threading.Thread(target=self._glance, args=(self._ended,), daemon=True)
        self._watcher.start()
        self._begun = time.perf_counter()
        return self._energy

    def _glance(self, ended: threading.Event) -> None:
        while not ended.wait(GLANCE_SECONDS):
            for meter in self._running:
                meter.glance()

    def finish(self) -> Energy:
        """End, and return what was used."""
        energy = self._energy
        energy.seconds = time.perf_counter() - self._begun
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()  # from here on nobody else reads
        for meter in self._running:
            joules = meter.stop()
            if joules is None:
                energy.failed.append(meter.name)
            else:
                energy.joules[meter.name] = joules
        return energy

    def stop(self) -> dict[str, object]:
        """End, and return what was used as a JSON-able value, with the reasons for what is not metered."""
        return {**self.finish().to_json(), "missing": list(self._meters.missing)}


@contextmanager
def measured(meters: Meters) -> Iterator[Energy]:
    """Measure while the block runs; the result is complete when it has ended."""
    meter = EnergyMeter(meters)
    energy = meter.start()
    try:
        yield energy
    finally:
        meter.finish()


def per_answer(energy: Energy, answers: int, idle_watts: float | None = None) -> float | None:
    """Return the joules of one answer; None where nothing was metered.

    Args:
        energy: What was used while they were given.
        answers: How many there were.
        idle_watts: What all meters together show when nothing runs, to be left out; None to leave it in.
    """
    total = energy.total
    if total is None or answers < 1:
        return None
    return (total - (idle_watts or 0.0) * energy.seconds) / answers
