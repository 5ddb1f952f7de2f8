"""Bundles: the deployable folder, its manifest, and the check that every file is what the manifest says.

    bundle-int8/
        manifest.json                    this format; hashes of every other file, and of itself
        encoder_model.onnx  decoder_model.onnx             (encoder-decoder), or model.onnx (decoder-only)
        weights.data                     what those graphs read
        tokenizer.json  config.json  …   as other runtimes expect them

A bundle opens without network, torch or transformers, and refuses to open when a byte differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmedge.errors import MmedgeError
from mmedge.folders import MANIFEST as MANIFEST
from mmedge.storage import check_files, folder_size, hash_files, read_json, sha256_json, write_json
from mmedge.tasks.encoding import Family, SpecialTokens
from mmedge.tasks.forms import AnswerForm, open_form
from mmedge.tasks.prompts import StudentPrompts

FORMAT = 5
Graphs = Literal["fused", "optimum"]  # who wrote them: mmedge.export, one fused node for each attention, or optimum
GRAPHS: dict[tuple[Family, Graphs], dict[str, str]] = {
    ("encoder-decoder", "fused"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model.onnx"},
    ("encoder-decoder", "optimum"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx"},
    ("decoder-only", "fused"): {"decoder": "model.onnx"},
    ("decoder-only", "optimum"): {"decoder": "model.onnx"},
}


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle.

    Attributes:
        folder: Where it lies.
        family: Which kind of student.
        graphs: Who wrote the graphs, which decides their inputs and outputs.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        device: What it is meant for: `cpu`, or `cuda` (fp16), which the CPU computes too, more slowly than float32.
        prompts: Its prompts.
        special: Its special tokens.
        form: What answers of its task look like.
        max_input_tokens: Longer inputs are cut.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest rationale or evaluation.
        threads: How many threads serve it best; None for all cores.
        manifest: The whole manifest.
    """

    folder: Path
    family: Family
    graphs: Graphs
    precision: str
    device: Literal["cpu", "cuda"]
    prompts: StudentPrompts
    special: SpecialTokens
    form: AnswerForm
    max_input_tokens: int
    max_answer_tokens: int
    max_rationale_tokens: int
    threads: int | None
    manifest: dict[str, Any]

    def graph(self, part: str) -> Path:
        """Return the path of a graph: `decoder`, or `encoder`."""
        return self.folder / GRAPHS[self.family, self.graphs][part]

    @property
    def size(self) -> int:
        """Bytes on disk, all included."""
        return folder_size(self.folder)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder whose other files are complete: their hashes and sizes, and a hash over itself."""
    whole = {"format": FORMAT, **manifest, "files": hash_files(folder, MANIFEST)}
    write_json(folder / MANIFEST, {**whole, "sha256": sha256_json(whole)})


def refuse_bundle(folder: Path, option: str) -> None:
    """Refuse to write results into a bundle: it opens no more when it holds a file that its manifest does not.

    Raises:
        MmedgeError: The folder is a bundle.
    """
    if (folder / MANIFEST).is_file():
        raise MmedgeError(f"{folder} is a bundle, which a file more would spoil", f"name another place with {option}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a bundle's manifest, checked against its own hash.

    Raises:
        MmedgeError: The folder is no bundle, is of a newer format, or its manifest was changed.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise MmedgeError(f"no such bundle: {folder}", "make one with mmedge export RUN --int8")
    if not path.is_file():
        raise MmedgeError(f"{folder} is no bundle: it has no {MANIFEST}", "make one with mmedge export RUN --int8")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise MmedgeError(f"{path} is no bundle manifest", "export the student again")
    if manifest["format"] != FORMAT:
        raise MmedgeError(
            f"{path} has format {manifest['format']!r}; this version reads {FORMAT}", "update mmedge, or export again"
        )
    stated = manifest.pop("sha256", None)
    if sha256_json(manifest) != stated:
        raise MmedgeError(f"{path} was changed after export: its hash does not match", "export the student again")
    return manifest


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and check every file.

    Raises:
        MmedgeError: A file is missing, was added, or differs from its hash; the message names it.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"], MANIFEST)
    return Bundle(
        folder=folder,
        family=manifest["family"],
        graphs=manifest["graphs"],
        precision=manifest["precision"],
        device=manifest.get("device", "cpu"),
        prompts=StudentPrompts(**manifest["prompts"]),
        special=SpecialTokens(**manifest["special_tokens"]),
        form=open_form(manifest["task"], folder, f"{folder / MANIFEST}: task"),
        max_input_tokens=manifest["max_input_tokens"],
        max_answer_tokens=manifest["max_answer_tokens"],
        max_rationale_tokens=manifest["max_rationale_tokens"],
        threads=manifest["threads"],
        manifest=manifest,
    )
