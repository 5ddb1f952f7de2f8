"""From a student folder to ONNX graphs with a KV cache: mmedge's own fused graphs, or optimum's float32 ones."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmedge.errors import MmedgeError, missing_extra
from mmedge.export.architectures import ARCHITECTURES, Architecture
from mmedge.export.builder import Quantizer, WrittenGraphs
from mmedge.export.trim import TrimmedWeights
from mmedge.export.weights import WeightFiles, Weights
from mmedge.manifest import Graphs
from mmedge.storage import read_json
from mmedge.students import dialects
from mmedge.tasks.encoding import Family

GraphChoice = Literal["auto", "fused", "optimum"]
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TASKS: dict[Family, str] = {"encoder-decoder": "text2text-generation-with-past", "decoder-only": "text-generation-with-past"}


def choose_graphs(student: Path, wanted: GraphChoice) -> tuple[Graphs, str | None]:
    """Return who writes a student's graphs, and why not mmedge where it is not: `auto` takes fused graphs where there are any.

    Raises:
        MmedgeError: Fused graphs are asked for, and there are none, or they do not implement what the config asks for.
    """
    if wanted == "optimum":
        return "optimum", None
    config = read_json(student / "config.json")
    kind = config.get("model_type")
    try:
        architecture_of(config).read_shape(config)
    except MmedgeError as error:
        if wanted == "fused":
            raise
        return "optimum", f"there are no fused graphs for {kind!r}" if kind not in ARCHITECTURES else str(error)
    return "fused", None


def architecture_of(config: dict[str, Any]) -> Architecture[Any]:
    """Return how a model of a config becomes fused graphs.

    Raises:
        MmedgeError: mmedge writes none for its `model_type`.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise MmedgeError(f"export.graphs: there are no fused graphs for {kind!r}", f"there are for: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[str(kind)]


def write_fused(student: Path, out: Path, quantizer: Quantizer | None = None, kept: Sequence[int] | None = None) -> WrittenGraphs:
    """Write a student's graphs ourselves.

    Args:
        student: A student folder in Hugging Face format.
        out: An existing folder; gets the files that `manifest.GRAPHS` names, and weights.
        quantizer: How weights are stored; as float32 by default.
        kept: The tokens whose rows embedding and head keep; all by default.

    Raises:
        MmedgeError: The config asks for what is not implemented, or a weight is missing or broken.
    """
    config = read_json(student / "config.json")
    architecture, weights = architecture_of(config), _weights(student, kept)
    try:
        return architecture.write_graphs(architecture.read_shape(config), weights, out, quantizer)
    except KeyError as error:
        raise MmedgeError(f"{student} has no weight {error}", "distil the student again, or restore the folder") from None


def _weights(student: Path, kept: Sequence[int] | None) -> Weights:
    weights = WeightFiles(student)
    return weights if kept is None else TrimmedWeights(weights, kept)


def fused_linears(student: Path) -> dict[str, tuple[str, ...]]:
    """Return the weights that each linear layer of a student's fused graphs multiplies by, by the layer's name."""
    config = read_json(student / "config.json")
    architecture = architecture_of(config)
    return architecture.linears(architecture.read_shape(config), WeightFiles(student))


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
        MmedgeError: optimum is missing, or cannot export the architecture.
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
