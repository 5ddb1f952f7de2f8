"""A student's weights, read from safetensors one at a time, each checked to be finite numbers.

Files as transformers 4.57 and 5.x write them: one, or several with an index; float32, float16 or bfloat16; a tied head left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  # without it numpy has no bfloat16
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mmedge.errors import MmedgeError
from mmedge.students.weight_files import weight_files

HEAD = "lm_head.weight"
TABLE = "embedding"  # what graphs call the table that is looked up in, and where it is tied, the head too
_TEXT_MODEL = "model.language_model."
Weights = Mapping[str, NDArray[np.float32]]


class WeightFiles(Mapping[str, NDArray[np.float32]]):
    """The weights in a folder's safetensors by name; nothing is kept in memory.

    transformers saves the text model of one that reads images too under that one's names; here they are the text model's own.

    Args:
        folder: A folder in Hugging Face format, in one file or in several.

    Raises:
        MmedgeError: The folder has no safetensors, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder) or sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="np") as file:
                    self._files |= {_own_name(name): (path, name) for name in file.keys()}  # noqa: SIM118  # no mapping
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from None
        if not self._files:
            raise MmedgeError(f"{folder} holds no weights (*.safetensors)", "distil the student again, or restore the folder")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return a weight as float32.

        Raises:
            KeyError: There is none of this name.
            MmedgeError: It cannot be read, or holds NaN or infinity.
        """
        path, stored = self._files[name]
        try:
            with safe_open(str(path), framework="np") as file:
                weight: NDArray[np.float32] = file.get_tensor(stored).astype(np.float32, copy=False)
        except (SafetensorError, OSError, TypeError) as error:
            raise _unreadable(path, error) from None
        # a sum is finite only if all are, and needs no array of the weight's size; float32 may overflow where float64 does not
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise MmedgeError(f"{self.folder}: the weight {name} holds NaN or infinity", "distil again with a lower learning rate")
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def check(self) -> None:
        """Read every weight once.

        Raises:
            MmedgeError: One cannot be read, or holds NaN or infinity.
        """
        for name in self:
            self[name]


def _own_name(name: str) -> str:
    return f"model.{name.removeprefix(_TEXT_MODEL)}" if name.startswith(_TEXT_MODEL) else name


def has_own_head(weights: Weights, embedding: str) -> bool:
    """Return whether there is a head that differs from the embedding; transformers 5.x decides by this, not by the config.

    Args:
        weights: All weights.
        embedding: The name of the embedding's.
    """
    return HEAD in weights and not np.array_equal(weights[HEAD], weights[embedding])


def _unreadable(path: Path, error: Exception) -> MmedgeError:
    return MmedgeError(f"cannot read {path}: {error}", "distil the student again, or restore the folder")
