"""The chain in one command, at small size: everything that quickstart does, and everything it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from mmedge import Student
from tests.conftest import mmedge

SMALL = [
    "task.train=160", "task.test=8", "split.validation=12", "split.verdict_test=10",
    "student.scratch={d_model: 64, d_ff: 96, d_kv: 16, heads: 4, encoder_layers: 1, decoder_layers: 1, vocabulary: 500}",
    "training.stage1={max_steps: 4, batch_size: 8}", "training.stage2={max_steps: 6, batch_size: 8}", "bench.verdicts=6",
]  # fmt: skip


def test_quickstart_runs_the_whole_chain_and_again_keeps_what_is_done(tmp_path: Path) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = mmedge("quickstart", "--out", tmp_path / "run", *settings)
    assert done.code == 0, done.err
    for words in ("answers: new_combinations", "answers: held_out_patterns", "verdicts, balanced", "int8", "Ask it yourself"):
        assert words in done.out
    report = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert len(report["variants"]) == 3
    assert Student.load(tmp_path / "run" / "bundle-int8").answer("What is 3 and 4?")
    again = mmedge("quickstart", "--out", tmp_path / "run", *settings)
    assert again.code == 0 and again.err.count("kept") == 3, again.err


@pytest.mark.versions
def test_a_recipe_ends_at_the_loss_that_it_always_had(tiny_run: Path) -> None:
    """Each transformers draws the weights of a student from scratch in its own order; the last digits are the processor's."""
    steps = [json.loads(line) for line in (tiny_run / "stage2" / "metrics.jsonl").read_text().splitlines()]
    loss = [step["loss"] for step in steps if "loss" in step][-1]
    assert loss == pytest.approx({"4": 6.1665, "5": 5.8657}[transformers.__version__[0]], abs=0.01)
