"""Compiling the native engine's library with whatever C++20 compiler is at hand.

    python -m mmedge.engines.native.build            writes compiled/libmmedge-native.so
    CXX=clang++ python -m mmedge.engines.native.build

The wheel's build runs this too (`hatch_build.py`). Kernels for an instruction set are compiled with its flags and chosen at run
time, so the library runs on every processor of its architecture. Imports the standard library alone: the build has nothing else.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
_WARNINGS = ("-Wall", "-Wextra")
_SAME_BITS = ("-ffp-contract=off",)  # nothing is fused that the source does not fuse
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", *_SAME_BITS, *_WARNINGS)
SHARED = ("abi.cpp", "model.cpp", "step.cpp", "team.cpp", "kernels_portable.cpp")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_X86 = (  # files with their own flags, one of them twice
    ("kernels_avx2.cpp", _AVX2),
    ("kernels_vnni.cpp", (*_AVX2, "-mavxvnni")),
    ("kernels_vnni.cpp", (*_AVX2, "-mavx512vnni", "-mavx512vl")),
)
_ARM64 = (  # one file three times
    ("kernels_arm.cpp", ()),
    ("kernels_arm.cpp", ("-march=armv8.2-a+dotprod",)),
    ("kernels_arm.cpp", ("-march=armv8.2-a+dotprod+i8mm",)),
)
_OF_MACHINE: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    **dict.fromkeys(("x86_64", "amd64"), _X86),
    **dict.fromkeys(("aarch64", "arm64"), _ARM64),
}
EMULATED = ("kernels_vnni.cpp", (*_AVX2, "-DMMEDGE_EMULATED"))  # for tests on processors without VNNI
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).parent / "compiled" / f"libmmedge-native{_SUFFIX}"  # where Python looks for no modules


class CannotCompile(Exception):
    """There is no compiler, or it fails; says which and why."""


def compiler() -> str | None:
    """Return the C++ compiler that `CXX` names, or one that is installed; None where there is none."""
    named = os.environ.get("CXX")
    return named or next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def sources(machine: str = "") -> list[tuple[str, tuple[str, ...]]]:
    """Return the files to compile for an architecture, each with its own flags; by default for that of this Python."""
    if not machine and sys.maxsize > 2**32:  # a Python of 32 bits may run on a processor of 64
        machine = platform.machine()
    return [*((name, ()) for name in SHARED), *_OF_MACHINE.get(machine.lower(), ())]


def build(library: Path = LIBRARY, flags: tuple[str, ...] = (), cxx: str | None = None, machine: str = "") -> Path:
    """Compile the library.

    Args:
        library: Where it goes; replaced whole, or not at all.
        flags: Flags beside the usual ones, such as a sanitizer's.
        cxx: The compiler; the one at hand by default.
        machine: The architecture that it compiles for; this one by default.

    Raises:
        CannotCompile: There is no compiler, or it fails.
    """
    cxx = cxx or compiler()
    if cxx is None:
        raise CannotCompile("no C++ compiler is installed")
    with tempfile.TemporaryDirectory() as temporary:
        objects: list[str] = []
        for name, own in sources(machine):
            objects.append(str(Path(temporary) / f"{len(objects)}.o"))
            _run([cxx, *FLAGS, *own, *flags, "-c", str(SOURCES / name), "-o", objects[-1]])
        made = Path(temporary) / library.name
        _run([cxx, "-shared", "-pthread", *flags, *objects, "-o", str(made)])
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, library.with_suffix(".new"))
        os.replace(library.with_suffix(".new"), library)
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise CannotCompile(f"{command[0]}: {error}") from error
    if done.returncode:
        raise CannotCompile(f"{command[0]} ends with {done.returncode}: {done.stderr.strip()[:500]}")


if __name__ == "__main__":
    print(build())
