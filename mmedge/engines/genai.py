"""onnxruntime-genai on a folder that its model builder wrote (`genai_config.json`); decoder-only."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.engines.peers import Peer, greedy_only, in_turn, peer_entry, sequence, tokens_of
from mmedge.errors import MmedgeError
from mmedge.tasks.encoding import Prompt, PromptEncoder


class GenaiEngine:
    """onnxruntime-genai with its own greedy loop; one row after the other.

    Args:
        folder: With `genai_config.json`.
        encoder: The student's.
        threads: Of ONNX Runtime.
    """

    def __init__(self, folder: Path, encoder: PromptEncoder, threads: int) -> None:
        if encoder.family != "decoder-only":
            raise MmedgeError(
                f"genai:{folder} cannot be used: the student is an encoder-decoder", "compare with optimum or ctranslate2"
            )
        self._genai = import_module("onnxruntime_genai")
        config = self._genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        # the student's end token decides; the folder may name another one, which the loop below ignores
        config.overlay(json.dumps({"model": {"eos_token_id": encoder.special.eos, "decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        self._folder, self._special = folder, encoder.special

    def vocabulary(self) -> list[str] | None:
        return tokens_of(self._folder / "tokenizer.json")

    def _generator(self, room: int) -> Any:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=room, do_sample=False, num_beams=1, batch_size=1)
        return self._genai.Generator(self._model, parameters)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        greedy_only(how, "onnxruntime-genai")

        def one(prompt: Prompt, _: Decoding) -> Generation:
            started = time.perf_counter()
            read = sequence(prompt)
            generator = self._generator(len(read) + max_new_tokens)
            generator.append_tokens(np.array([read], dtype=np.int32))
            written: list[int] = []
            first = 0.0
            ended = False
            steps = 0
            while not ended and len(written) < max_new_tokens:
                generator.generate_next_token()
                steps += 1
                token = int(generator.get_next_tokens()[0])
                first = first or time.perf_counter() - started
                ended = token == self._special.eos
                if not ended:
                    written.append(token)
            return Generation([written], first, time.perf_counter() - started, steps, [], [ended])

        return in_turn(one, prompts, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits that follow each prompt and `more`, (prompts, vocabulary)."""
        rows = []
        for prompt in prompts:
            read = [*sequence(prompt), *more]
            generator = self._generator(len(read) + 1)
            generator.append_tokens(np.array([read], dtype=np.int32))
            rows.append(np.array(generator.get_logits(), dtype=np.float32).reshape(1, -1))
        return np.concatenate(rows)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        return np.concatenate([self.next_logits([prompt], target[:place]) for place in range(len(target))])

    def conversation(self) -> Engine:
        """Return itself: nothing is remembered between calls."""
        return self


PEER = Peer(
    "genai",
    "onnxruntime_genai",
    "pip install onnxruntime-genai",
    "a folder that onnxruntime-genai's model builder wrote",
    "genai_config.json",
    GenaiEngine,
)
ENTRY = peer_entry(PEER)
