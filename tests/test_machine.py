"""The machine: read on machines that we do not have, and on this one against others who read it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmedge.errors import MmedgeError
from mmedge.gpus import read_gpus
from mmedge.load import peak_memory, processor_seconds, read_load, resident_memory
from mmedge.machine import read_memory, read_processor, usable_cores, use_cores
from tests.machines import (
    BEAGLE,
    GRAVITON_3,
    OLD_PC,
    PI_4,
    RK3588,
    VISION_FIVE,
    XEON,
    RecordedGpu,
    RecordedNvml,
    recorded,
)

SIXTEEN = (16_000_000_000, 12_000_000_000)  # bytes of memory: total, available


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "name", "features"),
    [
        (PI_4, "aarch64", "4 × Cortex-A72", ("NEON",)),
        (RK3588, "aarch64", "4 × Cortex-A55 + 4 × Cortex-A76", ("NEON", "FP16", "dotprod")),
        (GRAVITON_3, "aarch64", "1 × Neoverse V1", ("NEON", "FP16", "dotprod", "i8mm", "BF16", "SVE")),
        (
            XEON,
            "x86_64",
            "Intel(R) Xeon(R) Platinum 8488C",
            ("AVX2", "FMA", "F16C", "AVX-512", "AVX-512 VNNI", "AVX VNNI", "AVX-512 BF16", "AVX-512 FP16", "AMX int8", "AMX bf16"),
        ),
        (OLD_PC, "x86_64", "Intel(R) Atom(TM) CPU D525", ()),
        (BEAGLE, "armv7l", "ARMv7 Processor rev 2 (v7l)", ("NEON",)),
        (VISION_FIVE, "riscv64", "sifive,u74-mc", ()),
    ],
)
def test_processors_are_told_apart(cpuinfo: str, architecture: str, name: str, features: tuple[str, ...], tmp_path: Path) -> None:
    cpu = read_processor(recorded(tmp_path, {"proc/cpuinfo": cpuinfo}), architecture, {})
    assert (cpu.name, cpu.features) == (name, features)
    assert cpu.threads == cpuinfo.count("processor\t:")


def test_cores_caches_and_governor_are_read_where_they_are(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": XEON, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n"}
    for number in range(4):
        cpu = f"sys/devices/system/cpu/cpu{number}"
        pair = f"{number // 2 * 2}-{number // 2 * 2 + 1}"
        files[f"{cpu}/topology/thread_siblings_list"] = pair
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "48K", pair),
                (1, "Instruction", "32K", pair),
                (2, "Unified", "2048K", pair),
                (3, "Unified", "105M", "0-3"),
            ]
        ):
            cache = f"{cpu}/cache/index{index}"
            files |= {
                f"{cache}/level": str(level),
                f"{cache}/type": kind,
                f"{cache}/size": size,
                f"{cache}/shared_cpu_list": shared,
            }
    files["sys/devices/system/cpu/cpu3/online"] = "0"
    cpu_found = read_processor(recorded(tmp_path, files), "x86_64", {})
    assert (cpu_found.cores, cpu_found.threads, cpu_found.governor) == (2, 3, "performance")
    assert cpu_found.caches == {"L1d": 2 * 48 << 10, "L2": 2 * 2 << 20, "L3": 105 << 20}


def test_the_limits_of_a_container_are_the_least_of_its_cgroups(tmp_path: Path) -> None:
    root = recorded(
        tmp_path,
        {
            "proc/cpuinfo": XEON,
            "proc/self/cgroup": "0::/box/inner\n",
            "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/box/inner/memory.max": "max\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/box/memory.max": "536870912\n",
            "sys/fs/cgroup/box/memory.current": "136870912\n",
        },
    )
    cpu, memory = read_processor(root, "x86_64", {}), read_memory(root, SIXTEEN)
    assert (cpu.quota, cpu.usable, cpu.threads) == (1.5, 2, 4)
    assert (memory.limit, memory.available, memory.total) == (536_870_912, 400_000_000, SIXTEEN[0])


def test_the_limits_of_an_older_container_are_read_too(tmp_path: Path) -> None:
    root = recorded(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "147483648\n",
        },
    )
    assert read_processor(root, "x86_64", {}).quota == 0.5
    memory = read_memory(root, SIXTEEN)
    assert memory.limit == 2_147_483_648 and memory.available == 2_000_000_000
    recorded(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert read_memory(root, SIXTEEN).limit is None


def test_a_mac_is_asked_through_sysctl(tmp_path: Path) -> None:
    said = {
        "machdep.cpu.brand_string": "Apple M1",
        "hw.physicalcpu": "8",
        "hw.logicalcpu": "8",
        "hw.l2cachesize": "4194304",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "0",
        "hw.optional.neon": "1",
    }
    cpu = read_processor(tmp_path, "arm64", said)
    assert (cpu.name, cpu.cores, cpu.threads, cpu.features) == ("Apple M1", 8, 8, ("NEON", "dotprod"))
    assert cpu.caches == {"L2": 4 << 20}


def test_usable_cores_are_those_of_the_process_and_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = len(psutil.Process().cpu_affinity())
    assert usable_cores(tmp_path) == affinity >= usable_cores() >= 1
    recorded(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert usable_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    assert usable_cores(tmp_path / "elsewhere") == os.cpu_count()


def test_a_process_that_is_bound_has_fewer_cores() -> None:
    script = "from mmedge.machine import usable_cores, use_cores; use_cores(1); print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"
    with pytest.raises(MmedgeError, match="--cpus 4096: this process may use"):
        use_cores(4096)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the memory of GNU's C library")
def test_memory_that_is_kept_is_not_taken_anew() -> None:
    script = """if True:
        import resource, sys
        import numpy
        from mmedge.machine import keep_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                numpy.full(20_000_000, 1.0)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        before = faults()
        keep_memory()
        faults()
        print(before, faults())"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < 100 < returned


def test_gpus_are_told_by_nvml_and_named_by_the_system(tmp_path: Path) -> None:
    root = recorded(tmp_path, {"sys/class/drm/card0/device/vendor": "0x10de\n", "sys/class/drm/card1/device/vendor": "0x1002\n"})
    nvml = RecordedNvml(RecordedGpu("Tesla T4", 15 << 30, (7, 5)), RecordedGpu("NVIDIA A10", 22 << 30))
    (older, newer, other), problem = read_gpus(root, nvml)
    assert problem is None and (older.memory, older.free, newer.compute_capability) == (15 << 30, 15 << 29, (8, 6))
    assert newer.driver == "550.54" and newer.usable and other.name.startswith("AMD") and not other.usable
    found, problem = read_gpus(tmp_path / "none", RecordedNvml())
    assert found == () and problem is not None and "version mismatch" in problem.what


def test_a_driver_that_cannot_be_asked_is_a_problem_and_no_driver_is_none(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").is_file():
        pytest.skip("there is a driver here")
    assert read_gpus(tmp_path) == ((), None)
    found, problem = read_gpus(recorded(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 550.54\n"}))
    assert found == () and problem is not None and problem.hint


def test_load_and_memory_are_those_that_others_read() -> None:
    found, other = read_load([os.getpid(), 2**22 + 1]), psutil.cpu_times()
    assert found.total == pytest.approx(sum(other[:8]), rel=0.01) and 0 < found.busy < found.total
    assert list(found.processes) == [os.getpid()]
    assert found.processes[os.getpid()] == pytest.approx(processor_seconds(os.getpid()), abs=0.1)
    assert read_memory().total == psutil.virtual_memory().total
    resident, peak = resident_memory(), peak_memory()
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert peak is not None and peak >= 0.9 * resident


def test_threads_of_torch_wait_briefly_before_they_sleep() -> None:
    script = "from mmedge.machine import wait_briefly; wait_briefly(); import torch; torch.set_num_threads(2)"
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    shown = {}
    for policy in (None, "ACTIVE"):
        env = bare | {"OMP_DISPLAY_ENV": "verbose"} | ({"OMP_WAIT_POLICY": policy} if policy else {})
        shown[policy] = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env).stderr
    if "GOMP_SPINCOUNT" not in shown[None]:
        pytest.skip("torch has another OpenMP here")
    assert "GOMP_SPINCOUNT = '10000'" in shown[None]
    assert "GOMP_SPINCOUNT = '10000'" not in shown["ACTIVE"]
