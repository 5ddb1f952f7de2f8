"""Students built from nothing: a small T5 with random weights, and a tokenizer trained on the task's texts."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmedge.recipe import ScratchSection
from mmedge.storage import sha256_json
from mmedge.students.student import TorchStudent, assemble

SCRATCH = "scratch"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer: two digits at a time, the space marked in front of a word, bytes for the rest."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    # numbers below a hundred are one token: a small student copies them from the question in one step
    words = tokenizers.Regex(r"▁?[0-9]{1,2}|▁?[^▁0-9\p{L}]|▁?\p{L}+|▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(words, behavior="isolated")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[*"0123456789+-*/().,:;?!='\"", "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    written = json.loads(tokenizer.to_str())
    known = written["model"]["vocab"]
    for byte in range(256):  # ordinary tokens: special ones would be left out of decoded text
        known.setdefault(f"<0x{byte:02X}>", len(known))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(written))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_scratch(section: ScratchSection, texts: Iterable[str], max_input_tokens: int, seed: int) -> TorchStudent:
    """Build a small T5 (the original form: ReLU layers, tied head), random weights, a tokenizer trained on `texts`.

    The tied head makes copying a number from the question nearly free to learn, which is most of what an answer is.
    """
    tokenizer = train_tokenizer(texts, section.vocabulary)
    config = transformers.T5Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        d_model=section.d_model,
        d_kv=section.d_kv,
        d_ff=section.d_ff,
        num_layers=section.encoder_layers,
        num_decoder_layers=section.decoder_layers,
        num_heads=section.heads,
        dropout_rate=section.dropout,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(config)
    origin = {"source": SCRATCH, "fingerprint": sha256_json(section.model_dump())}
    return assemble(model, tokenizer, max_input_tokens, origin)
