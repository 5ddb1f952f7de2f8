"""The native engine on ARM64: what is compiled for it, and that it computes the same bits (`make test-arm`)."""

from __future__ import annotations

import pytest

from mmedge.engines.native.build import SOURCES, sources
from tests.native import arm


@pytest.mark.parametrize(("machine", "sets"), [("x86_64", 3), ("AMD64", 3), ("aarch64", 3), ("arm64", 3), ("riscv64", 0)])
def test_an_architecture_has_its_instruction_sets_and_the_portable_kernels(machine: str, sets: int) -> None:
    files = sources(machine)
    assert ("kernels_portable.cpp", ()) in files and len(files) == len(set(files)) == 5 + sets
    for name, flags in files:
        assert (SOURCES / name).is_file() and not any("native" in flag for flag in flags)


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert arm.main() == 1
    (said,) = capsys.readouterr().out.splitlines()
    assert "apt-get install g++-aarch64-linux-gnu qemu-user" in said


@pytest.mark.slow
@pytest.mark.skipif(arm.tools() is None, reason="needs g++-aarch64-linux-gnu and qemu-user")
def test_arm_computes_the_same_bits() -> None:
    assert arm.main(models=3, conversations=1) == 0
