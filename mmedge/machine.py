"""The machine: processor, memory, the container's limits, usable cores. GPUs are read by `gpus.py`, how busy it is by `load.py`.

    usable_cores()             2
    read_processor().name      "AMD EPYC 7B13"
    read_memory().available    19_200_000_000
    machine()                  what a report says about where it was measured

Asks what a system says about itself (/proc and /sys on Linux, sysctl on macOS), and psutil for what it reads on every system.
Nothing fails because something is not there: what is unknown is None. psutil is imported by the functions that need it, and so is
what is slow to import: the command line starts here, and the runtime asks for `usable_cores` alone.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmedge import __version__
from mmedge.errors import MmedgeError

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic, which reads this type, needs it so
    from typing_extensions import TypedDict

ROOT = Path("/")

# a feature's common name: the kernel's flags for it, any of which is enough
_Features = dict[str, tuple[str, ...]]
_X86_FEATURES: _Features = {
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "F16C": ("f16c",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX VNNI": ("avx_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AVX-512 FP16": ("avx512_fp16",),
    "AMX int8": ("amx_int8",),
    "AMX bf16": ("amx_bf16",),
}
_ARM_FEATURES: _Features = {  # a 64-bit kernel says asimd, a 32-bit one neon; macOS has sysctl names
    "NEON": ("asimd", "neon", "hw.optional.neon", "hw.optional.AdvSIMD"),
    "FP16": ("asimdhp", "hw.optional.arm.FEAT_FP16"),
    "dotprod": ("asimddp", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    "BF16": ("bf16", "hw.optional.arm.FEAT_BF16"),
    "SVE": ("sve",),
    "SVE2": ("sve2",),
    "SME": ("sme", "hw.optional.arm.FEAT_SME"),
}
_ARM_PARTS = {  # Arm's own cores (implementer 0x41), from the Main ID Register's part number in each core's manual
    0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
    0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1",
    0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse N2", 0xD4D: "Cortex-A715",
    0xD4F: "Neoverse V2",
}  # fmt: skip
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # M_… of glibc's malloc.h
_PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum", "optimum-onnx", "numpy", "safetensors")


@dataclass(frozen=True)
class Processor:
    """The CPU.

    Attributes:
        name: As the system calls it.
        board: The board's own name, where it has one (device tree).
        architecture: As `uname -m` says.
        features: Those that matter here, by their common names.
        cores: Physical cores of the whole machine.
        threads: Logical cores that are switched on.
        usable: Logical cores that this process may use; see `usable_cores`.
        quota: Cores' worth of time that the cgroup allows; None where it is not limited.
        caches: Bytes by level, all instances together: L1d, L2, L3.
        governor: The frequency governor of the first core.
    """

    name: str
    board: str | None
    architecture: str
    features: tuple[str, ...]
    cores: int | None
    threads: int
    usable: int
    quota: float | None
    caches: dict[str, int]
    governor: str | None


@dataclass(frozen=True)
class Memory:
    """Main memory, in bytes.

    Attributes:
        total: Of the machine.
        available: What can be used without swapping, within the limit.
        limit: What the cgroup allows; None where it is not limited.
    """

    total: int
    available: int
    limit: int | None


class MachineFacts(TypedDict):
    """Where something was measured; `cores` are those that the process may use."""

    mmedge: str
    python: str
    system: str
    processor: str
    cores: int
    memory_gb: float
    packages: dict[str, str]


def machine() -> MachineFacts:
    """Return what a measurement must say about where it was taken."""
    from importlib import metadata

    processor = read_processor()
    versions = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "mmedge": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {processor.architecture}",
        "processor": processor.name,
        "cores": processor.usable,
        "memory_gb": round(read_memory().total / 1e9, 1),
        "packages": versions,
    }


# ------------------------------------------------------------------------------------------------------------- cores


def usable_cores(root: Path = ROOT) -> int:
    """Return how many logical cores this process may use: its affinity, and its container's share of time, rounded up."""
    return _within_quota(len(_affinity()), _cpu_quota(root))


def _affinity() -> list[int]:
    """Return the logical cores that this process may run on; all of them where the system has no affinity (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _within_quota(cores: int, quota: float | None) -> int:
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def wait_briefly() -> None:
    """Let OpenMP's threads spin for some 0.2 ms while they wait for each other, and then sleep; before torch is imported.

    GNU's OpenMP spins for 300,000 turns (some 6 ms), which wastes most of a busy machine's time; without spinning, a small
    student's training pays for a sleep at each of its operations. Training a student of 1.2 M parameters on two cores, idle and
    with one other process on each core (AMD EPYC, torch 2.13): 13.9 and 136 s as torch does, 22.3 s idle without spinning, 21.6
    and 55.6 s with 1,000 turns, 12.1 and 28.9 s with 10,000; 17.4 and 33.2 s with one thread. A policy that the environment states
    is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def share_memory() -> None:
    """Let the threads to come take memory from two pools, where the system's C library (glibc) would keep eight for each core.

    Each pool keeps what its largest request took: 150 requests of a megabyte, answered by 16 threads, left a server of 94 MB with
    284 MB; with two pools, 140 MB.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where the system's C library (glibc) would return it and take it anew.

    Training frees and takes the same large blocks at every step, and the system clears each page of them every time: training
    SmolLM2-135M took 30,000 page faults a second and spent 9 % of its time in the system, and now none. Doubling 60 MB takes 0.2
    instead of 1.5 ms a megabyte (AMD EPYC, one thread). The process keeps what it took at its peak until it ends, in pieces
    that not all later blocks fit into: that peak is 4.7 GB instead of 4.1.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)  # never


def use_cores(count: int) -> None:
    """Let this process, and all threads that it starts from now on, run on so many logical cores only.

    Raises:
        MmedgeError: There are fewer, or the system cannot do that.
    """
    allowed = _affinity()
    if count > len(allowed):
        raise MmedgeError(f"--cpus {count}: this process may use only {len(allowed)} processors", "ask for fewer")
    if not hasattr(os, "sched_setaffinity"):
        raise MmedgeError("--cpus: this system cannot bind a process to processors", "leave it out, or measure on Linux")
    os.sched_setaffinity(0, allowed[:count])


# ------------------------------------------------------------------------------------------------------------- processor


def text_of(path: Path) -> str:
    """Return a file's text; nothing where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _whole(text: str) -> int | None:
    """Return a whole number; None where the text is something else."""
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else None


def _sysctl() -> dict[str, str]:
    """Return what macOS says about itself; nothing elsewhere."""
    if sys.platform != "darwin":
        return {}
    import subprocess

    try:
        command = ["sysctl", "hw", "machdep.cpu.brand_string"]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}


def read_processor(root: Path = ROOT, architecture: str | None = None, system: dict[str, str] | None = None) -> Processor:
    """Read the CPU.

    Args:
        root: Where `proc` and `sys` are; a recorded one is for tests.
        architecture: As `uname -m` says; by default this machine's.
        system: What `sysctl` says, on macOS; by default this machine's.
    """
    architecture = architecture or platform.machine()
    system = _sysctl() if system is None else system
    blocks = [_fields(block) for block in text_of(root / "proc" / "cpuinfo").split("\n\n") if block.strip()]
    every = {name: value for block in reversed(blocks) for name, value in block.items()}
    flags = set(f"{every.get('flags', '')} {every.get('Features', '')}".split())
    flags |= {name for name, value in system.items() if value == "1"}
    cpus = root / "sys" / "devices" / "system" / "cpu"
    numbered = sorted(folder for folder in cpus.glob("cpu[0-9]*") if folder.is_dir())
    online = [folder for folder in numbered if text_of(folder / "online") != "0"]
    threads = len(online) or sum("processor" in block for block in blocks) or _whole(system.get("hw.logicalcpu", ""))
    threads = threads or os.cpu_count() or 1
    quota = _cpu_quota(root)
    board = text_of(root / "proc" / "device-tree" / "model") or text_of(root / "sys" / "firmware" / "devicetree" / "base" / "model")
    name = every.get("model name") or every.get("uarch") or system.get("machdep.cpu.brand_string") or _arm_name(blocks)
    return Processor(
        name=name or every.get("Hardware") or platform.processor() or architecture,
        board=board or every.get("Model") or None,
        architecture=architecture,
        features=tuple(name for name, wanted in features_of(architecture).items() if flags & set(wanted)),
        cores=_physical_cores(online, blocks) or _whole(system.get("hw.physicalcpu", "")),
        threads=threads,
        usable=_within_quota(len(_affinity()) if root == ROOT else threads, quota),
        quota=quota,
        caches=_caches(online, system),
        governor=text_of(cpus / "cpu0" / "cpufreq" / "scaling_governor") or None,
    )


def features_of(architecture: str) -> _Features:
    """Return the features that a processor of this architecture may have; an x86 flag `bf16` would be another thing than ARM's."""
    return _X86_FEATURES if architecture.lower() in ("x86_64", "amd64", "i686", "i386", "x86") else _ARM_FEATURES


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _arm_name(blocks: list[dict[str, str]]) -> str:
    """Return the names of ARM cores by their part numbers, such as `4 × Cortex-A53 + 2 × Cortex-A72`."""
    counts: dict[str, int] = {}
    for block in blocks:
        if "CPU part" not in block:
            continue
        maker, part = block.get("CPU implementer", "unknown"), block["CPU part"]
        known = _ARM_PARTS.get(int(part, 16)) if maker == "0x41" and re.fullmatch("0x[0-9a-f]+", part) else None
        name = known or f"implementer {maker}, part {part}"
        counts[name] = counts.get(name, 0) + 1
    return " + ".join(f"{count} × {name}" for name, count in counts.items())


def _physical_cores(online: list[Path], blocks: list[dict[str, str]]) -> int | None:
    """Count cores: sets of threads that share one."""
    siblings = {text_of(folder / "topology" / "thread_siblings_list") for folder in online} - {""}
    if siblings:
        return len(siblings)
    pairs = {(block.get("physical id"), block["core id"]) for block in blocks if "core id" in block}
    return len(pairs) or None


def _caches(online: list[Path], system: dict[str, str]) -> dict[str, int]:
    """Add up the data caches of each level; one that several threads share counts once."""
    found: dict[tuple[str, str], int] = {}
    for folder in online:
        for index in (folder / "cache").glob("index*"):
            kind, level, size = (text_of(index / name) for name in ("type", "level", "size"))
            match = re.fullmatch(r"(\d+)([KMG]?)", size)
            if kind == "Instruction" or match is None:
                continue
            scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
            shared = text_of(index / "shared_cpu_list") or folder.name
            found[f"L{level}" + ("d" if kind == "Data" else ""), shared] = int(match[1]) * scale
    totals: dict[str, int] = {}
    for (name, _), size_bytes in sorted(found.items()):
        totals[name] = totals.get(name, 0) + size_bytes
    if not totals:  # macOS: of one core, or of one cluster
        for name, key in (("L1d", "hw.l1dcachesize"), ("L2", "hw.l2cachesize"), ("L3", "hw.l3cachesize")):
            if size_of_one := _whole(system.get(key, "")):
                totals[name] = size_of_one
    return totals


# ------------------------------------------------------------------------------------------------------------- limits


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and those above it, version 2's or of one controller of version 1."""
    base = root / "sys" / "fs" / "cgroup"
    found: list[Path] = []
    for line in text_of(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        folder = top / place.strip("/")
        while folder != top and top in folder.parents:
            found.append(folder)
            folder = folder.parent
        found.append(top)
    return found or [base, base / controller]


def _cpu_quota(root: Path) -> float | None:
    """Return how many cores' worth of time the cgroups allow: the least of all."""
    found: list[float] = []
    for folder in _cgroups(root, "cpu"):
        words = text_of(folder / "cpu.max").split()
        if not words:
            words = [text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")]
        quota, period = _whole(words[0]), _whole(words[1]) if len(words) > 1 else None
        if quota and quota > 0 and period and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def read_memory(root: Path = ROOT, total_and_available: tuple[int, int] | None = None) -> Memory:
    """Read memory and its limits.

    Args:
        root: Where `proc` and `sys` are; a recorded one is for tests.
        total_and_available: Bytes of the machine; by default what psutil says.
    """
    if total_and_available is None:
        import psutil

        whole = psutil.virtual_memory()
        total_and_available = whole.total, whole.available
    total, available = total_and_available
    limits: list[int] = []
    for folder in _cgroups(root, "memory"):
        limit = _whole(text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes"))
        used = _whole(text_of(folder / "memory.current") or text_of(folder / "memory.usage_in_bytes")) or 0
        if limit is None or limit >= total:  # version 1 says a number near 2^63 where there is no limit
            continue
        limits.append(limit)
        available = min(available, max(0, limit - used))
    return Memory(total, available, min(limits, default=None))
