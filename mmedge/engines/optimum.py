"""optimum's ORTModel on an ONNX export of the same student (`mmedge export --graphs optimum`, or `optimum-cli export onnx`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, by_beginning, left_padded, right_padded
from mmedge.engines.peers import Peer, greedy_only, peer_entry, sequence, tokens_of, until
from mmedge.errors import MmedgeError
from mmedge.storage import read_json
from mmedge.tasks.encoding import Prompt, PromptEncoder


class OptimumEngine:
    """optimum's ORTModel with transformers' `generate`.

    Args:
        folder: An ONNX export with `config.json`.
        encoder: The student's.
        threads: Of ONNX Runtime and torch.
    """

    def __init__(self, folder: Path, encoder: PromptEncoder, threads: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        self._two = encoder.family == "encoder-decoder"
        if bool(read_json(folder / "config.json").get("is_encoder_decoder")) != self._two:
            raise MmedgeError(f"{folder} holds no {encoder.family} student", "name an export of the same student")
        loader = ORTModelForSeq2SeqLM if self._two else ORTModelForCausalLM
        self._model: Any = loader.from_pretrained(folder, session_options=options, provider="CPUExecutionProvider")
        self._torch, self._folder, self._special = torch, folder, encoder.special

    def vocabulary(self) -> list[str] | None:
        return tokens_of(self._folder / "tokenizer.json")

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        greedy_only(how, "optimum")
        return (
            by_beginning(self._generate, prompts, max_new_tokens, how)
            if self._two
            else self._generate(prompts, max_new_tokens, how)
        )

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding) -> Generation:
        from transformers import GenerationConfig, StoppingCriteria

        torch, special = self._torch, self._special
        started = time.perf_counter()
        moments: list[float] = []

        class Clock(StoppingCriteria):  # type: ignore[misc]
            """Records when each token came; stops nothing."""

            def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
                moments.append(time.perf_counter() - started)
                return torch.zeros(len(input_ids), dtype=torch.bool)

        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=special.eos,
            pad_token_id=special.pad,
            decoder_start_token_id=special.start,
        )
        given = self._inputs(prompts)
        written = self._model.generate(**given, generation_config=settings, stopping_criteria=[Clock()])
        seconds = time.perf_counter() - started
        begun = given["decoder_input_ids" if self._two else "input_ids"].shape[1]
        rows = [until(row[begun:].tolist(), special.eos) for row in written]
        tokens, ended = [row for row, _ in rows], [end for _, end in rows]
        return Generation(tokens, moments[0] if moments else seconds, seconds, len(moments), [], ended)

    def _inputs(self, prompts: Sequence[Prompt], more: Sequence[int] = ()) -> dict[str, Any]:
        """Return padded tensors of prompts followed by `more`; all beginnings have one length."""
        reads = [list(prompt.context) if self._two else [*sequence(prompt), *more] for prompt in prompts]
        ids, mask = left_padded(reads, self._special.pad)
        found = {"input_ids": self._torch.from_numpy(ids), "attention_mask": self._torch.from_numpy(mask)}
        if self._two:
            begun, _ = right_padded([[*prompt.begun, *more] for prompt in prompts], self._special.pad)
            found["decoder_input_ids"] = self._torch.from_numpy(begun)
        return found

    def _logits(self, prompts: Sequence[Prompt], more: Sequence[int], last: int) -> Logits:
        """Return the logits of each prompt's last positions, (prompts, last, vocabulary)."""
        given = self._inputs(prompts, more)
        if not self._two:
            given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with self._torch.inference_mode():
            found: Logits = self._model(**given).logits[:, -last:].float().numpy()
        return found

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits that follow each prompt and `more`, (prompts, vocabulary)."""
        if len({len(prompt.begun) for prompt in prompts}) > 1:
            return np.concatenate([self._logits([prompt], more, 1)[:, -1] for prompt in prompts])
        found: Logits = self._logits(prompts, more, 1)[:, -1]
        return found

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        found: Logits = self._logits([prompt], target[:-1], len(target))[0]
        return found

    def conversation(self) -> Engine:
        """Return itself: nothing is remembered between calls."""
        return self


PEER = Peer(
    "optimum", "optimum.onnxruntime", "pip install 'mmedge[optimum]'", "a folder with an ONNX export", "config.json", OptimumEngine
)
ENTRY = peer_entry(PEER)
