"""llama.cpp through llama-cpp-python, on a GGUF file of the same weights; decoder-only."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, decode
from mmedge.engines.peers import Peer, in_turn, peer_entry, sequence
from mmedge.errors import MmedgeError
from mmedge.tasks.encoding import Prompt, PromptEncoder


class LlamaCppEngine:
    """llama.cpp through llama-cpp-python: it computes logits, our loop chooses tokens; one row after the other.

    Args:
        file: A GGUF file.
        encoder: The student's.
        threads: Of reading and of writing.
    """

    def __init__(self, file: Path, encoder: PromptEncoder, threads: int) -> None:
        if encoder.family != "decoder-only":
            raise MmedgeError(
                f"llama.cpp:{file} cannot be used: the student is an encoder-decoder", "compare with optimum or ctranslate2"
            )
        room = encoder.max_input_tokens + 512  # more than the longest answers and rationales
        self._api = import_module("llama_cpp")
        self._llama: Any = self._api.Llama(str(file), n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False)
        self._special, self._room = encoder.special, self._llama.n_ctx()

    def vocabulary(self) -> list[str] | None:
        vocabulary = self._api.llama_model_get_vocab(self._llama.model)
        texts = (self._api.llama_vocab_get_text(vocabulary, place) for place in range(self._llama.n_vocab()))
        return [text.decode("utf-8", "replace") if text else "" for text in texts]

    def _read(self, tokens: Sequence[int]) -> Logits:
        """Read tokens after those read before; return the logits after the last, (1, vocabulary)."""
        if self._llama.n_tokens + len(tokens) > self._room:
            raise MmedgeError(f"the text does not fit into llama.cpp's context of {self._room} tokens", "shorten the question")
        self._llama.eval(list(tokens))
        pointer = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return np.array(np.ctypeslib.as_array(pointer, (self._llama.n_vocab(),)), dtype=np.float32)[None]

    def _begin(self, tokens: Sequence[int]) -> Logits:
        self._llama.reset()
        return self._read(tokens)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""

        def one(prompt: Prompt, how: Decoding) -> Generation:
            eos, pad = self._special.eos, self._special.pad
            return decode(
                lambda: self._begin(sequence(prompt)), lambda tokens: self._read(tokens.tolist()), 1, eos, pad, max_new_tokens, how
            )

        return in_turn(one, prompts, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits that follow each prompt and `more`, (prompts, vocabulary)."""
        return np.concatenate([self._begin([*sequence(prompt), *more]) for prompt in prompts])

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        rows = [self._begin(sequence(prompt))]
        rows += [self._read([token]) for token in target[:-1]]
        return np.concatenate(rows)

    def conversation(self) -> Engine:
        """Return itself: nothing is remembered between calls."""
        return self


PEER = Peer("llama.cpp", "llama_cpp", "pip install llama-cpp-python (it compiles for minutes)", "a GGUF file", "", LlamaCppEngine)
ENTRY = peer_entry(PEER)
