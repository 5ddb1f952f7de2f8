"""An entry of the registry of engines: what it states, what it is asked to open, and what opening a variant returns.

A variant is a bundle or a student at one precision on one engine and device; the speaker beside its engine asks it in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.bundle import Bundle
from mmedge.engines.speaker import Speaker
from mmedge.folders import Kind


@dataclass(frozen=True)
class OpenRequest:
    """What is to be opened.

    Attributes:
        place: A folder or a file.
        threads: Threads within one operation; None for what it asks for, or else all usable cores.
        device: `cpu` or `cuda`; None for what it is meant for.
        dtype: `bf16` or `fp16`; None for what it was saved in.
    """

    place: Path
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class OpenedVariant:
    """A variant, opened.

    Attributes:
        engine_name: What reports call the engine: `onnxruntime`, `torch`, …
        precision: `fp32`, `int8`, …
        threads: Threads that it uses.
        speaker: Asks it.
        bytes_on_disk: Size of all that it is opened from.
        device: `cpu` or `cuda`.
        task: The task it was made for; None where it does not say.
        bundle: The bundle, if it is one: it knows how its student answers and how confidence is calibrated.
        work: What one decoding step does with its weights, as `manifest.Work` has it; None where that is not known.
        learned: What its student learned to write besides answers (`rationale`, `verdict`); None where that is not known.
        kernels: The instruction set of the native engine's kernels; None for other engines.
    """

    engine_name: str
    precision: str
    threads: int
    speaker: Speaker
    bytes_on_disk: int
    device: str = "cpu"
    task: str | None = None
    bundle: Bundle | None = None
    work: dict[str, Any] | None = None
    learned: tuple[str, ...] | None = None
    kernels: str | None = None


@dataclass(frozen=True)
class EngineEntry:
    """An engine of the registry; naming it imports nothing heavy.

    Attributes:
        engine_name: What reports call it.
        opens: What it opens, for messages: `a bundle`, `a .gguf file of the same student`.
        takes: The kinds of folder that this may be; empty where only opening it shows that.
        open: Opens a variant; raises MmedgeError where it cannot be opened here, with what to install where that is why.
        devices: Devices that a variant's name may ask for (`torch-cuda:…`); the first is the default where it leaves it out.
        dtypes: Dtypes that a variant's name may ask for (`torch-bf16:…`).
        extra: The extra of mmedge, or the package, that it needs; empty where the core has it.
    """

    engine_name: str
    opens: str
    open: Callable[[OpenRequest], OpenedVariant]
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    extra: str = ""
    takes: tuple[Kind, ...] = ()
