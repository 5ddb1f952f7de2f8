"""One optimizer step of a stage: passes over its lessons, their losses, the gradient, and what the optimizers remember.

A step's loss is a sum over all of its lessons: each part is divided by the whole step's total, so that it does not matter how the
lessons are cut into passes or shared out among processes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from mmedge.distill.batches import flattened, micro_batches, share_out, tokens_of
from mmedge.distill.devices import Devices
from mmedge.distill.optimizers import build_optimizers, learning_rate_factor
from mmedge.distill.streams import EncodedStream, Group, LessonStream
from mmedge.distill.validation import Validation
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import StageSection, TrainingSection
from mmedge.students.encoded import EncodedLesson
from mmedge.students.passes import LossPass, TokenLosses
from mmedge.students.student import TorchStudent
from mmedge.students.weights import put_weights, trained_state
from mmedge.students.windows import is_recurrent

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}  # padded tokens in one pass; bounds memory without changing the result
# What starting one more pass costs, in tokens: on a CPU little beside a token of 50 to 150 M parameters (a step of 16 lessons,
# T5 small's shape: 3.5 s with 64, 3.0 with 200, 4.0 in one pass; SmolLM2-135M: 10.3, 10.5, 18.9 s); a student of 1 M does a token
# in 0.05 ms and a pass's operations take 20 ms to start; a GPU wants few, full passes.
PASS_COST = {"cpu": 160, "cpu small": 1024, "cuda": 4096}
SMALL_PARAMETERS = 10_000_000
REFERENCE_BATCH = 64  # lessons of similar length that are cut into passes together


@dataclass(frozen=True)
class StagePlan:
    """What a stage trains.

    Attributes:
        name: The stage's, which its section in `training` has too.
        key: Hash of everything the result depends on.
        folder: Where the stage keeps its files.
        seed: The recipe's seed.
        streams: What is learned; the first decides the length of an epoch.
        section: Length, rate and batch of the stage.
        training: What all stages share.
        validate: Measures the student on validation data.
        rounds: The precision that weights are rounded to at the end, and in how much of the steps; None where they are not.
    """

    name: str
    key: str
    folder: Path
    seed: int
    streams: Sequence[LessonStream]
    section: StageSection
    training: TrainingSection
    validate: Callable[[], Validation]
    rounds: tuple[str, float] | None = None


def step_seed(seed: int, stage: str, step: int) -> int:
    """Return the seed of everything random in one step."""
    return int.from_bytes(sha256(f"{seed}/{stage}/{step}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class _Pass:
    """Some lessons that go through the model together.

    Attributes:
        lessons: The lessons by the number of their stream.
        idle: It is there because another process has one more, and counts for nothing.
    """

    lessons: dict[int, list[EncodedLesson]]
    idle: bool = False


class StepRunner:
    """Takes a stage's steps.

    Args:
        student: The student, changed in place.
        plan: What the stage trains.
        streams: Its lessons.
        steps: How many steps it has.
        devices: Where it is trained.
        progress: Where it is said that a pass did not fit into memory.
    """

    def __init__(
        self,
        student: TorchStudent,
        plan: StagePlan,
        streams: Sequence[EncodedStream],
        steps: int,
        devices: Devices,
        progress: Progress,
    ) -> None:
        self.student, self.plan, self.streams, self.devices = student, plan, streams, devices
        self._steps, self._progress = steps, progress
        self._warmup = round(plan.section.warmup_share * steps)
        kind = devices.device.type
        small = kind == "cpu" and student.parameters < SMALL_PARAMETERS
        self._pass_cost = PASS_COST["cpu small" if small else kind]
        self.joins_streams = kind == "cuda"
        self._most_tokens = plan.training.micro_batch_tokens or MICRO_BATCH_TOKENS[kind]
        self._skipped = 0
        self._figures = [(*one.stream.objective.parts, *one.stream.objective.metrics) for one in streams]

    # ------------------------------------------------------------------------------------------- the model

    def prepare(self) -> None:
        """Get model and optimizers ready to train, on this kind of device and processes."""
        model, training = self.student.model, self.plan.training
        if self.devices.sharded:
            model = copy.deepcopy(model)  # the student's own stays whole: it is what validates and is written
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if any(not parameter.requires_grad for parameter in model.parameters()):
                model.enable_input_require_grads()
        built = build_optimizers(model, self.plan.section.learning_rate, training)
        whole_layers = self.devices.sharded or training.gradient_checkpointing
        lessons = LossPass(model, self.student.encoder, compiled=training.compile, packs=not whole_layers)
        self._packed = lessons.packs
        self.module, self._prepared = self.devices.prepare(lessons, built)
        self._optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in self._prepared]

    def release(self) -> None:
        """Release what `prepare` made."""
        del self.module, self._optimizers, self._prepared
        self.devices.release()

    def gather(self) -> None:
        """Bring the weights that are spread over the processes into the student, where they are."""
        if self.devices.sharded:
            state = self.devices.whole_weights(self.module)
            if self.devices.main:
                wanted = trained_state(self.student.model)
                put_weights(self.student.model, {name: state[f"model.{name}"] for name in wanted}, "this run")

    def check_weights(self, step: int) -> None:
        """Refuse weights that are NaN or infinite.

        Raises:
            MmedgeError: Some are.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.module.parameters() if parameter.requires_grad):
            raise self._not_finite("a weight is NaN or infinite", step)

    def moments(self) -> dict[str, torch.Tensor]:
        """Return what the optimizers remember, as `part:parameter`; whole tensors, in the main process."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        found = {}
        for optimizer in self._optimizers:
            for parameter, parts in optimizer.state.items():
                for part, tensor in parts.items():
                    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                    found[f"{part}:{_plain_name(names[id(parameter)])}"] = whole.detach().cpu().contiguous()
        return found

    def restore(self, moments: dict[str, torch.Tensor]) -> None:
        """Restore what `moments` returned.

        Raises:
            MmedgeError: It is another model's.
        """
        parameters = {_plain_name(name): parameter for name, parameter in self.module.named_parameters()}
        owner = {id(p): o for o in self._optimizers for group in o.param_groups for p in group["params"]}
        for name, tensor in moments.items():
            part, _, of = name.partition(":")
            parameter = parameters.get(of)
            if parameter is None or id(parameter) not in owner:
                folder = self.plan.folder / "checkpoint"
                raise MmedgeError(f"{folder} belongs to another model", "remove that folder and run it again")
            owner[id(parameter)].state[parameter][part] = _like(tensor.to(self.devices.device), parameter)

    # --------------------------------------------------------------------------------------------- a step

    def take(self, step: int) -> tuple[dict[str, float], int]:
        """Take a step, from 0; return its losses by name, and how many tokens went through the model.

        Raises:
            MmedgeError: A loss, a gradient or a weight is NaN or infinite, or a single lesson does not fit into memory.
        """
        rate = self.plan.section.learning_rate * learning_rate_factor(step, self._steps, self._warmup)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        batches = [source.batch(step) for source in self.streams]
        totals = [one.stream.objective.totals(flattened(batch)) for one, batch in zip(self.streams, batches, strict=True)]
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
            raise self._not_finite("the loss is NaN or infinite", step)
        norm = self.devices.clip(self.module, self.plan.training.max_gradient_norm)
        if not math.isfinite(norm):
            if self.plan.training.precision != "float16":
                raise self._not_finite("the gradient is NaN or infinite", step)
            self._skipped += 1  # float16 overflowed: the step is left out and the loss scaled down, as is usual
            if self._skipped > max(50, self._steps // 4):
                raise self._not_finite("most gradients are too large for float16", step)
        self._move()
        losses["learning_rate"] = rate
        return losses, sum(lesson.tokens for batch in batches for lesson in flattened(batch))

    def _move(self) -> None:
        try:
            for optimizer in self._prepared:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            hint = "train adapters (student.lora), or a smaller student"
            raise MmedgeError(f"{self.plan.name}: the optimizer's state does not fit into memory", hint) from error

    def _gradients(self, step: int, batches: Sequence[Sequence[Group]], totals: Sequence[dict[str, float]]) -> torch.Tensor:
        """Add up the step's gradient; return each stream's loss and figures over all processes, (streams, 1 + most figures)."""
        torch.manual_seed(step_seed(self.plan.seed, self.plan.name, step) + self.devices.index)
        self.module.train()
        factors = [one.stream.factors(sums) for one, sums in zip(self.streams, totals, strict=True)]
        passes = self._passes(batches)
        sums = torch.zeros(len(self.streams), 1 + max(map(len, self._figures)), device=self.devices.device)
        for number, one in enumerate(passes):
            last = number == len(passes) - 1
            with nullcontext() if last else self.devices.alone(self.module):
                found = self._pass(one, factors, sums)
                # every process averages the others' gradients in, and what is wanted is their sum
                self.devices.backward(found * self.devices.count)
        return self.devices.total(sums)

    def _pass(self, one: _Pass, factors: Sequence[dict[str, float]], sums: torch.Tensor) -> torch.Tensor:
        """Return a pass's loss, and add each stream's loss and figures to `sums`."""
        lessons = [lesson for part in one.lessons.values() for lesson in part]
        found = TokenLosses(lessons, *self.module(lessons))
        if one.idle:
            return found.losses.sum() * 0.0
        losses, start = [], 0
        for number, part in one.lessons.items():
            figures = self.streams[number].stream.objective.sums(found.of_lessons(start, start + len(part)))
            start += len(part)
            losses.append(sum(factor * figures[name] for name, factor in factors[number].items()))
            row = torch.stack([losses[-1], *(figures[name] for name in self._figures[number])])
            sums[number, : len(row)] += row.detach()
        return torch.stack(losses).sum()

    def _passes(self, batches: Sequence[Sequence[Group]]) -> list[_Pass]:
        """Cut a step's batches into this process's passes; every process has as many, those that it lacks idle."""
        shares = [share_out(groups, self.devices.count) for groups in batches]
        numbers = range(len(batches))
        # a GPU wants few, full passes; elsewhere streams stay apart
        together = [list(numbers)] if self.joins_streams else [[number] for number in numbers]
        of_process: list[list[_Pass]] = [[] for _ in range(self.devices.count)]
        for process, passes in enumerate(of_process):
            for joined in together:
                stream_of = {id(group): number for number in joined for group in shares[number][process]}
                groups = [group for number in joined for group in shares[number][process]]
                for cut in self._cut(groups, packed=self._packed):
                    of_stream = {number: [one for one in cut if stream_of[id(one)] == number] for number in joined}
                    passes.append(_Pass({number: flattened(part) for number, part in of_stream.items() if part}))
        idle = _Pass({0: list(min(batches[0], key=tokens_of))}, idle=True)
        mine = of_process[self.devices.index]
        return mine + [idle] * (max(map(len, of_process)) - len(mine))

    def _cut(self, groups: Sequence[Group], *, packed: bool) -> list[list[Group]]:
        branches = not is_recurrent(self.student.model)
        return micro_batches(groups, self.student.family, self._most_tokens, self._pass_cost, packed=packed, branches=branches)

    def _losses(self, sums: torch.Tensor, totals: Sequence[dict[str, float]]) -> dict[str, float]:
        """Return the step's loss, and each stream's parts and metrics divided by their totals."""
        found = sums.tolist()
        losses = {"loss": sum(row[0] for row in found)}
        for one, names, row, total in zip(self.streams, self._figures, found, totals, strict=True):
            for name, figure in zip(names, row[1:], strict=False):
                if total[name]:
                    kind = "_loss" if name in one.stream.objective.parts else ""
                    losses[f"{one.stream.prefix}{name}{kind}"] = figure / total[name]
        return losses

    def _halve(self, error: Exception, batches: Sequence[Sequence[Group]]) -> None:
        """Make passes smaller after one that did not fit into memory, or give up where they cannot be."""
        longest, name = max(tokens_of(group) for groups in batches for group in groups), self.plan.name
        hint = "lower training.micro_batch_tokens or training.max_input_tokens, or set training.gradient_checkpointing"
        if self.devices.count > 1:
            raise MmedgeError(f"{name}: a pass of {self._most_tokens} tokens does not fit into memory", hint) from error
        if self._most_tokens <= longest:
            raise MmedgeError(f"{name}: a single lesson of {longest} tokens does not fit into memory", hint) from error
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._most_tokens = max(longest, self._most_tokens // 2)
        if self.devices.device.type == "cuda":
            torch.cuda.empty_cache()
        self._progress.line(f"{name}: a pass did not fit into memory; continuing with {self._most_tokens} tokens per pass")

    def _not_finite(self, what: str, step: int) -> MmedgeError:
        lower = f"lower training.{self.plan.name}.learning_rate"
        hint = f"{lower}, or set training.precision to bfloat16" if self.plan.training.precision == "float16" else lower
        return MmedgeError(f"{self.plan.name}: {what} at step {step + 1}", f"{hint} and choose another --out folder")

    # ------------------------------------------------------------------------------------- the reference pass

    def log_probabilities(self, lessons: Sequence[EncodedLesson]) -> torch.Tensor:
        """Return the log-probability of every target of some lessons under the student's weights as they are now, (targets,)."""
        reading = LossPass(self.student.model.eval(), self.student.encoder)
        order = sorted(range(len(lessons)), key=lambda number: lessons[number].tokens)
        found: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for first in range(0, len(order), REFERENCE_BATCH):
                numbers = {id(lessons[number]): number for number in order[first : first + REFERENCE_BATCH]}
                for cut in self._cut([(lessons[number],) for number in numbers.values()], packed=reading.packs):
                    read = flattened(cut)
                    values = reading.token_losses(read).log_probabilities.cpu().split([len(lesson.targets) for lesson in read])
                    found |= {numbers[id(lesson)]: value for lesson, value in zip(read, values, strict=True)}
        return torch.cat([found[number] for number in range(len(lessons))])


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
