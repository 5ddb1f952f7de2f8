"""One stage of training: batches, loss, checkpoints, selection on validation, and resuming as if nothing had happened.

Every random draw of a step depends on (seed, stage, step), so a stage that is killed and resumed takes the same steps as one
that is not. A stage's folder holds

    checkpoint/   model, optimizer and position, replaced whole every few minutes
    best/         the weights of the best validation so far
    metrics.jsonl one line every few steps and one for each validation
    done.json     what the stage ended with, and the hash of everything it depends on
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmedge.distill.lessons import (
    TASKS,
    Encoded,
    Lesson,
    encode_lesson,
    epoch_order,
    micro_batches,
    token_losses,
    weight_sums,
)
from mmedge.distill.muon import Muon
from mmedge.distill.students import Student
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import StageSection, TrainingSection
from mmedge.storage import atomic_folder, read_json, remove_leftovers, write_json

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}  # padded tokens in one pass; bounds memory, changes no result
# What starting one more pass costs, in tokens: little beside 135 M parameters on a CPU, where a token takes 7 ms; a student of
# 1 M does a token in 0.05 ms and a pass's operations take 20 ms to start; a GPU wants few, full passes.
PASS_COST = {"cpu": 64, "cpu small": 1024, "cuda": 4096}
SMALL_PARAMETERS = 10_000_000
LOG_EVERY = 10


@dataclass(frozen=True)
class Course:
    """What a stage teaches.

    Attributes:
        lessons: The lessons of an epoch.
        batch: How many of them one step takes.
        alpha: Weight of the short task's loss; the long one has 1 − alpha.
        share: Weight of this course's loss in the step's.
    """

    lessons: Callable[[int], Sequence[Lesson]]
    batch: int
    alpha: float
    share: float


@dataclass(frozen=True)
class Validation:
    """What a student scored on validation data.

    Attributes:
        score: What checkpoints are selected by; larger is better.
        details: Everything measured, for the record.
        text: One line for the reader.
    """

    score: float
    details: dict[str, Any]
    text: str


class _Lessons:
    """Lessons by step, encoded once per epoch's content."""

    def __init__(self, course: Course, student: Student, max_target_tokens: int, seed: int, name: str) -> None:
        self._course, self._student, self._limit = course, student, max_target_tokens
        self._seed, self._name = seed, name
        self._epoch = -1
        self._lessons: Sequence[Lesson] = ()
        self._order: list[int] = []
        self._encoded: dict[Lesson, Encoded] = {}
        self.per_epoch = math.ceil(len(course.lessons(0)) / course.batch)

    def batch(self, step: int) -> list[Encoded]:
        """Return the lessons of a step, from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._lessons = epoch, self._course.lessons(epoch)
            self._order = epoch_order(len(self._lessons), self._seed, self._name, epoch)
        chosen = self._order[place * self._course.batch : (place + 1) * self._course.batch]
        return [self._encode(self._lessons[index]) for index in chosen]

    def _encode(self, lesson: Lesson) -> Encoded:
        if lesson not in self._encoded:
            self._encoded[lesson] = encode_lesson(lesson, self._student.encoder, self._limit)
        return self._encoded[lesson]


def build_optimizers(model: Any, learning_rate: float, training: TrainingSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a model: AdamW for all of it, or Muon for its inner matrices and AdamW for the rest.

    Muon is for students from scratch; pretrained weights were made with Adam. So is `training.position_rate`: T5's position
    biases are added to scores that must differ by several units before a head looks at one place, and at the rate of the
    embeddings they do not get there in a short training (embedded task, 600 steps: 72 % of answers with 1, 90 % with 20).
    """
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    named = dict(model.named_parameters())
    if training.optimizer == "muon":
        inner = [p for name, p in named.items() if p.dim() == 2 and id(p) not in tables and "relative_attention" not in name]
    else:
        inner = []
    positions = [parameter for name, parameter in named.items() if "relative_attention" in name]
    chosen = {id(parameter) for parameter in (*inner, *positions)}
    rest = [parameter for parameter in named.values() if id(parameter) not in chosen]
    groups = [
        {"params": [parameter for parameter in rest if parameter.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in rest if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    if positions:
        groups.append({"params": positions, "weight_decay": 0.0, "rate": training.position_rate})
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, training.adam_beta2), fused=True)]
    if inner:
        found.append(Muon(inner, lr=learning_rate, weight_decay=training.weight_decay))
    return found


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then linear decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def step_seed(seed: int, stage: str, step: int) -> int:
    """Return the seed of everything random in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()[:8], "big") >> 1


def _unique_state(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's tensors by name, tied ones once."""
    seen: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen[tensor.data_ptr()] = name
            state[name] = tensor.detach().contiguous()
    return state


def load_weights(model: Any, path: Path) -> None:
    """Load the tensors that `_unique_state` gave into the model they came from.

    Raises:
        MmedgeError: The file is damaged or of another model.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MmedgeError(f"cannot read {path}: {error}", "remove that folder and run the same command again") from None
    expected = _unique_state(model)
    if set(state) != set(expected) or any(state[name].shape != expected[name].shape for name in state):
        raise MmedgeError(f"{path} holds another model's weights", "choose another --out folder")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])


class StageTrainer:
    """Trains one stage.

    Args:
        student: The student, changed in place.
        courses: What is learned; the first decides the length of an epoch.
        section: Length, rate and batch of the stage.
        training: What both stages share.
        validate: Measures the student on validation data.
        folder: Where the stage keeps its files.
        name: `stage1` or `stage2`.
        key: Hash of everything the result depends on.
        seed: The recipe's seed.
        progress: Where progress is shown.
    """

    def __init__(
        self,
        student: Student,
        courses: Sequence[Course],
        section: StageSection,
        training: TrainingSection,
        validate: Callable[[], Validation],
        folder: Path,
        name: str,
        key: str,
        seed: int,
        progress: Progress,
    ) -> None:
        self.student, self.section, self.training = student, section, training
        self.courses, self.validate, self.folder, self.name, self.key, self.seed = courses, validate, folder, name, key, seed
        self.progress = progress
        self.device = next(student.model.parameters()).device
        small = self.device.type == "cpu" and student.parameters < SMALL_PARAMETERS
        self._pass_cost = PASS_COST["cpu small" if small else self.device.type]
        self._sources = [
            _Lessons(course, student, training.max_target_tokens, seed, f"{name}/{number}") for number, course in enumerate(courses)
        ]
        per_epoch = self._sources[0].per_epoch
        if per_epoch == 0:
            raise MmedgeError(f"{name}: there is nothing to learn from", "do the annotations match the task's questions?")
        self.steps = section.max_steps or max(1, round((section.epochs or 1) * per_epoch))
        self.warmup = round(section.warmup_share * self.steps)
        self.evaluate_every = section.evaluate_every or max(1, min(per_epoch, self.steps // 5 or 1))
        self.optimizers = build_optimizers(student.model, section.learning_rate, training)
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.since_best = 0
        self.seconds = 0.0
        self.tokens = 0
        self.history: list[dict[str, Any]] = []

    # -------------------------------------------------------------------------------------------- the work

    def run(self) -> dict[str, Any]:
        """Train to the end (from a checkpoint, where there is one) and leave the best weights in the student.

        Returns:
            What `done.json` says: steps, tokens, seconds, the best validation and all others.

        Raises:
            MmedgeError: The loss is no number any more, the disk is full, or the folder holds another stage.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        finished = self._finished()
        if finished is not None:
            load_weights(self.student.model, self.folder / "best" / "model.safetensors")
            return finished
        self._resume()
        started, last_checkpoint = time.monotonic() - self.seconds, time.monotonic()
        torch.set_grad_enabled(True)
        with self.progress.task(self.name.replace("stage", "stage "), self.steps, self.step) as shown:
            while self.step < self.steps and not self._stopped_early():
                losses, tokens = self._train_step(self.step)
                self.step += 1
                self.tokens += tokens
                self.seconds = time.monotonic() - started
                rate = f"{self.tokens / max(self.seconds, 1e-9):.0f} tokens/s"
                shown.advance(1, loss=f"{losses['loss']:.3f}", rate=rate)
                if self.step % LOG_EVERY == 0 or self.step == self.steps:
                    self._log({"step": self.step, **losses, "tokens": self.tokens, "seconds": round(self.seconds, 1)})
                if self.step % self.evaluate_every == 0 or self.step == self.steps:
                    self._validate()
                    self.seconds = time.monotonic() - started
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
                elif time.monotonic() - last_checkpoint > 60 * self.training.checkpoint_minutes:
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
        return self._finish()

    def _train_step(self, step: int) -> tuple[dict[str, float], int]:
        torch.manual_seed(step_seed(self.seed, self.name, step))
        rate = self.section.learning_rate * learning_rate_factor(step, self.steps, self.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        self.student.model.train()
        family = self.student.family
        sums, tokens = {"loss": 0.0, **{f"{kind}_loss": 0.0 for kind in TASKS}}, 0
        for number, (course, source) in enumerate(zip(self.courses, self._sources, strict=True)):
            lessons = source.batch(step)
            totals = weight_sums(lessons)
            factors = _task_factors(course.alpha, totals)
            for group_of in micro_batches(lessons, family, MICRO_BATCH_TOKENS[self.device.type], self._pass_cost):
                found = token_losses(self.student.model, group_of, self.student.encoder, self.device)
                weighted = found.losses * found.weights
                parts = {"predict": weighted[~found.explains].sum(), "explain": weighted[found.explains].sum()}
                loss: torch.Tensor = course.share * torch.stack([factors[kind] * part for kind, part in parts.items()]).sum()
                loss.backward()
                sums["loss"] += float(loss.detach())
                for kind, part in parts.items():
                    if number == 0 and totals[kind]:
                        sums[f"{kind}_loss"] += float(part.detach()) / totals[kind]
                tokens += sum(lesson.tokens for lesson in group_of)
        if not math.isfinite(sums["loss"]):
            raise MmedgeError(
                f"{self.name}: the loss is no number at step {step + 1}",
                f"lower training.{self.name}.learning_rate and choose another --out folder",
            )
        torch.nn.utils.clip_grad_norm_(self.student.model.parameters(), self.training.max_gradient_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sums, tokens

    def _validate(self) -> None:
        self.student.model.eval()
        found = self.validate()
        entry = {"step": self.step, "score": found.score, **found.details}
        self.history.append(entry)
        self._log({"validation": entry, "step": self.step})
        self.progress.line(f"{self.name} step {self.step}/{self.steps}: {found.text}")
        if self.best is None or found.score > self.best["score"]:
            self.best, self.since_best = entry, 0
            with atomic_folder(self.folder / "best") as temporary:
                save_file(_unique_state(self.student.model), temporary / "model.safetensors")
        else:
            self.since_best += 1

    def _stopped_early(self) -> bool:
        return self.section.patience is not None and self.since_best >= self.section.patience

    def _finish(self) -> dict[str, Any]:
        assert self.best is not None  # the last step always validates
        load_weights(self.student.model, self.folder / "best" / "model.safetensors")
        done = {
            "key": self.key,
            "steps": self.step,
            "planned_steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "best": self.best,
            "validations": self.history,
        }
        write_json(self.folder / "done.json", done)
        remove_tree(self.folder / "checkpoint")
        return done

    def _finished(self) -> dict[str, Any] | None:
        path = self.folder / "done.json"
        if not path.is_file():
            return None
        done = read_json(path)
        if done.get("key") != self.key:
            raise _other_settings(self.folder)
        self.progress.line(f"{self.name}: done already ({done['steps']} steps), kept")
        return dict(done)

    # -------------------------------------------------------------------------------------- durable points

    def _log(self, entry: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _checkpoint(self) -> None:
        names = {id(parameter): name for name, parameter in self.student.model.named_parameters()}
        state = {
            f"{part}:{names[id(parameter)]}": tensor
            for optimizer in self.optimizers
            for parameter, parts in optimizer.state.items()
            for part, tensor in parts.items()
        }
        with atomic_folder(self.folder / "checkpoint") as temporary:
            save_file(_unique_state(self.student.model), temporary / "model.safetensors")
            save_file(state, temporary / "optimizer.safetensors")
            write_json(
                temporary / "state.json",
                {
                    "key": self.key,
                    "step": self.step,
                    "best": self.best,
                    "since_best": self.since_best,
                    "seconds": self.seconds,
                    "tokens": self.tokens,
                    "history": self.history,
                },
            )

    def _resume(self) -> None:
        folder = self.folder / "checkpoint"
        if not (folder / "state.json").is_file():
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return
        state = read_json(folder / "state.json")
        if state["key"] != self.key:
            raise _other_settings(self.folder)
        load_weights(self.student.model, folder / "model.safetensors")
        parameters = dict(self.student.model.named_parameters())
        owner = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, tensor in load_file(folder / "optimizer.safetensors").items():
            part, _, parameter = name.partition(":")
            owner[id(parameters[parameter])].state[parameters[parameter]][part] = tensor.to(self.device)
        self.step, self.best, self.since_best = state["step"], state["best"], state["since_best"]
        self.seconds, self.tokens, self.history = state["seconds"], state["tokens"], state["history"]
        self._cut_metrics()
        self.progress.line(f"{self.name}: continues from step {self.step}")

    def _cut_metrics(self) -> None:
        """Drop the lines that were logged after the checkpoint: those steps are taken again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _task_factors(alpha: float, totals: dict[str, float]) -> dict[str, float]:
    """Return what each task's summed loss is multiplied by; a task without targets leaves its weight to the other."""
    shares = {"predict": alpha, "explain": 1 - alpha}
    present = {kind: share for kind, share in shares.items() if totals[kind] > 0}
    whole = sum(present.values()) or 1.0
    return {kind: (share / whole / totals[kind] if kind in present else 0.0) for kind, share in shares.items()}


def _other_settings(folder: Path) -> MmedgeError:
    return MmedgeError(f"{folder} was trained with other settings or other data", "choose another --out folder")


def remove_tree(folder: Path) -> None:
    """Remove a folder that is no longer needed, where it exists."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
