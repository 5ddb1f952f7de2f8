"""Students on disk: a folder in Hugging Face format with `mmedge.json` beside the weights, which says how it is prompted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from mmedge import __version__
from mmedge.bundle import check_student, read_quantized
from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, is_quantized
from mmedge.storage import read_json, write_json
from mmedge.students import dialects
from mmedge.students.bitsandbytes import need_bitsandbytes, restore_unsupported_linears
from mmedge.students.sources import check_folder, need_tokenizer, reason_of
from mmedge.students.student import TorchStudent, plain_backend
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import PromptEncoder, SpecialTokens
from mmedge.tasks.prompts import StudentPrompts

FORMAT = 1
TASK_TOKENS = ("task_tokens.json", "pieces.json")  # the second is what it was called before


def save_student(student: TorchStudent, folder: Path, details: dict[str, Any], tokens: Sequence[int]) -> None:
    """Write a student in Hugging Face format with `mmedge.json` beside it; the caller makes the folder atomic.

    Args:
        student: The student.
        folder: Where it goes.
        details: What `mmedge.json` says besides.
        tokens: The ids of the tokens that its task is made of, which `mmedge export --trim-vocab` keeps.
    """
    dialects.quiet()
    student.model.save_pretrained(folder, safe_serialization=True)
    student.tokenizer.save_pretrained(folder)
    copied = folder / "tokenizer.model"
    if copied.is_file() and copied.open("rb").read(4) == b"GGUF":
        copied.unlink()  # a tokenizer read from a .gguf file takes that whole file along as its vocabulary
    if student.encoder.chat is not None:
        student.encoder.chat.save(folder)
    write_json(folder / TASK_TOKENS[0], list(tokens))
    write_json(
        folder / DETAILS,
        {
            "format": FORMAT,
            "mmedge": __version__,
            "transformers": transformers.__version__,
            "family": student.family,
            "prompts": student.encoder.prompts.to_json(),
            "special_tokens": student.encoder.special.to_json(),
            "max_input_tokens": student.encoder.max_input_tokens,
            "parameters": student.parameters,
            "origin": student.origin,
            **details,
        },
    )


def student_details(folder: Path) -> dict[str, Any]:
    """Return a saved student's `mmedge.json`.

    Raises:
        MmedgeError: The folder is not a student of mmedge, or was written by a newer version.
    """
    if not folder.is_dir():
        raise MmedgeError(f"no such student: {folder}", "name a folder that `mmedge distill` wrote")
    check_folder(folder)
    if not (folder / DETAILS).is_file():
        raise MmedgeError(f"{folder} has no mmedge.json", "name a student that mmedge distill wrote; only those know their task")
    details = read_json(folder / DETAILS)
    if not isinstance(details, dict) or details.get("format") != FORMAT:
        raise MmedgeError(f"{folder}/mmedge.json has a format that this version does not read", "update mmedge")
    return details


def task_tokens(folder: Path) -> list[int]:
    """Return the ids of the tokens that a saved student's task is made of.

    Raises:
        MmedgeError: The folder does not say.
    """
    for name in TASK_TOKENS:
        if (folder / name).is_file():
            found: list[int] = read_json(folder / name)
            return found
    raise MmedgeError(f"{folder} has no {TASK_TOKENS[0]}: it was written by an older version", "distil the student again")


def student_precision(details: dict[str, Any]) -> str:
    """Return the weight format of a saved student: `fp32`, `bnb-int8` or `bnb-nf4`."""
    return read_quantized(details, Path(DETAILS)).precision if is_quantized(details) else "fp32"


def open_student(folder: Path, max_input_tokens: int | None = None, device: str = "cpu") -> TorchStudent:
    """Load a student that `save_student` or `mmedge export` wrote, with the prompts and tokens it was trained with.

    What is not quantized of a quantized student becomes float32 on a CPU, and stays float16 on a GPU.

    Args:
        folder: The student's.
        max_input_tokens: Longer inputs are cut; as it was trained by default.
        device: `cpu` or `cuda`.

    Raises:
        MmedgeError: It is not a student, is damaged, or needs bitsandbytes, which is not installed.
    """
    dialects.quiet()
    details = student_details(folder)
    quantized = is_quantized(details)
    if quantized:
        need_bitsandbytes()
        check_student(folder, details)
    need_tokenizer(folder)
    try:
        tokenizer = dialects.load_tokenizer(str(folder), plain=True)
        config = dialects.load_config(str(folder))
        if quantized:
            dtype = torch.float32 if device == "cpu" else torch.float16
            config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
            model = dialects.load_model(str(folder), config, dtype=dtype, device_map={"": device})
            if device == "cpu":
                restore_unsupported_linears(model)
        else:
            model = dialects.load_model(str(folder), config, dtype=torch.float32)
            model.to(device)
        encoder = PromptEncoder(
            plain_backend(tokenizer),
            details["family"],
            StudentPrompts(**details["prompts"]),
            SpecialTokens(**details["special_tokens"]),
            max_input_tokens or int(details["max_input_tokens"]),
            ChatTemplate.beside(folder),
        )
    except MmedgeError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers raise many types for a broken file
        raise MmedgeError(
            f"cannot load the student {folder}: {reason_of(error)}", "distil it again, or restore the folder"
        ) from error
    return TorchStudent(model, tokenizer, encoder, details["origin"])
