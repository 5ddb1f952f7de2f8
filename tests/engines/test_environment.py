"""What chooses an engine from outside: a variable that names nothing is refused by every command that would use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedge.engines.environment import INSTRUCTION_SETS, check_environment, wanted_engine, wanted_kernels
from mmedge.engines.native import library
from mmedge.engines.native.build import SOURCES
from mmedge.errors import MmedgeError
from tests.conftest import is_one_line_error, mmedge


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MMEDGE_ENGINE", "natve", "MMEDGE_ENGINE: invalid engine 'natve'\n  → set it to onnx or native, or leave it out"),
        ("MMEDGE_ENGINE", "onnxruntime", "MMEDGE_ENGINE: invalid engine 'onnxruntime'"),
        ("MMEDGE_ISA", "avx-2", "MMEDGE_ISA: invalid kernels 'avx-2'\n  → did you mean 'avx2'? set it to one of avx512vnni"),
        ("MMEDGE_ISA", "AVX2", "MMEDGE_ISA: invalid kernels 'AVX2'"),
    ],
)
def test_a_variable_that_names_nothing_is_refused(variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(MmedgeError) as caught:
        check_environment()
    assert str(caught.value).startswith(said)


def test_empty_variables_leave_the_choice_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDGE_ENGINE", "")
    monkeypatch.setenv("MMEDGE_ISA", "")
    assert (wanted_engine(), wanted_kernels()) == (None, "")
    monkeypatch.setenv("MMEDGE_ENGINE", "onnx")
    assert wanted_engine() == "onnxruntime"


def test_all_kernels_of_the_library_may_be_named() -> None:
    named = "".join(path.read_text() for path in SOURCES.glob("kernels_*"))
    assert all(f'"{name}"' in named for name in INSTRUCTION_SETS)


@pytest.mark.parametrize(("variable", "value"), [("MMEDGE_ENGINE", "foo"), ("MMEDGE_ISA", "foo")])
def test_commands_and_the_doctor_name_a_variable_that_names_nothing(
    variable: str, value: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable == "MMEDGE_ISA" and library.problem():
        pytest.skip(f"the native engine: {library.problem()}")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("COLUMNS", "200")
    for command in (("run", tiny_run / "bundle-int8", "1 + 1?"), ("export", tiny_run), ("bench", tiny_run / "bundle-int8")):
        found = mmedge(*command)
        assert is_one_line_error(found) and f"{variable}: invalid" in found.err, found.err
    examined = mmedge("doctor").out
    assert f"{variable}: invalid" in examined and "no problems" not in examined
