"""Variants: how one is named, opened and asked, whatever it runs on.

    runs/quickstart/bundle-int8               a bundle, on ONNX Runtime
    runs/quickstart/student                   a student, in torch, float32
    runs/quickstart/student-bnb-nf4           a student whose weights bitsandbytes rounded, on a GPU where there is one
    torch-bf16:runs/quickstart/student        a student at another precision; torch-cuda-fp16: on a GPU
    llama.cpp:runs/quickstart/model.gguf      another engine on the same weights; see `peers.py`

A name is a folder, or KIND:PLACE. Each kind has an opener: a function that takes the place and the number of threads and returns
what is opened, an `Engine` of `mmedge.engines.onnx.decoding` with the encoder that makes its prompts. A further engine is one more
entry of `OPENERS`; all that measures goes through `ask`. An opener that needs what is not there raises MmedgeError, and the bench
says so in that variant's row. Nothing heavy is imported before a variant is opened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmedge.errors import MmedgeError, missing_extra
from mmedge.machine import usable_cores
from mmedge.storage import folder_size
from mmedge.tasks.forms import AnswerForm, open_form

if TYPE_CHECKING:
    from mmedge.engines.generation import Decoding, Generation, Logits
    from mmedge.engines.onnx.decoding import Engine
    from mmedge.runtime.student import Student
    from mmedge.tasks.base import Example
    from mmedge.tasks.encoding import Prompt, PromptEncoder

Ask = Literal["answer", "rationale", "confidence"]  # the answer only; with a chain of thought; with the best confidence there is
ASKS: tuple[Ask, ...] = ("answer", "rationale", "confidence")
_OF_A_RUN = ("student", "student-bnb-int8", "student-bnb-nf4", "bundle-fp32", "bundle-fp16", "bundle-int8", "bundle-int4")
_MANIFEST, _DETAILS, _QUESTIONS = "manifest.json", "mmedge.json", "evaluation.jsonl"


@dataclass(frozen=True)
class VariantSpec:
    """What is to be measured.

    Attributes:
        kind: A key of `OPENERS`.
        place: A folder, or a file.
        threads: Threads of it; None for what it asks for, or all of the process's cores.
    """

    kind: str
    place: Path
    threads: int | None = None

    @property
    def text(self) -> str:
        """How it is named on the command line."""
        return str(self.place) if self.kind in ("bundle", "torch") else f"{self.kind}:{self.place}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "place": str(self.place)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> VariantSpec:
        return cls(str(value["kind"]), Path(value["place"]), value["threads"])


@dataclass(frozen=True)
class Opened:
    """A variant, opened: what it runs on, and how to ask it.

    Attributes:
        engine_name: `onnxruntime`, `torch`, …
        precision: `fp32`, `int8`, …
        threads: Threads that it uses.
        engine: What continues token sequences.
        encoder: What makes its prompts.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest chain of thought.
        bytes_on_disk: All that it is opened from.
        device: `cpu` or `cuda`.
        task: The task it was made for; None where it does not say.
        student: The bundle's runtime, where it is one; its answers are then those of `mmedge run`.
        work: What one decoding step does with its weights: `bytes` that are read, `operations`, and `table_bytes` of tables of
            which rows are picked; None where that is not known.
    """

    engine_name: str
    precision: str
    threads: int
    engine: Engine
    encoder: PromptEncoder
    max_answer_tokens: int
    max_rationale_tokens: int
    bytes_on_disk: int
    device: str = "cpu"
    task: str | None = None
    student: Student | None = None
    work: dict[str, int] | None = None


Opener = Callable[[Path, "int | None"], Opened]


def _open_bundle(device: Literal["auto", "cuda"], place: Path, threads: int | None) -> Opened:
    from mmedge.engines.onnx.graphs import choose_device
    from mmedge.runtime.student import Student

    student = Student.load(place, threads, device)
    bundle, stated = student.bundle, student.bundle.manifest
    return Opened(
        "onnxruntime",
        stated.precision,
        threads or stated.threads or usable_cores(),
        student.engine,
        student.encoder,
        stated.max_answer_tokens,
        stated.max_rationale_tokens,
        bundle.size,
        choose_device(device, stated.device),
        task=stated.task.name,
        student=student,
        work=asdict(stated.work) if stated.work else None,
    )


def _open_torch(precision: str | None, device: str | None, place: Path, threads: int | None) -> Opened:
    """Open a student; where nothing is said, as it was saved, what is rounded on a GPU where there is one."""
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "distill") from None

    from mmedge.engines.torch_engine import TorchEngine
    from mmedge.students.saved import open_student, student_details, student_precision

    if device == "cuda" and not torch.cuda.is_available():
        raise MmedgeError("torch sees no CUDA GPU here", "measure it on a machine that has one")
    details = student_details(place)
    saved = student_precision(details)
    if precision is not None and saved != "fp32":
        raise MmedgeError(f"{place} is rounded to {saved} already", f"name it without torch-…: {place}")
    if device is None:
        device = "cuda" if saved != "fp32" and torch.cuda.is_available() else "cpu"
    used = threads or usable_cores()
    torch.set_num_threads(used)
    student = open_student(place, device=device)
    if precision is not None:
        student.model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    limits = details["recipe"]["generation"]
    return Opened(
        "torch",
        precision or saved,
        used,
        TorchEngine(student),
        student.encoder,
        int(limits["max_answer_tokens"]),
        int(limits["max_rationale_tokens"]),
        folder_size(place),
        device,
        _task_beside(place),
        work=_torch_work(student.model),
    )


def _torch_work(model: Any) -> dict[str, int]:
    """Return what one decoding step of a torch model does with its weights: its decoder's matrices and its head."""
    head, tables = model.get_output_embeddings(), model.get_input_embeddings()
    products = [head]
    for name, module in model.get_decoder().named_modules():
        # what a decoder sees of the question is computed once, before the first token
        once = name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        if getattr(module, "in_features", None) and not once:
            products.append(module)
    numbers = [module.in_features * module.out_features for module in products]
    weights = {id(module.weight): module.weight.numel() * module.weight.element_size() for module in products}
    picked = 0 if id(tables.weight) in weights else tables.weight.numel() * tables.weight.element_size()
    return {"bytes": sum(weights.values()), "operations": 2 * sum(numbers), "table_bytes": picked}


def _open_peer(kind: Literal["optimum", "llama.cpp", "genai", "ctranslate2"], place: Path, threads: int | None) -> Opened:
    """Open another engine on the same student's weights; it is asked as the student or bundle beside it is."""
    from mmedge.engines.peers import PeerName, asking_of, open_peer, student_beside

    name = PeerName(kind, place)
    student = student_beside(name)
    asking = asking_of(student)
    used = threads or usable_cores()
    return Opened(
        kind,
        place.name,
        used,
        open_peer(name, asking.encoder, used),
        asking.encoder,
        asking.max_answer_tokens,
        asking.max_rationale_tokens,
        folder_size(place),
        task=_task_beside(student),
    )


OPENERS: dict[str, Opener] = {
    "bundle": partial(_open_bundle, "auto"),
    "bundle-cuda": partial(_open_bundle, "cuda"),
    "torch": partial(_open_torch, None, None),
    "torch-bf16": partial(_open_torch, "bf16", "cpu"),
    "torch-fp16": partial(_open_torch, "fp16", "cpu"),
    "torch-cuda": partial(_open_torch, "fp32", "cuda"),
    "torch-cuda-bf16": partial(_open_torch, "bf16", "cuda"),
    "torch-cuda-fp16": partial(_open_torch, "fp16", "cuda"),
    "optimum": partial(_open_peer, "optimum"),
    "llama.cpp": partial(_open_peer, "llama.cpp"),
    "genai": partial(_open_peer, "genai"),
    "ctranslate2": partial(_open_peer, "ctranslate2"),
}


def _task_beside(place: Path) -> str | None:
    """Return the task that a student was made for, which stands in the evaluation set beside it."""
    try:
        with open(place.resolve().parent / _QUESTIONS, encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return str(first["name"]) if isinstance(first, dict) and first.get("kind") == "task" and "name" in first else None


def find_variants(place: str | Path) -> list[VariantSpec]:
    """Return what a place on the command line means: a run's student and bundles, or one variant.

    Raises:
        MmedgeError: It is none of these.
    """
    kind, colon, rest = str(place).partition(":")
    if colon and kind in OPENERS:
        if not Path(rest).exists():
            raise MmedgeError(f"no such variant: {rest}", "name a run, a student folder or a bundle")
        return [VariantSpec(kind, Path(rest))]
    folder = Path(place)
    if (folder / _MANIFEST).is_file():
        return [VariantSpec("bundle", folder)]
    if (folder / _DETAILS).is_file():
        return [VariantSpec("torch", folder)]
    found = [spec for name in _OF_A_RUN if (folder / name).is_dir() for spec in find_variants(folder / name)]
    if found:  # a run, or a row of a comparison whose student was kept
        return found
    if (folder / "recipe.yaml").is_file():
        raise MmedgeError(f"the run {folder} has neither student nor bundles yet", "finish mmedge distill and mmedge export")
    if not folder.exists():
        known = f"; kinds are {', '.join(OPENERS)}" if colon else ""
        raise MmedgeError(f"no such variant: {place}", f"name a run, a student folder or a bundle{known}")
    raise MmedgeError(f"{folder} is neither a run, a student nor a bundle", "see mmedge distill and mmedge export")


def open_variant(spec: VariantSpec) -> Opened:
    """Open a variant.

    Raises:
        MmedgeError: It cannot be opened here.
    """
    return OPENERS[spec.kind](spec.place, spec.threads)


def form_of(spec: VariantSpec) -> AnswerForm | None:
    """Return what answers of a variant's task look like, where a bundle says so."""
    if not spec.kind.startswith("bundle"):
        return None
    from mmedge.manifest import read_manifest

    try:
        return open_form(asdict(read_manifest(spec.place).task), spec.place)
    except MmedgeError:
        return None


# ------------------------------------------------------------------------------------------------------- asking


class _Recording:
    """An engine that notes when each text was begun and how it was written."""

    def __init__(self, engine: Engine, written: list[tuple[float, Generation]]) -> None:
        self._engine, self._written = engine, written

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding | None = None) -> Generation:
        from mmedge.engines.generation import GREEDY

        started = time.perf_counter()
        found = self._engine.generate(prompts, max_new_tokens, how or GREEDY)
        self._written.append((started, found))
        return found

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self._engine.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self._engine.forced_logits(prompt, target)

    def conversation(self) -> Engine:
        return _Recording(self._engine.conversation(), self._written)


@dataclass
class Asked:
    """What a variant said to some questions, and how long it took.

    Attributes:
        texts: Its answers.
        confidences: P(right) of each, where it was asked for.
        withheld: Whether each was withheld, as a bundle may say.
        seconds: From the questions, as text, to the answers, as text.
        time_to_first_token: Seconds until the first token of the first text.
        decode_seconds: Seconds of writing after first tokens.
        decode_steps: Steps of the decoder in these.
        tokens: Tokens written, end tokens not counted.
    """

    texts: list[str]
    confidences: list[float | None] = field(default_factory=list)
    withheld: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    tokens: int = 0


class Asker:
    """Asks an opened variant, with as little around the call as can be."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._written: list[tuple[float, Generation]] = []
        self._engine = _Recording(opened.engine, self._written)
        if opened.student is not None:
            opened.student.engine = self._engine

    def ask(self, examples: Sequence[Example], ask: Ask, batch: int) -> Asked:
        """Ask several questions, `batch` of them together."""
        self._written.clear()
        started = time.perf_counter()
        found = self._of_student(examples, ask, batch) if self._opened.student else self._of_engine(examples, ask, batch)
        found.seconds = time.perf_counter() - started
        written = self._written
        found.time_to_first_token = min(begun + one.time_to_first_token for begun, one in written) - started if written else 0.0
        found.decode_seconds = sum(one.seconds - one.time_to_first_token for _, one in written)
        found.decode_steps = sum(one.steps - 1 for _, one in written)
        found.tokens = sum(len(tokens) for _, one in written for tokens in one.tokens)
        return found

    def _of_student(self, examples: Sequence[Example], ask: Ask, batch: int) -> Asked:
        assert self._opened.student is not None
        answers = self._opened.student.answer_all(examples, explain=ask == "rationale", confidence=ask == "confidence", batch=batch)
        return Asked(
            [answer.guess or answer.text for answer in answers],
            [answer.confidence if ask == "confidence" else None for answer in answers],
            [answer.withheld for answer in answers],
        )

    def _of_engine(self, examples: Sequence[Example], ask: Ask, batch: int) -> Asked:
        found = Asked([])
        for start in range(0, len(examples), batch):
            some = examples[start : start + batch]
            texts, confidences = self._written_together(some, ask)
            found.texts += texts
            found.confidences += confidences
        found.withheld = [False] * len(found.texts)
        return found

    def _written_together(self, examples: Sequence[Example], ask: Ask) -> tuple[list[str], list[float | None]]:
        """Answer in one batch; a confidence is P(correct) of the student's verdict on its own rationale and answer."""
        import numpy as np

        from mmedge.tasks.base import ChainOfThought
        from mmedge.tasks.prompts import render_question

        opened, encoder = self._opened, self._opened.encoder
        conversation = self._engine.conversation()
        questions = [render_question(example) for example in examples]
        contexts = [encoder.prompts.reasoning_context(question) for question in questions]
        written = conversation.generate([encoder.prompt("predict", one) for one in contexts], opened.max_answer_tokens)
        texts = [encoder.text(tokens) for tokens in written.tokens]
        if ask == "answer":
            return texts, [None] * len(texts)
        written = conversation.generate([encoder.prompt("explain", one) for one in contexts], opened.max_rationale_tokens)
        if ask == "rationale":
            return texts, [None] * len(texts)
        cots = [ChainOfThought(encoder.text(tokens), text) for tokens, text in zip(written.tokens, texts, strict=True)]
        judged = [encoder.prompts.evaluation_context(question, cot) for question, cot in zip(questions, cots, strict=True)]
        begun, tokens = encoder.verdict_tokens()
        logits = conversation.next_logits([encoder.prompt("predict", one) for one in judged], begun)[:, tokens].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return texts, [float(row[0] / row.sum()) for row in shares]
