"""Peers: other engines that answer the same questions, to be compared with ours in one bench.

A student or bundle beside a peer says how it is asked (`student_beside`):

    runs/quickstart/student  runs/quickstart/bundle-int8  runs/quickstart/model.gguf

All take the same token ids as our engines, from the same `PromptEncoder`: what differs is the engine. A peer must therefore have
been made from the same student, with its vocabulary whole; `check_vocabulary` compares them token by token. Each library is
imported when a peer of its kind is opened. A peer is as fast as its own greedy loop, except for llama.cpp, whose
logits our loop reads. What a peer cannot do (sampling, encoder-decoders) is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

import tokenizers

from mmedge.bundle import learned_of, read_manifest
from mmedge.engines.engine import Engine
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.engines.generation import Decoding, Generation
from mmedge.engines.speaker import Speaker
from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, MANIFEST
from mmedge.machine import usable_cores
from mmedge.storage import folder_size, read_json
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import Prompt, PromptEncoder, SpecialTokens, load_tokenizer
from mmedge.tasks.evaluation_set import task_beside
from mmedge.tasks.prompts import StudentPrompts

OTHER_TOKENS = 0.01  # special tokens may be written differently; beyond this share of tokens it is a different vocabulary


class PeerEngine(Engine, Protocol):
    """An engine of a peer."""

    def vocabulary(self) -> list[str] | None:
        """Return its tokens by id, as `tokenizer.json` writes them; None if it does not know."""
        ...


@dataclass(frozen=True)
class Peer:
    """How one kind of peer is opened.

    Attributes:
        name: What the command line and reports call it.
        module: The package that it needs.
        install: How to get that.
        needs: What its path must be, in words.
        file: A file that its folder must have; empty where it opens a file.
        make: Opens a path for a student's encoder with so many threads.
    """

    name: str
    module: str
    install: str
    needs: str
    file: str
    make: Callable[[Path, PromptEncoder, int], PeerEngine]

    def open(self, place: Path, encoder: PromptEncoder, threads: int) -> PeerEngine:
        """Open a peer.

        Args:
            place: What it opens.
            encoder: That of the student which it was made from: its prompts are what the peer is given.
            threads: Threads within one operation.

        Raises:
            MmedgeError: Its package is not installed, its path is not what it needs, it cannot be opened, or its vocabulary is
                another one.
        """
        name = f"{self.name}:{place}"
        if not ((place / self.file).is_file() if self.file else place.is_file()):
            raise MmedgeError(
                f"{name} cannot be opened: {place} is not {self.needs}", "name one that was made from the same student"
            )
        try:
            import_module(self.module)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == self.module.partition(".")[0]:
                raise MmedgeError(f"{name} needs the package {self.module!r}, which is not installed", self.install) from None
            raise MmedgeError(f"{name}: the package {self.module!r} does not load: {str(error)[:200]}", self.install) from None
        try:
            engine = self.make(place, encoder, threads)
        except MmedgeError:
            raise
        except Exception as error:  # four libraries, each with its own exceptions
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MmedgeError(f"{name} cannot be opened: {said[:300]}", f"it must be {self.needs}") from error
        check_vocabulary(name, engine.vocabulary(), encoder)
        return engine


def peer_entry(peer: Peer) -> EngineEntry:
    """Return the registry's entry of a peer."""
    return EngineEntry(peer.name, peer.needs, partial(_open_variant, peer), extra=peer.install)


def _open_variant(peer: Peer, request: OpenRequest) -> OpenedVariant:
    """Open a peer as a variant; it is asked as the student or bundle beside it is."""
    place, used = request.place, request.threads or usable_cores()
    student = student_beside(peer.name, place)
    encoder, answers, rationales = asked_as(student)
    engine = peer.open(place, encoder, used)
    speaker = Speaker(engine, encoder, None, answers, rationales)
    task, learned = task_beside(student), _learned(student)
    return OpenedVariant(peer.name, place.name, used, speaker, folder_size(place), task=task, learned=learned)


def asked_as(folder: Path) -> tuple[PromptEncoder, int, int]:
    """Return how a student or bundle is asked: its encoder and the longest answer and rationale; its weights are not opened.

    Raises:
        MmedgeError: It is neither, or damaged.
    """
    tokenizer, chat = load_tokenizer(folder / "tokenizer.json"), ChatTemplate.beside(folder)
    if (folder / MANIFEST).is_file():
        stated = read_manifest(folder)
        encoder = PromptEncoder(tokenizer, stated.family, stated.prompts, stated.special_tokens, stated.max_input_tokens, chat)
        return encoder, stated.max_answer_tokens, stated.max_rationale_tokens
    values = read_json(folder / DETAILS)
    limits = values["recipe"]["generation"]
    encoder = PromptEncoder(
        tokenizer,
        values["family"],
        StudentPrompts(**values["prompts"]),
        SpecialTokens(**values["special_tokens"]),
        int(values["max_input_tokens"]),
        chat,
    )
    return encoder, int(limits["max_answer_tokens"]), int(limits["max_rationale_tokens"])


def _learned(folder: Path) -> tuple[str, ...] | None:
    """Return what a student or bundle learned to write besides answers; None where that is not known."""
    return read_manifest(folder).student.learned if (folder / MANIFEST).is_file() else learned_of(read_json(folder / DETAILS))


def student_beside(engine: str, place: Path, among: Sequence[Path] = ()) -> Path:
    """Return the student or bundle that a peer was made from: the first there is of its own folder (optimum's layout with our
    manifest), the student beside it, those of the same bench, and bundles beside it.

    Raises:
        MmedgeError: There is none.
    """
    parent = place.absolute().parent
    for folder in (place, parent / "student", *among, *sorted(parent.glob("bundle-*"))):
        if (folder / MANIFEST).is_file() or (folder / DETAILS).is_file():
            return folder
    raise MmedgeError(
        f"{engine}:{place} cannot be asked: there is no student or bundle beside it",
        "move it into the run that it was made from, or name a bundle in the same bench",
    )


def check_vocabulary(name: str, tokens: Sequence[str] | None, encoder: PromptEncoder) -> None:
    """Compare a peer's vocabulary with the student's.

    Raises:
        MmedgeError: They differ, so token ids would mean something else.
    """
    if tokens is None:
        return
    ours = [encoder.tokenizer.id_to_token(place) for place in range(encoder.tokenizer.get_vocab_size())]
    both = [(place, token, tokens[place]) for place, token in enumerate(ours) if token is not None and place < len(tokens)]
    other = [found for found in both if found[1] != found[2]]
    what = ""
    if len(tokens) < len(ours):
        what = f"{len(tokens)} tokens, the student has {len(ours)}"
    elif len(other) > OTHER_TOKENS * len(both):
        place, mine, theirs = other[0]
        what = f"token {place} is {theirs!r:.40}, the student's is {mine!r:.40}"
    if what:
        raise MmedgeError(f"{name} has a different vocabulary: {what}", "make it from the same student, with the whole vocabulary")


def greedy_only(how: Decoding, who: str) -> None:
    """Refuse what a peer's own loop cannot do.

    Raises:
        MmedgeError: More than whole greedy answers is asked for.
    """
    if how.temperature or how.constraints or how.scored or how.stop or how.on_token:
        raise MmedgeError(f"{who} only gives complete greedy answers", "leave out sampling, constraints and streams")


def sequence(prompt: Prompt) -> list[int]:
    """Return what a decoder-only student reads."""
    return [*prompt.context, *prompt.begun]


def until(tokens: Sequence[int], eos: int) -> tuple[list[int], bool]:
    """Return the tokens before the end token, and whether it is there."""
    found = list(tokens)
    return (found[: found.index(eos)], True) if eos in found else (found, False)


def in_turn(one: Callable[[Prompt, Decoding], Generation], prompts: Sequence[Prompt], how: Decoding) -> Generation:
    """Generate row by row, for engines that take one at a time."""
    whole = Generation([], 0.0, 0.0, 0)
    for row, prompt in enumerate(prompts):
        found = one(prompt, how.of_rows([row]))
        whole.time_to_first_token = whole.time_to_first_token or found.time_to_first_token
        whole.seconds, whole.steps = whole.seconds + found.seconds, whole.steps + found.steps
        whole.tokens += found.tokens
        whole.ended += found.ended
        whole.log_probabilities += found.log_probabilities
    return whole


def tokens_of(tokenizer: Path) -> list[str] | None:
    """Return a `tokenizer.json`'s tokens by id; None where there is no such file."""
    if not tokenizer.is_file():
        return None
    found = tokenizers.Tokenizer.from_file(str(tokenizer))
    return [found.id_to_token(place) or "" for place in range(found.get_vocab_size())]
