"""Who writes a student's ONNX graphs, and mmedge's own fused ones, from config and weights; `foreign` has the others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmedge.errors import MmedgeError
from mmedge.export.architectures import ARCHITECTURES, Architecture
from mmedge.export.builder import Quantizer, WrittenGraphs
from mmedge.export.trim import TrimmedWeights
from mmedge.export.weights import WeightFiles, Weights
from mmedge.manifest import Graphs
from mmedge.storage import read_json
from mmedge.students import dialects
from mmedge.tasks.chat.template import FILE_NAME as CHAT

GraphChoice = Literal["auto", "fused", "transformers", "optimum"]
KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    CHAT,
)


def choose_graphs(student: Path, wanted: GraphChoice) -> tuple[Graphs, str | None]:
    """Return who writes a student's graphs, and why if it is not mmedge.

    `auto` takes fused graphs if there are any, else those of transformers' exporter, else optimum's.

    Raises:
        MmedgeError: Fused graphs are asked for, and there are none, or they do not implement what the config asks for.
    """
    if wanted in ("transformers", "optimum"):
        return wanted, None
    config = read_json(student / "config.json")
    kind = config.get("model_type")
    try:
        architecture_of(config).read_shape(config)
    except MmedgeError as error:
        if wanted == "fused":
            raise
        why = f"fused graphs do not support {kind!r}" if kind not in ARCHITECTURES else error.what
        exports = dialects.MAJOR >= 5 and not config.get("is_encoder_decoder")
        return "transformers" if exports else "optimum", why
    return "fused", None


def architecture_of(config: dict[str, Any]) -> Architecture[Any]:
    """Return how a model of a config becomes fused graphs.

    Raises:
        MmedgeError: mmedge writes none for its `model_type`.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise MmedgeError(f"export.graphs: fused graphs do not support {kind!r}", f"supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[str(kind)]


def write_fused(student: Path, out: Path, quantizer: Quantizer | None = None, kept: Sequence[int] | None = None) -> WrittenGraphs:
    """Write a student's fused graphs.

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
