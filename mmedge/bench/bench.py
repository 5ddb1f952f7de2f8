"""`mmedge bench`: the same questions to every variant, interleaved, each in a process of its own.

Every question goes to each variant in turn before the next one comes, in rotating order, so that a machine that slows down
slows all of them. Latency is measured at batch 1. Accuracies are on the same questions; every sample is kept in the JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.runs import machine
from mmedge.runtime.bundle import MANIFEST
from mmedge.statistics import balanced_accuracy, percentile, proportion
from mmedge.storage import Journal, Json, sha256_file, sha256_json
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, EvaluationSet, HeldOutCot, read_evaluation_set


@dataclass(frozen=True)
class BenchSettings:
    """How much to measure.

    Attributes:
        questions: How many questions of each test split; None for all.
        warmup_questions: How many answers each variant gives before timing starts.
        verdicts: How many held-out chains of thought are judged.
        threads: Threads of each variant; by default what a bundle asks for, or else all of the process's cores.
    """

    questions: int | None = None
    warmup_questions: int = 5
    verdicts: int = 100
    threads: int | None = None


@dataclass
class _Samples:
    """What one variant did."""

    answers: dict[str, list[bool]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)


class Variant:
    """A variant in its own process.

    Raises:
        MmedgeError: It cannot be opened, or its process dies.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.folder = folder
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmedge.bench.worker", str(folder), str(threads or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._complaints: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        opened = self._receive()
        if "error" in opened:
            raise MmedgeError(opened["error"], opened["hint"])
        self.opened = opened
        self.name = f"{opened['engine']} {opened['precision']}" + (" on cuda" if opened["device"] == "cuda" else "")

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints = [*self._complaints[-20:], line.rstrip()]

    def _receive(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._listener.join(timeout=5)
            last = self._complaints[-1] if self._complaints else f"exit code {self._process.returncode}"
            raise MmedgeError(f"the process that measures {self.folder} ended: {last[:200]}")
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply

    def ask(self, request: Json) -> Json:
        """Send a request and wait for its reply."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the read below says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def find_variants(places: Sequence[Path]) -> list[Path]:
    """Return the student and bundle folders that some runs, students or bundles mean.

    Raises:
        MmedgeError: A place is none of these.
    """
    found: list[Path] = []
    for place in places:
        if (place / MANIFEST).is_file() or (place / "mmedge.json").is_file():
            found.append(place)
        elif (place / "recipe.yaml").is_file():
            students = ("student", "student-bnb-int8", "student-bnb-nf4")
            inside = [place / name for name in (*students, "bundle-fp32", "bundle-int8", "bundle-int4")]
            present = [folder for folder in inside if folder.is_dir()]
            if not present:
                raise MmedgeError(f"the run {place} has neither student nor bundles yet", "finish mmedge distill and mmedge export")
            found += present
        elif not place.exists():
            raise MmedgeError(f"no such variant: {place}", "name a run, a student folder or a bundle")
        else:
            raise MmedgeError(f"{place} is neither a run, a student nor a bundle", "see mmedge distill and mmedge export")
    return list(dict.fromkeys(found))


def bench(
    places: Sequence[Path],
    settings: BenchSettings,
    progress: Progress,
    evaluation: Path | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Measure variants on the same questions.

    Args:
        places: Runs, student folders, bundles.
        settings: How much to measure.
        progress: Where progress is shown.
        evaluation: The evaluation set; that beside the first variant by default.
        journal: Where answers are kept until all are there, so that a bench that was killed continues; the caller removes it
            when the report is written. Peak memory is that of the processes that finished.

    Returns:
        The report as a JSON-able value; `report.py` renders it.

    Raises:
        MmedgeError: A variant cannot be opened, or the evaluation set is missing.
    """
    folders = find_variants(places)
    source = evaluation or folders[0].resolve().parent / FILE_NAME
    questions = read_evaluation_set(source)
    splits = {split: examples[: settings.questions] for split, examples in questions.tests().items()}
    if not any(splits.values()):
        raise MmedgeError("the evaluation set has no test questions")
    cots = next(iter(questions.cots.values()), ())[: settings.verdicts]
    variants: list[Variant] = []
    kept = Journal(journal, _key(folders, settings, source)) if journal else None
    if kept is not None and len(kept):
        progress.line(f"continues: {len(kept)} answers and verdicts are there already")
    try:
        for folder in folders:
            progress.line(f"opening {folder}")
            variants.append(Variant(folder, settings.threads))
        samples = _measure(variants, questions, splits, cots, settings.warmup_questions, progress, kept)
        memory = [variant.ask({"memory": True})["peak_memory_bytes"] for variant in variants]
    finally:
        for variant in variants:
            variant.close()
        if kept is not None:
            kept.close()
    return {
        "task": questions.task,
        "questions": {split: len(examples) for split, examples in splits.items()},
        "machine": machine(),
        "batch": 1,
        "variants": [
            _summary(variant, sample, peak, cots) for variant, sample, peak in zip(variants, samples, memory, strict=True)
        ],
    }


def _key(folders: Sequence[Path], settings: BenchSettings, evaluation: Path) -> str:
    """Return the hash of everything that the answers of a bench depend on: variants, settings, questions, machine."""
    files = {
        str(folder): {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")}
        for folder in folders
    }
    return sha256_json({"variants": files, "settings": asdict(settings), "questions": sha256_file(evaluation), "on": machine()})


def _request(example: Example) -> Json:
    return {"example": {"id": example.id, "question": example.question, "choices": list(example.choices)}}


def _measure(
    variants: Sequence[Variant],
    questions: EvaluationSet,
    splits: dict[str, tuple[Example, ...]],
    cots: Sequence[HeldOutCot],
    warmup: int,
    progress: Progress,
    kept: Journal | None,
) -> list[_Samples]:
    def replies(name: str, request: Json, first: int) -> list[Json]:
        """Return every variant's reply, in the variants' order; asked in turn from the `first` on, unless kept."""
        if kept is not None and (before := kept.get(name)) is not None:
            return list(before)
        found: dict[int, Json] = {}
        for offset in range(len(variants)):
            index = (first + offset) % len(variants)
            found[index] = variants[index].ask(request)
        listed = [found[index] for index in range(len(variants))]
        if kept is not None:
            kept.put(name, listed)
        return listed

    samples = [_Samples() for _ in variants]
    first_split = next(examples for examples in splits.values() if examples)
    for example in (first_split * warmup)[:warmup]:
        for variant in variants:
            variant.ask(_request(example))
    asked = 0
    with progress.task("answers", total=sum(map(len, splits.values()))) as step:
        for split, examples in splits.items():
            for number, example in enumerate(examples):
                asked += 1
                for sample, reply in zip(samples, replies(f"{split}/{number}", _request(example), asked), strict=True):
                    _record(sample, split, example, reply, questions)
                step.advance(1)
    with progress.task("verdicts", total=len(cots)) as step:
        for number, held in enumerate(cots):
            cot = {"rationale": held.cot.rationale, "pseudo_label": held.cot.pseudo_label}
            found = replies(f"verdict/{number}", {**_request(held.example), "cot": cot}, 0)
            for sample, reply in zip(samples, found, strict=True):
                sample.verdicts.append(reply["verdict"])
            step.advance(1)
    return samples


def _record(sample: _Samples, split: str, example: Example, reply: Json, questions: EvaluationSet) -> None:
    if example.label is not None:
        right = questions.judge.agrees(reply["answer"], example.label, example.choices)
        sample.answers.setdefault(split, []).append(right)
    sample.texts.setdefault(split, []).append(reply["answer"])
    sample.seconds.append(reply["seconds"])
    sample.first.append(reply["time_to_first_token"])
    if reply["decode_steps"]:
        sample.per_token.append(reply["decode_seconds"] / reply["decode_steps"])


def _summary(variant: Variant, sample: _Samples, peak: int, cots: Sequence[HeldOutCot]) -> dict[str, Any]:
    says_correct = [verdict == "correct" for verdict in sample.verdicts]
    actual = [held.correct for held in cots]
    decode = percentile(sample.per_token, 50) if sample.per_token else None
    return {
        "name": variant.name,
        "folder": variant.folder.name,
        "device": variant.opened["device"],
        "threads": variant.opened["threads"],
        "answer_accuracy": {split: proportion(outcomes).to_json() for split, outcomes in sample.answers.items()},
        "verdict_accuracy": proportion([s == a for s, a in zip(says_correct, actual, strict=True)]).to_json(),
        "verdict_balanced_accuracy": balanced_accuracy(says_correct, actual),
        "verdict_always_correct": proportion(actual).to_json(),
        "latency_ms": {
            "count": len(sample.seconds),
            **{f"p{p}": 1000 * percentile(sample.seconds, p) for p in (50, 90, 99)},
        },
        "time_to_first_token_ms": {f"p{p}": 1000 * percentile(sample.first, p) for p in (50, 90, 99)},
        "inter_token_latency_ms": None if decode is None else 1000 * decode,
        "tokens_per_second": None if not decode else 1 / decode,
        "load_seconds": variant.opened["load_seconds"],
        "peak_memory_bytes": peak,
        "bytes_on_disk": variant.opened["bytes_on_disk"],
        "samples": {
            "seconds": [round(value, 6) for value in sample.seconds],
            "answers": sample.texts,
            "correct": sample.answers,
        },
    }
