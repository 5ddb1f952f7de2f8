"""Vocabulary trimming: a task uses a few thousand of a tokenizer's tens of thousands of tokens, and the table has a row for each.

Kept are special tokens, every token that the task's texts are made of, every part of such a token (what byte-pair encoding builds
it from), and every single character or byte, so that any text still encodes. Dropped tokens were in none of the task's texts, so
these are cut as before: byte-pair merges that never came up are not missed, and of all ways of a unigram model to cut a text the
best is still there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError
from mmedge.export.weights import Weights

_TABLES = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)
_ID_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class TrimmedVocabulary:
    """What is kept of a vocabulary.

    Attributes:
        kept: The old id of each new one, rising.
        of: How many tokens there were.
        tokenizer: The trimmed tokenizer, as `tokenizer.json` holds it.
    """

    kept: tuple[int, ...]
    of: int
    tokenizer: dict[str, Any]

    def renumbered(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings (a config, or special tokens by name) with the ids of special tokens as they are now."""
        new = {old: number for number, old in enumerate(self.kept)}
        found = dict(settings)
        for name in (*_ID_SETTINGS, "bos", "eos", "pad", "start"):
            value = found.get(name)
            if isinstance(value, int):
                found[name] = new.get(value)
            elif isinstance(value, list):
                found[name] = [new[number] for number in value if number in new]
        if "vocab_size" in found:
            found["vocab_size"] = len(self.kept)
        return found


class TrimmedWeights(Mapping[str, NDArray[np.float32]]):
    """A student's weights without the rows of dropped tokens in embedding and head."""

    def __init__(self, weights: Weights, kept: Iterable[int]) -> None:
        self._weights, self._kept = weights, np.fromiter(kept, dtype=np.int64)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        weight = self._weights[name]
        return np.ascontiguousarray(weight[self._kept]) if name in _TABLES else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def trim(tokenizer: str, used: Iterable[int]) -> TrimmedVocabulary:
    """Choose what is kept of a vocabulary.

    Args:
        tokenizer: The content of `tokenizer.json`.
        used: The ids of all tokens that the task's texts are made of, and of special tokens that stand in no text.

    Raises:
        MmedgeError: The tokenizer is of a kind that cannot be trimmed.
    """
    whole: dict[str, Any] = json.loads(tokenizer)
    model = whole["model"]
    kind = model.get("type")
    if kind not in ("BPE", "Unigram"):
        raise MmedgeError(f"a tokenizer of the kind {kind!r} cannot be trimmed", "export without --trim-vocab")
    entries = model["vocab"]
    tokens: dict[str, int] = entries if kind == "BPE" else {token: number for number, (token, _) in enumerate(entries)}
    by_id = {number: token for token, number in tokens.items()}
    ids = set(used) | {added["id"] for added in whole.get("added_tokens", ())}
    ids |= {number for token, number in tokens.items() if len(token) == 1 or _is_byte(token)}
    if kind == "BPE":
        parts = {part for number in ids if number in by_id for part in _parts(by_id[number])}
        ids |= {tokens[part] for part in parts if part in tokens}
        if model.get("unk_token") in tokens:
            ids.add(tokens[model["unk_token"]])
    elif model.get("unk_id") is not None:
        ids.add(int(model["unk_id"]))
    kept = tuple(sorted(ids))
    new = {old: number for number, old in enumerate(kept)}
    if kind == "BPE":
        vocabulary = {by_id[old]: number for old, number in new.items() if old in by_id}
        model["vocab"] = vocabulary
        model["merges"] = [merge for merge in model["merges"] if {*_pair(merge), "".join(_pair(merge))} <= vocabulary.keys()]
    else:
        model["vocab"] = [entries[old] for old in kept if old < len(entries)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[int(model["unk_id"])]
    for added in whole.get("added_tokens", ()):
        added["id"] = new[added["id"]]
    _renumber_processor(whole.get("post_processor"), new)
    return TrimmedVocabulary(kept, len(tokens), whole)


def _is_byte(token: str) -> bool:
    """Return whether a token stands for one byte, as `<0x0A>` does."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _parts(token: str) -> Iterator[str]:
    """Yield every part of a token, however it was merged."""
    return (token[first:last] for first in range(len(token)) for last in range(first + 1, len(token) + 1))


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumber_processor(processor: Any, new: Mapping[int, int]) -> None:
    """Change all ids in a post-processor."""
    if not isinstance(processor, dict):
        return
    if isinstance(processor.get("special_tokens"), dict):
        for tokens in processor["special_tokens"].values():
            tokens["ids"] = [new[number] for number in tokens["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new[processor[name][1]]
    for part in processor.get("processors") or ():
        _renumber_processor(part, new)
