"""From a student folder to float32 ONNX graphs with a KV cache: fused graphs of our own, or optimum's."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import Literal

from mmedge.errors import MmedgeError, missing_extra
from mmedge.pretrained import compat
from mmedge.runtime.bundle import Graphs
from mmedge.storage import read_json
from mmedge.tasks.encoding import Family

GraphChoice = Literal["auto", "fused", "optimum"]
FUSED = ("t5",)  # by `model_type`
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TASKS: dict[Family, str] = {"encoder-decoder": "text2text-generation-with-past", "decoder-only": "text-generation-with-past"}


def choose_graphs(student: Path, wanted: GraphChoice) -> Graphs:
    """Return who writes a student's graphs: `auto` takes fused ones where there are any for its architecture.

    Raises:
        MmedgeError: Fused graphs are asked for, and there are none.
    """
    config = read_json(student / "config.json")
    if wanted == "optimum":
        return "optimum"
    if config.get("model_type") in FUSED:
        from mmedge.export.t5 import read_shape

        try:
            read_shape(config)
        except MmedgeError:  # a T5 with something that our graphs do not have
            if wanted == "auto":
                return "optimum"
            raise
        return "fused"
    if wanted == "fused":
        raise MmedgeError(
            f"export.graphs: there are no fused graphs for {config.get('model_type')!r}", f"there are for: {', '.join(FUSED)}"
        )
    return "optimum"


def export_graphs(student: Path, family: Family, graphs: Graphs, out: Path) -> None:
    """Write a student's graphs, tokenizer and configs into `out`.

    Args:
        student: A student folder in Hugging Face format.
        family: `encoder-decoder` or `decoder-only`.
        graphs: Who writes them.
        out: An existing folder; gets the files that `runtime.bundle.GRAPHS` names, and configs.

    Raises:
        MmedgeError: optimum is missing, or the architecture cannot be exported.
    """
    if graphs == "fused":
        from mmedge.export.t5 import write_t5

        write_t5(student, out)
        for name in KEPT:
            if (student / name).is_file():
                shutil.copyfile(student / name, out / name)
        return
    _through_optimum(student, family, out)


def _through_optimum(student: Path, family: Family, out: Path) -> None:
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
        raise MmedgeError(f"optimum cannot export {student}: {reason}", "is the architecture supported by optimum-onnx?") from error
    for leftover in ("decoder_model.onnx", "decoder_with_past_model.onnx"):  # both are inside the merged graph
        if family == "encoder-decoder":
            (out / leftover).unlink(missing_ok=True)
