"""The runtime: opens a bundle and answers, explains and self-evaluates. Needs numpy, onnxruntime and tokenizers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmedge.engines.speaker import Judgement
from mmedge.runtime.answers import Answer, Piece
from mmedge.runtime.options import AnswerOptions
from mmedge.runtime.strategies import Strategy
from mmedge.runtime.student import Student

if TYPE_CHECKING:
    from mmedge.runtime.endpoint import Endpoint

__all__ = ["Answer", "AnswerOptions", "Endpoint", "Judgement", "Piece", "Strategy", "Student"]


def __getattr__(name: str) -> object:
    if name == "Endpoint":  # what speaks HTTP is imported when it is needed
        from mmedge.runtime.endpoint import Endpoint

        return Endpoint
    raise AttributeError(f"module 'mmedge.runtime' has no attribute {name!r}")
