"""One variant in a process of its own, so that its memory and its failures are its own.

Speaks JSON lines over standard input and output: a request in, a reply out, in turn. Started by `bench.py` as

    python -m mmedge.bench.worker FOLDER THREADS

The first line it writes says how it opened: kind, load time, size. Then `{"prompt": "answer", "example": {…}}` is timed and
answered, `{"verdict": …}` judged, and `{"memory": true}` tells the peak memory of the process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mmedge.errors import MmedgeError
from mmedge.runtime.bundle import MANIFEST
from mmedge.runtime.decoding import Engine
from mmedge.storage import folder_size
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.prompts import VERDICTS, render_question


@dataclass(frozen=True)
class _Opened:
    """A variant, opened: what it runs on, and how to ask it."""

    engine_name: str
    precision: str
    device: str
    threads: int
    engine: Engine
    encoder: PromptEncoder
    max_answer_tokens: int


def _open(folder: Path, threads: int | None) -> _Opened:
    cores = len(os.sched_getaffinity(0))
    if (folder / MANIFEST).is_file():
        from mmedge.runtime.student import Student

        edge = Student.load(folder, threads)
        bundle = edge.bundle
        used = threads or bundle.threads or cores
        return _Opened("onnxruntime", bundle.precision, "cpu", used, edge.engine, edge.encoder, bundle.max_answer_tokens)
    import torch

    from mmedge.distill.engine import TorchEngine
    from mmedge.distill.students import open_student, student_details, student_precision

    torch.set_num_threads(threads or cores)
    details = student_details(folder)
    precision = student_precision(details)
    device = "cuda" if precision != "fp32" and torch.cuda.is_available() else "cpu"  # what is rounded is meant for GPUs
    student = open_student(folder, device=device)
    limit = int(details["recipe"]["generation"]["max_answer_tokens"])
    return _Opened("torch", precision, device, threads or cores, TorchEngine(student), student.encoder, limit)


def peak_memory_bytes() -> int:
    """Return the largest resident size that this process has had."""
    try:  # getrusage would count what the parent held when it started this process
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reply(request: dict[str, Any], variant: _Opened) -> dict[str, Any]:
    if "memory" in request:
        return {"peak_memory_bytes": peak_memory_bytes()}
    record = request["example"]
    example = Example(record["id"], record["question"], None, tuple(record["choices"]))
    question = render_question(example)
    engine, encoder = variant.engine, variant.encoder
    if "cot" in request:
        cot = ChainOfThought(request["cot"]["rationale"], request["cot"]["pseudo_label"])
        begun, tokens = encoder.verdict_tokens()
        logits = engine.next_logits([encoder.prompt("predict", encoder.prompts.evaluation_context(question, cot))], begun)
        return {"verdict": VERDICTS[int(logits[0, tokens].argmax())]}
    started = time.perf_counter()
    prompt = encoder.prompt("predict", encoder.prompts.reasoning_context(question))
    generation = engine.generate([prompt], variant.max_answer_tokens)
    text = encoder.text(generation.tokens[0])
    return {
        "answer": text,
        "seconds": time.perf_counter() - started,
        "time_to_first_token": generation.time_to_first_token,
        "decode_seconds": generation.seconds - generation.time_to_first_token,
        "decode_steps": generation.steps - 1,
        "prompt_tokens": len(prompt.context) + len(prompt.begun),
    }


def serve(folder: Path, threads: int | None, requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends."""

    def say(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    started = time.perf_counter()
    try:
        variant = _open(folder, threads)
    except MmedgeError as error:
        say({"error": error.what, "hint": error.hint})
        return
    say(
        {
            "engine": variant.engine_name,
            "precision": variant.precision,
            "device": variant.device,
            "threads": variant.threads,
            "load_seconds": time.perf_counter() - started,
            "bytes_on_disk": folder_size(folder),
        }
    )
    for line in requests:
        say(_reply(json.loads(line), variant))


def main() -> None:
    """Start from the command line; standard output carries replies only."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    serve(folder, threads or None, sys.stdin, replies)


if __name__ == "__main__":
    main()
