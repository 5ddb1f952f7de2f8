"""The doctor on machines that we do not have: small trees of /proc and /sys, written after what such machines show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmedge.doctor import (
    examine,
    extras_of,
    gpu_precision,
    gpus_of,
    memory_of,
    onnxruntime_of,
    processor_of,
    rows,
    suitable_precision,
)
from tests.conftest import mmedge

MEMORY = "MemTotal:       {total} kB\nMemFree:          100000 kB\nMemAvailable:   {available} kB\nSwapTotal:             0 kB\n"
PI_4 = "".join(
    f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    for number in range(4)
)
RK3588 = "".join(
    f"processor\t: {number}\nFeatures\t: fp asimd aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    f"CPU implementer\t: 0x41\nCPU part\t: {'0xd05' if number < 4 else '0xd0b'}\n\n"
    for number in range(8)
)
GRAVITON_3 = (
    "processor\t: 0\nFeatures\t: fp asimd aes atomics fphp asimdhp asimddp sve asimdfhm i8mm bf16 svebf16\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"
)
XEON = "".join(
    f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8488C\nphysical id\t: 0\n"
    f"core id\t\t: {number // 2}\nflags\t\t: fma f16c avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 avx_vnni "
    "amx_bf16 amx_int8\n\n"
    for number in range(4)
)
OLD_PC = "processor\t: 0\nmodel name\t: Intel(R) Atom(TM) CPU D525\nflags\t\t: fpu sse sse2 ssse3\n\n"
BEAGLE = (
    "processor\t: 0\nmodel name\t: ARMv7 Processor rev 2 (v7l)\nFeatures\t: half thumb vfp neon vfpv3\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xc08\n\nHardware\t: Generic AM33XX\n"
)
VISION_FIVE = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\nmmu\t\t: sv39\nuarch\t\t: sifive,u74-mc\n\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "name", "features", "first"),
    [
        (PI_4, "aarch64", "4 × Cortex-A72", ("NEON",), ("int8", "fp32", "int4")),
        (RK3588, "aarch64", "4 × Cortex-A55 + 4 × Cortex-A76", ("NEON", "FP16", "dotprod"), ("int8", "int4", "fp32")),
        (GRAVITON_3, "aarch64", "1 × Neoverse V1", ("NEON", "FP16", "dotprod", "i8mm", "BF16", "SVE"), ("int8", "int4", "fp32")),
        (
            XEON,
            "x86_64",
            "Intel(R) Xeon(R) Platinum 8488C",
            ("AVX2", "FMA", "F16C", "AVX-512", "AVX-512 VNNI", "AVX VNNI", "AVX-512 BF16", "AVX-512 FP16", "AMX int8", "AMX bf16"),
            ("int8", "int4", "fp32"),
        ),
        (OLD_PC, "x86_64", "Intel(R) Atom(TM) CPU D525", (), ("int8", "fp32", "int4")),
        (BEAGLE, "armv7l", "ARMv7 Processor rev 2 (v7l)", ("NEON",), ("int8", "fp32", "int4")),
        (VISION_FIVE, "riscv64", "sifive,u74-mc", (), ("int8", "fp32", "int4")),
    ],
)
def test_processors_are_told_apart(
    cpuinfo: str, architecture: str, name: str, features: tuple[str, ...], first: tuple[str, ...], tmp_path: Path
) -> None:
    cpu = processor_of(machine(tmp_path, {"proc/cpuinfo": cpuinfo}), architecture, {})
    assert (cpu.name, cpu.features) == (name, features)
    assert cpu.threads == cpuinfo.count("processor\t:")
    found = suitable_precision(cpu.features, architecture, None)
    assert found.order == first and found.why[0].startswith("int8")


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
    cpu_found = processor_of(machine(tmp_path, files), "x86_64", {})
    assert (cpu_found.cores, cpu_found.threads, cpu_found.governor) == (2, 3, "performance")
    assert cpu_found.caches == {"L1d": 2 * 48 << 10, "L2": 2 * 2 << 20, "L3": 105 << 20}


def test_the_limits_of_a_container_are_the_least_of_its_cgroups(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/cpuinfo": XEON,
            "proc/meminfo": MEMORY.format(total=16_000_000, available=12_000_000),
            "proc/self/cgroup": "0::/box/inner\n",
            "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/box/inner/memory.max": "max\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/box/memory.max": "536870912\n",
            "sys/fs/cgroup/box/memory.current": "136870912\n",
        },
    )
    cpu, memory = processor_of(root, "x86_64", {}), memory_of(root, {})
    assert (cpu.quota, cpu.usable, cpu.threads) == (1.5, 2, 4)
    assert (memory.limit, memory.available, memory.total) == (536_870_912, 400_000_000, 16_384_000_000)
    found = suitable_precision(cpu.features, "x86_64", memory.available)
    assert found.order[0] == "int4" and any("400.0 MB" in line for line in found.why)


def test_the_limits_of_an_older_container_are_read_too(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/meminfo": MEMORY.format(total=16_000_000, available=12_000_000),
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "147483648\n",
        },
    )
    assert processor_of(root, "x86_64", {}).quota == 0.5
    assert memory_of(root, {}).limit == 2_147_483_648 and memory_of(root, {}).available == 2_000_000_000
    machine(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert memory_of(root, {}).limit is None


def test_a_machine_that_says_nothing_is_examined_all_the_same(tmp_path: Path) -> None:
    found = examine(tmp_path, "strange")
    assert found.processor.cores is None and found.memory.total is None and found.processor.features == ()
    text = dict(rows(found))
    assert "unknown" in text["memory"] and text["GPU"] == "none found"
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"processor\n:\nCPU part\t: zz\n"])
def test_broken_files_are_no_reason_to_fail(content: bytes, tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/meminfo": "MemTotal: many kB\nMemAvailable:\n", "proc/self/cgroup": "nonsense\n\n:::\n"})
    (root / "proc" / "cpuinfo").write_bytes(content)
    machine(root, {"sys/fs/cgroup/cpu.max": "x y z\n", "sys/devices/system/cpu/cpu0/cache/index0/size": "big\n"})
    assert examine(root, "aarch64").processor.quota is None


def test_a_mac_is_asked_through_sysctl(tmp_path: Path) -> None:
    said = {
        "machdep.cpu.brand_string": "Apple M1",
        "hw.physicalcpu": "8",
        "hw.logicalcpu": "8",
        "hw.memsize": "17179869184",
        "hw.l2cachesize": "4194304",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "0",
        "hw.optional.neon": "1",
    }
    cpu = processor_of(tmp_path, "arm64", said)
    assert (cpu.name, cpu.cores, cpu.threads, cpu.features) == ("Apple M1", 8, 8, ("NEON", "dotprod"))
    assert cpu.caches == {"L2": 4 << 20} and memory_of(tmp_path, said).total == 16 << 30


def program(folder: Path, name: str, body: str) -> None:
    """Write a program that answers as another one does."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_gpus_are_told_by_nvidia_smi_and_named_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "nvidia-smi", 'echo "Tesla T4, 15360, 15000, 7.5, 550.54"; echo "NVIDIA A10, 23028, 22000, 8.6, 550.54"')
    root = machine(
        tmp_path / "root", {"sys/class/drm/card0/device/vendor": "0x10de\n", "sys/class/drm/card1/device/vendor": "0x1002\n"}
    )
    (older, newer, other), problem = gpus_of(root)
    assert problem is None and (older.memory, newer.compute_capability) == (15360 << 20, (8, 6))
    assert "float16" in gpu_precision(older) and gpu_precision(newer).startswith("bfloat16")
    assert other.name.startswith("AMD") and not other.usable
    program(tmp_path, "nvidia-smi", 'echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9')
    found, problem = gpus_of(tmp_path / "none")
    assert found == () and problem is not None and "could not communicate" in problem


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("kill -ILL $$", "not built for this processor"),
        ('echo "ModuleNotFoundError: No module named onnxruntime" >&2; exit 1', "No module named"),
        ("echo nonsense", "does not say its version"),
    ],
)
def test_an_onnx_runtime_that_does_not_load_is_said_so(body: str, expected: str, tmp_path: Path) -> None:
    program(tmp_path, "python", body)
    found = onnxruntime_of(str(tmp_path / "python"))
    assert found.problem is not None and expected in found.problem and found.providers == ()


def test_extras_are_those_of_the_package_with_what_they_lack() -> None:
    found = {extra.name: extra for extra in extras_of()}
    assert {"distill", "export", "gpu"} <= found.keys() and "all" not in found
    assert found["distill"].installed and found["distill"].command == "pip install 'mmedge[distill]'"
    for extra in found.values():
        assert extra.installed == (not extra.lacking)


def test_the_command_prints_a_table_and_json() -> None:
    shown = mmedge("doctor", "--measure")
    assert shown.code == 0 and "ONNX Runtime" in shown.out and "precision" in shown.out, shown.err
    assert re.search(r"memory reads [0-9.]+ GB/s.* G int8", " ".join(shown.out.split()))
    found = json.loads(mmedge("doctor", "--json").out)
    assert found["processor"]["threads"] >= found["processor"]["usable"] >= 1
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["precision"]["order"][0] in ("int8", "int4") and found["memory"]["total"] > 0
