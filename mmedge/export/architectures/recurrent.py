"""What layers with a state of their own share: a causal convolution, and which of the new tokens are tokens.

A graph leaves a row's state as it was behind the row's last token, whatever stands behind that as padding, so that rows of any
length are read together. `counts` says how many of each row's new tokens are tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from mmedge.export.architectures.decoder import DecoderGraph


def causal_convolution(
    decoder: DecoderGraph, x: str, kernel: NDArray[np.float32], state: str, name: str, bias: NDArray[np.float32] | None = None
) -> str:
    """Return a convolution over time in which a token sees itself and those before it, channel by channel, (batch, new, width).

    Args:
        decoder: The graph.
        x: Its inputs, (batch, new, width).
        kernel: (width, taps), the last one for the token itself.
        state: What its last inputs are called, (batch, taps - 1, width), as they are kept between calls.
        name: What it computes.
        bias: (width,).
    """
    g, (width, taps) = decoder.g, kernel.shape
    past = decoder.state(state, (taps - 1, width))
    whole = g.node("Concat", [past, x], f"{name}.whole", axis=1)
    total = ""
    for tap in range(taps):  # the inputs that this tap multiplies begin `tap` places behind the first kept one
        last = g.integers(tap - taps + 1 or np.iinfo(np.int64).max)
        seen = g.node("Slice", [whole, g.integers(tap), last, g.integers(1)], f"{name}.seen.{tap}")
        added = g.node("Mul", [seen, g.constant(f"{name}.kernel.{tap}", np.ascontiguousarray(kernel[:, tap]))], f"{name}.tap.{tap}")
        total = g.node("Add", [total, added], f"{name}.sum.{tap}") if total else added
    if bias is not None:
        total = g.node("Add", [total, g.constant(f"{name}.bias", bias)], f"{name}.biased")
    present = g.node("GatherND", [whole, _last_places(decoder, taps - 1)], f"{name}.last", batch_dims=1)
    g.output(present, f"present_states.{state}", ("batch", taps - 1, width), g.float_type)
    return total


def _last_places(decoder: DecoderGraph, kept: int) -> str:
    """Return where each row's last inputs stand behind those that were kept, (batch, kept, 1)."""
    g = decoder.g

    def write() -> str:
        counts = g.node("Cast", [decoder.counts], "counts.wide", to=TensorProto.INT64)
        column = g.node("Unsqueeze", [counts, g.integers(1, 2)], "counts.column")
        places = g.constant(f"kept.{kept}", np.arange(kept, dtype=np.int64)[None, :, None])
        return g.node("Add", [column, places], f"kept.{kept}.places")

    return decoder.once(f"kept.{kept}", write)


def is_token(decoder: DecoderGraph) -> str:
    """Return 1 where a new token is one and 0 where it is padding, (batch, new, 1), in what the graph computes in."""
    g = decoder.g

    def write() -> str:
        length = g.node("Squeeze", [g.node("Shape", [decoder.ids], "new.shape", start=1, end=2), g.integers(0)], "new")
        places = g.node("Range", [g.integer(0), length, g.integer(1)], "new.places")
        counts = g.node("Unsqueeze", [decoder.counts, g.integers(1)], "counts.rows")
        counts = g.node("Cast", [counts], "counts.rows.wide", to=TensorProto.INT64)
        read = g.node("Cast", [g.node("Less", [places, counts], "is_token.which")], "is_token.flat", to=g.float_type)
        return g.node("Unsqueeze", [read, g.integers(2)], "is_token")

    return decoder.once("is_token", write)
