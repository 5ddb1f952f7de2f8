"""The one place that knows what differs between transformers 4.57 and 5.x.

- The argument for the number type is `dtype` in both, but 4.57 saves `torch_dtype` into configs.
- A GGUF file is dequantized by 4.57 always, by 5.x on request (`GgufConfig(dequantize=True)`).
- T5: 5.x writes `scale_decoder_outputs` and may say `tie_word_embeddings: true` for a v1.1 model whose head is its own; 4.57
  reads `tie_word_embeddings` as "scale the logits", so it would compute another model.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import transformers

from mmedge.storage import read_json

MAJOR = int(transformers.__version__.split(".")[0])


def gguf_arguments(file_name: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to read a GGUF file as float32 weights; its own progress bar is switched off."""
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if isinstance(bar, type):
        vars(reader)["tqdm"] = functools.partial(bar, disable=True)
    arguments: dict[str, Any] = {"gguf_file": file_name}
    if MAJOR >= 5 and hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return arguments


def config_overrides(folder: Path) -> dict[str, Any]:
    """Return config values to pass to `from_pretrained` so that a saved student is the same model in this version."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("model_type") == "t5" and MAJOR < 5 and "scale_decoder_outputs" in raw:
        return {"tie_word_embeddings": bool(raw["scale_decoder_outputs"])}
    return {}


def quiet() -> None:
    """Keep transformers' own warnings and bars out of the output; errors still raise."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
