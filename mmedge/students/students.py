"""Students: from the hub, a folder, a GGUF file or an installed package, or built from scratch; saved with `mmedge.json`.

A student is a Hugging Face model plus what it takes to talk to it: prompts, special tokens, and the task it was made for.
Weights are safetensors or GGUF, never pickle; no code that comes with a model is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmedge import __version__
from mmedge.engines.drafting import EMPTY, PhraseTable
from mmedge.engines.drafting import FILE_NAME as DRAFTS
from mmedge.errors import MmedgeError
from mmedge.recipe import ScratchSection, StudentSection
from mmedge.storage import read_json, sha256_json, write_json
from mmedge.students import dialects
from mmedge.students.bitsandbytes import check_rounded, need_bitsandbytes, restore_unfit_products
from mmedge.students.sources import ModelSource, check_folder, load, resolve
from mmedge.tasks.encoding import Family, PromptEncoder, SpecialTokens
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS, ENCODER_DECODER_PROMPTS, StudentPrompts

SCRATCH = "scratch"
FORMAT = 1
PIECES = "pieces.json"


@dataclass
class Student:
    """A model and how to talk to it.

    Attributes:
        model: The torch model: float32, or rounded by bitsandbytes.
        tokenizer: The fast tokenizer that is saved with it.
        encoder: Encodes prompts and targets with the same tokenizer.
        origin: Where the weights came from, for the record.
        adapted: The model's adapters, while there are any; they stand inside `model`.
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


def resolve_source(section: StudentSection) -> ModelSource:
    """Find a student's weights without loading them.

    Raises:
        MmedgeError: There is no such file, package or folder, or a folder has no safetensors weights.
    """
    if section.source == SCRATCH:
        return ModelSource(SCRATCH, None, SCRATCH, sha256_json(section.scratch.model_dump()))
    return resolve(section.source, section.revision, "student.source")


def load_student(section: StudentSection, source: ModelSource, max_input_tokens: int, texts: Iterable[str], seed: int) -> Student:
    """Load or build the student that a recipe starts from.

    Args:
        section: The recipe's `student`.
        source: The same, resolved.
        max_input_tokens: Longer inputs are cut.
        texts: The task's texts, for a tokenizer trained from scratch.
        seed: Seeds the weights of a student from scratch.

    Raises:
        MmedgeError: The hub cannot be reached, or what is there is no supported model.
    """
    if source.kind == SCRATCH:
        return build_scratch(section.scratch, texts, max_input_tokens, seed)
    if source.kind == "folder" and source.path is not None and (source.path / "mmedge.json").is_file():
        if "rounded" in student_details(source.path):
            raise MmedgeError(f"student.source: {source.path} is rounded: it cannot learn", "name the student it was made from")
        return open_student(source.path, max_input_tokens)
    model, tokenizer = load(source, section.revision, section.tokenizer, "student.source", dtype=torch.float32)
    local = source.kind in ("folder", "gguf") and not source.name.startswith("package:")
    shown = Path(source.name).name if local else source.name  # a bundle carries no paths of the machine that made it
    return _assemble(model, tokenizer, max_input_tokens, {"source": shown, "fingerprint": source.fingerprint})


def _assemble(model: Any, tokenizer: Any, max_input_tokens: int, origin: dict[str, Any]) -> Student:
    if not getattr(tokenizer, "is_fast", False):
        raise MmedgeError("the student has no fast tokenizer (tokenizer.json)", "save one with transformers' fast tokenizer")
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
    special = SpecialTokens(eos=int(eos), pad=int(pad), bos=bos, start=start)
    encoder = PromptEncoder(_plain_backend(tokenizer), family, prompts, special, max_input_tokens)
    return Student(model, tokenizer, encoder, origin)


def _plain_backend(tokenizer: Any) -> Any:
    """Return the tokenizer underneath, with truncation and padding off."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


# ------------------------------------------------------------------------------------------------ from scratch


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer: two digits at a time, the space marked in front of a word, bytes for the rest."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    # numbers below a hundred are one piece: a small student copies them from the question in one step
    pieces = tokenizers.Regex(r"▁?[0-9]{1,2}|▁?[^▁0-9\p{L}]|▁?\p{L}+|▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(pieces, behavior="isolated")]
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
    pieces_of = written["model"]["vocab"]
    for byte in range(256):  # ordinary pieces: special ones would be left out of decoded text
        pieces_of.setdefault(f"<0x{byte:02X}>", len(pieces_of))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(written))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_scratch(section: ScratchSection, texts: Iterable[str], max_input_tokens: int, seed: int) -> Student:
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
    return _assemble(model, tokenizer, max_input_tokens, origin)


# ------------------------------------------------------------------------------------------------- on disk


def save_student(
    student: Student, folder: Path, details: dict[str, Any], pieces: Sequence[int], phrases: PhraseTable = EMPTY
) -> None:
    """Write a student in Hugging Face format with `mmedge.json` beside it; the caller makes the folder atomic.

    Args:
        student: The student.
        folder: Where it goes.
        details: What `mmedge.json` says besides.
        pieces: The ids of the tokens that its task is made of, which `mmedge export --trim-vocab` keeps.
        phrases: What its rationales are like, which the runtime drafts from.
    """
    student.model.save_pretrained(folder, safe_serialization=True)
    student.tokenizer.save_pretrained(folder)
    copied = folder / "tokenizer.model"
    if copied.is_file() and copied.open("rb").read(4) == b"GGUF":
        copied.unlink()  # a tokenizer read from a .gguf file takes that whole file along as its vocabulary
    write_json(folder / PIECES, list(pieces))
    phrases.save(folder / DRAFTS)
    write_json(
        folder / "mmedge.json",
        {
            "format": FORMAT,
            "mmedge": __version__,
            "transformers": transformers.__version__,
            "family": student.family,
            "prompts": student.encoder.prompts.to_json(),
            "special_tokens": student.encoder.special.to_json(),
            "max_input_tokens": student.encoder.max_input_tokens,
            "parameters": student.parameters,
            "origin": student.origin,
            **details,
        },
    )


def student_details(folder: Path) -> dict[str, Any]:
    """Return a saved student's `mmedge.json`.

    Raises:
        MmedgeError: The folder is no student of mmedge, or one of a newer version.
    """
    if not folder.is_dir():
        raise MmedgeError(f"no such student: {folder}", "name a folder that `mmedge distill` wrote")
    check_folder(folder)
    if not (folder / "mmedge.json").is_file():
        raise MmedgeError(f"{folder} has no mmedge.json", "only students that `mmedge distill` made know their task")
    details = read_json(folder / "mmedge.json")
    if not isinstance(details, dict) or details.get("format") != FORMAT:
        raise MmedgeError(f"{folder}/mmedge.json is not of a format this version reads", "update mmedge")
    return details


def student_precision(details: dict[str, Any]) -> str:
    """Return the numbers of a saved student's weights: `fp32`, `bnb-int8` or `bnb-nf4`."""
    return str(details["rounded"]["precision"]) if "rounded" in details else "fp32"


def open_student(folder: Path, max_input_tokens: int | None = None, device: str = "cpu") -> Student:
    """Load a student that `save_student` or `mmedge export` wrote, with the prompts and tokens it was trained with.

    What is not rounded of a rounded student becomes float32 on a CPU, and stays float16 on a GPU.

    Args:
        folder: The student's.
        max_input_tokens: Longer inputs are cut; as it was trained by default.
        device: `cpu` or `cuda`.

    Raises:
        MmedgeError: It is no student or damaged, or needs bitsandbytes, which is not installed.
    """
    dialects.quiet()
    details = student_details(folder)
    rounded = "rounded" in details
    if rounded:
        need_bitsandbytes()
        check_rounded(folder, details)
    try:
        tokenizer = dialects.load_tokenizer(str(folder), plain=True)
        config = dialects.load_config(str(folder))
        if rounded:
            dtype = torch.float32 if device == "cpu" else torch.float16
            config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
            model = dialects.load_model(str(folder), config, dtype=dtype, device_map={"": device})
            if device == "cpu":
                restore_unfit_products(model)
        else:
            model = dialects.load_model(str(folder), config, dtype=torch.float32)
            model.to(device)
        encoder = PromptEncoder(
            _plain_backend(tokenizer),
            details["family"],
            StudentPrompts(**details["prompts"]),
            SpecialTokens(**details["special_tokens"]),
            max_input_tokens or int(details["max_input_tokens"]),
        )
    except Exception as error:  # safetensors, tokenizers and transformers raise many types for a broken file
        reason = str(error).strip().split("\n")[0][:200]
        raise MmedgeError(f"cannot load the student {folder}: {reason}", "distil it again, or restore the folder") from error
    return Student(model, tokenizer, encoder, details["origin"])
