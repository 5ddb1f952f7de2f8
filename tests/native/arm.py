"""Cross-compiles the native engine for ARM64 and runs it under qemu, on processors with i8mm, with dotprod and with neither.

python -m tests.native.arm              random models, and conversations that the portable kernels have had here; minutes
python -m tests.native.arm 10 2         fewer models; fewer conversations with each student
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmedge.engines.native.build import FLAGS, SOURCES, CannotCompile, build, sources
from mmedge.engines.native.engine import NativeEngine, mapped
from mmedge.engines.native.plans import structures
from mmedge.tasks.encoding import Prompt
from tests.native.students import ENCODER_DECODERS, KINDS, exported, sequences, with_cache

PROCESSORS = {"max": "i8mm", "cortex-a76": "dotprod", "cortex-a72": "neon"}  # qemu's name, and the kernels that are to be chosen
MACHINE = "aarch64"
ARCHITECTURE = 183  # EM_AARCH64, in an ELF file's header
MOST_BYTES = 2_000_000  # of the library: what a wheel may grow by
HERE = Path(__file__).parent
PROGRAMS = ("stress", "conversations")
CACHES = {"fp32": "float32", "int8": "float16", "int4": "int8"}  # by precision


def tools() -> tuple[str, str] | None:
    """Return the cross-compiler and qemu; None where one is missing."""
    cxx = shutil.which("aarch64-linux-gnu-g++")
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    return (cxx, qemu) if cxx and qemu else None


def compile_programs(cxx: str, folder: Path) -> list[Path]:
    """Compile the test programs, with everything that they need in them."""
    flags = (*(flag for flag in FLAGS if flag not in ("-fPIC", "-fvisibility=hidden")), f"-I{SOURCES}")
    objects: list[str] = []
    for name, own in sources(MACHINE):
        objects.append(str(folder / f"{len(objects)}.o"))
        subprocess.run([cxx, *flags, *own, "-c", str(SOURCES / name), "-o", objects[-1]], check=True)
    programs = [folder / name for name in PROGRAMS]
    for program in programs:
        source = str(HERE / f"{program.name}.cpp")
        subprocess.run([cxx, *flags, "-static", source, *objects, "-o", str(program)], check=True)
    return programs


def put(file: BinaryIO, values: bytes, count: int) -> None:
    """Write how many values there are, and the values."""
    file.write(count.to_bytes(8, "little"))
    file.write(values)


def put_integers(file: BinaryIO, values: Iterable[int]) -> None:
    """Write integers of 64 bits."""
    array = np.array(tuple(values), dtype="<i8")
    put(file, array.tobytes(), len(array))


def record(kind: str, precision: str, count: int, path: Path) -> None:
    """Write a student, and conversations that the portable kernels have with it on this machine.

    Args:
        kind: The student's architecture.
        precision: Its bundle's.
        count: How many conversations.
        path: The file, which `conversations.cpp` reads.
    """
    bundle = with_cache(exported(kind, precision).bundle, CACHES[precision])
    plan = bundle.manifest.plan
    assert plan is not None
    engine = NativeEngine(bundle, 1, "portable")
    stated, matrices, blocks = structures(plan)
    weights = mapped(bundle.folder, plan)
    encodes = kind in ENCODER_DECODERS
    random = np.random.default_rng(sum(map(ord, kind + precision)))
    with open(path, "wb") as file:
        put(file, bytes(stated), 1)
        for some in (matrices, blocks):
            put(file, bytes(some), len(some))
        put(file, weights.tobytes(), len(weights))
        put_integers(file, [count])
        for tokens in sequences(int(random.integers(1 << 30)), count, 50):
            prompt = Prompt(tokens, (0, *tokens[: random.integers(0, 20)])) if encodes else Prompt(tokens, ())
            answer: tuple[int, ...] = ()
            logits: list[bytes] = []
            for _ in range(int(random.integers(1, 13))):
                found = engine.next_logits([prompt], answer)[0]
                logits.append(found.astype("<f4").tobytes())
                answer += (int(found.argmax()),)
            put_integers(file, prompt.context if encodes else ())
            put_integers(file, prompt.begun if encodes else prompt.context)
            put_integers(file, answer)
            put(file, b"".join(logits), len(logits) * plan["vocabulary"])


def check_library(cxx: str, folder: Path) -> str:
    """Compile the library as the wheel has it, and return what is wrong with it."""
    library = build(folder / "library.so", cxx=cxx, machine=MACHINE)
    architecture = int.from_bytes(library.read_bytes()[18:20], "little")
    if architecture != ARCHITECTURE:
        return f"the library is for another architecture ({architecture})"
    size = library.stat().st_size
    print(f"library: {size / 1000:.0f} kB", flush=True)
    return f"the library has {size} bytes" if size > MOST_BYTES else ""


def run(qemu: str, folder: Path, programs: list[Path], models: int, conversations: int) -> str:
    """Run the programs on every processor, and return what differs."""
    recorded: list[str] = []
    for kind in (*KINDS, *ENCODER_DECODERS):
        for precision in CACHES:
            recorded.append(str(folder / f"{kind}-{precision}"))
            record(kind, precision, conversations, Path(recorded[-1]))
    stress, spoken = map(str, programs)
    commands = [(processor, [stress, str(models), str(5 * models)], "models agree") for processor in PROCESSORS]
    commands += [(processor, [spoken, "", *recorded], f"{kernels}: ") for processor, kernels in PROCESSORS.items()]
    commands.append(("max", [spoken, "portable", *recorded], "portable: "))
    for processor, command, expected in commands:
        done = subprocess.run([qemu, "-cpu", processor, *command], stdout=subprocess.PIPE, text=True, check=False)
        print(f"{processor}: {done.stdout.strip()}", flush=True)
        if done.returncode or expected not in done.stdout:
            return f"{Path(command[0]).name} ends with {done.returncode} on {processor}, and should say {expected!r}"
    return ""


def main(models: int = 20, conversations: int = 7) -> int:
    """Run everything; return 0 where it agrees.

    Args:
        models: How many random models are computed on each processor, and a fifth of the plans that lie.
        conversations: How many each student has, in each precision.
    """
    found = tools()
    if found is None:
        print("make test-arm needs a cross-compiler and qemu: apt-get install g++-aarch64-linux-gnu qemu-user")
        return 1
    cxx, qemu = found
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            wrong = check_library(cxx, folder) or run(qemu, folder, compile_programs(cxx, folder), models, conversations)
        except (CannotCompile, subprocess.CalledProcessError) as error:
            wrong = str(error)
    print(wrong or "ARM64: the same bits as here")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
