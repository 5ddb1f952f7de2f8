"""The official client for Node against students of both families, and against one that calls tools."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import CALLS, LLAMA, T5, TOOLS
from tests.serve.heavy.conftest import needed
from tests.serve.running import Running

HERE = Path(__file__).parent
MODULES = Path(os.environ.get("NODE_PATH") or HERE.parents[2] / ".node" / "node_modules")
GIVEN = [TOOLS[0], {"type": "function", "function": TOOLS[1]}]


@pytest.mark.parametrize("model", [T5, LLAMA])
def test_the_client_for_node_works_as_it_is(server: Running, structured: Running, model: str) -> None:
    node = needed("node")
    if not (MODULES / "openai").is_dir():
        pytest.skip("needs the package openai for Node: make test-serve installs it")
    pytest.importorskip("llguidance")
    done = subprocess.run(
        [node, HERE / "client.cjs", server.url, model, structured.url, CALLS, json.dumps(GIVEN)],
        env=os.environ | {"NODE_PATH": str(MODULES)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr
