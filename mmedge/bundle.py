"""Bundles: the deployable folder, and the check that every file is what its manifest says.

    bundle-int8/
        manifest.json                    what `manifest.py` declares; hashes of every other file, and of itself
        encoder_model.onnx  decoder_model.onnx             (encoder-decoder), or model.onnx (decoder-only)
        weights.data                     what those graphs read
        tokenizer.json  config.json  …   as other runtimes expect them

A bundle opens without network, torch or transformers, and refuses to open when a byte differs. Export seals folders, the runtime
and the reports open them. A student quantized by bitsandbytes is sealed and checked likewise, by the account in its `mmedge.json`.
Knows files and formats, and not how any of it comes about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, MANIFEST, QUANTIZED
from mmedge.manifest import FilePart, Graphs, Manifest, QuantizedStudent
from mmedge.storage import check_files, folder_size, hash_files, read_json, sha256_json, write_json
from mmedge.tasks.base import LONGEST_TEXT
from mmedge.tasks.encoding import Family
from mmedge.tasks.forms import AnswerForm, open_form
from mmedge.typed import read_as

FORMAT = 6
OLDEST = 5  # that is read
MOST_TOKENS = 1 << 31  # of a vocabulary
MOST_THREADS = 1024
MOST_BYTES = 1 << 53  # of anything
RENEW = "write it again: mmedge export RUN"
GRAPHS: dict[tuple[Family, Graphs], dict[str, str]] = {
    ("encoder-decoder", "fused"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model.onnx"},
    ("encoder-decoder", "optimum"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx"},
    ("decoder-only", "fused"): {"decoder": "model.onnx"},
    ("decoder-only", "transformers"): {"decoder": "model.onnx"},
    ("decoder-only", "optimum"): {"decoder": "model.onnx"},
}


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        form: What answers of its task look like.
        held: What the files of weights hold, by name, where they were read into memory.
    """

    folder: Path
    manifest: Manifest
    form: AnswerForm
    held: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, held: Mapping[str, NDArray[np.uint8]] | None = None) -> Bundle:
        """Return the bundle in a folder whose files are known to be right.

        Raises:
            MmedgeError: This version does not know the form of its answers.
        """
        return cls(folder, manifest, open_form(asdict(manifest.task), folder, f"{folder / MANIFEST}: task"), held or {})

    def graph(self, part: str) -> Path:
        """Return the path of a graph: `decoder`, or `encoder`."""
        return self.folder / GRAPHS[self.manifest.family, self.manifest.graphs][part]

    @property
    def size(self) -> int:
        """Bytes on disk, all included."""
        return folder_size(self.folder)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder whose other files are complete, and return it with their hashes and sizes."""
    whole = replace(manifest, files=_hashed(folder, MANIFEST))
    stated = {"format": FORMAT, **asdict(whole)}
    write_json(folder / MANIFEST, {**stated, "sha256": sha256_json(stated)})
    return whole


def _hashed(folder: Path, besides: str) -> dict[str, FilePart]:
    return {name: FilePart(**part) for name, part in hash_files(folder, besides).items()}


def refuse_bundle(folder: Path, option: str) -> None:
    """Refuse to write results into a bundle: it no longer opens when it holds a file that its manifest does not list.

    Raises:
        MmedgeError: The folder is a bundle.
    """
    if (folder / MANIFEST).is_file():
        raise MmedgeError(f"{folder} is a bundle, and another file in it would break it", f"choose another folder with {option}")


def read_manifest(folder: Path) -> Manifest:
    """Return a bundle's manifest, checked against its own hash.

    Raises:
        MmedgeError: The folder is not a bundle, its format is not read by this version, or its manifest was changed.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise MmedgeError(f"no such bundle: {folder}", "make one: mmedge export RUN --int8")
    if not path.is_file():
        within = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
        hint = f"name one of its bundles: {', '.join(map(str, within))}" if within else "make one: mmedge export RUN --int8"
        raise MmedgeError(f"{folder} is not a bundle: it has no {MANIFEST}", hint)
    stated = read_json(path)
    if not isinstance(stated, dict) or not isinstance(stated.get("format"), int):
        raise MmedgeError(f"{path} is not a bundle's manifest", RENEW)
    format_ = stated["format"]
    if format_ > FORMAT:
        raise MmedgeError(f"{path} has format {format_}, and this version of mmedge reads up to {FORMAT}", "update mmedge")
    if format_ < OLDEST:
        raise MmedgeError(f"{path} has format {format_}, which is too old: formats {OLDEST} to {FORMAT} are read", RENEW)
    digest = stated.pop("sha256", None)
    if sha256_json(stated) != digest:
        raise MmedgeError(f"{path} was changed after export: its hash does not match", RENEW)
    found = read_as(Manifest, _upgraded(stated, path) if format_ < FORMAT else stated, str(path), RENEW)
    _check_limits(found, path)
    for name, token in found.special_tokens.to_json().items():
        if token is not None and not -1 <= token < MOST_TOKENS:
            raise MmedgeError(f"{path}: special_tokens.{name} is {token}, which is not a token id", RENEW)
    return found


def _check_limits(found: Manifest, path: Path) -> None:
    """Refuse numbers that no bundle can mean.

    Raises:
        MmedgeError: One is out of its range; the message names it.
    """
    texts = ("max_input_tokens", "max_answer_tokens", "max_rationale_tokens")
    stated = [(name, getattr(found, name), 1, LONGEST_TEXT) for name in texts]
    stated.append(("student.parameters", found.student.parameters, 0, MOST_BYTES))
    if found.threads is not None:
        stated.append(("threads", found.threads, 1, MOST_THREADS))
    if found.vocabulary is not None:
        stated.append(("vocabulary.of", found.vocabulary.of, 1, MOST_TOKENS))
        stated.append(("vocabulary.kept", found.vocabulary.kept, 1, found.vocabulary.of))
    if found.work is not None:
        stated += [(f"work.{name}", getattr(found.work, name), 0, MOST_BYTES) for name in ("bytes", "operations", "table_bytes")]
    stated += [(f"states.{place}.shape", size, 1, MOST_TOKENS) for place, state in enumerate(found.states) for size in state.shape]
    for name, value, low, high in stated:
        if not low <= value <= high:
            raise MmedgeError(f"{path}: field {name!r}: expected a whole number from {low} to {high}, found {value}", RENEW)


def open_bundle(folder: Path, hold: bool = False) -> Bundle:
    """Open a bundle and check every file.

    Args:
        folder: Where it lies.
        hold: Read its weights into memory, so that nothing that happens to the files matters any more.

    Raises:
        MmedgeError: A file is missing, was added, or differs from its hash; the message names it.
    """
    manifest = read_manifest(folder)
    weights = [name for name in manifest.files if name.endswith("data")] if hold else []  # weights.data, model.onnx_data
    held = check_files(folder, {name: asdict(part) for name, part in manifest.files.items()}, MANIFEST, weights)
    return Bundle.of(folder, manifest, held)


def learned_of(details: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return what a student learned to write besides answers, by its details; None for a student of an older version."""
    return None if details.get("learned") is None else tuple(details["learned"])


def seal_student(folder: Path, details: Mapping[str, Any], manifest: QuantizedStudent) -> QuantizedStudent:
    """Write the `mmedge.json` of a quantized student whose other files are complete, and return its account with their hashes.

    Args:
        folder: Its folder.
        details: The `mmedge.json` of the student that was quantized.
        manifest: How it was exported.
    """
    whole = replace(manifest, files=_hashed(folder, DETAILS))
    stated = {**details, QUANTIZED: asdict(whole)}
    write_json(folder / DETAILS, {**stated, "sha256": sha256_json(stated)})
    return whole


def read_quantized(details: Mapping[str, Any], path: Path) -> QuantizedStudent:
    """Return how a quantized student was exported, from its `mmedge.json`, without a look at its files.

    Raises:
        MmedgeError: A field is missing or of another type.
    """
    stated = details[QUANTIZED] if QUANTIZED in details else _upgraded(details["rounded"], path)
    return read_as(QuantizedStudent, stated, str(path), RENEW)


def check_student(folder: Path, details: Mapping[str, Any]) -> QuantizedStudent:
    """Check every file of a quantized student, and return how it was exported.

    Args:
        folder: Its folder.
        details: Its `mmedge.json`.

    Raises:
        MmedgeError: A file is missing, was added or changed; the message names it.
    """
    stated = {name: value for name, value in details.items() if name != "sha256"}
    if sha256_json(stated) != details.get("sha256"):
        raise MmedgeError(f"{folder / DETAILS} was changed after export: its hash does not match", RENEW)
    manifest = read_quantized(details, folder / DETAILS)
    check_files(folder, {name: asdict(part) for name, part in manifest.files.items()}, DETAILS)
    return manifest


def _upgraded(old: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a manifest of format 5, or what a quantized student of its time says, in the words of format 6.

    Raises:
        MmedgeError: It is not what export wrote then.
    """
    try:
        return _renamed(old)
    except (KeyError, TypeError, AttributeError):
        raise MmedgeError(f"{path} is not what mmedge export writes", RENEW) from None


def _renamed(old: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if "task" in old:
        labels = old["task"].get("labels")
        settings = {"labels": labels} if labels else {}
        new["task"] = {"name": old["task"]["name"], "form": old["task"]["judge"], "settings": settings}
    new["quantization"] = old.get("numbers", {"layers": {}, "exceptions": {}})
    new["budget"] = [{**step, "static_activations": step.get("fixed_steps", False)} for step in old.get("budget", ())]
    new["sensitivity"] = [{**cost, "linear": cost["product"]} for cost in old.get("sensitivity", ())]
    new["confidence"] = old.get("confidence") or {}
    answering = dict(old.get("answering") or {})
    if threshold := answering.get("threshold"):
        withheld = {"withheld": threshold["handed_on"], "max_withheld": threshold.get("max_handed_on")}
        answering["threshold"] = threshold | withheld
    new["answering"] = answering
    return new
