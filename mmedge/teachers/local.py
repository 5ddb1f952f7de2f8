"""The teacher on this machine: a transformers model that answers a batch of prompts at a time.

Sampling uses the Gumbel trick: noise from the text's own seed is added to every logit and the largest sum wins, which samples from
the softmax. So a text depends on its prompt and seed, not on the others in its batch (but for the last bits of a
float). A batch that does not fit into memory is halved for good. torch is imported when the model is loaded, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError, missing_extra
from mmedge.openai import ChatFailure, ChatReply, Completion, Message
from mmedge.students.sources import load, resolve
from mmedge.tasks.chat.template import REASONING
from mmedge.teachers.base import SampleRequest

_Waiting = tuple[SampleRequest, "asyncio.Future[ChatReply]"]


@dataclass
class LocalTeacher:
    """A `SampledTeacher` that is a model in this process.

    Attributes:
        source: Hub id, folder, `.gguf` file, or `package:NAME/FILE`.
        revision: Of a hub id.
        tokenizer: Where the tokenizer comes from, where not from the source.
        dtype: `auto` is bfloat16 on a GPU that has it, float16 on another, float32 on a CPU.
        quantization: `none`, or bitsandbytes' `int8` or `nf4`.
        device: `auto`, `cpu` or `cuda`.
        batch_size: Prompts at a time, at first.
        threads: For a CPU; None for all cores.
        temperature: For sampling; 0 takes the likeliest token.
        top_p: For sampling.
        stop: Where texts end.
        thinking: Whether the model reasons in a block of its own, where its chat template lets that be chosen; None as it has it.
    """

    source: str
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    batch_size: int = 16
    threads: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    thinking: bool | None = None

    def __post_init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._room = self.batch_size

    @property
    def name(self) -> str:
        return self.source if self.source.startswith("package:") or not Path(self.source).exists() else Path(self.source).name

    @property
    def parallel(self) -> tuple[int, int]:
        return 2 * self.batch_size, 2 * self.batch_size

    def most_tokens(self, messages: tuple[Message, ...]) -> int:
        """Return how many tokens a prompt has at most: its bytes; local tokens cost nothing."""
        return sum(len(content.encode("utf-8", "replace")) for _, content in messages)

    async def __aenter__(self) -> LocalTeacher:
        self._thread = ThreadPoolExecutor(max_workers=1)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._load)
        self._serving = loop.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown(wait=True)

    async def sample(self, request: SampleRequest) -> ChatReply:
        future: asyncio.Future[ChatReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._arrived.set()
        return await future

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            if not self._waiting:
                await self._arrived.wait()
            await asyncio.sleep(0.01)  # requests that were sent together share a batch
            batch = [self._waiting.popleft() for _ in range(min(self._room, len(self._waiting)))]
            batch = [(request, future) for request, future in batch if not future.done()]
            if not batch:
                continue
            try:
                replies = await loop.run_in_executor(self._thread, self._sample_batch, [request for request, _ in batch])
            except MemoryError as error:
                if len(batch) == 1:
                    problem = MmedgeError(
                        f"out of memory for a single prompt: {error}",
                        "use a smaller teacher, set teacher.quantization, or shorten the texts",
                    )
                    if not batch[0][1].done():
                        batch[0][1].set_exception(problem)
                    continue
                self._room = max(1, len(batch) // 2)
                self._waiting.extendleft(reversed(batch))
            except Exception as error:
                reason = str(error).strip().split("\n")[0][:200]
                for _, future in batch:
                    if not future.done():
                        future.set_exception(MmedgeError(f"{self.name}: {type(error).__name__}: {reason}"))
            else:
                for (_, future), reply in zip(batch, replies, strict=True):
                    if future.done():
                        continue
                    if isinstance(reply, ChatFailure):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)

    # ------------------------------------------------------------------------------------------------- torch

    def _load(self) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise missing_extra(error.name or "torch", "distill") from None
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MmedgeError("teacher.device: no CUDA device found", "set it to auto or cpu")
        cuda = self.device != "cpu" and torch.cuda.is_available()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.dtype) if self.dtype != "auto" else torch.float32
        if self.dtype == "auto" and cuda:
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        source = resolve(self.source, self.revision, "teacher.source")
        arguments: dict[str, Any] = {"dtype": dtype}
        if self.quantization != "none":
            arguments |= self._quantized(source.kind, dtype, "cuda" if cuda else "cpu")
        model, self._tokenizer = load(source, self.revision, self.tokenizer, "teacher.source", **arguments)
        if self.quantization == "nf4" and not cuda:
            from mmedge.students.bitsandbytes import restore_unsupported_linears

            restore_unsupported_linears(model)
        self._model = model.eval() if self.quantization != "none" else model.eval().to("cuda" if cuda else "cpu")
        self._generation = transformers.GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=self._ends(), pad_token_id=self._padding()
        )
        self._encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if self._encoder_decoder:
            self._generation.decoder_start_token_id = model.config.decoder_start_token_id

    def _quantized(self, kind: str, dtype: Any, device: str) -> dict[str, Any]:
        """Return what `from_pretrained` needs for bitsandbytes."""
        from mmedge.students.bitsandbytes import need_bitsandbytes

        need_bitsandbytes()
        if kind == "gguf":
            raise MmedgeError(
                "teacher.quantization: a .gguf file is quantized already and is dequantized when it is read",
                "set it to none, or name a folder",
            )
        import transformers

        if self.quantization == "int8":
            config = transformers.BitsAndBytesConfig(load_in_8bit=True)
        else:
            config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        return {"quantization_config": config, "device_map": {"": device}}

    def _ends(self) -> list[int]:
        """Return the tokens that end a text, by the model's own settings and by its tokenizer's."""
        known = [self._tokenizer.eos_token_id, self._model.config.eos_token_id]
        settings = getattr(self._model, "generation_config", None)
        known.append(getattr(settings, "eos_token_id", None))
        ends = [end for each in known for end in (each if isinstance(each, (list, tuple)) else [each]) if end is not None]
        return list(dict.fromkeys(int(end) for end in ends)) or [0]

    def _padding(self) -> int:
        return int(self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._ends()[0])

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        """Return the tokens of a chat: by the model's own template, or as a plain transcript where it has none."""
        chat = [{"role": role, "content": content} for role, content in messages]
        if getattr(self._tokenizer, "chat_template", None):
            # Granite's templates call it by another name than all others
            chosen = {} if self.thinking is None else {"enable_thinking": self.thinking, "thinking": self.thinking}
            ids = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False, **chosen)
        else:
            lines = [content for _, content in messages]
            ids = self._tokenizer("\n\n".join(lines) + "\n")["input_ids"]
        return list(ids)

    def _sample_batch(self, requests: list[SampleRequest]) -> list[ChatReply | ChatFailure]:
        """Sample one text for each request.

        Raises:
            MemoryError: The batch does not fit.
        """
        import torch

        prompts = [self._prompt(request.messages) for request in requests]
        longest = getattr(self._model.config, "max_position_embeddings", None)
        replies: list[ChatReply | ChatFailure | None] = [None] * len(requests)
        fitting = []
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if longest and not self._encoder_decoder and len(prompt) + request.max_tokens > longest:
                what = f"{len(prompt)} prompt tokens and {request.max_tokens} new ones exceed the model's context of {longest}"
                replies[index] = ChatFailure("rejected", what, rejected=True)
            else:
                fitting.append(index)
        if fitting:
            try:
                texts = self._generate([requests[index] for index in fitting], [prompts[index] for index in fitting])
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                said = str(error).lower()
                if isinstance(error, RuntimeError) and "memory" not in said and "alloc" not in said:
                    raise
                problem = MemoryError(str(error).split("\n")[0][:120])
            else:
                for index, text in zip(fitting, texts, strict=True):
                    replies[index] = text
                return [reply for reply in replies if reply is not None]
            gc.collect()  # outside of `except`, since the traceback keeps what did not fit alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise problem
        return [reply for reply in replies if reply is not None]

    def _generate(self, requests: list[SampleRequest], prompts: list[list[int]]) -> list[ChatReply]:
        import torch
        import transformers

        width = max(map(len, prompts))
        pad = self._padding()
        left = not self._encoder_decoder
        ids = [[pad] * (width - len(p)) + p if left else p + [pad] * (width - len(p)) for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) if left else [1] * len(p) + [0] * (width - len(p)) for p in prompts]
        device = self._model.device
        processors = transformers.LogitsProcessorList()
        if self.temperature > 0:
            processors.append(_SeededSampling([request.seed for request in requests], self.temperature, self.top_p))
        longest = max(request.max_tokens for request in requests)
        stops = {"stop_strings": list(self.stop), "tokenizer": self._tokenizer} if self.stop else {}
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._generation,
                max_new_tokens=longest,
                logits_processor=processors,
                **stops,
            )
        start = 1 if self._encoder_decoder else width
        rows = zip(output.tolist(), requests, prompts, strict=True)
        return [self._reply(row[start:], request.max_tokens, prompt) for row, request, prompt in rows]

    def _reply(self, tokens: list[int], max_tokens: int, prompt: list[int]) -> ChatReply:
        ends = set(self._ends())
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        written = tokens[: min(max_tokens, len(tokens) if end is None else end)]
        finish = "stop" if len(written) < max_tokens else "length"
        text = self._text(written, prompt)
        for stop in self.stop:
            if stop in text:
                text, finish = text.split(stop, 1)[0], "stop"
        return ChatReply((Completion(text, finish),), len(prompt), len(written), False)

    def _text(self, written: list[int], prompt: list[int]) -> str:
        """Return the text of written tokens: without special tokens, but with the marks of a reasoning block.

        Where the prompt has begun the block, the text begins with its mark, so that a block that never ends is seen as one.
        """
        marks = {self._tokenizer.convert_tokens_to_ids(mark): mark for mark in REASONING}
        marks = {token: mark for token, mark in marks.items() if token is not None and token != self._tokenizer.unk_token_id}
        parts, begun = [""], 0
        for place, token in enumerate(written):
            if token in marks:
                parts += [self._tokenizer.decode(written[begun:place], skip_special_tokens=True), marks[token]]
                begun = place + 1
        parts.append(self._tokenizer.decode(written[begun:], skip_special_tokens=True))
        opens = self._tokenizer.decode(prompt[-8:], skip_special_tokens=False).rstrip().endswith(REASONING[0])
        return (REASONING[0] if opens else "") + "".join(parts)


class _SeededSampling:
    """A logits processor after which the largest score is a sample: Gumbel noise from each row's own generator is added.

    Args:
        seeds: One for each row.
        temperature: Divides the logits.
        top_p: The likeliest tokens that together have this probability can be sampled, and no others.
    """

    def __init__(self, seeds: list[int], temperature: float, top_p: float) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores of shape (rows, vocabulary) with noise."""
        import torch

        scores = scores.float() / self._temperature
        if self._top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            scores = scores.masked_fill(
                torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self._top_p), -torch.inf
            )
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
        return scores + noise.to(scores.device)
