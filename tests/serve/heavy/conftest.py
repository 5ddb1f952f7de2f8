"""Every test here is run by `make test-serve` alone: they need Chromium, Node, hey or wrk, or minutes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("serve")
            item.add_marker("slow")


def needed(*names: str) -> str:
    """Return the path of the first of these programs that is installed; skip the test where none is."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(REPOSITORY / ".venv-load" / "bin")])
    for name in names:
        if found := shutil.which(name, path=places):
            return found
    pytest.skip(f"needs {names[0]}: make test-serve says how to install it")
