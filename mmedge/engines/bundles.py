"""Bundles: which engine runs one, and the speaker that asks it.

    open_speaker(bundle)                    the engine that the bundle was verified on, where that can run it here
    engine_of(bundle.manifest)              "native" or "onnxruntime"

Quantized bundles are verified, and their confidence is calibrated, on the native engine, others on ONNX Runtime, which is faster in
float32. A bundle that the native engine cannot run here runs on ONNX Runtime all the same. Whoever asks for one of them
(`MMEDGE_ENGINE`) gets that one, or the reason why not. Knows no graph and no plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

from mmedge.bundle import Bundle, open_bundle
from mmedge.engines.engine import Engine
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.engines.environment import ENGINE, EngineName, wanted_engine
from mmedge.engines.speaker import Speaker
from mmedge.errors import MmedgeError
from mmedge.folders import Kind
from mmedge.machine import usable_cores
from mmedge.manifest import Manifest
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import PromptEncoder, load_tokenizer

MOST_THREADS = 64
FLOATS = ("fp32", "fp16")  # precisions that ONNX Runtime multiplies faster
Device = Literal["auto", "cpu", "cuda"]


def engine_of(manifest: Manifest, device: Device = "auto") -> EngineName:
    """Return the engine that runs a bundle.

    Raises:
        MmedgeError: `MMEDGE_ENGINE` asks for an engine that cannot run it, or it or the device names none.
    """
    if device not in get_args(Device):
        raise MmedgeError(f"invalid device {device!r}; it must be one of {', '.join(get_args(Device))}")
    wanted = wanted_engine()
    if (wanted or suited_engine(manifest)) == "onnxruntime":
        return "onnxruntime"
    from mmedge.engines.native import library
    from mmedge.engines.native.engine import unsupported

    why = "it runs on CPUs alone" if device == "cuda" else unsupported(manifest)
    if why is None and wanted is None and library.instruction_set() == "portable":
        why = "it has no fast kernels for this processor"
    if why is not None and wanted is not None:
        raise MmedgeError(f"{ENGINE}=native: the native engine cannot be used: {why}", f"leave {ENGINE} out, or set it to onnx")
    return "native" if why is None else "onnxruntime"


def suited_engine(manifest: Manifest) -> EngineName:
    """Return the engine that a bundle was verified on: bundles that name none are older than the native engine.

    One that is about to be verified gets the native engine where its weights are quantized.
    """
    stated = manifest.confidence.get("engine")
    if stated is None and not manifest.verification.questions:
        return "onnxruntime" if manifest.precision in FLOATS else "native"
    return "native" if stated == "native" else "onnxruntime"


def open_speaker(bundle: Bundle, threads: int | None = None, device: Device = "auto") -> Speaker:
    """Open a checked bundle on the engine that runs it here.

    Args:
        bundle: The bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all usable cores.
        device: `cpu`, `cuda`, or `auto`: a CUDA device where there is one and the bundle is meant for it (fp16).

    Raises:
        MmedgeError: CUDA is asked for and cannot be had, or the bundle cannot be opened.
    """
    return _open_on(engine_of(bundle.manifest, device), bundle, threads, device)


def _open_on(name: EngineName, bundle: Bundle, threads: int | None, device: Device) -> Speaker:
    def engine() -> Engine:
        if name == "native":
            from mmedge.engines.native.engine import NativeEngine

            return NativeEngine(bundle, threads)
        from mmedge.engines.onnx.decoding import open_engine

        return open_engine(bundle, threads, device)

    return speaker_of(bundle, threads, engine)


def speaker_of(bundle: Bundle, threads: int | None, open_engine: Callable[[], Engine]) -> Speaker:
    """Return a bundle's speaker on the engine that a function opens.

    Raises:
        MmedgeError: The number of threads is impossible, or the engine cannot be opened.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= max(MOST_THREADS, cores):
        raise MmedgeError(f"threads must be from 1 to {max(MOST_THREADS, cores)}, got {threads}", f"this machine has {cores} cores")
    # the tokenizer first, so that the engine can reuse the memory that reading it frees
    tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")
    engine, stated = open_engine(), bundle.manifest
    chat = ChatTemplate.beside(bundle.folder)
    encoder = PromptEncoder(tokenizer, stated.family, stated.prompts, stated.special_tokens, stated.max_input_tokens, chat)
    return Speaker(engine, encoder, bundle.form, stated.max_answer_tokens, stated.max_rationale_tokens)


def _opened(name: EngineName, bundle: Bundle, request: OpenRequest) -> OpenedVariant:
    device: Device = "cuda" if request.device == "cuda" else "auto"
    speaker, stated, place = _open_on(name, bundle, request.threads, device), bundle.manifest, "cpu"
    if name == "onnxruntime":
        from mmedge.engines.onnx.graphs import choose_device

        place = choose_device(device, stated.device)
    kernels = None
    if name == "native":
        from mmedge.engines.native.engine import NativeEngine

        assert isinstance(speaker.engine, NativeEngine)
        kernels = speaker.engine.decoder.kernels
    return OpenedVariant(
        name,
        stated.precision,
        request.threads or stated.threads or usable_cores(),
        speaker,
        bundle.size,
        place,
        stated.task.name,
        bundle,
        asdict(stated.work) if stated.work else None,
        stated.student.learned,
        kernels,
    )


def _open(request: OpenRequest) -> OpenedVariant:
    bundle = open_bundle(Path(request.place))
    return _opened(engine_of(bundle.manifest, "cuda" if request.device == "cuda" else "auto"), bundle, request)


def _open_onnx(request: OpenRequest) -> OpenedVariant:
    return _opened("onnxruntime", open_bundle(Path(request.place)), request)


def _open_native(request: OpenRequest) -> OpenedVariant:
    return _opened("native", open_bundle(Path(request.place)), request)


ENTRY = EngineEntry("onnxruntime", "a bundle", _open, devices=("cuda",), takes=(Kind.BUNDLE,))
ONNX = EngineEntry("onnxruntime", "a bundle", _open_onnx, takes=(Kind.BUNDLE,))
NATIVE = EngineEntry("native", "a bundle with a layer plan", _open_native, takes=(Kind.BUNDLE,))
