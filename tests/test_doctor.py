"""The doctor: what suits which machine, what is missing and how to get it, on this machine and on recorded ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.doctor import (
    environment_problems,
    examine,
    extras_here,
    gpu_precision,
    native_library,
    onnxruntime_of,
    rows,
    suitable_precision,
)
from mmedge.gpus import Gpu
from mmedge.machine import read_processor
from tests.conftest import mmedge
from tests.machines import BEAGLE, GRAVITON_3, OLD_PC, PI_4, RK3588, VISION_FIVE, XEON, recorded


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "order"),
    [
        (PI_4, "aarch64", ("int8", "fp32", "int4")),
        (RK3588, "aarch64", ("int8", "int4", "fp32")),
        (GRAVITON_3, "aarch64", ("int8", "int4", "fp32")),
        (XEON, "x86_64", ("int8", "int4", "fp32")),
        (OLD_PC, "x86_64", ("int8", "fp32", "int4")),
        (BEAGLE, "armv7l", ("int8", "fp32", "int4")),
        (VISION_FIVE, "riscv64", ("int8", "fp32", "int4")),
    ],
)
def test_a_processor_has_the_precision_that_suits_it(
    cpuinfo: str, architecture: str, order: tuple[str, ...], tmp_path: Path
) -> None:
    features = read_processor(recorded(tmp_path, {"proc/cpuinfo": cpuinfo}), architecture, {}).features
    found = suitable_precision(features, architecture, None)
    assert found.order == order and found.why[0].startswith("int8")
    little = suitable_precision(features, architecture, 400_000_000)
    assert little.order[0] == "int4" and any("400 MB" in line for line in little.why)


def test_a_gpu_has_the_arithmetic_that_suits_it() -> None:
    older, newer = (Gpu("T4", compute_capability=(7, 5)), Gpu("A10", compute_capability=(8, 6)))
    assert "float16" in gpu_precision(older) and gpu_precision(newer).startswith("bfloat16")


def test_the_doctor_needs_no_optional_package() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'pynvml', 'optimum', 'pyarrow', 'aiohttp'): sys.modules[name] = None\n"
        "from mmedge.doctor import examine, table\n"
        "table(examine()).markdown()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_machine_that_says_nothing_is_examined_all_the_same(tmp_path: Path) -> None:
    found = examine(tmp_path, "strange")
    assert found.processor.cores is None and found.memory.limit is None and found.processor.features == ()
    text = dict(rows(found))
    assert "unknown" in text["cores"] and text["caches"] == "unknown" and text["GPU"] == "none found"
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"processor\n:\nCPU part\t: zz\n"])
def test_broken_files_are_no_reason_to_fail(content: bytes, tmp_path: Path) -> None:
    root = recorded(tmp_path, {"proc/self/cgroup": "nonsense\n\n:::\n"})
    (root / "proc" / "cpuinfo").write_bytes(content)
    recorded(root, {"sys/fs/cgroup/cpu.max": "x y z\n", "sys/devices/system/cpu/cpu0/cache/index0/size": "big\n"})
    assert examine(root, "aarch64").processor.quota is None


def program(folder: Path, name: str, body: str) -> None:
    """Write a program that answers as another one does."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("kill -ILL $$", "not built for this processor"),
        ('echo "ModuleNotFoundError: No module named onnxruntime" >&2; exit 1', "No module named"),
        ("echo nonsense", "does not report its version"),
    ],
)
def test_an_onnx_runtime_that_does_not_load_is_said_so(body: str, expected: str, tmp_path: Path) -> None:
    program(tmp_path, "python", body)
    found = onnxruntime_of(str(tmp_path / "python"))
    assert found.problem is not None and expected in found.problem and found.providers == ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo '[\"i8mm\", null]'", "i8mm kernels; quantized bundles run on it"),
        ("echo '[null, \"it was installed without a C++ compiler\"]'", "cannot be used: it was installed without a C++ compiler"),
        ("echo '[null, null]'", "cannot be used: MMEDGE_ISA=i8mm: this processor or this library has no such kernels"),
        ("kill -ILL $$", "cannot be used: its library cannot be loaded"),
    ],
)
def test_the_native_engines_instruction_set_is_named(
    body: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMEDGE_ISA", "i8mm")
    monkeypatch.delenv("MMEDGE_ENGINE", raising=False)
    program(tmp_path, "python", body)
    found = replace(examine(tmp_path, "aarch64"), native=native_library(str(tmp_path / "python")))
    assert expected in dict(rows(found))["native engine"]


@pytest.mark.parametrize(
    ("variable", "value", "body", "problem"),
    [
        ("MMEDGE_ENGINE", "natve", "echo '[\"avx2\", null]'", "MMEDGE_ENGINE: invalid engine 'natve'"),
        ("MMEDGE_ISA", "sve", "echo '[\"avx2\", null]'", "MMEDGE_ISA: invalid kernels 'sve'"),
        ("MMEDGE_ISA", "neon", "echo '[null, null]'", "MMEDGE_ISA=neon: this processor or this library has no such kernels"),
        ("MMEDGE_ENGINE", "native", "echo '[null, \"no library\"]'", "MMEDGE_ENGINE=native: the native engine cannot be used: no"),
        ("MMEDGE_ENGINE", "native", "echo '[\"avx2\", null]'", ""),
        ("MMEDGE_ENGINE", "onnx", "echo '[null, \"no library\"]'", ""),
        ("MMEDGE_ISA", "avx2", "echo '[\"avx2\", null]'", ""),
    ],
)
def test_variables_that_name_nothing_here_are_problems(
    variable: str, value: str, body: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MMEDGE_ENGINE", "MMEDGE_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    program(tmp_path, "python", body)
    found = environment_problems(native_library(str(tmp_path / "python")))
    assert len(found) == bool(problem)
    assert all(what.startswith(problem) and "leave" in how for what, how in found)


def test_extras_are_those_of_the_package_with_what_they_lack() -> None:
    found = {extra.name: extra for extra in extras_here()}
    assert {"distill", "export", "gpu"} <= found.keys() and "all" not in found
    assert found["distill"].installed and found["distill"].command == "pip install 'mmedge[distill]'"
    for extra in found.values():
        assert extra.installed == (not extra.missing)


def test_the_command_prints_a_table_and_json() -> None:
    shown = mmedge("doctor", "--measure")
    assert shown.code == 0 and "ONNX Runtime" in shown.out and "precision" in shown.out, shown.err
    assert re.search(r"[0-9.]+ GB/s read, [0-9.]+ GB/s copied.* G int8", " ".join(shown.out.split()))
    found = json.loads(mmedge("doctor", "--json").out)
    assert found["processor"]["threads"] >= found["processor"]["usable"] >= 1
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["precision"]["order"][0] in ("int8", "int4") and found["memory"]["total"] > 0
