"""Constrained decoding of a regular language, by llguidance: every answer matches, and is whole before the token limit.

llguidance masks the vocabulary at every token. Near the limit our own automaton, which knows the shortest way to the end from every
state, leaves the tokens behind which there is room for it; so answers are bounded by the limit alone, not by a bound on each of
their texts. What cannot be whole within the limit is refused before anything is asked.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmedge.errors import LimitTooLow, MmedgeError, missing_extra
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import PromptEncoder, TextTokenizer
from mmedge.tasks.forms.constraints import Constrainer, Tokens
from mmedge.tasks.forms.structured.regex import Completions, Regex, literal, sequence, text_of

_PREFERRED = "0aeA1 ._-x"  # what completes a text where many characters would
_SLICES = [rf'[^;)\]"\\\x00-\x1F\x7F]{count}' for count in ("{1,10}", "{1,30}", "+")]  # tokens of texts, whose masks are kept
_FEW = 64  # tokens that may follow where the form decides, not a free text
_MARGIN = 4  # tokens: the rest of a character that was begun, and the end


Reached = tuple[frozenset[int], bytes]


def token_bytes(tokenizer: TextTokenizer) -> list[bytes | None]:
    """Return the bytes of every token, by id; None for special tokens and gaps."""
    count, added = tokenizer.get_vocab_size(with_added_tokens=True), tokenizer.get_added_tokens_decoder()
    pieces = [tokenizer.id_to_token(number) for number in range(max(count, *(one + 1 for one in added)) if added else count)]
    by_bytes = not any(piece is not None and "▁" in piece for piece in pieces)
    table = _byte_letters() if by_bytes else {}
    found: list[bytes | None] = []
    for number, piece in enumerate(pieces):
        if piece is None or number in added:
            found.append(None)
        elif by_bytes:
            found.append(bytes(table[letter] for letter in piece) if all(letter in table for letter in piece) else piece.encode())
        elif len(piece) == 6 and piece.startswith("<0x"):
            found.append(bytes.fromhex(piece[3:5]))
        else:
            found.append(piece.replace("▁", " ").encode())
    return found


def _byte_letters() -> dict[str, int]:
    """Return the letters that stand for bytes in vocabularies of GPT-2's kind (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


class Vocabulary:
    """A student's tokens, as llguidance and our own automaton need them.

    Args:
        tokenizer: The student's.
        eos: Its end token.

    Raises:
        MmedgeError: llguidance is not installed.
    """

    def __init__(self, tokenizer: TextTokenizer, eos: int) -> None:
        try:
            import llguidance
        except ImportError:
            raise missing_extra("llguidance", "structured") from None
        self.eos = eos
        self.bytes = token_bytes(tokenizer)
        self.ids = {found: number for number, found in reversed(list(enumerate(self.bytes))) if found}
        self.longest = max(map(len, self.ids))
        self.llguidance: Any = llguidance
        slices = [*llguidance.LLTokenizer.general_slices(), *_SLICES]
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_GuidedEncoding(self, tokenizer)), slices=slices)

    def matcher(self, regex: str) -> Any:
        """Return what masks the tokens of one text."""
        found = self.llguidance.LLMatcher(self.tokenizer, self.llguidance.LLMatcher.grammar_from_regex(regex), log_level=0)
        if found.is_error():
            raise MmedgeError(f"llguidance refuses the answers' grammar: {found.get_error():.160}", "simplify the schema")
        return found


class _GuidedEncoding:
    """A tokenizer as llguidance asks for it: what is forced is written in the tokens that the student was taught."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> None:
        self._vocabulary, self._tokenizer = vocabulary, tokenizer
        self.eos_token_id = vocabulary.eos
        self.tokens = [f"<{number}>".encode() if found is None else found for number, found in enumerate(vocabulary.bytes)]
        self.special_token_ids = [number for number, found in enumerate(vocabulary.bytes) if found is None]

    def __call__(self, text: bytes) -> list[int]:
        tokens = self._vocabulary.bytes
        found = list(self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids)
        if b"".join(tokens[one] or b"" for one in found) == text:
            return found
        found, place = [], 0  # one that puts a space in front
        while place < len(text):
            lengths = range(min(len(text) - place, self._vocabulary.longest), 0, -1)
            length = next((length for length in lengths if text[place : place + length] in self._vocabulary.ids), None)
            if length is not None:  # what cannot be written is refused elsewhere
                found.append(self._vocabulary.ids[text[place : place + length]])
            place += length or 1
        return found


class Language:
    """A regular language in one vocabulary: masks, and the shortest way to the end in tokens.

    Args:
        vocabulary: The student's.
        regex: What answers may be, with what stands in front of them.

    Raises:
        ValueError: The vocabulary cannot write an answer.
    """

    def __init__(self, vocabulary: Vocabulary, regex: Regex) -> None:
        self.vocabulary, self.automaton = vocabulary, regex.automaton
        self._matcher = vocabulary.matcher(text_of(regex))
        writable = [one for one in _PREFERRED if one.encode() in vocabulary.ids]
        self._shortest = Completions(self.automaton, writable)
        self._ways = self._find_ways()
        self.least = self.needs(self.automaton.start)
        self.most = max(way.tokens for way in self._ways.values())

    def matcher(self) -> Any:
        """Return a matcher of its own for one text."""
        return self._matcher.deep_copy()

    def _find_ways(self) -> dict[int, _Way]:
        """Return the way to the end by state: the shortest text in the longest tokens."""
        shortest, vocabulary = self._shortest, self.vocabulary
        found = {self.automaton.final: _Way(0, (), self.automaton.final)}
        for state in sorted(shortest.steps, key=lambda one: shortest.length[one]):
            place, text = state, b""
            best: tuple[tuple[int, ...], int] | None = None
            while place in shortest.steps and len(text) < vocabulary.longest:
                character, place = shortest.steps[place]
                text += character.encode()
                if text in vocabulary.ids and place in found:
                    best = (vocabulary.ids[text],), place
            if best is None:  # by the bytes of its first character
                character, place = shortest.steps[state]
                ids = [vocabulary.ids.get(bytes([one]), -1) for one in character.encode()]
                best = (tuple(ids), place) if place in found and -1 not in ids else None
            if best is not None:
                found[state] = _Way(len(best[0]) + found[best[1]].tokens, *best)
        if not any(state in found for state in self.automaton.start):
            nearest = shortest.nearest(self.automaton.start)
            if nearest is None:
                raise ValueError("no answer is possible")
            missing = next((one for one in shortest.text(nearest) if one.encode() not in vocabulary.ids), "")
            raise ValueError(f"the student's vocabulary cannot write {missing!r}")
        return found

    def _nearest(self, states: frozenset[int]) -> int:
        return min((state for state in states if state in self._ways), key=lambda state: self._ways[state].tokens)

    def needs(self, states: frozenset[int]) -> int:
        """Return how many tokens the shortest way to the end takes."""
        return self._ways[self._nearest(states)].tokens

    def further(self, place: Reached, more: bytes) -> Reached:
        """Return where more bytes lead from a place: states, and the bytes of a character that is begun and not complete."""
        decoder, (states, begun) = codecs.getincrementaldecoder("utf-8")("replace"), place
        for character in decoder.decode(begun + more):
            states = self.automaton.after(states, character)
        return states, decoder.getstate()[0]

    def way_out(self, states: frozenset[int]) -> list[int]:
        """Return the tokens of the shortest way to the end."""
        state, found = self._nearest(states), list[int]()
        while (way := self._ways[state]).ids:
            found += way.ids
            state = way.behind
        return found

    def ends_within(self, place: Reached, tokens: int) -> bool:
        """Return whether a text that has come to a place can be ended with so many more tokens."""
        states, begun = place
        ways = [self._ways[state].tokens for state in states if state in self._ways]
        return not begun and bool(ways) and min(ways) <= tokens


@dataclass(frozen=True)
class _Way:
    """The shortest way from a state to the end: how many tokens it takes, the first of them, and the state behind these."""

    tokens: int
    ids: tuple[int, ...]
    behind: int


class GuidedConstraint:
    """One answer, whole before the limit.

    Args:
        language: What it may be.
        limit: The most tokens, its end included.

    Attributes:
        cut_short: Whether what was likelier had no room, so that values are not what the student would have written.
    """

    cut_short: bool

    def __init__(self, language: Language, limit: int) -> None:
        self._language, self._limit = language, limit
        self._mask = np.zeros(((len(language.vocabulary.bytes) + 31) // 32,), dtype=np.int32)
        self._begin()

    def _begin(self) -> None:
        self._matcher = self._language.matcher()
        self._written: list[int] = []
        self._place, self._looked = (self._language.automaton.start, b""), 0
        self.cut_short = False

    def _follow(self, written: Sequence[int]) -> None:
        """Take in what was written since the last time."""
        if list(written[: len(self._written)]) != self._written:
            self._begin()
        for token in written[len(self._written) :]:
            self._matcher.consume_token(token)
            self._written.append(token)

    def _where(self) -> Reached:
        """Return where what is written leads."""
        new = self._written[self._looked :]
        more = b"".join(self._language.vocabulary.bytes[token] or b"" for token in new)
        self._place, self._looked = self._language.further(self._place, more), len(self._written)
        return self._place

    @property
    def _left(self) -> int:
        """How many tokens are left for what follows the next one, its end not counted."""
        return self._limit - len(self._written) - 2

    @property
    def near(self) -> bool:
        """Whether the next token may be one behind which there is no room to end."""
        return self._limit - len(self._written) <= self._language.most + _MARGIN

    def allowed(self, written: Sequence[int]) -> Tokens:
        self._follow(written)
        found = self._masked()
        if not self.near:
            return found
        vocabulary, place = self._language.vocabulary, self._where()
        if place[1]:  # a character is not complete: one byte after the other
            return np.array([one for one in found.tolist() if len(vocabulary.bytes[one] or b"") == 1], dtype=np.int64)
        fitting: list[int] = []
        if len(found) <= _FEW:
            fitting = [one for one in found.tolist() if one == vocabulary.eos or self._fits(place, one)]
        if not fitting:  # or too many to look at: the way out
            fitting = self._language.way_out(place[0])[:1] or [vocabulary.eos]
        self.cut_short = self.cut_short or len(fitting) == 1 < len(found)
        return np.array(fitting, dtype=np.int64)

    def _fits(self, place: Reached, token: int) -> bool:
        """Return whether there is room to end behind a token."""
        more = self._language.vocabulary.bytes[token]
        return more is not None and self._language.ends_within(self._language.further(place, more), self._left)

    def permits(self, written: Sequence[int], token: int) -> bool:
        """Return whether a token may follow: much faster than all that may."""
        self._follow(written)
        if token == self._language.vocabulary.eos:
            return bool(self._matcher.is_accepting())
        tokens = self._language.vocabulary.bytes
        if token >= len(tokens) or tokens[token] is None:  # logits may have more places than there are tokens
            return False
        forced = self._matcher.compute_ff_tokens()
        if not (token == forced[0] if forced else self._matcher.validate_tokens([token])):
            return False
        if not self.near:
            return True
        place = self._where()
        if place[1]:
            return len(tokens[token] or b"") == 1
        fits = self._fits(place, token)
        self.cut_short = self.cut_short or not fits
        return fits

    def forced(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that must follow, as far as they are known."""
        self._follow(written)
        left = self._limit - len(written) - self._language.most - _MARGIN
        found: list[int] = self._matcher.compute_ff_tokens()
        return found[: max(0, left)]

    def _masked(self) -> Tokens:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little")).astype(np.int64)


class GuidedConstrainer(Constrainer):
    """Makes the constraints of one language for one student.

    Args:
        encoder: The student's.
        regex: Returns what answers may be; asked once, when the first answer is constrained.
    """

    def __init__(self, encoder: PromptEncoder, regex: Callable[[], Regex]) -> None:
        self._encoder, self._regex = encoder, regex

    def answer(self, example: Example, limit: int) -> GuidedConstraint:
        least = self._language.least + 1
        if limit < least:
            raise LimitTooLow(
                f"the shortest answer that fits takes {least} tokens with its end, more than the limit of {limit}",
                f"set generation.max_answer_tokens to what answers take, {least} or more, or simplify the schema",
            )
        return GuidedConstraint(self._language, limit)

    def least_limit(self) -> int:
        """Return the smallest limit at which no answer needs more tokens than there are."""
        return self._language.most + _MARGIN

    @cached_property
    def _language(self) -> Language:
        vocabulary = Vocabulary(self._encoder.tokenizer, self._encoder.special.eos)
        try:
            return Language(vocabulary, sequence(literal(self._lead(vocabulary)), self._regex()))
        except ValueError as error:
            raise MmedgeError(
                f"answers cannot be constrained: {error}", "simplify the schema, or answer without constraint"
            ) from None

    def _lead(self, vocabulary: Vocabulary) -> str:
        """Return what a student's tokens have in front of an answer: a space, for most."""
        ids = self._encoder.target("x", 64)[:-1]
        return b"".join(vocabulary.bytes[one] or b"" for one in ids).decode().removesuffix("x")
