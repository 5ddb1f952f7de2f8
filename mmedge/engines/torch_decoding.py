"""The torch student as an engine: the same interface as a bundle's, so that both are scored and measured in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, by_beginning, decode, left_padded, right_padded
from mmedge.engines.speaker import Speaker
from mmedge.students import dialects
from mmedge.students.student import TorchStudent
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms import AnswerForm

# prompts in a batch: enough to fill two cores, few enough for a few hundred MB; a GPU takes as long for one as for many
_ROWS = {"cpu": 32, "cuda": 256}


def batch_rows(student: TorchStudent) -> int:
    """Return the batch size that suits a student best."""
    return _ROWS.get(next(student.model.parameters()).device.type, 32)


def torch_speaker(
    student: TorchStudent, form: AnswerForm | None = None, max_answer_tokens: int = 0, max_rationale_tokens: int = 0
) -> Speaker:
    """Return the speaker of a torch student; limits are only needed for `Speaker.thoughts`."""
    return Speaker(TorchEngine(student), student.encoder, form, max_answer_tokens, max_rationale_tokens)


class TorchEngine:
    """Continues token sequences with a torch student and its KV cache."""

    def __init__(self, student: TorchStudent) -> None:
        self._student = student
        self._model = student.model.eval()
        self._special = student.encoder.special
        self._cache = dialects.cache_argument(student.model)
        self._device = next(student.model.parameters()).device

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        if self._student.family == "encoder-decoder":
            return by_beginning(self._generate, prompts, max_new_tokens, how)
        return self._generate(prompts, max_new_tokens, how)

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding) -> Generation:
        steps = self._seq2seq(prompts) if self._student.family == "encoder-decoder" else self._causal(prompts)
        return decode(*steps, len(prompts), self._special.eos, self._special.pad, max_new_tokens, how)

    def conversation(self) -> Engine:
        """Return itself: nothing is remembered between calls."""
        return self

    def _causal(self, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
        ids, mask = left_padded([prompt.context + prompt.begun for prompt in prompts], self._special.pad)
        state: dict[str, Any] = {"mask": self._tensor(mask)}

        def run(tokens: torch.Tensor) -> Logits:
            positions = (state["mask"].cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            output = self._model(
                input_ids=tokens,
                attention_mask=state["mask"],
                position_ids=positions,
                **{self._cache: state.get("past")},
                use_cache=True,
                logits_to_keep=1,
            )
            state["past"] = output[self._cache]
            state["mask"] = torch.cat([state["mask"], state["mask"].new_ones(len(tokens), 1)], dim=1)
            return np.asarray(output.logits[:, -1].float().cpu().numpy())

        return lambda: run(self._tensor(ids)), lambda tokens: run(self._tensor(tokens[:, None]))

    def _seq2seq(self, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
        ids, mask = left_padded([prompt.context for prompt in prompts], self._special.pad)
        held = self._tensor(mask)
        state: dict[str, Any] = {}

        def run(tokens: torch.Tensor) -> Logits:
            output = self._model(
                encoder_outputs=state["encoded"],
                attention_mask=held,
                decoder_input_ids=tokens,
                **{self._cache: state.get("past")},
                use_cache=True,
            )
            state["past"] = output[self._cache]
            return np.asarray(output.logits[:, -1].float().cpu().numpy())

        def first() -> Logits:
            state["encoded"] = self._model.get_encoder()(input_ids=self._tensor(ids), attention_mask=held)
            return run(torch.tensor([prompt.begun for prompt in prompts], device=self._device))

        return first, lambda tokens: run(self._tensor(tokens[:, None]))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits that follow each prompt and `more`, (prompts, vocabulary)."""
        extended = [Prompt(prompt.context, (*prompt.begun, *more)) for prompt in prompts]
        if self._student.family == "decoder-only":
            logits: Logits = self._causal(extended)[0]()
            return logits
        ids, mask = left_padded([prompt.context for prompt in extended], self._special.pad)
        written, counts = right_padded([prompt.begun for prompt in extended], self._special.pad)
        found = self._model(
            input_ids=self._tensor(ids), attention_mask=self._tensor(mask), decoder_input_ids=self._tensor(written)
        ).logits
        return np.asarray(found[range(len(counts)), (counts - 1).tolist()].float().cpu().numpy())

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        written = torch.tensor([[*prompt.begun, *target[:-1]]], device=self._device)
        context = torch.tensor([prompt.context], device=self._device)
        if self._student.family == "encoder-decoder":
            logits = self._model(input_ids=context, decoder_input_ids=written).logits
        else:
            ids = torch.cat([context, written], dim=1)
            logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=len(target)).logits
        return np.asarray(logits[0, -len(target) :].float().cpu().numpy())
