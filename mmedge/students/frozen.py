"""Lower layers that are not trained: what they make of a lesson never changes, so it is computed once.

With the embeddings and the first n layers of a decoder-only student frozen, a training step computes the others alone, and nothing
below them has a gradient. States behind the frozen layers are computed lesson by lesson, so that they depend on nothing but the
lesson, kept or not, and kept while there is room. Knows nothing of what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from mmedge.errors import MmedgeError
from mmedge.machine import read_memory
from mmedge.students.student import TorchStudent

SHARE_OF_MEMORY = 0.25  # of what is available, for kept states: 2.3 kB a token at a width of 576


def freeze_layers(student: TorchStudent, count: int) -> None:
    """Stop a student's embeddings and its first layers from being trained; a head that is tied to the embeddings stays too.

    Args:
        student: Changed in place.
        count: How many layers.

    Raises:
        MmedgeError: It has an encoder, or no layer would be left to train.
    """
    layers = trainable_layers(student, count)
    for parameter in student.model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    for layer in layers[:count]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)


def trainable_layers(student: TorchStudent, frozen: int) -> Sequence[Any]:
    """Return a student's layers, where some can be frozen and others are left.

    Raises:
        MmedgeError: It has an encoder, or no layer would be left to train.
    """
    if student.family == "encoder-decoder":
        raise MmedgeError("student.frozen_layers is for decoder-only students", "set it to 0, or train adapters (student.lora)")
    layers: Sequence[Any] = student.model.get_decoder().layers
    if frozen >= len(layers):
        raise MmedgeError(f"student.frozen_layers: {frozen}, and the student has {len(layers)} layers", "leave some to train")
    return layers


def frozen_layers(model: Any) -> int:
    """Return how many of a decoder-only model's first layers nothing is trained in, nor in what lies below them."""
    if any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        return 0
    layers = model.get_decoder().layers
    trained = (any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers)
    return next((number for number, one in enumerate(trained) if one), len(layers))


class FrozenStates:
    """States behind the frozen layers, by lesson.

    Args:
        count: How many layers are frozen.
        most_bytes: Room for kept states. Default: a share of the memory that is available.
    """

    def __init__(self, count: int, most_bytes: int | None = None) -> None:
        self.count = count
        self._left = int(SHARE_OF_MEMORY * read_memory().available) if most_bytes is None else most_bytes
        self._kept: dict[Hashable, torch.Tensor] = {}

    def of(self, lesson: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the states of a lesson, (tokens, width).

        Args:
            lesson: What the states depend on.
            compute: Computes them, where they are not kept.
        """
        found = self._kept.get(lesson)
        if found is None:
            with torch.no_grad():
                found = compute()
            size = found.numel() * found.element_size()
            if size <= self._left:
                self._left -= size
                self._kept[lesson] = found
        return found
