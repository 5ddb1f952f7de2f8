"""How much faster questions are answered in a batch than one by one, on the native engine, and whether they get the same tokens.

    python benchmarks/decode_speed.py --model t5-small --place models --only native      writes the models
    python benchmarks/batch_speed.py models/t5-small/mmedge-int8 models/smollm2/mmedge-int8

A question is a prompt of random tokens, between half of `--prompt` and all of it, and `--new` tokens written greedily. In every
round the questions are answered one by one and in batches of each size, which take turns. Reported is how many times as many
answers a second a batch gives as batch 1, with a bootstrap interval over rounds, and how many rows of all batches differ in any
token from what the question gets alone. The aims are 4 for T5 students and 3 for SmolLM2, in batches of 32 on two cores, with no
row different.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from decode_speed import graphs_alone, ratio

from mmedge.engines.native.engine import NativeEngine
from mmedge.machine import machine
from mmedge.storage import write_json
from mmedge.tasks.encoding import Prompt

Answers = list[tuple[int, ...]]


def opened(folder: Path, threads: int, prompt: int) -> NativeEngine:
    """Return the native engine on a model that `decode_speed.py` wrote, whose layer plan lies beside it."""
    bundle = graphs_alone(folder, "fused", prompt)
    plan = json.loads(folder.with_suffix(".plan.json").read_text())
    return NativeEngine(replace(bundle, manifest=replace(bundle.manifest, plan=plan)), threads)


def questions(engine: NativeEngine, count: int, prompt: int) -> list[Prompt]:
    """Return random prompts of random lengths, the same in every run."""
    random = np.random.default_rng(0)
    found = []
    for length in random.integers(prompt // 2, prompt + 1, count).tolist():
        tokens = tuple(random.integers(100, engine.decoder.vocabulary, length).tolist())
        found.append(Prompt(tokens, (0,)) if engine.family == "encoder-decoder" else Prompt(tokens, ()))
    return found


def timed(work: Callable[[], Answers]) -> tuple[float, Answers]:
    """Return seconds and answers."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def answered(engine: NativeEngine, prompts: Sequence[Prompt], batch: int, new: int) -> Answers:
    """Answer all prompts, so many together."""
    found: Answers = []
    for first in range(0, len(prompts), batch):
        found += [tuple(row) for row in engine.generate(prompts[first : first + batch], new).tokens]
    return found


def measure(engine: NativeEngine, sizes: Sequence[int], rounds: int, prompt: int, new: int) -> dict[str, Any]:
    """Return the seconds of every size and round, and how many rows of each size differ from those of batch 1."""
    prompts = questions(engine, max(sizes), prompt)
    every = [1, *(size for size in sizes if size > 1)]
    seconds: dict[int, list[float]] = {size: [] for size in every}
    answers: dict[int, Answers] = {}
    for number in range(rounds + 1):
        for place in range(len(every)):
            size = every[(place + number) % len(every)]
            taken, answers[size] = timed(lambda size=size: answered(engine, prompts, size, new))  # type: ignore[misc]
            if number:  # the first round warms up
                seconds[size].append(taken)
    different = {size: sum(a != b for a, b in zip(answers[1], answers[size], strict=True)) for size in every}
    return {"questions": len(prompts), "seconds": seconds, "different": different}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="folder that decode_speed.py wrote, such as …/mmedge-int8"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], metavar="N")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=80, metavar="TOKENS", help="the longest prompt")
    parser.add_argument("--new", type=int, default=20, metavar="TOKENS", help="tokens of an answer")
    parser.add_argument("--out", type=Path, help="every sample, as JSON")
    given = parser.parse_args()
    results = {}
    print(f"| | questions/s alone | {' | '.join(f'batch {size}' for size in given.batches)} | other rows |")
    print(f"|---|{'---|' * (len(given.batches) + 2)}")
    for model in given.models:
        engine = opened(model, given.threads, given.prompt)
        found = measure(engine, given.batches, given.rounds, given.prompt, given.new)
        results[str(model)] = found | {"kernels": engine.decoder.kernels}
        alone = found["seconds"][1]
        cells = [f"{found['questions'] / float(np.median(alone)):.1f}"]
        for size in given.batches:
            value, low, high = ratio(alone, found["seconds"][size])
            cells.append(f"{value:.2f} × [{low:.2f}, {high:.2f}]")
        cells.append(str(sum(found["different"].values())))
        print(f"| {model.parent.name} {model.name} | {' | '.join(cells)} |", flush=True)
    if given.out:
        stated = {"threads": given.threads, "prompt": given.prompt, "new": given.new, "machine": machine()}
        write_json(given.out, stated | {"models": results})


if __name__ == "__main__":
    main()
