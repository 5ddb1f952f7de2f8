"""From a student folder to float32 ONNX graphs with a KV cache: fused graphs of our own, or optimum's."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmedge.errors import MmedgeError, missing_extra
from mmedge.export.architectures import llama, t5
from mmedge.export.builder import Rounding
from mmedge.export.trim import TrimmedWeights
from mmedge.export.weights import WeightFiles, Weights
from mmedge.manifest import Graphs
from mmedge.storage import read_json
from mmedge.students import dialects
from mmedge.tasks.encoding import Family

GraphChoice = Literal["auto", "fused", "optimum"]
FUSED = {"t5": t5, **dict.fromkeys(llama.MODEL_TYPES, llama)}  # by `model_type`
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TASKS: dict[Family, str] = {"encoder-decoder": "text2text-generation-with-past", "decoder-only": "text-generation-with-past"}


def choose_graphs(student: Path, wanted: GraphChoice) -> tuple[Graphs, str | None]:
    """Return who writes a student's graphs, and why not mmedge where it is not: `auto` takes fused graphs where there are any.

    Raises:
        MmedgeError: Fused graphs are asked for, and there are none, or they do not implement what the config asks for.
    """
    config = read_json(student / "config.json")
    if wanted == "optimum":
        return "optimum", None
    kind = config.get("model_type")
    if kind in FUSED:
        try:
            FUSED[kind].read_shape(config)
        except MmedgeError as error:  # something that our graphs do not have
            if wanted == "auto":
                return "optimum", str(error)
            raise
        return "fused", None
    if wanted == "fused":
        raise MmedgeError(f"export.graphs: there are no fused graphs for {kind!r}", f"there are for: {', '.join(FUSED)}")
    return "optimum", f"there are no fused graphs for {kind!r}"


def write_fused(student: Path, out: Path, rounding: Rounding | None = None, kept: Sequence[int] | None = None) -> int:
    """Write a student's graphs ourselves.

    Args:
        student: A student folder in Hugging Face format.
        out: An existing folder; gets the files that `runtime.bundle.GRAPHS` names, and weights.
        rounding: In which numbers; float32 by default.
        kept: The pieces whose rows embedding and head keep; all by default.

    Returns:
        How many nodes the decoder has.

    Raises:
        MmedgeError: The config asks for what is not implemented, or a weight is missing or broken.
    """
    config = read_json(student / "config.json")
    weights: Weights = WeightFiles(student)
    if kept is not None:
        weights = TrimmedWeights(weights, kept)
    try:
        if config["model_type"] == "t5":
            return t5.write_t5(t5.read_shape(config), weights, out, rounding)
        return llama.write_llama(llama.read_shape(config), weights, out, rounding)
    except KeyError as error:
        raise MmedgeError(f"{student} has no weight {error}", "distil the student again, or restore the folder") from None


def fused_products(student: Path) -> dict[str, tuple[str, ...]]:
    """Return the weights that each product of a student's fused graphs multiplies by, by the product's name."""
    config, weights = read_json(student / "config.json"), WeightFiles(student)
    if config["model_type"] == "t5":
        return t5.product_weights(t5.read_shape(config), weights)
    return llama.product_weights(llama.read_shape(config), weights)


def copy_configs(student: Path, out: Path) -> None:
    """Copy what other runtimes expect beside the graphs: configs and tokenizer."""
    for name in KEPT:
        if (student / name).is_file():
            shutil.copyfile(student / name, out / name)


def write_through_optimum(student: Path, family: Family, out: Path) -> None:
    """Let optimum write a student's float32 graphs, tokenizer and configs.

    Args:
        student: A student folder in Hugging Face format.
        family: `encoder-decoder` or `decoder-only`.
        out: An existing folder.

    Raises:
        MmedgeError: optimum is missing, or the architecture cannot be exported.
    """
    try:
        from optimum.exporters.onnx import main_export
    except ImportError:
        raise missing_extra("optimum-onnx", "optimum") from None
    dialects.quiet()
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
        raise MmedgeError(f"optimum cannot export {student}: {reason}", "is the architecture supported by optimum-onnx?") from error
    for leftover in ("decoder_model.onnx", "decoder_with_past_model.onnx"):  # both are inside the merged graph
        if family == "encoder-decoder":
            (out / leftover).unlink(missing_ok=True)
