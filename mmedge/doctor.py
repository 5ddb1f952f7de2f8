"""`mmedge doctor`: what this machine can do, what is missing, and how to get it.

    mmedge doctor
    mmedge doctor --measure     also measure memory bandwidth and arithmetic; takes two seconds
    mmedge doctor --json

Judges what `machine.py` and `installation.py` read, and needs no optional package. It never fails because something is missing:
what is unknown is None, and "unknown" in the table.

One rule says which precision suits (`suitable_precision`). Decoding reads all weights once per token, so fewer bits are
faster as long as arithmetic keeps up, but less accurate. So, on a CPU:

1. int8 first wherever the processor multiplies 8-bit integers in wide registers (x86: AVX2, better VNNI or AMX; ARM: dotprod,
   better i8mm): a quarter of float32's bytes, and the smallest quantization error.
2. int4 next, where memory is short or decoding is too slow: half of int8's bytes.
3. Where it does not (x86 before AVX2, ARM before dotprod), int8 and int4 are unpacked to float32 before they are multiplied: they
   save memory, perhaps not time, so float32 stands beside int8, to be measured, unless memory is short.
4. A machine with little free memory (below `LITTLE_MEMORY`) gets int4 first.

None of this says what quantization costs a particular student in accuracy: export measures that, and bench on the device the rest.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge import __version__
from mmedge.bench.energy import find_energy_counters
from mmedge.engines.environment import ENGINE, no_such_kernels, wanted_engine, wanted_kernels
from mmedge.errors import MmedgeError
from mmedge.gpus import Gpu, read_gpus
from mmedge.installation import extras, missing
from mmedge.machine import ROOT, Memory, Processor, features_of, read_memory, read_processor
from mmedge.reports.formats import size
from mmedge.reports.tables import Cell, Column, Table

if TYPE_CHECKING:
    from mmedge.bench.ceilings import Ceilings

LITTLE_MEMORY = 1_000_000_000  # bytes: an int8 student of 135 M parameters peaks at 273 MB, beside a system and a service
_FAST_INT8 = ("AMX int8", "AVX-512 VNNI", "AVX VNNI", "i8mm", "dotprod", "AVX2")  # the fastest first


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime: its version and providers, or why there is none."""

    version: str | None
    providers: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class NativeLibrary:
    """The native engine: the instruction set of its kernels, or why it cannot be used, and whether bundles run on it."""

    kernels: str | None
    problem: str | None
    wanted: bool


@dataclass(frozen=True)
class SuitablePrecision:
    """Which precisions suit, best first, and why."""

    order: tuple[str, ...]
    why: tuple[str, ...]


@dataclass(frozen=True)
class Extra:
    """An optional part of mmedge: the packages that are missing or too old or new, and the command that installs them."""

    name: str
    missing: tuple[str, ...]
    command: str

    @property
    def installed(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Examination:
    """All that the doctor found; `problems` is what to do something about, as (what, how)."""

    mmedge: str
    python: str
    system: str
    processor: Processor
    memory: Memory
    onnxruntime: OnnxRuntime
    native: NativeLibrary
    gpus: tuple[Gpu, ...]
    precision: SuitablePrecision
    extras: tuple[Extra, ...]
    disks: dict[str, int | None]
    energy: dict[str, tuple[str, ...]]
    ceilings: Ceilings | None
    problems: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        for extra, values in zip(self.extras, found["extras"], strict=True):
            values["installed"] = extra.installed
        return found


# ------------------------------------------------------------------------------------------------------------- reading


def onnxruntime_of(python: str = sys.executable) -> OnnxRuntime:
    """Ask ONNX Runtime in a process of its own: on a processor that it was not built for, it ends the process."""
    script = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
    try:
        version: str | None = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        version = None
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return OnnxRuntime(version, (), "importing it takes more than a minute")
    if done.returncode == 0:
        try:
            version, providers = json.loads(done.stdout.strip().splitlines()[-1])
            return OnnxRuntime(version, tuple(providers), None)
        except (ValueError, IndexError):
            return OnnxRuntime(version, (), "it can be imported, but does not report its version")
    if done.returncode < 0:
        why = f"importing it crashes the process (signal {-done.returncode}): it was not built for this processor"
        return OnnxRuntime(version, (), why)
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    return OnnxRuntime(version, (), (complaints or ["it cannot be imported"])[-1][:200])


def native_library(python: str = sys.executable) -> NativeLibrary:
    """Ask the native engine's library in a process of its own."""
    script = "import json; from mmedge.engines.native import library as l; print(json.dumps([l.instruction_set(), l.problem()]))"
    wanted = os.environ.get(ENGINE) != "onnx"
    try:
        kernels_wanted = wanted_kernels()
    except MmedgeError as error:
        return NativeLibrary(None, error.what, wanted)
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, errors="replace", timeout=60, check=False)
        kernels, problem = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return NativeLibrary(None, "its library cannot be loaded", wanted)
    if kernels is None and problem is None:
        problem = no_such_kernels(kernels_wanted).what
    return NativeLibrary(kernels, problem, wanted)


def extras_here() -> tuple[Extra, ...]:
    """Return the optional parts and what each lacks; none where mmedge itself is not installed."""
    try:
        names = [name for name in extras() if name not in ("all", "dev")]
        return tuple(Extra(name, tuple(missing(name)), f"pip install 'mmedge[{name}]'") for name in names)
    except MmedgeError:
        return ()


def _free_space(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


# ------------------------------------------------------------------------------------------------------------- judging


def suitable_precision(features: tuple[str, ...], architecture: str, available: int | None) -> SuitablePrecision:
    """Return which bundles to try first on a CPU; the rule stands at the top of this file.

    Args:
        features: The processor's.
        architecture: As `uname -m` says.
        available: Bytes of memory; None where it is not known.
    """
    fastest = next((name for name in _FAST_INT8 if name in features), None)
    why: list[str] = []
    if fastest:
        order = ["int8", "int4", "fp32"]
        cost = "two instructions to multiply and add, no VNNI" if fastest == "AVX2" else "one instruction to multiply and add"
        why.append(f"int8: this processor multiplies 8-bit integers in wide registers ({fastest}: {cost})")
        why.append(
            "int4 where memory is short or decoding is too slow: half of int8's bytes per token, at a larger quantization error"
        )
    else:
        order = ["int8", "fp32", "int4"]
        lacks = next((name for name in ("AVX2", "dotprod") if name in features_of(architecture)), "wide int8")
        why.append(f"int8 saves memory but perhaps not time: without {lacks}, it is computed in float32; measure both")
    if available is not None and available < LITTLE_MEMORY:
        order = ["int4", *(name for name in order if name != "int4")]
        why.append(f"int4 first: only {size(available)} of memory is available")
    why.append("mmedge export measures what quantization costs in accuracy, mmedge bench how fast each precision is here")
    return SuitablePrecision(tuple(order), tuple(why))


def gpu_precision(gpu: Gpu) -> str:
    """Return in words what an NVIDIA GPU computes students in: bfloat16 from compute capability 8.0 (Ampere) on."""
    if gpu.compute_capability is None:
        return "suitable precision unknown"
    if gpu.compute_capability >= (8, 0):
        return "bfloat16 for training (training.precision=bfloat16) and in torch"
    if gpu.compute_capability >= (7, 0):
        return "float16 for training (training.precision=float16) and in torch; it has no bfloat16"
    return "float32: too old for fast float16"


def _ceilings(processor: Processor, runtime: OnnxRuntime) -> Ceilings | None:
    """Measure what the machine can do; None where ONNX Runtime does not load."""
    if runtime.problem:
        return None
    from mmedge.bench.ceilings import measure_ceilings

    return measure_ceilings(processor.usable)


def examine(root: Path = ROOT, architecture: str | None = None, *, measure: bool = False) -> Examination:
    """Examine this machine.

    Args:
        root: Where `proc` and `sys` are; a recorded one is for tests.
        architecture: By default this machine's.
        measure: Also measure `ceilings`.
    """
    processor, memory = read_processor(root, architecture), read_memory(root)
    runtime, native, (gpus, gpu_problem) = onnxruntime_of(), native_library(), read_gpus(root)
    energy = find_energy_counters(root)
    disks = {str(folder): _free_space(folder) for folder in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir())))}
    return Examination(
        mmedge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {processor.architecture}",
        processor=processor,
        memory=memory,
        onnxruntime=runtime,
        native=native,
        gpus=gpus,
        precision=suitable_precision(processor.features, processor.architecture, memory.available),
        extras=extras_here(),
        disks=disks,
        energy={"meters": tuple(counter.name for counter in energy.found), "missing": energy.missing},
        ceilings=_ceilings(processor, runtime) if measure else None,
        problems=(*environment_problems(native), *_problems(processor, runtime, gpus, gpu_problem, disks)),
    )


def environment_problems(native: NativeLibrary) -> list[tuple[str, str]]:
    """Return what is wrong with `MMEDGE_ENGINE` and `MMEDGE_ISA`, and what to do about it."""
    found: list[MmedgeError] = []
    try:
        kernels = wanted_kernels()
        if kernels and native.problem == (missing_here := no_such_kernels(kernels)).what:
            found.append(missing_here)
    except MmedgeError as error:
        found.append(error)
    try:
        if wanted_engine() == "native" and native.problem and not found:
            found.append(MmedgeError(f"{ENGINE}=native: the native engine cannot be used: {native.problem}", f"leave {ENGINE} out"))
    except MmedgeError as error:
        found.append(error)
    return [(error.what, error.hint) for error in found]


def _problems(
    processor: Processor,
    runtime: OnnxRuntime,
    gpus: tuple[Gpu, ...],
    gpu_problem: MmedgeError | None,
    disks: dict[str, int | None],
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if runtime.problem:
        how = "pip install onnxruntime" if runtime.version is None else "reinstall it: pip install --force-reinstall onnxruntime"
        if processor.architecture.startswith("armv"):
            how = "onnxruntime has no packages for 32-bit ARM: install a 64-bit system, or build it"
        found.append((f"no bundle can run: ONNX Runtime: {runtime.problem}", how))
    if gpu_problem:
        found.append((f"the GPU cannot be used: {gpu_problem.what}", gpu_problem.hint))
    if any(gpu.usable for gpu in gpus):
        try:
            version = metadata.version("torch")
        except metadata.PackageNotFoundError:
            found.append(("there is a GPU, but torch is not installed to train on it", "pip install 'mmedge[distill]'"))
        else:
            if version.endswith("+cpu"):
                found.append((f"there is a GPU, but torch {version} was built without CUDA", "pip install --force-reinstall torch"))
    if processor.governor == "powersave" and processor.architecture not in ("x86_64", "AMD64"):
        # (intel_pstate's powersave is dynamic; elsewhere it means the lowest frequency)
        found.append(("the processor is held at its lowest frequency", "set the frequency governor: performance or schedutil"))
    for folder, free in disks.items():
        if free is not None and free < 1_000_000_000:
            found.append((f"only {size(free)} free in {folder}", "free some space, or set TMPDIR"))
    return found


# ------------------------------------------------------------------------------------------------------------- showing


def _binary(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def _native(native: NativeLibrary) -> str:
    if native.problem:
        instead = "" if environment_problems(native) else "; bundles run on ONNX Runtime"  # else they are refused
        return f"cannot be used: {native.problem}{instead}"
    used = "quantized bundles run on it" if native.wanted else "bundles run on ONNX Runtime (MMEDGE_ENGINE=onnx)"
    return f"{native.kernels} kernels; {used}"


def rows(report: Examination) -> list[tuple[str, str]]:
    """Return the report as (what, found) lines."""
    cpu, memory, runtime = report.processor, report.memory, report.onnxruntime
    found = [("mmedge", f"{report.mmedge}, Python {report.python}, {report.system}")]
    if cpu.board:
        found.append(("board", cpu.board))
    limited = f"; this process may use {cpu.usable}" if cpu.usable != cpu.threads else ""
    quota = f" (its cgroup allows {cpu.quota:g} cores' time)" if cpu.quota else ""
    found += [
        ("processor", cpu.name),
        ("features", ", ".join(cpu.features) or "none that matter here"),
        ("cores", f"{cpu.cores if cpu.cores else 'unknown'} physical, {cpu.threads} threads{limited}{quota}"),
        ("caches", ", ".join(f"{name} {_binary(count)}" for name, count in cpu.caches.items()) or "unknown"),
    ]
    if cpu.governor:
        found.append(("governor", cpu.governor))
    limit = f", of which the cgroup allows {size(memory.limit)}" if memory.limit is not None else ""
    found.append(("memory", f"{size(memory.total)}{limit}; {size(memory.available)} can be used"))
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.providers)
    found.append(("ONNX Runtime", runtime.problem or f"{runtime.version}: {providers}"))
    found.append(("native engine", _native(report.native)))
    for gpu in report.gpus:
        if gpu.usable:
            capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
            about = f"{size(gpu.memory)}, {size(gpu.free)} free, compute capability {capability}, driver {gpu.driver}"
            found.append(("GPU", f"{gpu.name}: {about}; {gpu_precision(gpu)}"))
        else:
            found.append(("GPU", f"{gpu.name}: not used"))
    if not report.gpus:
        found.append(("GPU", "none found"))
    if report.ceilings is not None:
        speed = report.ceilings
        memory_speed = f"{size(speed.read_bytes_per_second)}/s read, {size(speed.copy_bytes_per_second)}/s copied"
        whole, small = (one / 1e9 for one in (speed.float32_operations_per_second, speed.int8_operations_per_second))
        found.append(
            ("measured", f"{memory_speed}; {whole:.0f} G float32, {small:.0f} G int8 operations/s; {speed.threads} threads")
        )
    found.append(("precision", " > ".join(report.precision.order)))
    found += [("", line) for line in report.precision.why]
    for extra in report.extras:
        lacks = f"missing: {', '.join(extra.missing)}; {extra.command}"
        found.append((f"[{extra.name}]", "installed" if extra.installed else lacks))
    found += [("disk", f"{folder}: {size(free)} free") for folder, free in report.disks.items()]
    found += [("energy", f"{name} is metered") for name in report.energy["meters"]]
    found += [("energy", line) for line in report.energy["missing"]]
    return found


def table(report: Examination) -> Table:
    """Return the report as a table without headings."""
    found = [[Cell(what, "strong"), Cell(text)] for what, text in rows(report)]
    found += [[Cell("problem", "bad"), Cell(f"{what}\n→ {how}")] for what, how in report.problems]
    if not report.problems:
        found.append([Cell(""), Cell("no problems found", "good")])
    return Table("", [Column(align="left", wraps=False), Column(align="left")], found)
