"""Energy: counters that wrap around, counters of GPUs, and what is not available said in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmedge.bench.energy import EnergyCounters, EnergyMeter, EnergyUse, RaplZone, find_energy_counters
from tests.machines import RecordedGpu, RecordedNvml


def zone(root: Path, name: str, label: str, counter: int, largest: int = 65_532_610_987) -> Path:
    """Write one RAPL zone as Linux shows it; return its counter."""
    folder = root / "sys" / "class" / "powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{counter}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder / "energy_uj"


def used_while(root: Path, work: Callable[[], object], nvml: object = None) -> EnergyUse:
    """Return what was used while something ran."""
    meter = EnergyMeter(find_energy_counters(root, nvml))
    meter.start()
    work()
    return meter.stop()


def test_packages_and_their_memory_are_counted_once(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)

    def work() -> None:
        package.write_text("7500000\n")
        memory.write_text("1250000\n")

    used = used_while(tmp_path, work)
    assert used.joules == {"processor (package-0)": 2.5, "memory (package-0, dram)": 0.25}
    assert used.total_joules == 2.75 and used.seconds > 0
    assert len(used.missing) == 1 and used.missing[0].startswith("GPU: not available: ")


def test_a_counter_that_wraps_around_loses_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 999_000, largest=999_999)
    meter = RaplZone("processor", counter.parent)
    meter.start()
    for value in (500, 600_000, 200):  # 1,500 to here, 599,500 more, and 400,200 over the next end
        counter.write_text(f"{value}\n")
        meter.glance()
    assert meter.stop() == pytest.approx((1_500 + 599_500 + 400_200) / 1e6)


def test_a_counter_that_vanishes_meanwhile_is_named_and_not_guessed(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    used = used_while(tmp_path, counter.unlink)
    assert used.joules == {} and used.failed == ["processor (package-0)"] and used.total_joules is None


def test_what_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    assert any("no powercap" in line for line in find_energy_counters(tmp_path).missing)
    (tmp_path / "sys" / "class" / "powercap").mkdir(parents=True)
    assert any("no RAPL zone" in line for line in find_energy_counters(tmp_path).missing)
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counter.unlink()
    counter.mkdir()  # not readable as a file, by root neither
    assert any("intel-rapl:0 cannot be read" in line for line in find_energy_counters(tmp_path).missing)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_alone_says_what_to_do(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
    assert any("root only" in line and "chmod" in line for line in find_energy_counters(tmp_path).missing)


def test_gpus_count_their_own_energy(tmp_path: Path) -> None:
    nvml = RecordedNvml(RecordedGpu("NVIDIA A10"), RecordedGpu("GTX 1080", counts_energy=False))
    used = used_while(tmp_path, lambda: None, nvml)
    assert used.joules == {"GPU 0 (NVIDIA A10)": 1.5} and used.total_joules == 1.5


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [
        (RecordedNvml(), "version mismatch"),
        (RecordedNvml(RecordedGpu("GTX 1080", counts_energy=False)), "GPU 0 (GTX 1080) does not count its energy"),
    ],
)
def test_a_gpu_that_counts_nothing_is_said_so(nvml: RecordedNvml, expected: str, tmp_path: Path) -> None:
    assert any(expected in line for line in find_energy_counters(tmp_path, nvml).missing)


def test_a_meter_is_started_and_stopped_again_and_again(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(find_energy_counters(tmp_path))
    for number in (1, 2):
        meter.start()
        counter.write_text(f"{number * 3_000_000}\n")
        found = meter.stop()
        assert found.joules == {"processor (package-0)": 3.0} and found.total_joules == 3.0 and found.failed == []


def test_without_meters_nothing_is_claimed() -> None:
    meter = EnergyMeter(EnergyCounters((), ()))
    meter.start()
    used = meter.stop()
    assert used.total_joules is None and used.joules == {}
