"""CTranslate2 on a folder that its converter wrote (`model.bin`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.engines.peers import Peer, greedy_only, peer_entry, sequence, until
from mmedge.errors import MmedgeError
from mmedge.storage import read_json
from mmedge.tasks.encoding import Prompt, PromptEncoder


class CTranslate2Engine:
    """CTranslate2 with its own greedy loop; it takes token strings, not ids; its `vocabulary.json` lists them.

    Args:
        folder: With `model.bin`.
        encoder: The student's.
        threads: Within one operation.
    """

    def __init__(self, folder: Path, encoder: PromptEncoder, threads: int) -> None:
        ctranslate2 = import_module("ctranslate2")
        self._two = encoder.family == "encoder-decoder"
        settings: dict[str, Any] = {"device": "cpu", "intra_threads": threads, "inter_threads": 1}
        self._vocabulary = self._read_vocabulary(folder)
        self._model: Any = (ctranslate2.Translator if self._two else ctranslate2.Generator)(str(folder), **settings)
        self._special = encoder.special

    @staticmethod
    def _read_vocabulary(folder: Path) -> list[str]:
        for name in ("vocabulary.json", "shared_vocabulary.json", "source_vocabulary.json"):
            if (folder / name).is_file():
                return [str(piece) for piece in read_json(folder / name)]
        raise MmedgeError(f"{folder} has no vocabulary.json", "convert it with CTranslate2 3.17 or newer")

    def vocabulary(self) -> list[str] | None:
        return self._vocabulary

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[place] for place in ids]

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        greedy_only(how, "CTranslate2")
        started = time.perf_counter()
        moments: list[tuple[int, float]] = []

        def came(step: Any) -> bool:
            moments.append((int(step.step), time.perf_counter() - started))
            return False

        settings = {
            "beam_size": 1,
            "sampling_topk": 1,
            "end_token": [self._special.eos],
            "return_end_token": True,
            "callback": came,
        }
        if self._two:
            found = self._model.translate_batch(
                [self._pieces(prompt.context) for prompt in prompts],
                # the converter has it begin with the start token by itself
                target_prefix=[self._pieces(prompt.begun[1:]) for prompt in prompts],
                max_decoding_length=max_new_tokens + max(len(prompt.begun) - 1 for prompt in prompts),
                max_input_length=0,
                **settings,
            )
            hypotheses = [self._ids(result.hypotheses[0])[len(p.begun) - 1 :] for result, p in zip(found, prompts, strict=True)]
        else:
            found = self._model.generate_batch(
                [self._pieces(sequence(prompt)) for prompt in prompts],
                max_length=max_new_tokens,
                include_prompt_in_result=False,
                **settings,
            )
            hypotheses = [list(result.sequences_ids[0]) for result in found]
        seconds = time.perf_counter() - started
        rows = [until(row[:max_new_tokens], self._special.eos) for row in hypotheses]
        first = moments[0][1] if moments else seconds
        steps = len({step for step, _ in moments}) or 1
        return Generation([row for row, _ in rows], first, seconds, steps, [], [end for _, end in rows])

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        if not hasattr(self, "_places"):
            self._places = {piece: place for place, piece in enumerate(self._vocabulary)}
        return [self._places[piece] for piece in pieces]

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits that follow each prompt and `more`, (prompts, vocabulary)."""
        return np.concatenate([self._last(prompt, more, 1) for prompt in prompts])

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        return self._last(prompt, target[:-1], len(target))

    def _last(self, prompt: Prompt, more: Sequence[int], count: int) -> Logits:
        """Return the logits of the last positions, (count, vocabulary)."""
        if not self._two:
            read = self._pieces([*sequence(prompt), *more])
            whole: Logits = np.array(self._model.forward_batch([read]), dtype=np.float32)
            return whole[0, -count:]
        written = self._pieces([*prompt.begun[1:], *more])
        result = self._model.translate_batch(
            [self._pieces(prompt.context)],
            target_prefix=[written],
            beam_size=1,
            max_decoding_length=len(written) + 1,
            max_input_length=0,
            end_token=[self._special.eos],
            return_end_token=True,
            return_logits_vocab=True,
        )[0]
        return np.stack([np.array(row, dtype=np.float32).reshape(-1) for row in result.logits[0][-count:]])

    def conversation(self) -> Engine:
        """Return itself: nothing is remembered between calls."""
        return self


PEER = Peer(
    "ctranslate2",
    "ctranslate2",
    "pip install ctranslate2",
    "a folder that CTranslate2's converter wrote",
    "model.bin",
    CTranslate2Engine,
)
ENTRY = peer_entry(PEER)
