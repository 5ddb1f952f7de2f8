"""Recovery: the float student teaches its quantized self. Codes stay, scales learn; graphs keep their speed and layout.

    Recovery(student, read, lessons, settings).run(matrices, folder, key, progress)

The quantized student runs in torch with weights code · scale, and its scales are moved until its next-token distributions are
those of the float student, by the Kullback-Leibler divergence on texts that the float student wrote itself; no label is read. That
is distillation (Hinton et al. 2015) onto the quantization's own parameters, without data of anybody else, as in LLM-QAT (Liu et
al. 2023, arXiv 2305.17888). Knows torch and matrices, nothing of graphs and bundles.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmedge.errors import MmedgeError
from mmedge.export.quantization.blocks import QuantizedMatrix, as_float16
from mmedge.progress import Progress
from mmedge.storage import atomic_folder, read_json, write_json
from mmedge.students.encoded import EncodedLesson
from mmedge.students.passes import LossPass
from mmedge.students.student import TorchStudent
from mmedge.students.weights import read_tensors

HELD_OUT = 8  # one text in so many measures, and is not learned
FEWEST = 16  # texts
SLOWER = 4  # by which the rate is divided after an epoch that brought nothing


@dataclass(frozen=True)
class RecoverySettings:
    """How much is learned.

    Attributes:
        epochs: Passes over the texts.
        batch: Texts in a step.
        rate: Of Adam, on scales as multiples of what they were, at first; it falls to zero in a half cosine. After an epoch that
            brought nothing, learning goes on from the best scales at a quarter of it: how large steps may be differs from student
            to student.
        max_minutes: When to stop in any case.
        seed: Decides the texts' order.
        checkpoint_seconds: How often what was learned so far is written.
    """

    epochs: int = 4
    batch: int = 8
    rate: float = 1e-3
    max_minutes: float = 30.0
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def decisive(self) -> list[float]:
        """Return what decides the result, where time does not end it."""
        return [self.epochs, self.batch, self.rate, self.seed]


@dataclass(frozen=True)
class Recovered:
    """What recovery gave.

    Attributes:
        matrices: With scales that were learned, by the linear layer's name.
        steps: How many were taken.
        planned: How many there would have been without a limit of time.
        kl_before, kl_after: Mean divergence from the float student on held-out texts, in nats per token.
        texts: How many were learned from.
    """

    matrices: Mapping[str, QuantizedMatrix]
    steps: int
    planned: int
    kl_before: float
    kl_after: float
    texts: int


class _Scaled(torch.nn.Module):  # type: ignore[misc]
    """A quantized matrix whose scales are multiplied by what is learned."""

    def __init__(self, matrix: QuantizedMatrix, device: torch.device) -> None:
        super().__init__()
        blocks = replace(matrix, scales=np.ones_like(matrix.scales)).dequantized()
        self._codes = torch.from_numpy(blocks).to(device)  # (outputs, inputs), what scales multiply
        self._scales = torch.from_numpy(matrix.scales.astype(np.float32)).to(device)
        self._block = matrix.format.block or matrix.width
        self.factor = torch.nn.Parameter(torch.ones_like(self._scales))

    def weight(self) -> torch.Tensor:
        """Return the matrix, (outputs, inputs)."""
        scales = (self._scales * self.factor).reshape(len(self._codes), -1)
        return self._codes * scales.repeat_interleave(self._block, dim=1)[:, : self._codes.shape[1]]

    def learned(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Return the matrix with the scales that were learned, in float16 where that is exact enough."""
        scales = (self._scales * self.factor.detach()).cpu().numpy()
        return replace(matrix, scales=as_float16(scales))


class Recovery:
    """Teaches one quantized student.

    Args:
        teacher: The float student; it does not change.
        student: The same, opened a second time; its weights are replaced.
        modules: The modules of `student` that multiply by a linear layer's matrix, by its name; several share out its rows, and
            where a table is also looked up in, all of them have the whole of it.
        lessons: Texts.
        settings: How much is learned.

    Raises:
        MmedgeError: There are too few texts.
    """

    def __init__(
        self,
        teacher: TorchStudent,
        student: TorchStudent,
        modules: Mapping[str, Sequence[Any]],
        lessons: Sequence[EncodedLesson],
        settings: RecoverySettings,
    ) -> None:
        if len(lessons) < FEWEST:
            raise MmedgeError(
                f"recovery needs {FEWEST} texts to learn from, and there are {len(lessons)}",
                "distil again with more training questions, or export without --recover",
            )
        self._teacher = LossPass(teacher.model.eval(), teacher.encoder)
        self._student, self._modules, self._settings = student, modules, settings
        self._pass = LossPass(student.model.eval(), student.encoder)
        self._device = student.model.get_input_embeddings().weight.device
        order = list(range(len(lessons)))
        random.Random(f"recovery/{settings.seed}").shuffle(order)
        held = max(2, len(lessons) // HELD_OUT)
        self._held = [lessons[place] for place in order[:held]]
        self._learned = [lessons[place] for place in order[held:]]
        self._scaled: dict[str, _Scaled] = {}

    def run(self, matrices: Mapping[str, QuantizedMatrix], folder: Path, key: str, progress: Progress) -> Recovered:
        """Learn scales, and return the matrices with those that did best on held-out texts.

        Args:
            matrices: The quantized matrices, by the linear layer's name.
            folder: Where what was learned so far is kept; one with the same key continues.
            key: Hash of all that decides the result.
            progress: Where progress is shown.

        Raises:
            MmedgeError: The student computes NaN, or the folder cannot be written.
        """
        settings = self._settings
        for parameter in self._student.model.parameters():
            parameter.requires_grad_(False)
        self._scaled = {name: _Scaled(matrix, self._device) for name, matrix in matrices.items() if name in self._modules}
        factors = {name: one.factor for name, one in self._scaled.items()}
        optimizer = torch.optim.Adam(list(factors.values()), lr=settings.rate, betas=(0.9, 0.99))
        per_epoch = math.ceil(len(self._learned) / settings.batch)
        planned = per_epoch * settings.epochs
        state = _Progress.of(folder, key, factors, optimizer)
        if state is None:
            before = self._divergence()
            state = _Progress(0, before, before, 0.0, {name: one.detach().clone() for name, one in factors.items()}, 1.0)
        else:
            progress.line(f"recovery: continuing from step {state.step}")
        started, kept = time.monotonic() - state.seconds, time.monotonic()
        with progress.task("recovery", planned, state.step) as shown:
            while state.step < planned and time.monotonic() - started < 60 * settings.max_minutes:
                for group in optimizer.param_groups:
                    group["lr"] = state.share * settings.rate * 0.5 * (1 + math.cos(math.pi * state.step / planned))
                loss = self._step(self._batch(state.step, per_epoch), optimizer)
                state.step += 1
                state.seconds = time.monotonic() - started
                shown.advance(1, loss=f"{loss:.4f}", best=f"{state.best:.4f}")
                ended = state.step % per_epoch == 0 or state.step == planned
                if ended and not state.note(self._divergence(), factors):
                    state.step_back(factors, optimizer)
                if time.monotonic() - kept > settings.checkpoint_seconds:
                    state.save(folder, key, factors, optimizer)
                    kept = time.monotonic()
        if state.step < planned:
            state.note(self._divergence(), factors)
            progress.line(f"recovery: stopped after {settings.max_minutes:g} minutes, at step {state.step} of {planned}")
        with torch.no_grad():
            for name, factor in factors.items():
                factor.copy_(state.factors[name])
        progress.line(f"recovery: KL to the float student {state.before:.4f} → {state.best:.4f} on held-out texts")
        found = {name: one.learned(matrices[name]) for name, one in self._scaled.items()}
        return Recovered(found, state.step, planned, state.before, state.best, len(self._learned))

    def _batch(self, step: int, per_epoch: int) -> list[EncodedLesson]:
        epoch, place = divmod(step, per_epoch)
        order = list(range(len(self._learned)))
        random.Random(f"recovery/{self._settings.seed}/{epoch}").shuffle(order)
        size = self._settings.batch
        return [self._learned[number] for number in order[place * size : (place + 1) * size]]

    def _install(self) -> None:
        """Give the student's modules the weights that the scales make."""
        for name, scaled in self._scaled.items():
            weight, modules = scaled.weight(), self._modules[name]
            rows = [module.weight.shape[0] for module in modules]
            parts = weight.split(rows) if sum(rows) == len(weight) else [weight] * len(modules)
            for module, part in zip(modules, parts, strict=True):
                module._parameters.pop("weight", None)
                module.weight = part

    def _losses(self, lessons: Sequence[EncodedLesson]) -> torch.Tensor:
        """Return the divergence at every learned position, (tokens,), in nats."""
        with torch.no_grad():
            wanted = self._teacher.logits(lessons).log_softmax(-1)
        found = self._pass.logits(lessons).log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1)

    def _step(self, lessons: Sequence[EncodedLesson], optimizer: torch.optim.Optimizer) -> float:
        with torch.enable_grad():
            self._install()
            loss = self._losses(lessons).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise MmedgeError("recovery: the divergence is NaN or infinite", "check the student: mmedge inspect STUDENT")
        optimizer.step()
        return value

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _divergence(self) -> float:
        """Return the mean divergence on held-out texts, in nats per token."""
        self._install()
        size = self._settings.batch
        found = [self._losses(self._held[start : start + size]) for start in range(0, len(self._held), size)]
        value = float(torch.cat(found).mean())
        if not math.isfinite(value):
            raise MmedgeError("recovery: the student computes NaN or infinite values", "check the student: mmedge inspect STUDENT")
        return value


@dataclass
class _Progress:
    """How far recovery has come.

    Attributes:
        step: Steps taken.
        before, best: Divergence of the first scales, and of the best so far.
        seconds: How long it has run.
        factors: The best factors.
        share: The share of the rate that is left.
    """

    step: int
    before: float
    best: float
    seconds: float
    factors: dict[str, torch.Tensor]
    share: float

    def note(self, value: float, factors: Mapping[str, torch.Tensor]) -> bool:
        """Keep factors that are the best so far, and return whether these are."""
        if value < self.best:
            self.best = value
            self.factors = {name: one.detach().clone() for name, one in factors.items()}
            return True
        return False

    def step_back(self, factors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Go on from the best factors, in smaller steps and without what the last ones left in the optimizer."""
        self.share /= SLOWER
        optimizer.state.clear()
        with torch.no_grad():
            for name, factor in factors.items():
                factor.copy_(self.factors[name])

    def save(self, folder: Path, key: str, factors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"factor/{name}": one.detach() for name, one in factors.items()}
        tensors |= {f"best/{name}": one for name, one in self.factors.items()}
        for name, factor in factors.items():
            tensors |= {f"{part}/{name}": optimizer.state[factor][part] for part in _MOMENTS if factor in optimizer.state}
        with atomic_folder(folder) as temporary:
            save_file({name: one.contiguous() for name, one in tensors.items()}, temporary / "scales.safetensors")
            stated = {name: getattr(self, name) for name in _STATED}
            write_json(temporary / "state.json", {"key": key, **stated})

    @classmethod
    def of(cls, folder: Path, key: str, factors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> _Progress | None:
        """Take up what `save` wrote under the same key; None where there is nothing.

        Raises:
            MmedgeError: It is damaged.
        """
        if not (folder / "state.json").is_file():
            return None
        stated = read_json(folder / "state.json")
        if stated.get("key") != key:
            return None
        tensors = read_tensors(folder / "scales.safetensors")
        with torch.no_grad():
            for name, factor in factors.items():
                factor.copy_(tensors[f"factor/{name}"])
                moments = {part: tensors[f"{part}/{name}"] for part in _MOMENTS if f"{part}/{name}" in tensors}
                if moments:
                    optimizer.state[factor] = {part: value.to(factor.device) for part, value in moments.items() if part != "step"}
                    optimizer.state[factor]["step"] = moments["step"].cpu()
        best = {name: tensors[f"best/{name}"].to(factor.device) for name, factor in factors.items()}
        before, least, seconds, share = (float(stated[name]) for name in _STATED[1:])
        return cls(int(stated["step"]), before, least, seconds, best, share)


_STATED = ("step", "before", "best", "seconds", "share")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
