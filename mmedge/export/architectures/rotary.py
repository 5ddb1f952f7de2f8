"""Rotary position embeddings (Su et al. 2021) as configs describe them, scaled in the ways that fused graphs implement.

    rotary_of(config, head_width)        → Rotary(frequencies, factor)
    table(rotary, positions)             → cosines and sines, (positions, frequencies)

A rotary embedding may turn only the first values of a head: then it has fewer frequencies than half a head. Knows configs, and no
graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.export.architectures.refusal import refused

POSITIONS = 4096  # the longest text that a graph reads, unless the model itself reads less


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding.

    Attributes:
        frequencies: In radians per position, (turned values of a head / 2,).
        factor: What cosines and sines are multiplied by.
        positions: Beyond how many positions other frequencies hold; None where they hold for every length.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    positions: int | None = None


def rotary_of(
    config: Mapping[str, Any], head_width: int, described: Mapping[str, Any] | None = None, *, partial: float | None = None
) -> Rotary:
    """Read a rotary embedding from a config, as `rope_scaling` (transformers 4.57) or `rope_parameters` (5.x) describes it.

    Args:
        config: The model's.
        head_width: Of one head.
        described: The description, where the config has several; that of the config by default.
        partial: The share of a head that is turned where the config does not say; None where the model always turns all of it.

    Raises:
        MmedgeError: It is scaled in a way that the graphs do not implement.
    """
    scaling = dict(described if described is not None else config.get("rope_scaling") or config.get("rope_parameters") or {})
    if different := sorted(name for name, value in scaling.items() if isinstance(value, dict)):
        raise refused("rope_parameters", different[0])
    share = float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or partial or 1.0)
    turned = int(head_width * share)
    if partial is None and share != 1:
        raise refused("partial_rotary_factor", share)
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    plain: NDArray[np.float64] = base ** (-np.arange(0, turned, 2, dtype=np.float64) / turned)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rotary(tuple(plain.tolist()))
    if kind == "linear":
        return Rotary(tuple((plain / float(scaling["factor"])).tolist()))
    if kind == "llama3":
        return Rotary(tuple(_llama3(config, scaling, plain).tolist()))
    if kind == "longrope":
        return _longrope(config, scaling, plain)
    raise refused("rope_scaling", kind)


def _llama3(config: Mapping[str, Any], scaling: Mapping[str, Any], plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stretch wavelengths longer than the original context, leave short ones, smoothly between (Llama 3.1's release)."""
    original = float(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = original * plain / (2 * math.pi)  # of each frequency within the original context
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - share) * plain / factor + share * plain


def _longrope(config: Mapping[str, Any], scaling: Mapping[str, Any], plain: NDArray[np.float64]) -> Rotary:
    """Scale every frequency by a factor of its own (Ding et al. 2024, LongRoPE), for texts within the original context.

    Longer texts take other factors, for all their tokens; whoever reads no longer ones never needs them.
    """
    original = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if original is None:
        raise refused("rope_scaling", "longrope")
    short = np.array(scaling["short_factor"], dtype=np.float64)
    if short.shape != plain.shape:
        raise refused("rope_scaling.short_factor", f"{len(short)} values for {len(plain)} frequencies")
    stretched = float(scaling.get("factor") or float(config["max_position_embeddings"]) / float(original))
    factor = scaling.get("attention_factor")
    if factor is None:
        factor = 1.0 if stretched <= 1 else math.sqrt(1 + math.log(stretched) / math.log(original))
    return Rotary(tuple((plain / short).tolist()), float(factor), int(original))


def longest_text(config: Mapping[str, Any], *rotaries: Rotary | None) -> int:
    """Return how many positions a graph reads: the model's, those for which its rotary embeddings hold, at most `POSITIONS`."""
    stated = [config.get("max_position_embeddings"), *(rotary.positions for rotary in rotaries if rotary)]
    return min([POSITIONS, *(int(found) for found in stated if found)])


def table(rotary: Rotary, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines, each (positions, frequencies)."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * np.array(rotary.frequencies)[None]
    cosines, sines = (rotary.factor * turn(angles) for turn in (np.cos, np.sin))
    return cosines.astype(np.float32), sines.astype(np.float32)
