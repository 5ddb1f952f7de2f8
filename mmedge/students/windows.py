"""Which of a decoder's layers see only a window of the text, and which carry a state instead of attending."""

from __future__ import annotations

from typing import Any

import torch

from mmedge.export.architectures.decoder import Attention, DecoderShape

FULL, WINDOW = "full_attention", "sliding_attention"
_ATTENDS = {FULL, WINDOW, "attention", "chunked_attention"}


def is_recurrent(model: Any) -> bool:
    """Return whether a model of transformers has layers that carry a state from token to token."""
    kinds = getattr(model.config, "layer_types", None) or ()
    return bool(set(kinds) - _ATTENDS) or bool(getattr(model, "_is_stateful", False))


def windows_of(shape: DecoderShape) -> set[int | None]:
    """Return the windows of a decoder's layers; None sees all."""
    return {mixer.window for mixer in shape.mixers if isinstance(mixer, Attention)}


def config_windows(config: Any) -> dict[str, int | None]:
    """Return the window of each kind of layer that a config names; None sees all. One entry where all layers are alike."""
    window = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if not kinds:
        return {FULL: window}
    return {kind: window if kind == WINDOW else None for kind in kinds}


def window_mask(mask: torch.Tensor, positions: torch.Tensor, window: int) -> torch.Tensor:
    """Return an attention mask in which a token sees no further back than a window.

    Args:
        mask: What is added to scores, (batch, 1, length, length).
        positions: Where each token stands, (batch, length).
        window: How many positions it sees, its own among them.
    """
    far = positions[:, :, None] - positions[:, None, :] >= window
    return mask.masked_fill(far[:, None], torch.finfo(mask.dtype).min)
