"""The processes and devices that a training runs on, through accelerate: one process, several, or sharded weights.

    mmedge distill RECIPE                                         one process
    torchrun --nproc-per-node 2 -m mmedge distill RECIPE          two processes, each with all weights (DDP)
    accelerate launch --config_file FSDP.yaml -m mmedge distill RECIPE    sharded weights (FSDP), as accelerate's config says

The main process collects annotations, validates and writes; the others wait for it. What is learned does not depend on how
many there are: every step's batch is shared out among them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list

from mmedge.errors import MmedgeError
from mmedge.machine import keep_memory
from mmedge.recipe import TrainingSection

T = TypeVar("T")
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
LONGEST_WAIT = timedelta(days=7)  # for other processes, for example while the main one collects annotations
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


class Devices:
    """What accelerate knows of this process and the others; leave it as a context manager.

    Args:
        training: Device and precision.

    Raises:
        MmedgeError: The device is missing, or does not compute in this precision.
    """

    def __init__(self, training: TrainingSection) -> None:
        cuda = torch.cuda.is_available()
        if training.device == "cuda" and not cuda:
            raise MmedgeError("training.device: no CUDA device found", "set it to auto or cpu")
        on_cpu = training.device == "cpu" or not cuda
        if on_cpu and training.precision == "float16":
            raise MmedgeError("training.precision: float16 needs a GPU", "set it to float32, or to bfloat16")
        if not on_cpu and training.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise MmedgeError("training.precision: this GPU does not support bfloat16", "set it to float16")
        if on_cpu:
            keep_memory()
        _forget()
        self._accelerator = Accelerator(
            mixed_precision=_PRECISIONS[training.precision],
            cpu=on_cpu,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=LONGEST_WAIT),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
        if self._accelerator.distributed_type not in _SUPPORTED:
            raise MmedgeError(f"training with {self._accelerator.distributed_type.value} is not supported", "use DDP or FSDP")
        self._sharded = bool(self._accelerator.distributed_type == DistributedType.FSDP)
        if self._sharded and self._accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise MmedgeError(
                "FSDP version 1 keeps weights in a form that checkpoints do not support",
                "set fsdp_version: 2 in accelerate's configuration",
            )
        if self._sharded and training.optimizer == "muon":
            raise MmedgeError("training.optimizer: muon needs whole matrices, but FSDP shards them", "set it to adamw, or use DDP")
        if training.threads:
            torch.set_num_threads(training.threads)

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._accelerator.end_training()
        _forget()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self._accelerator.device)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def index(self) -> int:
        """This process's number, from 0."""
        return int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self._sharded

    def describe(self) -> str:
        """Return a description of where the training runs."""
        others = f", {self.count} processes ({'FSDP' if self.sharded else 'DDP'})" if self.count > 1 else ""
        precision = self._accelerator.mixed_precision
        return f"{self.device}{others}" + ("" if precision == "no" else f", {precision}")

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._accelerator.wait_for_everyone()

    def from_main(self, compute: Callable[[], T]) -> T:
        """Return what the main process computes; the others wait for it."""
        if self.count == 1:
            return compute()
        found: list[Any] = [compute() if self.main else None]
        broadcast_object_list(found, from_process=0)
        value: T = found[0]
        return value

    def prepare(
        self, module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
        """Return module and optimizers as this kind of training needs them."""
        prepared = self._accelerator.prepare(module, *optimizers)
        return prepared[0], list(prepared[1:])

    def release(self) -> None:
        """Release what was prepared, after training."""
        self._accelerator.free_memory()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradient; the gradients of all processes are averaged unless `alone` says not yet."""
        self._accelerator.backward(loss)

    def alone(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up in this process alone."""
        context: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return context

    def clip(self, module: torch.nn.Module, most: float) -> float:
        """Scale the gradient down to a norm of `most` where it is longer, and return its norm before."""
        norm = self._accelerator.clip_grad_norm_(module.parameters(), most)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of every process's values."""
        if self.count == 1:
            return values
        summed: torch.Tensor = self._accelerator.reduce(values, reduction="sum")
        return summed

    def whole_weights(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of a module whose parts are spread over the processes; empty in all but the main one."""
        state: dict[str, torch.Tensor] = self._accelerator.get_state_dict(module)
        return state if self.main else {}


def _forget() -> None:
    """Reset the state that accelerate keeps for a whole program, so that the next training may differ."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
