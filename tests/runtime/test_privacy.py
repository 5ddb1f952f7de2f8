"""A student leaves nothing behind on the machine that it answers on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def test_a_student_writes_nothing_into_the_users_folders(tiny_run: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY" and "XDG" not in name}
    code = "import sys; from mmedge import Student; Student.load(sys.argv[1]).answer('Ann has 3 apples and buys 4. How many?')"
    command = [sys.executable, "-B", "-c", code, str(tiny_run / "bundle-int8")]
    places = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, env=environment | places, cwd=home, check=True, timeout=120)
    assert list(home.iterdir()) == []
