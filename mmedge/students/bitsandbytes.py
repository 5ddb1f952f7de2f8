"""Weights quantized by bitsandbytes: its settings, and workarounds.

`bnb-int8` is LLM.int8() (Dettmers et al. 2022): weights in int8, one scale for each output; inputs are quantized to int8 on the
way, one scale for each row, but for the columns in which some input is larger than 6, which are multiplied in floats with the
dequantized weights. `bnb-nf4` is 4-bit NormalFloat (Dettmers et al. 2023), one scale for 64 weights, multiplied in floats. Both
leave embedding, head and norms as they are, and so does T5 its `wo`, whose inputs are too large for float16.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mmedge.errors import missing_extra

OUTLIERS = 6.0  # LLM.int8()'s own; SmolLM2-135M has KL 0.031 with it and 0.054 where all columns are int8 (65 tokens of prose)
BLOCK = 64  # weights per scale of nf4
CPU_OUTPUTS = 32  # that bitsandbytes' layout for CPUs takes at a time


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


def bits_config(bits: int, floats: Sequence[str], dtype: Any) -> Any:
    """Return transformers' settings for weights of 8 bits (LLM.int8()) or 4 (nf4).

    Args:
        bits: 8 or 4.
        floats: Modules that stay as they are, by their whole names.
        dtype: The torch dtype that nf4 is multiplied in.
    """
    import transformers

    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIERS, llm_int8_skip_modules=list(floats))
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=list(floats)
    )


def kept_in_float(model: Any) -> list[str]:
    """Return the names of the linear layers that are never quantized: the head, and what transformers keeps in float32.

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


def restore_unsupported_linears(model: Any) -> None:
    """Turn nf4 layers that bitsandbytes does not compute on every CPU into ordinary ones, with the same weights.

    Version 0.50.2 on CPUs with AVX-512 dequantizes weights wrongly where the inputs are not a multiple of 64, and on those with
    AVX512-BF16 stops where the outputs are not a multiple of 32. (There it also packs the weights when they are first used, and
    after that saves scales in the wrong order and type: a model must be saved before anything is computed.)

    Args:
        model: A model on a CPU; it is changed.
    """
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    dtype = model.get_input_embeddings().weight.dtype
    unsupported = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit) and (module.out_features % CPU_OUTPUTS or module.in_features % BLOCK)
    ]
    for name, module in unsupported:
        state = module.weight.quant_state
        packed = module.weight.data.reshape(-1)
        codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: state.shape.numel()].long()
        scales = state.absmax.repeat_interleave(state.blocksize)[: len(codes)]
        restored = (state.code[codes] * scales).reshape(state.shape).to(dtype)
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(restored, requires_grad=False)
        plain.bias = module.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
