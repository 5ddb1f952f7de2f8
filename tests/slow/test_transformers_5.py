"""What transformers 5 really writes, read by the transformers that is installed, and by the graphs.

    pip install --target build/transformers5 'transformers>=5,<6'
    MMEDGE_TRANSFORMERS_5=build/transformers5 pytest tests/slow/test_transformers_5.py -m slow

Transformers 5 writes small checkpoints and what it computes with them, in a process of its own: float32, and bfloat16 in shards.
Without that folder, and with transformers 5 itself installed, it is the one that is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from mmedge.export.graphs import choose_graphs, write_fused
from mmedge.tasks.encoding import Prompt
from tests.conftest import REPOSITORY
from tests.export.test_fused import ALL, expected_logits, opened
from tests.export.test_written_by_5 import load_float32

pytestmark = pytest.mark.slow

OWN_HEAD = ("t5 v1.1", "flan-t5, odd widths")  # 5.x ties the head of every T5 that it builds, and keeps another that is there
WRITE = """
import sys, json, copy
from pathlib import Path
import numpy as np
import torch
import transformers
from tests.export.test_fused import ALL, expected_logits, prompts, random_model
from tests.slow.test_transformers_5 import OWN_HEAD

assert transformers.__version__.startswith("5."), transformers.__version__
for number, name in enumerate(ALL):
    for kind in ("float32", "bfloat16"):
        folder = Path(sys.argv[1]) / f"{number}-{kind}"
        model = random_model(name)
        if name in OWN_HEAD and kind == "float32":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
            model.all_tied_weights_keys.clear()
        if kind == "bfloat16":
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16().float()
            copy.deepcopy(model).bfloat16().save_pretrained(folder, max_shard_size="40KB")
        else:
            model.save_pretrained(folder)
        found = {}
        for row, prompt in enumerate(prompts()):
            written = []
            for _ in range(64):  # greedily, from whole passes without a cache
                logits = expected_logits(model, prompt, [*written, 0])[-1]
                written.append(int(logits.argmax()))
            found[f"tokens{row}"] = np.array(written)
            found[f"logits{row}"] = expected_logits(model, prompt, written)
            found[f"context{row}"], found[f"begun{row}"] = np.array(prompt.context), np.array(prompt.begun)
        np.savez(folder / "expected.npz", **found)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = os.environ.get("MMEDGE_TRANSFORMERS_5")
    if not place and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("no transformers 5: name its folder in MMEDGE_TRANSFORMERS_5")
    folder = tmp_path_factory.mktemp("written_by_5")
    path = os.pathsep.join(filter(None, [str(REPOSITORY), place and str(Path(place).resolve()), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_logits_and_greedy_tokens_are_those_of_transformers_5(name: str, kind: str, checkpoints: Path, tmp_path: Path) -> None:
    folder = checkpoints / f"{ALL.index(name)}-{kind}"
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers_version"].startswith("5.") and config["dtype"] == kind
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (kind == "bfloat16")
    assert choose_graphs(folder, "fused") == ("fused", None)
    write_fused(folder, tmp_path)
    expected = np.load(folder / "expected.npz")
    prompts = [Prompt(*(tuple(expected[f"{part}{row}"].tolist()) for part in ("context", "begun"))) for row in range(3)]
    engine, model = opened(tmp_path, name), load_float32(folder)
    for row, (prompt, written) in enumerate(zip(prompts, engine.generate(prompts, 64).tokens, strict=True)):
        tokens, logits = expected[f"tokens{row}"].tolist(), expected[f"logits{row}"]
        assert np.abs(engine.forced_logits(prompt, tokens) - logits).max() < 1e-4
        assert np.abs(expected_logits(model, prompt, tokens) - logits).max() < 1e-4
        best = np.sort(logits, axis=-1)
        near = np.flatnonzero(best[:, -1] - best[:, -2] < 1e-5)  # from a tie on, two texts may go two ways
        first = int(near[0]) if len(near) else 64
        assert list(written)[:first] == tokens[:first] and first > 8
