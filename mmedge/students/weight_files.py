"""Which files hold a model's weights: safetensors in its own folder, and nothing else. Reads no weights.

    weight_files(Path("models/qwen"))   → [models/qwen/model-00001-of-00002.safetensors, …]

transformers unpickles whatever else an index names, and puts an adapter that lies beside the weights into the model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.storage import read_json

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_PLAIN = re.compile(r"[^/\\:\x00]+\.safetensors")
_UNSURE = "save the model again: model.save_pretrained(FOLDER)"


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, as transformers chooses them; none where there are none.

    Args:
        folder: The model's.

    Raises:
        MmedgeError: An index names what is not a safetensors file of this folder, or a file is missing, a device or a pipe.
    """
    if os.path.lexists(folder / WHOLE):
        names = [WHOLE]
    elif os.path.lexists(folder / INDEX):
        names = indexed_files(folder / INDEX)
    else:
        return []
    for name in names:
        if not (folder / name).is_file():
            what = "it is not a regular file" if os.path.lexists(folder / name) else "it is missing"
            raise MmedgeError(f"cannot read {folder / name}: {what}", _UNSURE)
    return [folder / name for name in names]


def indexed_files(index: Path) -> list[str]:
    """Return the names of the files that an index of weights names.

    Raises:
        MmedgeError: It is not an index, or names something other than safetensors beside it.
    """
    if not index.is_file():
        raise MmedgeError(f"cannot read {index}: it is not a regular file", _UNSURE)
    found: Any = read_json(index)
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not named or not isinstance(found.get("metadata"), dict):
        raise MmedgeError(f"{index} is not an index of weights", _UNSURE)
    for weight, name in named.items():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise MmedgeError(
                f"{index.name}: {weight:.80} is in {str(name)[:80]!r}; weights are read only from *.safetensors in the same folder",
                _UNSURE,
            )
    return sorted(set(named.values()))


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter beside the weights.

    Raises:
        MmedgeError: There is one.
    """
    if os.path.lexists(folder / ADAPTER):
        raise _adapted(str(folder))


def check_place(place: str, revision: str | None) -> str | None:
    """Check where weights are about to be loaded from, and return the revision to load.

    Args:
        place: A folder or a hub id.
        revision: Of a hub id.

    Raises:
        MmedgeError: There is an adapter, or an index names what is not a safetensors file beside it.
        OSError: The hub cannot be reached.
    """
    folder = Path(place)
    if folder.is_dir():
        refuse_adapter(folder)
        weight_files(folder)
        return revision
    from transformers.utils.hub import cached_file, extract_commit_hash
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(place, revision=revision) is not None:
        raise _adapted(place)
    index = cached_file(place, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return revision
    indexed_files(Path(index))
    return extract_commit_hash(index, None) or revision  # what was checked is what is loaded


def _adapted(place: str) -> MmedgeError:
    return MmedgeError(
        f"{place} has an adapter beside its weights ({ADAPTER})",
        "merge it first (peft: model.merge_and_unload()), save the whole model, and name that folder",
    )
