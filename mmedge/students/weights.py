"""What is trained, as safetensors: all of a model's tensors, or only those that are trained (adapters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmedge.errors import MmedgeError


def trained_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that a training changes, by name, tied ones once: all, or where some are frozen those that are not."""
    if any(not parameter.requires_grad for parameter in model.parameters()):
        return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    seen: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen[tensor.data_ptr()] = name
            state[name] = tensor.detach().contiguous()
    return state


def save_weights(model: Any, path: Path) -> None:
    """Write what was trained of a model."""
    save_file(trained_state(model), path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file.

    Raises:
        MmedgeError: The file is missing or damaged.
    """
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MmedgeError(f"cannot read {path}: {error}", "remove that folder and run the same command again") from None
    return state


def load_weights(model: Any, path: Path) -> None:
    """Load the tensors that `save_weights` wrote into the model they came from.

    Raises:
        MmedgeError: The file is damaged or of another model.
    """
    put_weights(model, read_tensors(path), str(path))


def put_weights(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Copy tensors into the model that they belong to.

    Raises:
        MmedgeError: They are another model's.
    """
    expected = trained_state(model)
    if set(state) != set(expected) or any(state[name].shape != expected[name].shape for name in state):
        raise MmedgeError(f"{where} holds another model's weights", "choose another --out folder")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])
