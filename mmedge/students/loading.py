"""The student that a recipe starts from: from the hub, a folder, a GGUF file or an installed package, or built from nothing.

Weights are safetensors or GGUF, never pickle; no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, is_quantized
from mmedge.recipe import StudentSection
from mmedge.storage import read_json, sha256_json
from mmedge.students.saved import open_student, student_details
from mmedge.students.scratch import SCRATCH, build_scratch
from mmedge.students.sources import ModelSource, load, resolve, source_licence
from mmedge.students.student import TorchStudent, assemble, chat_of


def resolve_source(section: StudentSection) -> ModelSource:
    """Find a student's weights without loading them.

    Raises:
        MmedgeError: The file, package or folder does not exist, or a folder has no safetensors weights.
    """
    if section.source == SCRATCH:
        return ModelSource(SCRATCH, None, SCRATCH, sha256_json(section.scratch.model_dump()))
    return resolve(section.source, section.revision, "student.source")


def _refuse_quantized(source: ModelSource, config: object) -> None:
    """Refuse weights that are quantized: training changes them.

    Raises:
        MmedgeError: They are.
    """
    if isinstance(config, dict) and config.get("quantization_config") is not None:
        raise MmedgeError(
            f"student.source: {source.name} is quantized and cannot be trained",
            "name the model that it was made from; a .gguf file is dequantized",
        )


def load_student(
    section: StudentSection, source: ModelSource, max_input_tokens: int, texts: Iterable[str], seed: int
) -> TorchStudent:
    """Load or build the student that a recipe starts from.

    Args:
        section: The recipe's `student`.
        source: The same, resolved.
        max_input_tokens: Longer inputs are cut.
        texts: The task's texts, for a tokenizer trained from scratch.
        seed: Seeds the weights of a student from scratch.

    Raises:
        MmedgeError: The hub cannot be reached, or the model is not supported.
    """
    if source.kind == SCRATCH:
        if section.prompt == "chat":
            raise MmedgeError("student.prompt: a student from scratch has no chat template", "use prompt: plain")
        return build_scratch(section.scratch, texts, max_input_tokens, seed)
    if source.kind == "folder" and source.path is not None and (source.path / DETAILS).is_file():
        if is_quantized(student_details(source.path)):
            raise MmedgeError(
                f"student.source: {source.path} is quantized and cannot be trained", "name the student that it was made from"
            )
        return open_student(source.path, max_input_tokens)
    if source.kind == "folder" and source.path is not None:
        _refuse_quantized(source, read_json(source.path / "config.json"))
    model, tokenizer = load(source, section.revision, section.tokenizer, "student.source", dtype=torch.float32)
    if source.kind == "hub":
        _refuse_quantized(source, model.config.to_dict())
    local = source.kind in ("folder", "gguf") and not source.name.startswith("package:")
    shown = Path(source.name).name if local else source.name  # a bundle contains no paths of the machine that made it
    origin = {"source": shown, "fingerprint": source.fingerprint}
    if licence := source_licence(source, section.revision):
        origin["licence"] = licence
    chat = chat_of(tokenizer, section.system, section.date) if section.prompt == "chat" else None
    return assemble(model, tokenizer, max_input_tokens, origin, chat)
