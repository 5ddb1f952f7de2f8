"""One stage of training: batches, loss, checkpoints, selection on validation, and resuming as if nothing had happened.

Every random draw of a step depends on (seed, stage, step), so a stage that is killed and resumed takes the same steps as one
that is not, on however many processes. A stage's folder holds

    checkpoint/   what is trained, optimizer and position, replaced whole every few minutes
    best/         the weights of the best validation so far
    metrics.jsonl one line every few steps and one for each validation
    done.json     what the stage ended with, and the hash of everything it depends on
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmedge.distill.devices import Devices
from mmedge.distill.lessons import (
    TASKS,
    Encoded,
    Lesson,
    LessonPass,
    encode_lesson,
    epoch_order,
    micro_batches,
    weight_sums,
)
from mmedge.distill.optimizers import build_optimizers, learning_rate_factor
from mmedge.errors import MmedgeError, missing_extra
from mmedge.progress import Progress
from mmedge.recipe import StageSection, TrainingSection
from mmedge.storage import atomic_folder, read_json, remove_leftovers, write_json
from mmedge.students.student import TorchStudent
from mmedge.students.weights import load_weights, put_weights, read_tensors, save_weights, trained_state

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}  # padded tokens in one pass; bounds memory, changes no result
# What starting one more pass costs, in tokens: on a CPU little beside a token of 50 to 150 M parameters (a step of 16 lessons,
# T5 small's shape: 3.5 s with 64, 3.0 with 200, 4.0 in one pass; SmolLM2-135M: 10.3, 10.5, 18.9 s); a student of 1 M does a token
# in 0.05 ms and a pass's operations take 20 ms to start; a GPU wants few, full passes.
PASS_COST = {"cpu": 160, "cpu small": 1024, "cuda": 4096}
SMALL_PARAMETERS = 10_000_000
LOG_EVERY = 10
SELECTABLE = 20  # validation items below which a checkpoint's score says nothing: 95 % intervals are wider than ±20 points
NO_FACTORS: dict[str, float] = dict.fromkeys(TASKS, 0.0)


@dataclass(frozen=True)
class Course:
    """What a stage teaches.

    Attributes:
        lessons: The lessons of an epoch.
        batch: How many of them one step takes.
        alpha: Weight of the short task's loss; the long one has 1 − alpha.
        share: Weight of this course's loss in the step's.
        name: What its losses are called in the log, in front of `predict_loss` and `explain_loss`.
    """

    lessons: Callable[[int], Sequence[Lesson]]
    batch: int
    alpha: float
    share: float
    name: str = ""


@dataclass(frozen=True)
class Validation:
    """What a student scored on validation data.

    Attributes:
        score: What checkpoints are selected by; larger is better.
        details: Everything measured, for the record.
        text: One line for the reader.
        count: How many questions or chains of thought the score rests on.
    """

    score: float
    details: dict[str, Any]
    text: str
    count: int


class _Lessons:
    """Lessons by step, each encoded once."""

    def __init__(self, course: Course, student: TorchStudent, max_target_tokens: int, seed: int, name: str) -> None:
        self._course, self._student, self._limit = course, student, max_target_tokens
        self._seed, self._name = seed, name
        self._epoch = -1
        self._lessons: Sequence[Lesson] = ()
        self._order: list[int] = []
        self._encoded: dict[Lesson, Encoded] = {}
        self._count = len(course.lessons(0))
        self.per_epoch = math.ceil(self._count / course.batch)

    def batch(self, step: int) -> list[Encoded]:
        """Return the lessons of a step, from 0; every step has as many: an epoch's last ones are followed by the next's first."""
        found: list[Encoded] = []
        while len(found) < self._course.batch:
            epoch, place = divmod(step * self._course.batch + len(found), self._count)
            if epoch != self._epoch:
                self._epoch, self._lessons = epoch, self._course.lessons(epoch)
                self._order = epoch_order(self._count, self._seed, self._name, epoch)
            chosen = self._order[place : place + self._course.batch - len(found)]
            found += [self._encode(self._lessons[index]) for index in chosen]
        return found

    def _encode(self, lesson: Lesson) -> Encoded:
        if lesson not in self._encoded:
            self._encoded[lesson] = encode_lesson(lesson, self._student.encoder, self._limit)
        return self._encoded[lesson]


def step_seed(seed: int, stage: str, step: int) -> int:
    """Return the seed of everything random in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()[:8], "big") >> 1


def dealt(lessons: Sequence[Encoded], count: int) -> list[list[Encoded]]:
    """Share lessons out among processes so that each has about as many tokens: the longest first, to and fro."""
    if count == 1:
        return [list(lessons)]
    hands: list[list[Encoded]] = [[] for _ in range(count)]
    for place, lesson in enumerate(sorted(lessons, key=lambda item: -item.tokens)):
        turn, position = divmod(place, count)
        hands[position if turn % 2 == 0 else count - 1 - position].append(lesson)
    return hands


@dataclass(frozen=True)
class _Pass:
    """Some lessons that go through the model together.

    Attributes:
        courses: The numbers of the courses they are of.
        lessons: The lessons of each of these courses.
        factors: For each, what each task's summed loss is multiplied by.
    """

    courses: list[int]
    lessons: list[list[Encoded]]
    factors: list[dict[str, float]]


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
        devices: Where it is trained.
        observe: Called when there is something new to look at, not more often than every few seconds.
    """

    def __init__(
        self,
        student: TorchStudent,
        courses: Sequence[Course],
        section: StageSection,
        training: TrainingSection,
        validate: Callable[[], Validation],
        folder: Path,
        name: str,
        key: str,
        seed: int,
        progress: Progress,
        devices: Devices,
        observe: Callable[[], None] | None = None,
    ) -> None:
        self.student, self.section, self.training, self.devices = student, section, training, devices
        self.courses, self.validate, self.folder, self.name, self.key, self.seed = courses, validate, folder, name, key, seed
        self.progress, self._observe, self._observed = progress, observe, 0.0
        kind = devices.device.type
        small = kind == "cpu" and student.parameters < SMALL_PARAMETERS
        self._pass_cost = PASS_COST["cpu small" if small else kind]
        self._joins_courses = kind == "cuda"
        self._most_tokens = training.micro_batch_tokens or MICRO_BATCH_TOKENS[kind]
        self._sources = [
            _Lessons(course, student, training.max_target_tokens, seed, f"{name}/{number}") for number, course in enumerate(courses)
        ]
        per_epoch = self._sources[0].per_epoch
        if per_epoch == 0:
            raise MmedgeError(f"{name}: there is nothing to learn from", "do the annotations match the task's questions?")
        self.steps = section.max_steps or max(1, round((section.epochs or 1) * per_epoch))
        self.warmup = round(section.warmup_share * self.steps)
        self.evaluate_every = section.evaluate_every or max(1, min(per_epoch, self.steps // 5 or 1))
        self._packed = False
        self.module: torch.nn.Module
        self.optimizers: list[torch.optim.Optimizer]
        self._prepared: list[torch.optim.Optimizer]
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.since_best = 0
        self.seconds = 0.0
        self.tokens = 0
        self.skipped = 0
        self.history: list[dict[str, Any]] = []
        self._board: Any = None

    # -------------------------------------------------------------------------------------------- the work

    def run(self) -> dict[str, Any]:
        """Train to the end (from a checkpoint, where there is one) and leave the best weights in the student.

        Returns:
            What `done.json` says: steps, tokens, seconds, the best validation and all others.

        Raises:
            MmedgeError: The loss is no number any more, a single lesson does not fit into memory, the disk is full, or the
                folder holds another stage.
        """
        if self.devices.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        self.devices.wait()
        finished = self._finished()
        if finished is not None:
            load_weights(self.student.model, self.folder / "best" / "model.safetensors")
            return finished
        self._begin()
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
                    counts = {"tokens": self.tokens, "seconds": round(self.seconds, 1)}
                    self._log({"step": self.step, "steps": self.steps, **losses, **counts})
                if self.step % self.evaluate_every == 0 or self.step == self.steps:
                    self._validate()
                    self.seconds = time.monotonic() - started
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
                elif self._is_time(last_checkpoint):
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
        return self._finish()

    def _train_step(self, step: int) -> tuple[dict[str, float], int]:
        rate = self.section.learning_rate * learning_rate_factor(step, self.steps, self.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        batches = [source.batch(step) for source in self._sources]
        totals = [weight_sums(lessons) for lessons in batches]
        while True:
            try:
                sums = self._gradients(step, batches, totals)
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error, batches)
        losses = self._losses(sums, totals)
        if not math.isfinite(losses["loss"]):
            raise self._no_number("the loss is no number", step)
        norm = self.devices.clip(self.module, self.training.max_gradient_norm)
        if not math.isfinite(norm):
            if self.training.precision != "float16":
                raise self._no_number("the gradient is no number", step)
            self.skipped += 1  # float16 overflowed: the step is left out and the loss scaled down, as is usual
            if self.skipped > max(50, self.steps // 4):
                raise self._no_number("most gradients are too large for float16", step)
        try:
            for optimizer in self._prepared:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            hint = "train adapters (student.lora), or a smaller student"
            raise MmedgeError(f"{self.name}: what the optimizer keeps does not fit into memory", hint) from error
        losses["learning_rate"] = rate
        return losses, sum(lesson.tokens for lessons in batches for lesson in lessons)

    def _gradients(self, step: int, batches: Sequence[Sequence[Encoded]], totals: Sequence[dict[str, float]]) -> torch.Tensor:
        """Add up the step's gradient; return (courses, 3): each course's loss, and its tasks' weighted sums, over all processes."""
        torch.manual_seed(step_seed(self.seed, self.name, step) + self.devices.index)
        self.module.train()
        passes = self._passes(batches, totals)
        sums = torch.zeros(len(self.courses), 3, device=self.devices.device)
        for number, one in enumerate(passes):
            last = number == len(passes) - 1
            with nullcontext() if last else self.devices.alone(self.module):
                found = self.module(one.lessons, one.factors)
                # every process averages the others' gradients in, and what is wanted is their sum
                self.devices.backward(found[:, 0].sum() * self.devices.count)
            if one.courses:
                sums[one.courses] += found.detach()
        return self.devices.total(sums)

    def _passes(self, batches: Sequence[Sequence[Encoded]], totals: Sequence[dict[str, float]]) -> list[_Pass]:
        """Cut a step's batches into this process's passes; every process has as many, the missing ones without weight."""
        factors: list[dict[str, float]] = [
            {kind: course.share * f for kind, f in _task_factors(course.alpha, sums).items()}
            for course, sums in zip(self.courses, totals, strict=True)
        ]
        dealt_out = [dealt(lessons, self.devices.count) for lessons in batches]
        hands: list[list[_Pass]] = [[] for _ in range(self.devices.count)]
        for place, hand in enumerate(hands):
            shares = [(number, lesson) for number, shares in enumerate(dealt_out) for lesson in shares[place]]
            # a GPU wants few, full passes; elsewhere courses stay apart
            for wanted in [range(len(batches))] if self._joins_courses else [[number] for number in range(len(batches))]:
                course_of = {id(lesson): number for number, lesson in shares if number in wanted}
                lessons = [lesson for number, lesson in shares if number in wanted]
                cut = micro_batches(lessons, self.student.family, self._most_tokens, self._pass_cost, packed=self._packed)
                for group in cut:
                    present = sorted({course_of[id(lesson)] for lesson in group})
                    parts = [[lesson for lesson in group if course_of[id(lesson)] == number] for number in present]
                    hand.append(_Pass(present, parts, [factors[number] for number in present]))
        most = max(map(len, hands))
        idle = _Pass([], [[min(batches[0], key=lambda lesson: lesson.tokens)]], [NO_FACTORS])
        mine = hands[self.devices.index]
        return mine + [idle] * (most - len(mine))

    def _losses(self, sums: torch.Tensor, totals: Sequence[dict[str, float]]) -> dict[str, float]:
        """Return the step's loss, and each task's mean over its tokens."""
        found = sums.tolist()
        losses = {"loss": sum(row[0] for row in found)}
        for course, row, total in zip(self.courses, found, totals, strict=True):
            for kind, part in zip(TASKS, row[1:], strict=True):
                if total[kind]:
                    losses[f"{course.name}{kind}_loss"] = part / total[kind]
        return losses

    def _halve(self, error: Exception, batches: Sequence[Sequence[Encoded]]) -> None:
        """Make passes smaller after one that did not fit into memory, or give up where they cannot be."""
        longest = max(lesson.tokens for lessons in batches for lesson in lessons)
        hint = "lower training.micro_batch_tokens or training.max_input_tokens, or set training.gradient_checkpointing"
        if self.devices.count > 1:
            raise MmedgeError(f"{self.name}: a pass of {self._most_tokens} tokens does not fit into memory", hint) from error
        if self._most_tokens <= longest:
            raise MmedgeError(f"{self.name}: a single lesson of {longest} tokens does not fit into memory", hint) from error
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._most_tokens = max(longest, self._most_tokens // 2)
        if self.devices.device.type == "cuda":
            torch.cuda.empty_cache()
        self.progress.line(f"{self.name}: a pass did not fit into memory; going on with {self._most_tokens} tokens in each")

    def _no_number(self, what: str, step: int) -> MmedgeError:
        lower = f"lower training.{self.name}.learning_rate"
        hint = f"{lower}, or set training.precision to bfloat16" if self.training.precision == "float16" else lower
        return MmedgeError(f"{self.name}: {what} at step {step + 1}", f"{hint} and choose another --out folder")

    def _validate(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.module.parameters() if parameter.requires_grad):
            raise self._no_number("a weight is no number", self.step - 1)
        self._gather()
        if self.devices.main:
            self.student.model.eval()
        found = self.devices.from_main(self.validate)
        entry = {"step": self.step, "score": found.score, "items": found.count, **found.details}
        self.history.append(entry)
        self._log({"validation": entry, "step": self.step})
        self.progress.line(f"{self.name} step {self.step}/{self.steps}: {found.text}")
        choose = selectable(self.history)
        if not choose and len(self.history) == 1:
            self.progress.line(
                f"{self.name}: {found.count} validation items are too few to choose a checkpoint by; the last one is taken"
            )
        if self.best is None or not choose or found.score > self.best["score"]:
            self.best, self.since_best = entry, 0
            if self.devices.main:
                with atomic_folder(self.folder / "best") as temporary:
                    save_weights(self.student.model, temporary / "model.safetensors")
        else:
            self.since_best += 1

    def _is_time(self, last_checkpoint: float) -> bool:
        """Whether a checkpoint is due; the main process's clock decides, and is not asked at every step."""
        if self.devices.count > 1 and self.step % LOG_EVERY:
            return False
        return self.devices.from_main(lambda: time.monotonic() - last_checkpoint > 60 * self.training.checkpoint_minutes)

    def _stopped_early(self) -> bool:
        return self.section.patience is not None and self.since_best >= self.section.patience

    def _finish(self) -> dict[str, Any]:
        assert self.best is not None  # the last step always validates
        done = {
            "key": self.key,
            "steps": self.step,
            "planned_steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "best": self.best,
            "validations": self.history,
        }
        if self.devices.main:
            write_json(self.folder / "done.json", done)
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        self.devices.wait()
        del self.module, self.optimizers, self._prepared
        self.devices.release()
        load_weights(self.student.model, self.folder / "best" / "model.safetensors")
        if self._board is not None:
            self._board.close()
        return done

    def _finished(self) -> dict[str, Any] | None:
        path = self.folder / "done.json"
        if not path.is_file():
            return None
        done = read_json(path)
        if done.get("key") != self.key:
            raise _other_settings(self.folder)
        if not (self.folder / "best" / "model.safetensors").is_file():
            self.progress.line(f"{self.name}: its weights are gone from {self.folder}, so it is trained again")
            return None
        self.progress.line(f"{self.name}: done already ({done['steps']} steps), kept")
        return dict(done)

    # -------------------------------------------------------------------------------------- durable points

    def _log(self, entry: dict[str, Any]) -> None:
        if not self.devices.main:
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for name, value in _flat_numbers(entry):
                self._board.add_scalar(f"{self.name}/{name}", value, entry["step"])
        if self._observe is not None and ("validation" in entry or time.monotonic() - self._observed > 5):
            self._observe()
            self._observed = time.monotonic()

    def _begin(self) -> None:
        """Take up a checkpoint, where there is one, and get model and optimizers ready to train."""
        model = self.student.model
        self.devices.wait()  # all have looked for it
        if self.devices.main:
            (self.folder / "done.json").unlink(missing_ok=True)
        state, moments = self._checkpointed()
        whole = model
        if self.devices.sharded:
            model = copy.deepcopy(model)  # the student's own stays whole: it is what validates and is written
        if self.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if any(not parameter.requires_grad for parameter in model.parameters()):
                model.enable_input_require_grads()
        self.optimizers = build_optimizers(model, self.section.learning_rate, self.training)
        whole_layers = self.devices.sharded or self.training.gradient_checkpointing
        lessons = LessonPass(model, self.student.encoder, compiled=self.training.compile, packs=not whole_layers)
        self._packed = lessons.packs
        self.module, self._prepared = self.devices.prepare(lessons, self.optimizers)
        self.optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in self._prepared]
        if state is not None:
            self._take_up(state, moments)
        elif self.devices.main:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        assert whole is self.student.model
        if self.training.tensorboard and self.devices.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_extra("tensorboard", "tensorboard") from None
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)

    def _gather(self) -> None:
        """Bring the weights that are spread over the processes into the student, where they are."""
        if self.devices.sharded:
            state = self.devices.whole_weights(self.module)
            if self.devices.main:
                wanted = trained_state(self.student.model)
                put_weights(self.student.model, {name: state[f"model.{name}"] for name in wanted}, "this run")

    def _checkpoint(self) -> None:
        self._gather()
        moments = self._moments()
        if not self.devices.main:
            return
        with atomic_folder(self.folder / "checkpoint") as temporary:
            save_weights(self.student.model, temporary / "model.safetensors")
            save_file(moments, temporary / "optimizer.safetensors")
            values = {
                "key": self.key,
                "step": self.step,
                "best": self.best,
                "since_best": self.since_best,
                "seconds": self.seconds,
                "tokens": self.tokens,
                "history": self.history,
            }
            write_json(temporary / "state.json", values)

    def _moments(self) -> dict[str, torch.Tensor]:
        """Return what the optimizers remember, as `part:parameter`; whole tensors, in the main process."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        found = {}
        for optimizer in self.optimizers:
            for parameter, parts in optimizer.state.items():
                for part, tensor in parts.items():
                    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                    found[f"{part}:{_plain_name(names[id(parameter)])}"] = whole.detach().cpu().contiguous()
        return found

    def _checkpointed(self) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
        """Load a checkpoint's weights into the student; return its position and what the optimizers remembered."""
        folder = self.folder / "checkpoint"
        if not (folder / "state.json").is_file():
            return None, {}
        state = read_json(folder / "state.json")
        if state["key"] != self.key:
            raise _other_settings(self.folder)
        load_weights(self.student.model, folder / "model.safetensors")
        return state, read_tensors(folder / "optimizer.safetensors")

    def _take_up(self, state: dict[str, Any], moments: dict[str, torch.Tensor]) -> None:
        parameters = {_plain_name(name): parameter for name, parameter in self.module.named_parameters()}
        owner = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, tensor in moments.items():
            part, _, of = name.partition(":")
            parameter = parameters.get(of)
            if parameter is None or id(parameter) not in owner:
                raise MmedgeError(f"{self.folder}/checkpoint is of another model", "remove that folder and run it again")
            owner[id(parameter)].state[parameter][part] = _like(tensor.to(self.devices.device), parameter)
        self.step, self.best, self.since_best = state["step"], state["best"], state["since_best"]
        self.seconds, self.tokens, self.history = state["seconds"], state["tokens"], state["history"]
        if self.devices.main:
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


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _plain_name(name: str) -> str:
    """Return a parameter's name without what DDP and FSDP put in front of it, as it is called in the student's model."""
    parts = [part for part in name.split(".") if part not in ("module", "_fsdp_wrapped_module", "_orig_mod")]
    return ".".join(parts[1:] if parts[0] == "model" and len(parts) > 1 else parts)


def _like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor cut as a parameter is that is spread over processes; as it is where it is not."""
    if tensor.dim() and hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        cut: torch.Tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
        return cut
    return tensor


def _flat_numbers(entry: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return every number of a nested record with its path."""
    found: list[tuple[str, float]] = []
    for name, value in entry.items():
        if isinstance(value, dict):
            found += _flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found


def selectable(validations: Sequence[dict[str, Any]]) -> bool:
    """Whether a stage's validations had items enough for a checkpoint to be chosen by them; if not, the last one is taken."""
    return all(entry.get("items", SELECTABLE) >= SELECTABLE for entry in validations)


def _other_settings(folder: Path) -> MmedgeError:
    return MmedgeError(f"{folder} was trained with other settings or other data", "choose another --out folder")
