"""Weights in bitsandbytes' numbers: what it must be told, and what it must be kept from.

`bnb-int8` is LLM.int8() (Dettmers et al. 2022): weights in int8, one scale for each output; inputs are rounded to int8 on the
way, one scale for each row, but for the columns in which some input is larger than 6, which are multiplied in floats with the
restored weights. `bnb-nf4` is 4-bit NormalFloat (Dettmers et al. 2023), one scale for 64 weights, multiplied in floats. Both
leave embedding, head and norms as they are, and so does T5 its `wo`, whose inputs are too large for float16.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mmedge.errors import MmedgeError, missing_extra
from mmedge.storage import check_files, hash_files, sha256_json, write_json

BitsPrecision = Literal["bnb-int8", "bnb-nf4"]
BITS_PRECISIONS: tuple[BitsPrecision, ...] = ("bnb-int8", "bnb-nf4")
OUTLIERS = 6.0  # LLM.int8()'s own; SmolLM2-135M has KL 0.031 with it and 0.054 where all columns are int8 (65 tokens of prose)
BLOCK = 64  # weights to a scale of nf4
CPU_ROWS = 32  # outputs that bitsandbytes' packed layout for CPUs takes at a time
DETAILS = "mmedge.json"


def need_bitsandbytes() -> None:
    """Import bitsandbytes, without its messages, and without the machine code that it would fetch from the hub.

    On CPUs with AVX512-BF16 it asks the package `kernels`, where there is one, for a binary of the hub's; without it, it uses
    those that it brings.

    Raises:
        MmedgeError: It is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise missing_extra("bitsandbytes", "gpu")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules:
        return
    modules: dict[str, Any] = sys.modules
    held = modules.get("kernels")
    modules["kernels"] = None  # to import it is an ImportError then, which bitsandbytes is prepared for
    try:
        importlib.import_module("bitsandbytes")
    finally:
        if held is None:
            del modules["kernels"]
        else:
            modules["kernels"] = held


def bits_config(precision: BitsPrecision, floats: Sequence[str], dtype: Any) -> Any:
    """Return transformers' settings for a precision.

    Args:
        precision: Which numbers.
        floats: Modules that stay as they are, by their whole names.
        dtype: The torch type that nf4 is multiplied in.
    """
    import transformers

    if precision == "bnb-int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIERS, llm_int8_skip_modules=list(floats))
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=list(floats)
    )


def kept_in_floats(model: Any) -> list[str]:
    """Return the names of a model's products that are never rounded: the head, and what transformers keeps in float32.

    Args:
        model: A model; its weights may be on torch's `meta` device.
    """
    import torch

    head, kept = model.get_output_embeddings(), tuple(model._keep_in_fp32_modules or ())
    return [
        name
        for name, module in model.named_modules()
        if module is head or (isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in kept)
    ]


def spare_small_products(model: Any) -> None:
    """Keep bitsandbytes from packing nf4 products for the CPU that do not fit its layout, on which it would stop.

    It packs where a product is first computed on a CPU with AVX512-BF16. (Once that has happened, version 0.50.2 saves scales
    that are neither in their order nor of their type: save before anything is computed.)
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and (module.out_features % CPU_ROWS or module.in_features % BLOCK):
            module.support_avx512bf16_for_cpu = False


# ------------------------------------------------------------------------------------------------- on disk


def seal_rounded(folder: Path, details: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Write the `mmedge.json` of a rounded student whose other files are complete: hashes of them and of itself are in it.

    Args:
        folder: Its folder.
        details: The `mmedge.json` of the student that was rounded.
        manifest: What there is to say about the rounding; `precision` at least.
    """
    whole = {**details, "rounded": {**manifest, "files": hash_files(folder, DETAILS)}}
    write_json(folder / DETAILS, {**whole, "sha256": sha256_json(whole)})


def check_rounded(folder: Path, details: dict[str, Any]) -> dict[str, Any]:
    """Check every file of a rounded student, and return what `seal_rounded` was given, with `files`.

    Args:
        folder: Its folder.
        details: Its `mmedge.json`.

    Raises:
        MmedgeError: A file is missing, was added or changed; the message names it.
    """
    stated = {name: value for name, value in details.items() if name != "sha256"}
    if sha256_json(stated) != details.get("sha256"):
        raise MmedgeError(f"{folder / DETAILS} was changed after export: its hash does not match", "export the student again")
    manifest: dict[str, Any] = details["rounded"]
    check_files(folder, manifest["files"], DETAILS)
    return manifest
