"""Machines that we do not have: small trees of /proc and /sys, written after what such machines show, and GPUs by NVML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

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


def recorded(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class NvmlError(Exception):
    """What NVML raises."""


@dataclass
class RecordedGpu:
    """A GPU as NVML tells of it; joules go up by themselves."""

    name: str
    memory: int = 16 << 30
    capability: tuple[int, int] = (8, 6)
    counts_energy: bool = True
    millijoules: int = 0


class RecordedNvml:
    """NVML on a machine with these GPUs; where there are none, it fails as it does without a driver that works."""

    NVMLError = NvmlError

    def __init__(self, *gpus: RecordedGpu) -> None:
        self.gpus = gpus

    def nvmlDeviceGetCount(self) -> int:
        if not self.gpus:
            raise NvmlError("Driver/library version mismatch")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> RecordedGpu:
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu: RecordedGpu) -> str:
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: RecordedGpu) -> SimpleNamespace:
        return SimpleNamespace(total=gpu.memory, free=gpu.memory // 2)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: RecordedGpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54"

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: RecordedGpu) -> int:
        if not gpu.counts_energy:
            raise NvmlError("Not Supported")
        gpu.millijoules += 1500
        return gpu.millijoules
