"""mmedge: distil a large teacher into a small student, export it to int8 ONNX, measure it, run it at the edge.

Importing the package loads nothing heavy; each verb of the command line is one function in the package of that name. A bundle is
used from Python through `Student`, which is loaded when it is first asked for:

    from mmedge import Student

    answer = Student.load("runs/quickstart/bundle-int8").answer("Ann has 3 apples and buys 4. How many does she have now?")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# ONNX Runtime's packages for Linux (1.32) otherwise keep an identifier in the user's cache, and report to its makers
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from mmedge.runtime import Answer, AnswerOptions, Endpoint, Judgement, Piece, Strategy, Student

__all__ = ["Answer", "AnswerOptions", "Endpoint", "Judgement", "Piece", "Strategy", "Student"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        import mmedge.runtime

        return getattr(mmedge.runtime, name)
    raise AttributeError(f"module 'mmedge' has no attribute {name!r}")
