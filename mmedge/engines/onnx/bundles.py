"""Bundles on ONNX Runtime: opens a bundle's graphs, mmedge's own or optimum's, for the runtime and for the bench."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.engines.onnx.decoding import open_engine
from mmedge.engines.onnx.graphs import Device, choose_device
from mmedge.engines.speaker import Speaker
from mmedge.errors import MmedgeError
from mmedge.machine import usable_cores
from mmedge.manifest import Bundle, open_bundle
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import PromptEncoder, load_tokenizer


def open_speaker(bundle: Bundle, threads: int | None = None, device: Device = "auto") -> Speaker:
    """Open a checked bundle's graphs.

    Args:
        bundle: The bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all usable cores.
        device: `cpu`, `cuda`, or `auto`: a CUDA device where there is one and the bundle is meant for it (fp16).

    Raises:
        MmedgeError: CUDA is asked for and cannot be had, or a graph cannot be opened.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None and threads < 1:
        raise MmedgeError(f"threads must be at least 1, got {threads}")
    tokenizer = load_tokenizer(
        bundle.folder / "tokenizer.json"
    )  # first, so that the engine can reuse the memory that reading it frees
    engine = open_engine(bundle, threads, device)
    stated = bundle.manifest
    chat = ChatTemplate.beside(bundle.folder)
    encoder = PromptEncoder(tokenizer, stated.family, stated.prompts, stated.special_tokens, stated.max_input_tokens, chat)
    return Speaker(engine, encoder, bundle.form, stated.max_answer_tokens, stated.max_rationale_tokens)


def _open(request: OpenRequest) -> OpenedVariant:
    bundle = open_bundle(Path(request.place))
    device: Device = "cuda" if request.device == "cuda" else "auto"
    speaker, stated = open_speaker(bundle, request.threads, device), bundle.manifest
    return OpenedVariant(
        "onnxruntime",
        stated.precision,
        request.threads or stated.threads or usable_cores(),
        speaker,
        bundle.size,
        choose_device(device, stated.device),
        stated.task.name,
        bundle,
        asdict(stated.work) if stated.work else None,
    )


ENTRY = EngineEntry("onnxruntime", "a bundle", _open, devices=("cuda",))
