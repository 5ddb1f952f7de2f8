"""Peers: other engines that answer the same questions, so that ours stand beside them in one bench.

    optimum:FOLDER        optimum's ORTModel on an ONNX export of the same student (`mmedge export --graphs optimum`, or
                          `optimum-cli export onnx`); needs `mmedge[export]`
    llama.cpp:FILE.gguf   llama.cpp through llama-cpp-python, on a GGUF file of the same weights; decoder-only
    genai:FOLDER          onnxruntime-genai on a folder that its model builder wrote (`genai_config.json`); decoder-only
    ctranslate2:FOLDER    CTranslate2 on a folder that its converter wrote (`model.bin`)

Whose student a peer is, and so how it is asked, says a student or bundle beside it (`student_beside`):

    runs/quickstart/student  runs/quickstart/bundle-int8  runs/quickstart/model.gguf

All take the same token ids as our engines, from the same `PromptEncoder`: what differs is the engine. A peer must therefore have
been made from the same student, with its vocabulary whole; `check_pieces` compares them piece by piece. Each library is imported
when a peer of its kind is opened; how fast a peer is, is how fast its own greedy loop is, except for llama.cpp, whose logits our
loop reads. What a peer cannot do (sampling, an encoder) is refused in one line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tokenizers

from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits, by_beginning, decode, left_padded, right_padded
from mmedge.engines.onnx.decoding import Engine
from mmedge.errors import MmedgeError
from mmedge.manifest import MANIFEST, read_manifest
from mmedge.runtime.student import load_tokenizer
from mmedge.storage import read_json
from mmedge.tasks.encoding import Prompt, PromptEncoder, SpecialTokens
from mmedge.tasks.prompts import StudentPrompts

Kind = Literal["optimum", "llama.cpp", "genai", "ctranslate2"]
OTHER_PIECES = 0.01  # special tokens may be written differently; more than this share of pieces is another vocabulary


@dataclass(frozen=True)
class PeerName:
    """A peer as the command line names it.

    Attributes:
        kind: Which engine.
        path: What it opens.
    """

    kind: Kind
    path: Path

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


class PeerEngine(Engine, Protocol):
    """An engine of a peer."""

    def pieces(self) -> list[str] | None:
        """Return its vocabulary's pieces by id, as `tokenizer.json` writes them; None where it cannot tell."""
        ...


@dataclass(frozen=True)
class _Kind:
    module: str
    install: str
    needs: str  # what its path must be, for people
    file: str  # that a folder must have; empty for a file
    open: Callable[[Path, PromptEncoder, int], PeerEngine]


def peer_of(text: str) -> PeerName | None:
    """Return the peer that a variant's name means; None where it is no peer's name, but a path."""
    kind, colon, path = text.partition(":")
    for known in _KINDS:
        if colon and kind == known:
            return PeerName(known, Path(path))
    return None


def open_peer(name: PeerName, encoder: PromptEncoder, threads: int) -> Engine:
    """Open a peer.

    Args:
        name: Which one.
        encoder: That of the student which it was made from: its prompts are what the peer is given.
        threads: Threads within one operation.

    Raises:
        MmedgeError: Its package is not installed, its path is not what it needs, it cannot be opened, or its vocabulary is
            another one.
    """
    kind = _KINDS[name.kind]
    there = (name.path / kind.file).is_file() if kind.file else name.path.is_file()
    if not there:
        raise MmedgeError(
            f"{name} cannot be opened: {name.path} is not {kind.needs}", "name one that was made from the same student"
        )
    try:
        import_module(kind.module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == kind.module.partition(".")[0]:
            raise MmedgeError(f"{name} needs the package {kind.module!r}, which is not installed", kind.install) from None
        raise MmedgeError(f"{name}: the package {kind.module!r} does not load: {str(error)[:200]}", kind.install) from None
    try:
        engine = kind.open(name.path, encoder, threads)
    except MmedgeError:
        raise
    except Exception as error:  # four libraries, each with exceptions of its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MmedgeError(f"{name} cannot be opened: {said[:300]}", f"it must be {kind.needs}") from error
    check_pieces(name, engine.pieces(), encoder)
    return engine


@dataclass(frozen=True)
class Asking:
    """How a student is asked, whatever it runs on.

    Attributes:
        encoder: What makes its prompts.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest rationale.
    """

    encoder: PromptEncoder
    max_answer_tokens: int
    max_rationale_tokens: int


def asking_of(folder: Path) -> Asking:
    """Return how a student or bundle is asked; its weights are not opened, and torch is not needed.

    Raises:
        MmedgeError: It is neither, or damaged.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if (folder / MANIFEST).is_file():
        stated = read_manifest(folder)
        encoder = PromptEncoder(tokenizer, stated.family, stated.prompts, stated.special_tokens, stated.max_input_tokens)
        return Asking(encoder, stated.max_answer_tokens, stated.max_rationale_tokens)
    values = read_json(folder / "mmedge.json")
    limits = values["recipe"]["generation"]
    encoder = PromptEncoder(
        tokenizer,
        values["family"],
        StudentPrompts(**values["prompts"]),
        SpecialTokens(**values["special_tokens"]),
        int(values["max_input_tokens"]),
    )
    return Asking(encoder, int(limits["max_answer_tokens"]), int(limits["max_rationale_tokens"]))


def student_beside(name: PeerName, among: Sequence[Path] = ()) -> Path:
    """Return the student or bundle that a peer was made from: the first there is of its own folder (optimum's layout with our
    manifest), the student beside it, those of the same bench, and bundles beside it.

    Raises:
        MmedgeError: There is none.
    """
    parent = name.path.absolute().parent
    for folder in (name.path, parent / "student", *among, *sorted(parent.glob("bundle-*"))):
        if (folder / MANIFEST).is_file() or (folder / "mmedge.json").is_file():
            return folder
    raise MmedgeError(
        f"how {name} is to be asked is not known: no student or bundle lies beside it",
        "put it into the run that it was made from, or name a bundle in the same bench",
    )


def check_pieces(name: PeerName, pieces: Sequence[str] | None, encoder: PromptEncoder) -> None:
    """Compare a peer's vocabulary with the student's.

    Raises:
        MmedgeError: It is another one, so that token ids would mean something else.
    """
    tokenizer = encoder.tokenizer
    if pieces is None or not isinstance(tokenizer, tokenizers.Tokenizer):
        return
    ours = [tokenizer.id_to_token(place) for place in range(tokenizer.get_vocab_size())]
    both = [(place, piece, pieces[place]) for place, piece in enumerate(ours) if piece is not None and place < len(pieces)]
    other = [found for found in both if found[1] != found[2]]
    what = ""
    if len(pieces) < len(ours):
        what = f"{len(pieces)} pieces, the student has {len(ours)}"
    elif len(other) > OTHER_PIECES * len(both):
        place, mine, theirs = other[0]
        what = f"token {place} is {theirs!r:.40}, the student's is {mine!r:.40}"
    if what:
        raise MmedgeError(f"{name} has another vocabulary: {what}", "make it from the same student, its vocabulary not trimmed")


def _greedy_only(how: Decoding, who: str) -> None:
    if how.temperature or how.constraints or how.scored or how.stop or how.on_token:
        raise MmedgeError(f"{who} is only asked for whole greedy answers here", "leave out sampling, constraints and streams")


def _sequence(prompt: Prompt) -> list[int]:
    """Return what a decoder-only student reads."""
    return [*prompt.context, *prompt.begun]


def _until(tokens: Sequence[int], eos: int) -> tuple[list[int], bool]:
    """Return the tokens before the end token, and whether it is there."""
    found = list(tokens)
    return (found[: found.index(eos)], True) if eos in found else (found, False)


def _in_turn(one: Callable[[Prompt, Decoding], Generation], prompts: Sequence[Prompt], how: Decoding) -> Generation:
    """Generate row after row, for engines that take one at a time."""
    whole = Generation([], 0.0, 0.0, 0)
    for row, prompt in enumerate(prompts):
        found = one(prompt, how.of_rows([row]))
        whole.time_to_first_token = whole.time_to_first_token or found.time_to_first_token
        whole.seconds, whole.steps = whole.seconds + found.seconds, whole.steps + found.steps
        whole.tokens += found.tokens
        whole.ended += found.ended
        whole.log_probabilities += found.log_probabilities
    return whole


def _pieces_of(tokenizer: Path) -> list[str] | None:
    if not tokenizer.is_file():
        return None
    found = tokenizers.Tokenizer.from_file(str(tokenizer))
    return [found.id_to_token(place) or "" for place in range(found.get_vocab_size())]


# ------------------------------------------------------------------------------------------------------------- optimum


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
            raise MmedgeError(f"{folder} is not a {encoder.family} student", "name an export of the same student")
        loader = ORTModelForSeq2SeqLM if self._two else ORTModelForCausalLM
        self._model: Any = loader.from_pretrained(folder, session_options=options, provider="CPUExecutionProvider")
        self._torch, self._folder, self._special = torch, folder, encoder.special

    def pieces(self) -> list[str] | None:
        return _pieces_of(self._folder / "tokenizer.json")

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        _greedy_only(how, "optimum")
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
            """Notes when each token came; stops nothing."""

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
        rows = [_until(row[begun:].tolist(), special.eos) for row in written]
        tokens, ended = [row for row, _ in rows], [end for _, end in rows]
        return Generation(tokens, moments[0] if moments else seconds, seconds, len(moments), [], ended)

    def _inputs(self, prompts: Sequence[Prompt], more: Sequence[int] = ()) -> dict[str, Any]:
        """Return padded tensors of prompts behind which `more` is written; all beginnings are of one length."""
        reads = [list(prompt.context) if self._two else [*_sequence(prompt), *more] for prompt in prompts]
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
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        if len({len(prompt.begun) for prompt in prompts}) > 1:
            return np.concatenate([self._logits([prompt], more, 1)[:, -1] for prompt in prompts])
        found: Logits = self._logits(prompts, more, 1)[:, -1]
        return found

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        found: Logits = self._logits([prompt], target[:-1], len(target))[0]
        return found

    def conversation(self) -> Engine:
        """Return itself: everything is read anew each time."""
        return self


# ------------------------------------------------------------------------------------------------------------- llama.cpp


class LlamaCppEngine:
    """llama.cpp through llama-cpp-python: it computes logits, our loop chooses tokens; rows one after the other.

    Args:
        file: A GGUF file.
        encoder: The student's.
        threads: Of reading and of writing.
    """

    def __init__(self, file: Path, encoder: PromptEncoder, threads: int) -> None:
        if encoder.family != "decoder-only":
            raise MmedgeError(f"llama.cpp:{file} is not asked: the student has an encoder", "compare with optimum or ctranslate2")
        room = encoder.max_input_tokens + 512  # the longest answers and rationales are shorter than that
        self._api = import_module("llama_cpp")
        self._llama: Any = self._api.Llama(str(file), n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False)
        self._special, self._room = encoder.special, self._llama.n_ctx()

    def pieces(self) -> list[str] | None:
        vocabulary = self._api.llama_model_get_vocab(self._llama.model)
        texts = (self._api.llama_vocab_get_text(vocabulary, place) for place in range(self._llama.n_vocab()))
        return [text.decode("utf-8", "replace") if text else "" for text in texts]

    def _read(self, tokens: Sequence[int]) -> Logits:
        """Read tokens behind those read before; return the logits behind the last, (1, vocabulary)."""
        if self._llama.n_tokens + len(tokens) > self._room:
            raise MmedgeError(
                "llama.cpp has no room for so long a text", f"{self._room} tokens were set aside for the student's limit"
            )
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
                lambda: self._begin(_sequence(prompt)), lambda tokens: self._read(tokens.tolist()), 1, eos, pad, max_new_tokens, how
            )

        return _in_turn(one, prompts, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        return np.concatenate([self._begin([*_sequence(prompt), *more]) for prompt in prompts])

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        rows = [self._begin(_sequence(prompt))]
        rows += [self._read([token]) for token in target[:-1]]
        return np.concatenate(rows)

    def conversation(self) -> Engine:
        """Return itself: everything is read anew each time."""
        return self


# ------------------------------------------------------------------------------------------------------------- onnxruntime-genai


class GenaiEngine:
    """onnxruntime-genai with its own greedy loop; rows one after the other.

    Args:
        folder: With `genai_config.json`.
        encoder: The student's.
        threads: Of ONNX Runtime.
    """

    def __init__(self, folder: Path, encoder: PromptEncoder, threads: int) -> None:
        if encoder.family != "decoder-only":
            raise MmedgeError(f"genai:{folder} is not asked: the student has an encoder", "compare with optimum or ctranslate2")
        self._genai = import_module("onnxruntime_genai")
        config = self._genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        # the end token is the student's: what the folder says may be another one, and ends nothing in the loop below
        config.overlay(json.dumps({"model": {"eos_token_id": encoder.special.eos, "decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        self._folder, self._special = folder, encoder.special

    def pieces(self) -> list[str] | None:
        return _pieces_of(self._folder / "tokenizer.json")

    def _generator(self, room: int) -> Any:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=room, do_sample=False, num_beams=1, batch_size=1)
        return self._genai.Generator(self._model, parameters)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        _greedy_only(how, "onnxruntime-genai")

        def one(prompt: Prompt, _: Decoding) -> Generation:
            started = time.perf_counter()
            read = _sequence(prompt)
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

        return _in_turn(one, prompts, how)

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        rows = []
        for prompt in prompts:
            read = [*_sequence(prompt), *more]
            generator = self._generator(len(read) + 1)
            generator.append_tokens(np.array([read], dtype=np.int32))
            rows.append(np.array(generator.get_logits(), dtype=np.float32).reshape(1, -1))
        return np.concatenate(rows)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        return np.concatenate([self.next_logits([prompt], target[:place]) for place in range(len(target))])

    def conversation(self) -> Engine:
        """Return itself: everything is read anew each time."""
        return self


# ------------------------------------------------------------------------------------------------------------- CTranslate2


class CTranslate2Engine:
    """CTranslate2 with its own greedy loop; it takes pieces, not ids, which its `vocabulary.json` tells.

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

    def pieces(self) -> list[str] | None:
        return self._vocabulary

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[place] for place in ids]

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        """Continue each prompt until its end token or the limit."""
        _greedy_only(how, "CTranslate2")
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
                [self._pieces(_sequence(prompt)) for prompt in prompts],
                max_length=max_new_tokens,
                include_prompt_in_result=False,
                **settings,
            )
            hypotheses = [list(result.sequences_ids[0]) for result in found]
        seconds = time.perf_counter() - started
        rows = [_until(row[:max_new_tokens], self._special.eos) for row in hypotheses]
        first = moments[0][1] if moments else seconds
        steps = len({step for step, _ in moments}) or 1
        return Generation([row for row, _ in rows], first, seconds, steps, [], [end for _, end in rows])

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        if not hasattr(self, "_places"):
            self._places = {piece: place for place, piece in enumerate(self._vocabulary)}
        return [self._places[piece] for piece in pieces]

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        """Return the logits behind each prompt once `more` is written, (prompts, vocabulary)."""
        return np.concatenate([self._last(prompt, more, 1) for prompt in prompts])

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        """Return the logits that predict each token of `target`, (len(target), vocabulary)."""
        return self._last(prompt, target[:-1], len(target))

    def _last(self, prompt: Prompt, more: Sequence[int], count: int) -> Logits:
        """Return the logits of the last positions, (count, vocabulary)."""
        if not self._two:
            read = self._pieces([*_sequence(prompt), *more])
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
        """Return itself: everything is read anew each time."""
        return self


_KINDS: dict[Kind, _Kind] = {
    "optimum": _Kind(
        "optimum.onnxruntime", "pip install 'mmedge[optimum]'", "a folder with an ONNX export", "config.json", OptimumEngine
    ),
    "llama.cpp": _Kind(
        "llama_cpp", "pip install llama-cpp-python (it compiles for minutes)", "a GGUF file", "", LlamaCppEngine
    ),
    "genai": _Kind(
        "onnxruntime_genai",
        "pip install onnxruntime-genai",
        "a folder that onnxruntime-genai's model builder wrote",
        "genai_config.json",
        GenaiEngine,
    ),
    "ctranslate2": _Kind(
        "ctranslate2", "pip install ctranslate2", "a folder that CTranslate2's converter wrote", "model.bin", CTranslate2Engine
    ),
}  # fmt: skip
