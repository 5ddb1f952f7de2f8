"""What a token costs on a CUDA GPU: a student in torch, by bitsandbytes, and on ONNX Runtime, in turn, in one process.

    mmedge export RUN --fp16 --bnb-int8 --bnb-nf4
    python benchmarks/gpu_speed.py RUN --out results.json

Needs a GPU, bitsandbytes for its students, and onnxruntime-gpu in place of onnxruntime for the bundle; what is not there is left
out, by name. Every variant writes rationales of the same test questions, one question at a time and 32 together; variants take
turns round by round. Reported are milliseconds for each step of the decoder and tokens a second, the ratio of each variant's to
float16 in torch with the range over rounds, and the memory that torch holds for it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmedge.engines.entry import OpenedVariant
from mmedge.engines.variants import VariantSpec, open_variant
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.storage import write_json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, read_evaluation_set
from mmedge.tasks.prompts import render_question

BASE, TOGETHER = "torch fp16", 32
VARIANTS = {
    "torch fp32": ("torch-cuda", "student"),
    "torch bf16": ("torch-cuda-bf16", "student"),
    BASE: ("torch-cuda-fp16", "student"),
    "bnb int8": ("torch", "student-bnb-int8"),
    "bnb nf4": ("torch", "student-bnb-nf4"),
    "onnxruntime fp16": ("bundle-cuda", "bundle-fp16"),
}


def opened_variants(run: Path) -> tuple[dict[str, OpenedVariant], dict[str, float]]:
    """Return the variants that can be opened, and the megabytes that torch holds for each."""
    found, held = {}, {}
    for name, (kind, folder) in VARIANTS.items():
        before = torch.cuda.memory_allocated()
        try:
            found[name] = open_variant(VariantSpec(kind, run / folder))
        except MmedgeError as error:
            print(f"left out: {name}: {error}")
            continue
        held[name] = (torch.cuda.memory_allocated() - before) / 2**20
    return found, held


def written(opened: OpenedVariant, questions: Sequence[Example], batch: int) -> dict[str, float]:
    """Return milliseconds a step and tokens a second of rationales to some questions."""
    steps, tokens, decoding = 0, 0, 0.0
    started = time.perf_counter()
    for first in range(0, len(questions), batch):
        some = questions[first : first + batch]
        contexts = [opened.speaker.encoder.prompts.reasoning_context(render_question(example)) for example in some]
        prompts = [opened.speaker.encoder.prompt("explain", context) for context in contexts]
        text = opened.speaker.engine.conversation().generate(prompts, opened.speaker.max_rationale_tokens)
        steps += text.steps - 1
        decoding += text.seconds - text.time_to_first_token
        tokens += sum(map(len, text.tokens))
    seconds = time.perf_counter() - started
    return {"ms_per_step": 1e3 * decoding / max(1, steps), "tokens_per_second": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=8, help="asked one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here")
    examples = next(iter(read_evaluation_set(given.run / FILE_NAME).tests().values()))
    variants, held = opened_variants(given.run)
    found: dict[str, dict[int, list[dict[str, float]]]] = {name: {1: [], TOGETHER: []} for name in variants}
    with torch.inference_mode():
        for number in range(given.rounds + 1):
            for name, opened in variants.items():
                for batch, some in ((1, examples[: given.questions]), (TOGETHER, examples[:TOGETHER])):
                    one = written(opened, some, batch)
                    if number:  # the first round warms up
                        found[name][batch].append(one)
    rows = {}
    for name, by_batch in found.items():
        row: dict[str, Any] = {"torch_mb": round(held[name], 1), "mb_on_disk": round(variants[name].bytes_on_disk / 1e6, 1)}
        for batch, rounds in by_batch.items():
            steps = [one["ms_per_step"] for one in rounds]
            row[f"batch {batch}"] = {
                "ms_per_step": round(statistics.median(steps), 3),
                "tokens_per_second": round(statistics.median(one["tokens_per_second"] for one in rounds), 1),
            }
            if BASE in found:
                ratios = [own / base["ms_per_step"] for own, base in zip(steps, found[BASE][batch], strict=True)]
                row[f"batch {batch}"]["ratio"] = [
                    round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))
                ]
        rows[name] = row
        one, many = row["batch 1"], row[f"batch {TOGETHER}"]
        print(
            f"{name:18} {one['ms_per_step']:7.2f} ms a step {one.get('ratio', '')}, {TOGETHER} together"
            f" {many['ms_per_step']:7.2f} ms {many.get('ratio', '')}, {many['tokens_per_second']:8.0f} tokens/s,"
            f" {row['torch_mb']} MB in torch"
        )
    if given.out:
        write_json(given.out, {"gpu": torch.cuda.get_device_name(), "machine": machine(), "variants": rows})


if __name__ == "__main__":
    main()
