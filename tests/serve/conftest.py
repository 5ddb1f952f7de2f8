"""One server with a student of each family, for tests that change nothing about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Running, serving

T5, LLAMA = "tiny/bundle-int8", "own/bundle-int8"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, llama_run: Path) -> Iterator[Running]:
    bundles = [tiny_run / "bundle-int8", llama_run / "bundle-int8"]
    with serving(tmp_path_factory.mktemp("serve"), bundles, "--body-timeout", 1) as running:
        yield running
