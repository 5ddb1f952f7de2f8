"""Graphs by transformers' own exporter or by optimum, for architectures that mmedge has none for.

Both give float32 graphs with a KV cache as `engines.onnx.decoding` takes them: `input_ids`, `attention_mask`, `position_ids` and
`past_key_values.*` (batch, heads, length, width) → `logits` (batch, new, vocabulary) and `present.*`. transformers' exporter knows
decoder-only models of any kind and needs transformers 5; optimum knows encoder-decoders too and ends with transformers 4.57.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from mmedge.errors import MmedgeError, missing_extra
from mmedge.export.graphs import copy_configs
from mmedge.manifest import Graphs
from mmedge.students import dialects
from mmedge.tasks.encoding import Family

TASKS: dict[Family, str] = {"encoder-decoder": "text2text-generation-with-past", "decoder-only": "text-generation-with-past"}
_CACHE = re.compile(r"(past_key_values|cache)\.layers\.(\d+)\.(key|value)s")


def write_foreign(graphs: Graphs, student: Path, family: Family, out: Path) -> None:
    """Export a student's float32 graphs with transformers or optimum.

    Args:
        graphs: `transformers` or `optimum`.
        student: A student folder in Hugging Face format.
        family: `encoder-decoder` or `decoder-only`.
        out: An existing folder; gets the files that `manifest.GRAPHS` names.

    Raises:
        MmedgeError: A package is missing, or the architecture cannot be exported.
    """
    dialects.quiet()
    for name in ("optimum", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    write = _write_through_transformers if graphs == "transformers" else _write_through_optimum
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            write(student, family, out)
    except MmedgeError:
        raise
    except Exception as error:  # torch, onnxscript and optimum raise many types without a public base class
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise MmedgeError(f"{graphs} cannot export {student}: {reason}", other_writer(graphs, family)) from error


def other_writer(graphs: Graphs, family: Family) -> str:
    """Return what to do where a writer cannot export a student."""
    if graphs == "optimum":
        return "is the architecture supported by optimum-onnx?"
    return "try optimum: pip install 'mmedge[optimum]' in an environment of its own, then mmedge export --graphs optimum"


def _write_through_optimum(student: Path, family: Family, out: Path) -> None:
    try:
        from optimum.exporters.onnx import main_export
    except ImportError:
        raise missing_extra("optimum-onnx", "optimum") from None
    main_export(
        str(student),
        output=out,
        task=TASKS[family],
        do_validation=False,  # verify.py does, on real questions
        local_files_only=True,
        trust_remote_code=False,
        device="cpu",
    )
    for leftover in ("decoder_model.onnx", "decoder_with_past_model.onnx"):  # both are inside the merged graph
        if family == "encoder-decoder":
            (out / leftover).unlink(missing_ok=True)


def _write_through_transformers(student: Path, family: Family, out: Path) -> None:
    try:
        import onnx_ir
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError:
        raise missing_extra("onnxscript", "export") from None
    if family != "decoder-only":
        raise MmedgeError("transformers' exporter writes no encoder-decoder with a cache", other_writer("transformers", family))
    model = dialects.load_model(str(student), dialects.load_config(str(student)), dtype=torch.float32).eval()
    # several rows, several new tokens behind several old ones: no size is special, so one graph reads prompts and writes tokens
    old, new = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    with torch.no_grad():  # a cache that keeps all positions in every layer; layers with a window mask what they do not see
        cache = model(input_ids=old, past_key_values=transformers.DynamicCache(), use_cache=True).past_key_values
    inputs = {
        "input_ids": new,
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "position_ids": torch.arange(5, 8).repeat(2, 1),
        "past_key_values": cache,
        "use_cache": True,
    }
    program = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True)).program
    for value in (*program.graph.inputs, *program.graph.outputs):
        _rename(value, onnx_ir)
    onnx_ir.save(program, str(out / "model.onnx"), external_data="model.onnx.data")
    copy_configs(student, out)


def _rename(value: Any, onnx_ir: Any) -> None:
    """Rename a cache input or output as optimum does, and fix its dimensions that are written as digits."""
    if (found := _CACHE.fullmatch(value.name)) is not None:
        side, layer, part = found.groups()
        value.name = f"{'present' if side == 'cache' else side}.{layer}.{part}"
    value.shape = onnx_ir.Shape(list(_dimensions(value.shape)))


def _dimensions(shape: Any) -> Iterator[int | str]:
    for dimension in shape:
        text = str(dimension)
        yield int(text) if text.isdigit() else text
