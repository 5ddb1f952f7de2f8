"""Graphics processors: NVIDIA's through NVML, others by name from Linux's list of cards.

    read_gpus()                (Gpu("Tesla T4", …),), None

Nothing fails because there is none. NVML is imported where there is something to ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.machine import ROOT, text_of


@dataclass(frozen=True)
class Gpu:
    """A graphics processor.

    Attributes:
        name: Its name.
        memory: Bytes; None where it is not known.
        free: Bytes that are free.
        compute_capability: NVIDIA's, such as (8, 6).
        driver: The driver's version.
        usable: Whether something here can use it (NVIDIA's, through torch or ONNX Runtime); others are only named.
    """

    name: str
    memory: int | None = None
    free: int | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    usable: bool = False


def open_nvml(root: Path = ROOT) -> Any:
    """Return NVIDIA's management library, started; None where there is no driver of NVIDIA's.

    Args:
        root: Where `proc` is; a recorded one is for tests.

    Raises:
        MmedgeError: There is a driver, and it cannot be asked.
    """
    is_loaded = (root / "proc" / "driver" / "nvidia" / "version").is_file()
    try:
        import pynvml
    except ImportError:
        if not is_loaded:
            return None
        raise MmedgeError("NVIDIA's driver is loaded, but nvidia-ml-py is not installed", "pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not is_loaded and error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return None
        raise nvml_problem(error) from None
    return pynvml


def nvml_problem(error: Exception) -> MmedgeError:
    """Return an NVML error as one of ours."""
    return MmedgeError(f"NVIDIA's driver says: {error}", "install or repair NVIDIA's driver")


def read_gpus(root: Path = ROOT, nvml: Any = None) -> tuple[tuple[Gpu, ...], MmedgeError | None]:
    """Return the GPUs, and what is wrong with NVIDIA's where there is one that cannot be used.

    Args:
        root: Where `proc` and `sys` are; a recorded one is for tests.
        nvml: What `open_nvml` returns; by default it is opened.
    """
    found: list[Gpu] = []
    problem = None
    try:
        found = _nvidia_gpus(nvml or open_nvml(root))
    except MmedgeError as error:
        problem = error
    makers = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
    for card in sorted((root / "sys" / "class" / "drm").glob("card[0-9]*")):
        vendor = text_of(card / "device" / "vendor")
        if not re.fullmatch(r"card\d+", card.name) or not vendor or (vendor == "0x10de" and found):
            continue
        found.append(Gpu(f"{makers.get(vendor, f'vendor {vendor}')} graphics, device {text_of(card / 'device' / 'device')}"))
    return tuple(found), problem


def _nvidia_gpus(nvml: Any) -> list[Gpu]:
    if nvml is None:
        return []
    found = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            memory, capability = nvml.nvmlDeviceGetMemoryInfo(device), nvml.nvmlDeviceGetCudaComputeCapability(device)
            name, driver = nvml.nvmlDeviceGetName(device), nvml.nvmlSystemGetDriverVersion()
            found.append(Gpu(name, memory.total, memory.free, (capability[0], capability[1]), driver, usable=True))
    except nvml.NVMLError as error:
        raise nvml_problem(error) from None
    return found
