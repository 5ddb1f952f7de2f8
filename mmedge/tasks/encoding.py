"""From prompts to token ids, the same in training, in evaluation and on the device.

A prompt is encoded in parts that the tokenizer never merges: the context that two tasks share, the task word, the
target. So a context encoded once serves every task, and what the student saw in training is what it sees on the device.

Decoder-only:     reads and continues  [bos?] context | predict: |  84 / 2 [eos]
In a chat:        reads and continues  the template's text up to where the assistant writes | predict: |  84 / 2 [end of turn]
Encoder-decoder:  reads  context [eos],  writes  [start] predict: | 84 / 2 [eos]
                                          or     [start] solution: … | predict: | correct [eos]

What was said before a question is encoded message by message, each answer behind its task word as the student wrote it:

                  user: book a table … | predict: |  restaurant; number: two | \n | user: and for eight people too | predict: | …

Where that is too long, the oldest messages are left out, each user's with the answers to it; never the question.

Control tokens come from prompts alone: where a text has the same characters, these are encoded as ordinary text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal, Protocol

from mmedge.errors import MmedgeError, TooLong
from mmedge.tasks.base import Turn
from mmedge.tasks.chat.control import ControlTokens, control_tokens, encode_text
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.prompts import VERDICTS, Context, Kind, StudentPrompts

CHARACTERS = 64  # of a token, on average over a whole input, at most; more only where white space or unknown signs become one token
Family = Literal["encoder-decoder", "decoder-only"]


class _Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class TextTokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> _Encoding: ...

    def encode_batch_fast(self, input: Sequence[str], *, add_special_tokens: bool) -> Sequence[_Encoding]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def get_vocab_size(self, with_added_tokens: bool = ...) -> int: ...

    def id_to_token(self, id: int) -> str | None: ...

    def get_added_tokens_decoder(self) -> Mapping[int, object]: ...


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a student's special tokens; `bos` and `start` are None where the student has none."""

    eos: int
    pad: int
    bos: int | None = None
    start: int | None = None

    def to_json(self) -> dict[str, int | None]:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    """What a student is given.

    Attributes:
        context: The tokens that it reads, the same for both tasks.
        begun: The first tokens of what it writes: the task word, for an encoder-decoder after its start token and the
            chain of thought that it judges, if it judges one.
    """

    context: tuple[int, ...]
    begun: tuple[int, ...]


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts and targets, and decodes what the student wrote.

    Attributes:
        tokenizer: The student's tokenizer.
        family: How prompts are laid out.
        prompts: The templates.
        special: Ids of special tokens.
        max_input_tokens: Of longer contexts, the oldest messages are left out; a question that is longer alone is cut at its end.
            Texts of more than `CHARACTERS` for each of these tokens are cut, or left out, before they are encoded.
        chat: The chat that contexts are the user's message of; None where they are read as they are.
    """

    tokenizer: TextTokenizer
    family: Family
    prompts: StudentPrompts
    special: SpecialTokens
    max_input_tokens: int
    chat: ChatTemplate | None = None

    @cached_property
    def _words(self) -> dict[Kind, tuple[int, ...]]:
        """The task words' tokens; in a chat they may be control tokens."""
        words: dict[Kind, str] = {"predict": self.prompts.predict, "explain": self.prompts.explain}
        return {kind: tuple(self.tokenizer.encode(word, add_special_tokens=False).ids) for kind, word in words.items()}

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return control_tokens(self.tokenizer, self.chat.template if self.chat else "")

    def _ids(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, _clean(text), self._control_tokens)

    def context(self, context: Context) -> tuple[int, ...]:
        """Return the tokens that both tasks share, cut to the longest input.

        Raises:
            MmedgeError: There is a system message, and the student reads none, or it leaves no room for the question.
        """
        return self.fitted(context)[0]

    def fitted(self, context: Context) -> tuple[tuple[int, ...], int]:
        """Return the same, and how many of the oldest earlier messages are left out, since all of it would be too long."""
        if self.chat is not None:
            return self._in_chat(self.chat, _clean(self._head(context.read)), context.turns)
        ids, left_out = self._ids(self._head(context.read)), 0
        if context.turns:
            before, left_out = self._before(context.turns, self.max_input_tokens - len(self._cut([])) - len(ids))
            ids = before + ids
        return self._cut(ids), left_out

    def surplus(self, context: Context) -> int:
        """Return how many tokens of a question are cut off, as far as they are counted: 0 where all of it is read.

        Earlier messages do not count: they are left out first.

        Raises:
            TooLong: There is a system message, and it leaves no room for the question.
        """
        head = self._head(context.read)
        if self.chat is None:
            return max(len(self._ids(head)) + len(self._cut([])) - self.max_input_tokens, int(len(head) < len(context.read)))
        system = [(turn.role, _clean(self._head(turn.text))) for turn in context.turns[:1] if turn.role == "system"]
        whole = len(self.chat.question(self.tokenizer, _clean(head), system))
        empty = len(self.chat.question(self.tokenizer, "", system)) if system and whole > self.max_input_tokens else 0
        if empty > self.max_input_tokens:
            raise TooLong(f"the system message leaves no room within {self.max_input_tokens} tokens", "shorten it")
        return max(whole - self.max_input_tokens, int(len(head) < len(context.read)))

    def _head(self, text: str) -> str:
        """Return as much of a text as can matter: what is encoded and then cut off takes memory, seconds and Python's lock."""
        return text[: CHARACTERS * self.max_input_tokens]

    def _before(self, turns: Sequence[Turn], room: int) -> tuple[list[int], int]:
        """Return the tokens of earlier messages, as many of the newest as there is room for, and how many are left out."""
        if turns[0].role == "system":
            raise MmedgeError("there is a system message, and this student reads none", "leave it out")
        found: list[int] = []
        end = len(turns)
        for start in reversed(_exchanges(turns)):
            if sum(len(turn.text) for turn in turns[start:end]) > CHARACTERS * room:
                return found, end
            ids = [token for turn in turns[start:end] for token in self._turn(turn)]
            if len(found) + len(ids) > room:
                return found, end
            found, end = ids + found, start
        return found, end

    def _turn(self, turn: Turn) -> list[int]:
        ids = self._ids(self.prompts.before(turn))
        if turn.role != "assistant":
            return ids
        end = self.prompts.question.partition("{question}")[2]
        return [*self._words["predict"], *self._control(self.prompts.control), *ids, *(self._ids(end) if end else ())]

    def _in_chat(self, chat: ChatTemplate, text: str, turns: tuple[Turn, ...] = ()) -> tuple[tuple[int, ...], int]:
        """Return the tokens of a chat up to where the assistant writes, and how many turns are left out.

        The newest turns that there is room for are kept, and a system message; of a question that is too long, the first tokens.
        """
        first = turns[:1] if turns and turns[0].role == "system" else ()
        turns = turns[len(first) :]
        most = CHARACTERS * self.max_input_tokens
        after = list(accumulate(len(turn.text) for turn in reversed(turns)))[::-1]  # characters from each turn on
        begins = _exchanges(turns)[-self.max_input_tokens :]  # each takes a token at least
        starts = [*(start for start in begins if after[start] <= most), len(turns)]

        def asked(start: int) -> list[int]:
            said = groupby((*first, *turns[start:]), key=lambda turn: turn.role)  # templates want roles in turn
            return chat.question(
                self.tokenizer, text, [(role, _clean(self._head("\n".join(one.text for one in found)))) for role, found in said]
            )

        longest = bisect_left(starts[:-1], True, key=lambda start: len(asked(start)) <= self.max_input_tokens)
        found = asked(starts[longest])
        while text and (more := len(found) - self.max_input_tokens) > 0:
            kept = self._ids(text)[:-more]
            shorter = self.tokenizer.decode(kept, skip_special_tokens=False).rstrip("\ufffd")  # half a character at the cut
            text = shorter if len(shorter) < len(text) else text[:-1]
            found = asked(len(turns))
        if first and len(found) > self.max_input_tokens:
            raise TooLong(f"the system message leaves no room within {self.max_input_tokens} tokens", "shorten it")
        return tuple(found), starts[longest]

    def contexts(self, contexts: Sequence[Context]) -> list[tuple[int, ...]]:
        """Return the same of several contexts; releases Python's lock."""
        texts = [_clean(self._head(context.read)) for context in contexts]
        dialogues = any(context.turns for context in contexts)
        if self.chat is not None or dialogues:
            return [self.context(context) for context in contexts]
        encoded = [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return [
            self.context(context) if self._control_tokens.comes_from(text, ids) else self._cut(ids)
            for context, text, ids in zip(contexts, texts, encoded, strict=True)
        ]

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        if self.family == "encoder-decoder":
            return (*ids[: self.max_input_tokens - 1], self.special.eos)
        first = [self.special.bos] if self.special.bos is not None else []
        return tuple((first + ids)[: self.max_input_tokens])

    def begun(self, kind: Kind, context: Context, control: str | None = None) -> tuple[int, ...]:
        """Return the tokens before what is written; what a decoder is given to judge is cut to the longest input.

        Args:
            kind: The task word.
            context: What comes before it.
            control: The word behind it; the prompts' own by default.
        """
        start = [self.special.start or 0] if self.family == "encoder-decoder" else []
        written = self._ids(self._head(context.written))[: self.max_input_tokens] if context.written else []
        if context.behind:
            first, *rest = (self._ids(self.prompts.target + self._head(text)) for text in context.behind)
            end = [token for ids in rest for token in ids]
            words = (*written, *self._words[context.begun], *self._control(self.prompts.control))
            return (*start, *words, *first[: max(0, self.max_input_tokens - len(end))], *end)
        return (*start, *written, *self._words[kind], *self._control(self.prompts.control if control is None else control))

    def _control(self, word: str) -> list[int]:
        return self._ids(self.prompts.target + word) if word else []

    def prompt(self, kind: Kind, context: Context) -> Prompt:
        """Return a whole prompt."""
        return Prompt(self.context(context), self.begun(kind, context))

    def target(self, text: str, max_tokens: int) -> list[int]:
        """Return the tokens of a target with its end token; a longer one is cut and has no end token."""
        return [*self._ids(self.prompts.target + text), self.special.eos][:max_tokens]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens up to the first end token."""
        kept = list(ids)
        if self.special.eos in kept:
            kept = kept[: kept.index(self.special.eos)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def verdict_tokens(self) -> tuple[list[int], list[int]]:
        """Return the tokens that all verdicts start with, and for each verdict the first token that tells it apart.

        So one look at one position's logits decides; the order is that of `VERDICTS`.
        """
        encoded = [self.target(verdict, 64) for verdict in VERDICTS]
        common = 0
        while len({tuple(ids[: common + 1]) for ids in encoded}) == 1:
            common += 1
        return encoded[0][:common], [ids[common] for ids in encoded]


def _exchanges(turns: Sequence[Turn]) -> list[int]:
    """Return where each user's message with what follows it begins; what comes before the first is a part of its own."""
    return [place for place, turn in enumerate(turns) if turn.role == "user" or place == 0]


def load_tokenizer(path: Path) -> TextTokenizer:
    """Open a `tokenizer.json`, truncation and padding off.

    Raises:
        MmedgeError: The file is missing or damaged.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise MmedgeError(f"cannot read {path}: {str(error)[:200]}", "export the student again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found: TextTokenizer = tokenizer
    return found


def _clean(text: str) -> str:
    """Return a text without unpaired surrogates, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")
