"""Variants: how one is named on the command line, and opened.

    runs/quickstart/bundle-int8               a bundle, on the engine that it was verified on
    native:runs/quickstart/bundle-int8        on the native engine; onnxruntime:… on ONNX Runtime
    runs/quickstart/student                   a student, in torch, float32
    runs/quickstart/student-bnb-nf4           a student quantized by bitsandbytes, on a GPU where there is one
    torch-bf16:runs/quickstart/student        a student in another dtype; torch-cuda-fp16: on a GPU
    llama.cpp:runs/quickstart/model.gguf      another engine on the same weights

A name is a folder, or KIND:PLACE. A kind is an engine of the registry, followed by a device and a dtype where the
engine has several. An engine that lacks something raises MmedgeError, and the bench says so in that variant's row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mmedge.bundle import read_manifest
from mmedge.engines import ENGINES
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.errors import MmedgeError, nearest
from mmedge.folders import Kind, Run, kind_of, variants_in
from mmedge.tasks.forms import AnswerForm, open_form


@dataclass(frozen=True)
class VariantSpec:
    """What is to be measured.

    Attributes:
        kind: An engine's name, with device and dtype where they are asked for: `bundle`, `torch-cuda-bf16`.
        place: A folder, or a file.
        threads: Threads of it; None for what it asks for, or all usable cores.
    """

    kind: str
    place: Path
    threads: int | None = None

    @property
    def text(self) -> str:
        """How it is named on the command line."""
        return str(self.place) if self.kind in ("bundle", "torch") else f"{self.kind}:{self.place}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "place": str(self.place)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> VariantSpec:
        return cls(str(value["kind"]), Path(value["place"]), value["threads"])


def _requests(name: str, entry: EngineEntry) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the kinds that an engine answers to, with the device and the dtype that each asks for."""
    for device, dtype in product((None, *entry.devices), (None, *entry.dtypes)):
        yield "-".join(part for part in (name, device, dtype) if part), device, dtype


def _request_of(kind: str) -> tuple[EngineEntry, str | None, str | None] | None:
    """Return the engine, device and dtype that a kind asks for; None where it is not a kind."""
    candidates = [name for name in ENGINES if kind == name or kind.startswith(f"{name}-")]
    for name in sorted(candidates, key=len, reverse=True):
        for known, device, dtype in _requests(name, ENGINES[name]):
            if known == kind:
                return ENGINES[name], device, dtype
    return None


def kinds() -> list[str]:
    """Return every kind."""
    return [kind for name, entry in ENGINES.items() for kind, _, _ in _requests(name, entry)]


def _unknown(kind: str) -> MmedgeError:
    """Return the error for a kind that there is not, with what each kind opens."""
    opened = ", ".join(f"{name} ({entry.opens})" for name, entry in ENGINES.items())
    return MmedgeError(f"unknown kind of variant {kind!r}", f"{nearest(kind, kinds())}KIND:PLACE takes {opened}")


def _named(kind: str, place: Path) -> VariantSpec:
    """Return a variant whose kind was named.

    Raises:
        MmedgeError: The path does not exist, or that kind does not open it.
    """
    found = _request_of(kind)
    assert found is not None
    entry, is_ = found[0], kind_of(place)
    if is_ is Kind.MISSING:
        raise MmedgeError(f"{kind}:{place}: no such file or folder: {place}", f"{kind} opens {entry.opens}")
    if entry.takes and is_ not in entry.takes:
        variant = _inside(place, entry)
        hint = f"name {entry.opens}" + (f", such as {kind}:{variant}" if variant else "")
        what = f"a {is_}" if is_ is not Kind.OTHER else "nothing that mmedge wrote"
        raise MmedgeError(f"{kind} opens {entry.opens}, and {place} is {what}", hint)
    return VariantSpec(kind, place)


def _inside(place: Path, entry: EngineEntry) -> Path | None:
    """Return what an engine opens in a run, or beside another variant; None where there is nothing."""
    folders = Run(place).variants if kind_of(place) is Kind.RUN else Run(place.parent).variants
    return next((folder for folder in folders if kind_of(folder) in entry.takes), None)


def find_variants(place: str | Path) -> list[VariantSpec]:
    """Return the variants that a command-line argument names: a run's students and bundles, or one variant.

    Raises:
        MmedgeError: The argument names neither a run nor a variant.
    """
    kind, colon, rest = str(place).partition(":")
    if colon and _request_of(kind) is not None:
        return [_named(kind, Path(rest))]
    folder = Path(place)
    if colon and kind_of(folder) is Kind.MISSING:
        raise _unknown(kind)
    return [VariantSpec("bundle" if kind_of(path) is Kind.BUNDLE else "torch", path) for path in variants_in(folder)]


def open_variant(spec: VariantSpec) -> OpenedVariant:
    """Open a variant.

    Raises:
        MmedgeError: It cannot be opened here.
    """
    found = _request_of(spec.kind)
    if found is None:
        raise _unknown(spec.kind)
    entry, device, dtype = found
    return entry.open(OpenRequest(spec.place, spec.threads, device, dtype))


def form_of(spec: VariantSpec) -> AnswerForm | None:
    """Return what answers of a variant's task look like, where a bundle says so."""
    if kind_of(spec.place) is not Kind.BUNDLE:
        return None
    try:
        return open_form(asdict(read_manifest(spec.place).task), spec.place)
    except MmedgeError:
        return None
