"""The runtime: opens a bundle and answers, explains and self-evaluates. Needs numpy, onnxruntime and tokenizers only."""

from mmedge.runtime.student import Answer, EdgeStudent, Judgement

__all__ = ["Answer", "EdgeStudent", "Judgement"]
