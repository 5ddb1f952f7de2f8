"""The environment variables that choose an engine and its kernels; what they say is refused by name where it means nothing.

    MMEDGE_ENGINE=native     onnx or native, for every bundle; by default each runs on the one that it was verified on
    MMEDGE_ISA=avx2          the native engine's kernels; by default the fastest that the processor has

Knows names, and nothing of what this machine has. Imports nothing heavy, since the doctor asks.
"""

from __future__ import annotations

import os
import platform
from typing import Literal

from mmedge.errors import MmedgeError, nearest

ENGINE, KERNELS = "MMEDGE_ENGINE", "MMEDGE_ISA"
ON_ARM = ("i8mm", "dotprod", "neon")
INSTRUCTION_SETS = ("avx512vnni", "avxvnni", "avx2", *ON_ARM, "portable")
EngineName = Literal["onnxruntime", "native"]


def wanted_engine() -> EngineName | None:
    """Return the engine that `MMEDGE_ENGINE` asks for; None where it leaves that to the bundle.

    Raises:
        MmedgeError: It names none.
    """
    wanted = os.environ.get(ENGINE, "") or "auto"
    if wanted not in ("auto", "onnx", "native"):
        raise MmedgeError(f"{ENGINE}: invalid engine {wanted!r:.60}", "set it to onnx or native, or leave it out")
    return {"auto": None, "onnx": "onnxruntime", "native": "native"}[wanted]


def wanted_kernels() -> str:
    """Return the kernels that `MMEDGE_ISA` asks for; empty for the fastest.

    Raises:
        MmedgeError: It names none that any machine has.
    """
    wanted = os.environ.get(KERNELS, "")
    if wanted and wanted not in INSTRUCTION_SETS:
        arm = platform.machine() in ("aarch64", "arm64")
        here = [name for name in INSTRUCTION_SETS if name == "portable" or (name in ON_ARM) == arm]
        advice = f"set it to one of {', '.join(here)}, or leave it out for the fastest"
        raise MmedgeError(f"{KERNELS}: invalid kernels {wanted!r:.60}", nearest(wanted, INSTRUCTION_SETS) + advice)
    return wanted


def no_such_kernels(name: str) -> MmedgeError:
    """Return the error for kernels that this machine does not have."""
    return MmedgeError(
        f"{KERNELS}={name}: this processor or this library has no such kernels",
        f"leave {KERNELS} out for the fastest",
    )


def check_environment() -> None:
    """Refuse variables that name nothing, before work begins that would need them at its end.

    Raises:
        MmedgeError: One of them names nothing.
    """
    wanted_engine()
    wanted_kernels()
