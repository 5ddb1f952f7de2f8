"""Control tokens, which no text of a user becomes: what looks like one is encoded as ordinary text.

A text is encoded as a whole, as transformers does it, since tokenizers look beyond a control token: some strip the spaces around
it, some begin a text otherwise than what follows a control token. Only where a text would become a control token is it cut, behind
the first character of what looks like one; so are look-alikes, such as `<|IM_END|>` where a tokenizer lowers case, and what the
vocabulary itself has.

What a control token is follows transformers' `sanitize_control_tokens` (`utils/chat_template_utils.py` of 5.24): every special
token, and every added token that the template writes, unless it is white space, which templates write as text. Knows text with
marks, and no messages or templates.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

_MARK = "\ue5c7"  # a private character: no text of a language has it, and chats that do have it lose it
_UNKNOWN = "\U0010fffd"  # another one, which no vocabulary has
_NOTHING = re.compile(r"(?!)")
_AHEAD = "\n"  # which merges with nothing; transformers encodes what follows a cut behind it, too


@dataclass(frozen=True)
class ControlTokens:
    """What matches a tokenizer's control tokens.

    Attributes:
        ids: Their ids, but for the one that unknown characters become.
        written: Matches one.
        anywhere: Matches the first character of one, also of one within another.
        special: Matches the first character of one that the tokenizer calls special.
    """

    ids: frozenset[int]
    written: re.Pattern[str]
    anywhere: re.Pattern[str]
    special: re.Pattern[str]

    def comes_from(self, text: str, ids: Sequence[int]) -> bool:
        """Return whether a text has, or its tokens are, control tokens."""
        return self.written.search(text) is not None or not self.ids.isdisjoint(ids)


def control_tokens(tokenizer: Any, template: str = "") -> ControlTokens:
    """Return a tokenizer's control tokens: special tokens, and added ones that a template writes."""
    found = {
        place: token
        for place, token in tokenizer.get_added_tokens_decoder().items()
        if token.content and (token.special or (token.content in template and not token.content.isspace()))
    }
    any_one = _one_of([token.content for token in found.values()])
    special = _one_of([token.content for token in found.values() if token.special])
    unknown = tokenizer.encode(_UNKNOWN, add_special_tokens=False).ids
    return ControlTokens(
        frozenset(found).difference(unknown),
        re.compile(f"(?:{any_one})(?!{_MARK})"),
        re.compile(f"(?={any_one}).", re.DOTALL),
        re.compile(f"(?={special}).", re.DOTALL),
    )


def _one_of(texts: list[str]) -> str:
    longest_first = sorted(texts, key=len, reverse=True)
    return "|".join(re.escape(text) for text in longest_first) or r"(?!)"


def marked(value: Any, control: re.Pattern[str]) -> Any:
    """Return a text, or what texts are nested in, with a mark behind every character that the pattern matches."""
    if isinstance(value, str):
        return control.sub(rf"\g<0>{_MARK}", value.replace(_MARK, ""))
    if isinstance(value, Mapping):
        return {marked(key, control): marked(inner, control) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [marked(inner, control) for inner in value]
    return value


def unmarked(value: Any) -> Any:
    """Return a text, or what texts are nested in, without marks."""
    return marked(value, _NOTHING)


def encode_text(tokenizer: Any, text: str, control: ControlTokens) -> list[int]:
    """Return the tokens of a text in which nothing is a control token."""
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    return _encode_cut(tokenizer, marked(text, control.anywhere), control, ()) if control.comes_from(text, ids) else ids


def encode_marked(tokenizer: Any, text: str, control: ControlTokens) -> list[int]:
    """Return the tokens of a text whose control tokens are tokens, but where they are marked."""
    places: list[int] = []
    behind = marks = 0
    for match in control.written.finditer(text):
        marks += text.count(_MARK, behind, match.start())
        behind = match.start()
        places.append(behind - marks)
    return _encode_cut(tokenizer, text, control, places)


def _encode_cut(tokenizer: Any, text: str, control: ControlTokens, places: Sequence[int]) -> list[int]:
    """Return the tokens of a text that is cut at its marks, and wherever else there would be a control token.

    Args:
        tokenizer: As `tokenizers` has it.
        text: With marks.
        control: The control tokens.
        places: Where in the text without marks control tokens begin that are to be tokens.
    """
    parts = text.split(_MARK)
    cuts, text = set(accumulate(map(len, parts[:-1]))), "".join(parts)

    def is_text(token: int, start: int, end: int) -> bool:
        after = bisect_left(places, start)
        return token in control.ids and not (after < len(places) and places[after] < end)

    while True:
        found = list(_tokens(tokenizer, text, cuts))
        more = {(start + end) // 2 for token, start, end in found if end - start > 1 and is_text(token, start, end)} - cuts
        if not more:  # what one character becomes cannot be cut
            return [token for token, start, end in found if not is_text(token, start, end)]
        cuts |= more


def _tokens(tokenizer: Any, text: str, cuts: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the tokens of a text that is cut, each with where it starts and ends."""
    ahead = list(tokenizer.encode(_AHEAD, add_special_tokens=False).ids) if cuts else []
    for start, end in pairwise([0, *sorted(cuts - {0, len(text)}), len(text)]):
        first, shift = (len(ahead), start - len(_AHEAD)) if start else (0, 0)
        found = tokenizer.encode(_AHEAD + text[start:end] if start else text[start:end], add_special_tokens=False)
        if found.ids[:first] != ahead[:first] or any(begins + shift < start for begins, _ in found.offsets[first:]):
            found, first, shift = tokenizer.encode(text[start:end], add_special_tokens=False), 0, start
        for token, (begins, ends) in zip(found.ids[first:], found.offsets[first:], strict=True):
            yield token, begins + shift, ends + shift
