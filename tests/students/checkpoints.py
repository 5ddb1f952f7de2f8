"""Small checkpoints of every architecture with what the transformers that wrote them computes, and whether another reads them so.

    python -m tests.students.checkpoints write|read FOLDER    # float32, and bfloat16 in shards
    python -m tests.students.checkpoints answer RUN FILE      # what a run's student gives, as numpy arrays

For tests that let one version of transformers write and another read, each in its own environment.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from mmedge.engines.torch_decoding import TorchEngine
from mmedge.export.graphs import choose_graphs, write_fused
from mmedge.students import dialects
from mmedge.students.saved import open_student
from mmedge.tasks.encoding import Prompt
from tests.export.test_fused import IN_BOTH, expected_logits, opened, prompts, random_model

KINDS = ("float32", "bfloat16")
TOKENS = 24
OWN_HEAD = ("t5 v1.1", "flan-t5, odd widths")  # 5.x ties the head of every T5 that it builds, and keeps another that is there


def write(folder: Path) -> None:
    """Write a checkpoint of each architecture and kind, and what this transformers writes greedily, with its logits."""
    for number, name in enumerate(IN_BOTH):
        for kind in KINDS:
            model = random_model(name)
            if transformers.__version__.startswith("5.") and name in OWN_HEAD and kind == "float32":
                model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
                model.all_tied_weights_keys.clear()
            place = folder / f"{number}-{kind}"
            if kind == "bfloat16":
                for parameter in model.parameters():
                    parameter.data = parameter.data.bfloat16().float()
                copy.deepcopy(model).bfloat16().save_pretrained(place, max_shard_size="40KB")
            else:
                model.save_pretrained(place)
            found: dict[str, Any] = {}
            for row, prompt in enumerate(prompts()):
                written: list[int] = []
                for _ in range(TOKENS):  # from whole passes without a cache
                    written.append(int(expected_logits(model, prompt, [*written, 0])[-1].argmax()))
                found[f"tokens{row}"] = np.array(written)
                found[f"logits{row}"] = expected_logits(model, prompt, written)
            np.savez(place / "expected.npz", **found)


def load_float32(folder: Path) -> Any:
    """Return the torch model of a folder, as a student is loaded."""
    return dialects.load_model(str(folder), dialects.load_config(str(folder)), dtype=torch.float32).eval()


def read(folder: Path, name: str, kind: str) -> None:
    """Check that this transformers and the graphs compute of a checkpoint what its writer does."""
    place = folder / f"{IN_BOTH.index(name)}-{kind}"
    assert (len(list(place.glob("*.safetensors"))) > 1) == (kind == "bfloat16")
    assert choose_graphs(place, "fused") == ("fused", None)
    expected = np.load(place / "expected.npz")
    with tempfile.TemporaryDirectory() as graphs:
        write_fused(place, Path(graphs))
        engine, model = opened(Path(graphs), name), load_float32(place)
        for row, (prompt, written) in enumerate(zip(prompts(), engine.generate(prompts(), TOKENS).tokens, strict=True)):
            tokens, logits = expected[f"tokens{row}"].tolist(), expected[f"logits{row}"]
            assert np.abs(engine.forced_logits(prompt, tokens) - logits).max() < 1e-4
            assert np.abs(expected_logits(model, prompt, tokens) - logits).max() < 1e-4
            best = np.sort(logits, axis=-1)
            near = np.flatnonzero(best[:, -1] - best[:, -2] < 1e-5)  # from a tie on, two texts may go two ways
            first = int(near[0]) if len(near) else TOKENS
            assert list(written)[:first] == tokens[:first] and first > 4


def answer(run: Path) -> dict[str, Any]:
    """Return the tokens of two questions with a run's student, and their logits."""
    student = open_student(run / "student")
    engine = TorchEngine(student)
    found: dict[str, Any] = {}
    for number, question in enumerate(
        ("Ann has 3 apples.", "Leo begins with 64 books. Later 20 of them break. How many are left?")
    ):
        prompt: Prompt = student.encoder.prompt("explain", student.encoder.prompts.reasoning_context(question))
        tokens = list(engine.generate([prompt], TOKENS).tokens[0]) or [5]
        found |= {f"prompt{number}": np.array([*prompt.context, *prompt.begun]), f"tokens{number}": np.array(tokens)}
        found[f"logits{number}"] = engine.forced_logits(prompt, tokens)
    return found


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    if verb == "write":
        write(folder)
    elif verb == "read":
        for name in IN_BOTH:
            for kind in KINDS:
                read(folder, name, kind)
    else:
        np.savez(sys.argv[3], **answer(folder))
