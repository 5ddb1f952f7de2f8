"""A student in torch: a Hugging Face model with its prompts, special tokens and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from mmedge.errors import MmedgeError
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import Family, PromptEncoder, SpecialTokens
from mmedge.tasks.prompts import CHAT_PROMPTS, DECODER_ONLY_PROMPTS, ENCODER_DECODER_PROMPTS, REASONING_CHAT_PROMPTS


@dataclass
class TorchStudent:
    """A model and how to prompt it.

    Attributes:
        model: The torch model: float32, or quantized by bitsandbytes.
        tokenizer: The fast tokenizer that is saved with it.
        encoder: Encodes prompts and targets with the same tokenizer.
        origin: Where the weights came from, for the record.
        adapted: The model's adapters, while there are any; they are part of `model`.
    """

    model: Any
    tokenizer: transformers.PreTrainedTokenizerFast
    encoder: PromptEncoder
    origin: dict[str, Any]
    adapted: Any = None

    @property
    def family(self) -> Family:
        return self.encoder.family

    @property
    def parameters(self) -> int:
        """Number of distinct parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def assemble(
    model: Any, tokenizer: Any, max_input_tokens: int, origin: dict[str, Any], chat: ChatTemplate | None = None
) -> TorchStudent:
    """Return a model as a student: its family, special tokens and prompts follow from its config and tokenizer.

    Args:
        model: A model of transformers.
        tokenizer: Its tokenizer.
        max_input_tokens: Longer inputs are cut.
        origin: Where the weights came from, for the record.
        chat: The chat that questions are the user's message of; None where they are read as they are.

    Raises:
        MmedgeError: It has no fast tokenizer or no end-of-sequence token.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MmedgeError("the student has no fast tokenizer (tokenizer.json)", "save it with one of transformers' fast tokenizers")
    config = model.config
    family: Family = "encoder-decoder" if config.is_encoder_decoder else "decoder-only"
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else config.eos_token_id
    eos = eos[0] if isinstance(eos, (list, tuple)) else eos
    if eos is None:
        raise MmedgeError("the student has no end-of-sequence token", "set eos_token_id in its config")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    bos = None
    if family == "decoder-only" and tokenizer.bos_token_id is not None:
        ids = tokenizer("x")["input_ids"]
        bos = tokenizer.bos_token_id if ids and ids[0] == tokenizer.bos_token_id else None
    start = config.decoder_start_token_id if family == "encoder-decoder" else None
    prompts = ENCODER_DECODER_PROMPTS if family == "encoder-decoder" else DECODER_ONLY_PROMPTS
    backend = plain_backend(tokenizer)
    if chat is not None:
        if family == "encoder-decoder":
            raise MmedgeError("student.prompt: chat is for decoder-only students", "use prompt: plain")
        prompts, bos = REASONING_CHAT_PROMPTS if chat.reasons else CHAT_PROMPTS, None
        ends = chat.ends(backend)
        eos = eos if ends is None else ends
    special = SpecialTokens(eos=int(eos), pad=int(pad), bos=bos, start=start)
    encoder = PromptEncoder(backend, family, prompts, special, max_input_tokens, chat)
    return TorchStudent(model, tokenizer, encoder, origin)


def plain_backend(tokenizer: Any) -> Any:
    """Return the tokenizer underneath, with truncation and padding off."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def chat_of(tokenizer: Any, system: str, date: str) -> ChatTemplate:
    """Return the chat template that a tokenizer brings.

    Args:
        tokenizer: One of transformers.
        system: The system message of every question.
        date: What the template is told when it asks for today's date.

    Raises:
        MmedgeError: It brings none.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if not template:
        raise MmedgeError("student.prompt: chat, and the model's tokenizer has no chat template", "use prompt: plain")
    tokens = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    return ChatTemplate(str(template), tokens, system, date)
