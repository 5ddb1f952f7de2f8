"""A batch of token sequences that a decoder with a cache has read, whatever computes it. Knows token ids alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mmedge.engines.generation import Logits
from mmedge.tasks.forms.constraints import Tokens


class Reading(Protocol):
    """What a decoder has read, row by row; it can be rewound from the end, so that several texts follow one beginning.

    Attributes:
        lengths: Tokens that each row holds, (rows,).
    """

    lengths: Tokens

    @property
    def capacity(self) -> int:
        """The most tokens of any row."""
        ...

    @property
    def held(self) -> Mapping[str, Any]:
        """What belongs to its rows' contexts beside the cache, such as cross-attention's keys and values; empty for nothing."""
        ...

    @property
    def rewinds(self) -> bool:
        """Whether what was read can be rewound."""
        ...

    def read(self, ids: Tokens, counts: Tokens, wanted: Tokens) -> Logits:
        """Read more tokens.

        Args:
            ids: (rows, new), padded behind.
            counts: (rows,), how many of each row's are tokens.
            wanted: (n,), whose logits are wanted: places in the flat (rows · new).

        Returns:
            (n, vocabulary), until the next call.
        """
        ...

    def step(self, tokens: Tokens) -> Logits:
        """Read one token of each row, (rows,), and return the logits behind it, (rows, vocabulary), until the next call."""
        ...

    def rewind(self, lengths: Tokens | int) -> None:
        """Rewind to the first tokens of each row, (rows,)."""
        ...

    def saved(self) -> Any:
        """Return what `back` needs to go back to what is read now."""
        ...

    def back(self, saved: Any) -> None:
        """Go back to what was read when it was saved; nothing before that has been rewound since."""
        ...

    def rows(self, wanted: Tokens, capacity: int) -> Reading:
        """Return some of the rows, in any order and number, as a reading of their own; this one stays as it is."""
        ...
