"""The runtime: opens a bundle and answers, explains and self-evaluates. Needs numpy, onnxruntime and tokenizers only."""

from mmedge.runtime.escalation import Endpoint
from mmedge.runtime.strategies import Strategy
from mmedge.runtime.student import Answer, Judgement, Piece, Student

__all__ = ["Answer", "Endpoint", "Judgement", "Piece", "Strategy", "Student"]
