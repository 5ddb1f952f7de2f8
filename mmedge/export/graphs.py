"""From a student folder to float32 ONNX graphs with a KV cache, through optimum."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

from mmedge.distill import compat
from mmedge.errors import MmedgeError, missing_extra

TASKS = {"encoder-decoder": "text2text-generation-with-past", "decoder-only": "text-generation-with-past"}


def export_graphs(student: Path, family: str, out: Path) -> None:
    """Write a student's graphs, tokenizer and configs into `out`.

    Args:
        student: A student folder in Hugging Face format.
        family: `encoder-decoder` or `decoder-only`.
        out: An existing folder; gets `model.onnx`, or `encoder_model.onnx` and `decoder_model_merged.onnx`, and configs.

    Raises:
        MmedgeError: optimum is missing, or cannot export this architecture.
    """
    try:
        from optimum.exporters.onnx import main_export
    except ImportError:
        raise missing_extra("optimum-onnx", "export") from None
    compat.quiet()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            main_export(
                str(student),
                output=out,
                task=TASKS[family],
                do_validation=False,  # verify.py does, on real questions
                local_files_only=True,
                trust_remote_code=False,
                device="cpu",
            )
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise MmedgeError(
            f"optimum cannot export {student}: {reason}", "is the architecture supported by optimum-onnx?"
        ) from error
    for leftover in ("decoder_model.onnx", "decoder_with_past_model.onnx"):  # both are inside the merged graph
        if family == "encoder-decoder":
            (out / leftover).unlink(missing_ok=True)
