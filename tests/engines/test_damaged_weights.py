"""Weights that hash as the manifest says, and are no weights: one line, on either engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmedge.engines.generation import Decoding, TokenWriter
from mmedge.engines.native.engine import mapped
from mmedge.errors import MmedgeError


def test_logits_that_are_not_numbers_are_no_certainty() -> None:
    writer = TokenWriter(2, Decoding(scored=True), 1, 4)
    logits = np.zeros((2, 8), dtype=np.float32)
    writer.take(logits, np.arange(2))
    logits[1, 3] = np.nan
    with pytest.raises(MmedgeError, match="logits are not numbers"):
        writer.take(logits, np.arange(2))


def test_an_empty_file_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.data").touch()
    with pytest.raises(MmedgeError, match=r"weights\.data is empty\n.*export the student again"):
        mapped(tmp_path, {"file": "weights.data"})
