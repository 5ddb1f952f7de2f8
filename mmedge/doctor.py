"""`mmedge doctor`: what this machine can do, what is missing, and how to get it.

    mmedge doctor
    mmedge doctor --measure     also how fast memory is read and matrices are multiplied, in two seconds
    mmedge doctor --json

Reads what the system says about itself (/proc and /sys on Linux, sysctl on macOS), asks nvidia-smi and ONNX Runtime, and never
fails because something is not there: what is unknown is None, and stands in the table as "unknown".

Which precision suits follows one rule (`suitable_precision`). Decoding reads all weights once a token, so that fewer bits are
faster as long as arithmetic keeps up; and fewer bits round more. Hence, on the CPU:

1. int8 first wherever the processor multiplies 8-bit numbers in wide registers (x86: AVX2, better VNNI or AMX; ARM: dotprod,
   better i8mm): a quarter of float32's bytes, and the least rounding of what is quantized.
2. int4 after it there, where memory is what lacks or decoding is too slow: half of int8's bytes again.
3. Where it does not (x86 before AVX2, ARM before dotprod), int8 and int4 are unpacked to float32 before they are multiplied: they
   save memory, perhaps not time, so float32 stands beside int8, to be measured, unless memory is short.
4. A machine with little free memory (below `LITTLE_MEMORY`) gets int4 first.

None of this says what rounding costs a certain student in accuracy: export measures that, and bench on the device the rest.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge import __version__
from mmedge.bench.energy import find_meters
from mmedge.bench.remote.core_wheel import extras, requirements
from mmedge.bench.remote.far_side import fits
from mmedge.errors import MmedgeError

if TYPE_CHECKING:
    from rich.console import RenderableType

LITTLE_MEMORY = 1_000_000_000  # bytes: an int8 student of 135 M parameters peaks at 273 MB, beside a system and a service

# names for people: the kernel's flags that stand for them, any of which is enough
_X86_FEATURES = {
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
_ARM_FEATURES = {  # a 64-bit kernel says asimd, a 32-bit one neon; macOS has sysctl names
    "NEON": ("asimd", "neon", "hw.optional.neon", "hw.optional.AdvSIMD"),
    "FP16": ("asimdhp", "hw.optional.arm.FEAT_FP16"),
    "dotprod": ("asimddp", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    "BF16": ("bf16", "hw.optional.arm.FEAT_BF16"),
    "SVE": ("sve",),
    "SVE2": ("sve2",),
    "SME": ("sme", "hw.optional.arm.FEAT_SME"),
}
_FAST_INT8 = {"AVX2", "AVX-512 VNNI", "AVX VNNI", "AMX int8", "dotprod", "i8mm"}
_ARM_PARTS = {  # Arm's own cores (implementer 0x41), from the Main ID Register's part number in each core's manual
    0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
    0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1",
    0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse N2", 0xD4D: "Cortex-A715",
    0xD4F: "Neoverse V2",
}  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """The CPU.

    Attributes:
        name: As the system calls it.
        board: The board's own name, where it has one (device tree).
        architecture: As `uname -m` says.
        features: Those that matter here, in people's words.
        cores: Physical cores of the whole machine.
        threads: Logical ones that are switched on.
        usable: Logical ones that this process may use: affinity, and the cgroup's share rounded up.
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
        swap: Swap space.
    """

    total: int | None
    available: int | None
    limit: int | None
    swap: int | None


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime: its version and providers, or why there is none."""

    version: str | None
    providers: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Gpu:
    """A graphics processor.

    Attributes:
        name: Its name.
        memory: Bytes; None where it is not known.
        free: Bytes that are free.
        compute_capability: NVIDIA's, such as (8, 6).
        driver: The driver's version.
        usable: Whether something here can use it (NVIDIA's, through torch); others are only named.
    """

    name: str
    memory: int | None = None
    free: int | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    usable: bool = False


@dataclass(frozen=True)
class Precision:
    """What suits, best first, and why."""

    order: tuple[str, ...]
    why: tuple[str, ...]


@dataclass(frozen=True)
class Extra:
    """An optional part of mmedge: the packages that lack or are of another version, and the command that gets them."""

    name: str
    lacking: tuple[str, ...]
    command: str

    @property
    def installed(self) -> bool:
        return not self.lacking


@dataclass(frozen=True)
class Report:
    """All that the doctor found; `problems` is what to do something about, as (what, how)."""

    mmedge: str
    python: str
    system: str
    processor: Processor
    memory: Memory
    onnxruntime: OnnxRuntime
    gpus: tuple[Gpu, ...]
    precision: Precision
    extras: tuple[Extra, ...]
    disks: dict[str, int | None]
    energy: dict[str, tuple[str, ...]]
    ceilings: dict[str, Any] | None
    problems: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        for extra, values in zip(self.extras, found["extras"], strict=True):
            values["installed"] = extra.installed
        return found


# ------------------------------------------------------------------------------------------------------------- reading


def _text(path: Path) -> str:
    """Return a file's text; nothing where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Return a whole number; None where the text is none."""
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else None


def _said(command: list[str], timeout: float = 20) -> tuple[int, str, str] | None:
    """Return exit code, output and complaints of a program; None where it is not there or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout, done.stderr


def _sysctl() -> dict[str, str]:
    """Return what macOS says about itself; nothing elsewhere."""
    said = _said(["sysctl", "hw", "machdep.cpu.brand_string"]) if sys.platform == "darwin" else None
    lines = said[1].splitlines() if said else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_of(root: Path, architecture: str, system: dict[str, str]) -> Processor:
    """Read the CPU.

    Args:
        root: Where `proc` and `sys` are.
        architecture: As `uname -m` says.
        system: What `sysctl` says, on macOS.
    """
    blocks = [_fields(block) for block in _text(root / "proc" / "cpuinfo").split("\n\n") if block.strip()]
    every = {name: value for block in reversed(blocks) for name, value in block.items()}
    flags = set(f"{every.get('flags', '')} {every.get('Features', '')}".split())
    flags |= {name for name, value in system.items() if value == "1"}
    features = tuple(
        name for name, wanted in {**_X86_FEATURES, **_ARM_FEATURES}.items() if flags & set(wanted) and _belongs(name, architecture)
    )
    cpus = root / "sys" / "devices" / "system" / "cpu"
    numbered = sorted(folder for folder in cpus.glob("cpu[0-9]*") if folder.is_dir())
    online = [folder for folder in numbered if _text(folder / "online") != "0"]
    threads = len(online) or sum("processor" in block for block in blocks) or _number(system.get("hw.logicalcpu", ""))
    threads = threads or os.cpu_count() or 1
    quota = _cpu_quota(root)
    affinity = len(os.sched_getaffinity(0)) if root == Path("/") and hasattr(os, "sched_getaffinity") else threads
    usable = min(affinity, max(1, math.ceil(quota))) if quota else affinity
    board = _text(root / "proc" / "device-tree" / "model") or _text(root / "sys" / "firmware" / "devicetree" / "base" / "model")
    name = every.get("model name") or every.get("uarch") or system.get("machdep.cpu.brand_string") or _arm_name(blocks)
    return Processor(
        name=name or every.get("Hardware") or platform.processor() or architecture,
        board=board or every.get("Model") or None,
        architecture=architecture,
        features=features,
        cores=_physical_cores(online, blocks) or _number(system.get("hw.physicalcpu", "")),
        threads=threads,
        usable=usable,
        quota=quota,
        caches=_caches(online, system),
        governor=_text(cpus / "cpu0" / "cpufreq" / "scaling_governor") or None,
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _belongs(feature: str, architecture: str) -> bool:
    """Whether a name of a feature is one of this architecture: an Intel flag `bf16` would be another thing than ARM's."""
    x86 = architecture.lower() in ("x86_64", "amd64", "i686", "i386", "x86")
    return feature in (_X86_FEATURES if x86 else _ARM_FEATURES)


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
    siblings = {_text(folder / "topology" / "thread_siblings_list") for folder in online} - {""}
    if siblings:
        return len(siblings)
    pairs = {(block.get("physical id"), block["core id"]) for block in blocks if "core id" in block}
    return len(pairs) or None


def _caches(online: list[Path], system: dict[str, str]) -> dict[str, int]:
    """Add up the data caches of each level; one that several threads share counts once."""
    found: dict[tuple[str, str], int] = {}
    for folder in online:
        for index in (folder / "cache").glob("index*"):
            kind, level, size = (_text(index / name) for name in ("type", "level", "size"))
            match = re.fullmatch(r"(\d+)([KMG]?)", size)
            if kind == "Instruction" or match is None:
                continue
            scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
            shared = _text(index / "shared_cpu_list") or folder.name
            found[f"L{level}" + ("d" if kind == "Data" else ""), shared] = int(match[1]) * scale
    totals: dict[str, int] = {}
    for (name, _), size_bytes in sorted(found.items()):
        totals[name] = totals.get(name, 0) + size_bytes
    if not totals:  # macOS: of one core, or of one cluster
        for name, key in (("L1d", "hw.l1dcachesize"), ("L2", "hw.l2cachesize"), ("L3", "hw.l3cachesize")):
            if size_of_one := _number(system.get(key, "")):
                totals[name] = size_of_one
    return totals


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and those above it, version 2's or of one controller of version 1."""
    base = root / "sys" / "fs" / "cgroup"
    found: list[Path] = []
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
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
        words = _text(folder / "cpu.max").split()
        if not words:
            words = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
        quota, period = _number(words[0]), _number(words[1]) if len(words) > 1 else None
        if quota and quota > 0 and period and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def memory_of(root: Path, system: dict[str, str]) -> Memory:
    """Read memory and its limits; see `processor_of`."""
    lines = _fields(_text(root / "proc" / "meminfo"))
    kilobytes = {name: _number(value.split()[0]) for name, value in lines.items() if value.split()}
    read = {name: count * 1024 for name, count in kilobytes.items() if count is not None}
    total = read.get("MemTotal") or _number(system.get("hw.memsize", ""))
    available = read.get("MemAvailable", read.get("MemFree"))
    limits: list[int] = []
    for folder in _cgroups(root, "memory"):
        limit = _number(_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes"))
        used = _number(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")) or 0
        if limit is None or limit >= (total or 1 << 60):  # version 1 says a number near 2^63 where there is no limit
            continue
        limits.append(limit)
        available = min(limit if available is None else available, max(0, limit - used))
    return Memory(total, available, min(limits, default=None), read.get("SwapTotal"))


def onnxruntime_of(python: str = sys.executable) -> OnnxRuntime:
    """Ask ONNX Runtime in a process of its own: on a processor that it was not built for, it ends the process."""
    script = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
    try:
        version: str | None = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        version = None
    said = _said([python, "-c", script], timeout=60)
    if said is None:
        return OnnxRuntime(version, (), "it does not load within a minute")
    code, out, complaints = said
    if code == 0:
        try:
            version, providers = json.loads(out.strip().splitlines()[-1])
            return OnnxRuntime(version, tuple(providers), None)
        except (ValueError, IndexError):
            return OnnxRuntime(version, (), "it loads, but does not say its version")
    if code < 0:
        return OnnxRuntime(version, (), f"loading it ends the process (signal {-code}): it was not built for this processor")
    return OnnxRuntime(version, (), ([line for line in complaints.splitlines() if line.strip()] or ["it does not load"])[-1][:200])


def gpus_of(root: Path) -> tuple[tuple[Gpu, ...], str | None]:
    """Return the GPUs, and what is wrong with NVIDIA's where something is."""
    found: list[Gpu] = []
    problem = None
    query = "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version"
    said = _said(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    if said is not None and said[0] == 0:
        for line in said[1].splitlines():
            parts = [part.strip() for part in line.split(",")]
            if len(parts) != 5:
                continue
            total, free = _number(parts[1]), _number(parts[2])
            match = re.fullmatch(r"(\d+)\.(\d+)", parts[3])
            capability = (int(match[1]), int(match[2])) if match else None
            sizes = [count << 20 if count is not None else None for count in (total, free)]
            found.append(Gpu(parts[0], sizes[0], sizes[1], capability, parts[4], usable=True))
    elif said is not None:
        problem = f"nvidia-smi says: {([*(said[1] + said[2]).strip().splitlines(), 'nothing'])[0][:160]}"
    elif (root / "proc" / "driver" / "nvidia" / "version").is_file():
        problem = "NVIDIA's driver is loaded, but there is no nvidia-smi"
    makers = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
    for card in sorted((root / "sys" / "class" / "drm").glob("card[0-9]*")):
        vendor = _text(card / "device" / "vendor")
        if not re.fullmatch(r"card\d+", card.name) or not vendor or (vendor == "0x10de" and found):
            continue
        found.append(Gpu(f"{makers.get(vendor, f'vendor {vendor}')} graphics, device {_text(card / 'device' / 'device')}"))
    return tuple(found), problem


# ------------------------------------------------------------------------------------------------------------- judging


def suitable_precision(features: tuple[str, ...], architecture: str, available: int | None) -> Precision:
    """Return which bundles to try first on a CPU; the rule stands at the top of this file.

    Args:
        features: The processor's.
        architecture: As `uname -m` says.
        available: Bytes of memory; None where it is not known.
    """
    fast = [name for name in features if name in _FAST_INT8]
    why: list[str] = []
    if fast:
        order = ["int8", "int4", "fp32"]
        best = next((name for name in ("AMX int8", "AVX-512 VNNI", "AVX VNNI", "i8mm", "dotprod", "AVX2") if name in fast), fast[0])
        product = {"AVX2": "two instructions for each product and sum, no VNNI"}.get(best, "one instruction for products and sums")
        why.append(f"int8: this processor multiplies 8-bit numbers in wide registers ({best}: {product})")
        why.append("int4 where memory lacks or decoding is too slow: half of int8's bytes are read for a token, rounded more")
    else:
        order = ["int8", "fp32", "int4"]
        lacks = "AVX2" if _belongs("AVX2", architecture) else "dotprod" if _belongs("dotprod", architecture) else "wide int8"
        why.append(f"int8 saves memory, perhaps no time: without {lacks}, its products are computed in float32; measure both")
    if available is not None and available < LITTLE_MEMORY:
        order = ["int4", *(name for name in order if name != "int4")]
        why.append(f"int4 first: only {_bytes(available)} of memory can be used")
    why.append("what rounding costs a student in accuracy is measured by mmedge export, what it costs here by mmedge bench")
    return Precision(tuple(order), tuple(why))


def gpu_precision(gpu: Gpu) -> str:
    """Return in words what an NVIDIA GPU computes students in: bfloat16 from compute capability 8.0 (Ampere) on."""
    if gpu.compute_capability is None:
        return "what suits it is not known"
    if gpu.compute_capability >= (8, 0):
        return "bfloat16 in training (training.precision=bfloat16) and in torch"
    if gpu.compute_capability >= (7, 0):
        return "float16 in training (training.precision=float16) and in torch; it has no bfloat16"
    return "float32: too old for fast float16"


def extras_of() -> tuple[Extra, ...]:
    """Return the optional parts and what each lacks; none where mmedge itself is not installed."""
    try:
        names = [name for name in extras() if name not in ("all", "dev")]
    except MmedgeError:
        return ()
    found: list[Extra] = []
    for name in names:
        lacking = tuple(filter(None, (_lack(package, limits) for package, limits in _extra_packages(name).items())))
        found.append(Extra(name, lacking, f"pip install 'mmedge[{name}]'"))
    return tuple(found)


def _extra_packages(name: str) -> dict[str, str]:
    packages: dict[str, str] = {}
    for package, limits in requirements(name).items():
        inner = re.fullmatch(r"mmedge\[(.+)\]", package)
        if inner:
            for part in inner[1].split(","):
                packages = {**_extra_packages(part.strip()), **packages}
        else:
            packages[package] = f"{packages[package]},{limits}" if package in packages else limits
    return packages


def _lack(package: str, limits: str) -> str | None:
    try:
        version = metadata.version(package.partition("[")[0])
    except metadata.PackageNotFoundError:
        return package
    return None if fits(version, limits) else f"{package} {version} ({limits} is needed)"


def _free_space(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _ceilings(processor: Processor, runtime: OnnxRuntime) -> dict[str, Any] | None:
    """Measure what the machine can do; None where ONNX Runtime does not load."""
    if runtime.problem:
        return None
    from mmedge.bench.ceilings import measure_ceilings

    return measure_ceilings(processor.usable).to_json()


def examine(root: Path = Path("/"), architecture: str | None = None, *, measure: bool = False) -> Report:
    """Examine this machine.

    Args:
        root: Where `proc` and `sys` are; a recorded one is for tests.
        architecture: By default this machine's.
        measure: Also measure `ceilings`.
    """
    architecture = architecture or platform.machine()
    system = _sysctl()
    processor, memory = processor_of(root, architecture, system), memory_of(root, system)
    runtime, (gpus, gpu_problem) = onnxruntime_of(), gpus_of(root)
    meters = find_meters(root)
    disks = {str(folder): _free_space(folder) for folder in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir())))}
    return Report(
        mmedge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {architecture}",
        processor=processor,
        memory=memory,
        onnxruntime=runtime,
        gpus=gpus,
        precision=suitable_precision(processor.features, architecture, memory.available),
        extras=extras_of(),
        disks=disks,
        energy={"meters": tuple(meter.name for meter in meters.found), "missing": meters.missing},
        ceilings=_ceilings(processor, runtime) if measure else None,
        problems=tuple(_problems(processor, runtime, gpus, gpu_problem, disks)),
    )


def _problems(
    processor: Processor, runtime: OnnxRuntime, gpus: tuple[Gpu, ...], gpu_problem: str | None, disks: dict[str, int | None]
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if runtime.problem:
        how = "pip install onnxruntime" if runtime.version is None else "reinstall it: pip install --force-reinstall onnxruntime"
        if processor.architecture.startswith("armv"):
            how = "onnxruntime has no packages for 32-bit ARM: install a 64-bit system, or build it"
        found.append((f"no bundle can run: ONNX Runtime: {runtime.problem}", how))
    if gpu_problem:
        found.append((f"the GPU cannot be used: {gpu_problem}", "install or repair NVIDIA's driver"))
    if any(gpu.usable for gpu in gpus):
        try:
            version = metadata.version("torch")
        except metadata.PackageNotFoundError:
            found.append(("there is a GPU, but no torch to train on it", "pip install 'mmedge[distill]'"))
        else:
            if version.endswith("+cpu"):
                found.append((f"there is a GPU, but torch {version} was built without CUDA", "pip install --force-reinstall torch"))
    if processor.governor == "powersave" and processor.architecture not in ("x86_64", "AMD64"):
        # (intel_pstate's powersave is dynamic; elsewhere it means the lowest frequency)
        found.append(("the processor is held at its lowest frequency", "set the frequency governor: performance or schedutil"))
    for folder, free in disks.items():
        if free is not None and free < 1_000_000_000:
            found.append((f"only {_bytes(free)} are free in {folder}", "free some space, or set TMPDIR"))
    return found


# ------------------------------------------------------------------------------------------------------------- showing


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _binary(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def rows(report: Report) -> list[tuple[str, str]]:
    """Return the report as (what, found) lines."""
    cpu, memory, runtime = report.processor, report.memory, report.onnxruntime
    found = [("mmedge", f"{report.mmedge}, Python {report.python}, {report.system}")]
    if cpu.board:
        found.append(("board", cpu.board))
    limited = f"; this process may use {cpu.usable}" if cpu.usable != cpu.threads else ""
    quota = f" (its cgroup allows {cpu.quota:g} cores' time)" if cpu.quota else ""
    found += [
        ("processor", cpu.name),
        ("features", ", ".join(cpu.features) or "none of those that matter here"),
        ("cores", f"{cpu.cores if cpu.cores else 'unknown'} physical, {cpu.threads} threads{limited}{quota}"),
        ("caches", ", ".join(f"{name} {_binary(size)}" for name, size in cpu.caches.items()) or "unknown"),
    ]
    if cpu.governor:
        found.append(("governor", cpu.governor))
    limit = f", of which the cgroup allows {_bytes(memory.limit)}" if memory.limit is not None else ""
    found.append(("memory", f"{_bytes(memory.total)}{limit}; {_bytes(memory.available)} can be used"))
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.providers)
    found.append(("ONNX Runtime", runtime.problem or f"{runtime.version}: {providers}"))
    for gpu in report.gpus:
        if gpu.usable:
            capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
            about = f"{_bytes(gpu.memory)}, {_bytes(gpu.free)} free, compute capability {capability}, driver {gpu.driver}"
            found.append(("GPU", f"{gpu.name}: {about}; {gpu_precision(gpu)}"))
        else:
            found.append(("GPU", f"{gpu.name}: not used"))
    if not report.gpus:
        found.append(("GPU", "none found"))
    if report.ceilings is not None:
        speed = {name: value / 1e9 for name, value in report.ceilings.items()}
        read, copy = speed["read_bytes_per_second"], speed["copy_bytes_per_second"]
        products = f"{speed['float32_operations_per_second']:.0f} G float32, {speed['int8_operations_per_second']:.0f} G int8"
        threads = report.ceilings["threads"]
        found.append(
            ("measured", f"memory reads {read:.1f} GB/s, copies {copy:.1f} GB/s; {products} operations/s; {threads} threads")
        )
    found.append(("precision", " > ".join(report.precision.order)))
    found += [("", line) for line in report.precision.why]
    for extra in report.extras:
        lacks = f"lacks {', '.join(extra.lacking)}: {extra.command}"
        found.append((f"[{extra.name}]", "installed" if extra.installed else lacks))
    found += [("disk", f"{folder}: {_bytes(free)} free") for folder, free in report.disks.items()]
    found += [("energy", f"{name} is metered") for name in report.energy["meters"]]
    found += [("energy", line) for line in report.energy["missing"]]
    return found


def table(report: Report) -> RenderableType:
    """Return the report as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    found = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    found.add_column(no_wrap=True)
    found.add_column(overflow="fold")
    for what, text in rows(report):
        found.add_row(Text(what, style="bold"), Text(text))
    for what, how in report.problems:
        found.add_row(Text("problem", style="bold red"), Text(f"{what}\n→ {how}"))
    if not report.problems:
        found.add_row(Text(""), Text("nothing stands in the way", style="green"))
    return found
