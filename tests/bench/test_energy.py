"""Energy: counters that wrap around, power that is summed up, and what is not available said in words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mmedge.bench.energy import Energy, EnergyMeter, Meters, RaplZone, energy_of, find_meters, measured, per_answer


def zone(root: Path, name: str, label: str, counter: int, largest: int = 65_532_610_987) -> Path:
    """Write one RAPL zone as Linux shows it; return its counter."""
    folder = root / "sys" / "class" / "powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{counter}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder / "energy_uj"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_packages_and_their_memory_are_counted_once(tmp_path: Path, no_gpu: None) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    meters = find_meters(tmp_path)
    with measured(meters) as used:
        package.write_text("7500000\n")
        memory.write_text("1250000\n")
    assert used.joules == {"processor (package-0)": 2.5, "memory (package-0, dram)": 0.25}
    assert used.total == 2.75 and used.seconds > 0
    assert meters.missing == ("GPU: not available: no nvidia-smi here",)


def test_a_counter_that_wraps_around_loses_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 999_000, largest=999_999)
    meter = RaplZone("processor", counter.parent)
    meter.start()
    for value in (500, 600_000, 200):  # 1,500 to here, 599,500 more, and 400,200 over the next end
        counter.write_text(f"{value}\n")
        meter.glance()
    assert meter.stop() == pytest.approx((1_500 + 599_500 + 400_200) / 1e6)


def test_a_counter_that_vanishes_meanwhile_is_named_and_not_guessed(tmp_path: Path, no_gpu: None) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    with measured(find_meters(tmp_path)) as used:
        counter.unlink()
    assert used.joules == {} and used.failed == ["processor (package-0)"] and used.total is None


def test_what_is_not_there_is_said_in_words(tmp_path: Path, no_gpu: None) -> None:
    assert any("no powercap" in line for line in find_meters(tmp_path).missing)
    (tmp_path / "sys" / "class" / "powercap").mkdir(parents=True)
    assert any("no RAPL zone" in line for line in find_meters(tmp_path).missing)
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counter.unlink()
    counter.mkdir()  # not readable as a file, by root neither
    assert any("intel-rapl:0 cannot be read" in line for line in find_meters(tmp_path).missing)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_alone_says_what_to_do(tmp_path: Path, no_gpu: None) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
    assert any("root only" in line and "chmod" in line for line in find_meters(tmp_path).missing)


def nvidia_smi(folder: Path, body: str) -> None:
    """Write a program that answers as nvidia-smi does."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_the_power_of_a_gpu_is_summed_up_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "while true; do echo 50.00; sleep 0.02; done"
    nvidia_smi(tmp_path, f'case "$*" in *loop-ms*) {loop};; *) echo "0, Recorded GPU, 48.10";; esac')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    meters = find_meters(tmp_path)
    with measured(meters) as used:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            time.sleep(0.01)
    assert used.joules == {"GPU 0 (Recorded GPU)": pytest.approx(50 * used.seconds, rel=0.2)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('echo "NVIDIA-SMI has failed because it could not communicate with the driver."; exit 9', "could not communicate"),
        ('echo "0, Small GPU, [N/A]"', "Small GPU does not tell its power"),
    ],
)
def test_a_gpu_that_tells_nothing_is_said_so(body: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, body)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert any(expected in line for line in find_meters(tmp_path).missing)


def test_energy_is_the_area_under_the_power() -> None:
    assert energy_of([(1.0, 10.0), (2.0, 30.0)], 0.0, 3.0) == pytest.approx(10 + 20 + 30)
    assert energy_of([(5.0, 10.0)], 0.0, 3.0) is None


def test_the_energy_of_an_answer_may_leave_out_what_the_idle_machine_uses() -> None:
    used = Energy(seconds=10.0, joules={"processor": 120.0})
    assert per_answer(used, 20) == 6.0 and per_answer(used, 20, idle_watts=4.0) == 4.0
    assert per_answer(Energy(seconds=1.0), 20) is None


def test_a_meter_is_started_and_stopped_again_and_again(tmp_path: Path, no_gpu: None) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(find_meters(tmp_path))
    for number in (1, 2):
        meter.start()
        counter.write_text(f"{number * 3_000_000}\n")
        found = meter.stop()
        assert found["joules"] == {"processor (package-0)": 3.0} and found["total_joules"] == 3.0 and found["failed"] == []
        assert found["missing"] == ["GPU: not available: no nvidia-smi here"]


def test_without_meters_nothing_is_claimed() -> None:
    with measured(Meters((), ())) as used:
        pass
    assert used.total is None and used.joules == {}
