"""A student's weights, read from safetensors one at a time, each checked to be finite numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mmedge.errors import MmedgeError

Weights = Mapping[str, NDArray[np.float32]]


class WeightFiles(Mapping[str, NDArray[np.float32]]):
    """The weights in a folder's safetensors by name; nothing is kept in memory.

    Args:
        folder: A folder in Hugging Face format, in one file or in several.

    Raises:
        MmedgeError: There is no file, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="np") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
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
        path = self._files[name]
        try:
            with safe_open(str(path), framework="np") as file:
                weight: NDArray[np.float32] = file.get_tensor(name).astype(np.float32, copy=False)
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


def _unreadable(path: Path, error: Exception) -> MmedgeError:
    return MmedgeError(f"cannot read {path}: {error}", "distil the student again, or restore the folder")
