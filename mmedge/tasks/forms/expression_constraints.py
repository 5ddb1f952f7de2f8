"""Arithmetic, token by token: expressions that are complete before the limit, and a calculator for rationales."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmedge.tasks.base import Example
from mmedge.tasks.encoding import PromptEncoder, TextTokenizer
from mmedge.tasks.expressions import (
    MAX_DEPTH,
    MAX_DIGITS,
    Expression,
    ExpressionError,
    find_expressions,
    number_text,
    parse,
)
from mmedge.tasks.forms.constraints import Constrainer, Constraint, Tokens

_OF_EXPRESSIONS = re.compile(r"[0-9.+\-*/() ]+")


class ExpressionConstrainer(Constrainer):
    """Answers are arithmetic expressions; results in rationales are right.

    Args:
        encoder: The student's.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._grammar: ExpressionGrammar | None = None
        self._calculator: Calculator | None = None

    def answer(self, example: Example, limit: int) -> Constraint | None:
        if self._grammar is None:
            self._grammar = ExpressionGrammar(self._encoder.tokenizer, self._encoder.special.eos)
        return ExpressionConstraint(self._grammar, limit)

    def rationale(self) -> Constraint | None:
        if self._calculator is None:
            self._calculator = Calculator(self._encoder.tokenizer)
        return self._calculator.of_row()


@dataclass(frozen=True)
class _Place:
    """The state of a partly written expression.

    Attributes:
        after: What comes last: `start`, `space` (before an operand), `open`, `sign`, `whole`, `point`, `part` (digits after a
            point), `close`, `gap` (a space after an operand) or `operator`.
        depth: Open parentheses.
        digits: Digits of the number that is being written.
        links: Operators so far.
    """

    after: str = "start"
    depth: int = 0
    digits: int = 0
    links: int = 0

    @property
    def whole(self) -> bool:
        """Whether the text is an expression as it stands."""
        return self.depth == 0 and self.after in ("whole", "part", "close", "gap")

    def then(self, character: str) -> _Place | None:
        """Return the state after one more character, None where it cannot follow."""
        after, depth, digits, links = self.after, self.depth, self.digits, self.links
        wants_operand = after in ("start", "space", "open", "operator")
        in_number = after in ("whole", "point", "part")
        behind_operand = after in ("whole", "part", "close", "gap")
        if character == " ":
            if after in ("start", "open", "operator"):
                return _Place("space", depth, 0, links)
            return _Place("gap", depth, 0, links) if after in ("whole", "part", "close") else None
        if character.isdigit():
            if wants_operand or after == "sign":
                return _Place("whole", depth, 1, links)
            if in_number and digits < MAX_DIGITS:
                return _Place("whole" if after == "whole" else "part", depth, digits + 1, links)
            return None
        if character == ".":
            return _Place("point", depth, digits, links) if after == "whole" else None
        if character == "(":
            return _Place("open", depth + 1, 0, links) if wants_operand and depth < MAX_DEPTH // 2 else None
        if character == ")":
            return _Place("close", depth - 1, 0, links) if behind_operand and depth else None
        if character == "-" and wants_operand:
            return _Place("sign", depth, 0, links)
        if character in "+-*/" and behind_operand and links < MAX_DEPTH // 2:
            return _Place("operator", depth, 0, links + 1)
        return None

    def behind(self, text: str) -> _Place | None:
        place: _Place | None = self
        for character in text:
            if place is None:
                return None
            place = place.then(character)
        return place

    @property
    def needs(self) -> int:
        """The most tokens that it takes to complete it."""
        operand = self.after in ("start", "space", "open", "sign", "operator", "point")
        return 2 * operand + 2 * self.depth


class ExpressionGrammar:
    """The tokens of a vocabulary that arithmetic expressions are made of, and which of them may follow what.

    Args:
        tokenizer: The student's.
        eos: Its end token.

    Raises:
        ValueError: The vocabulary cannot write digits, or cannot end.
    """

    def __init__(self, tokenizer: TextTokenizer, eos: int) -> None:
        self._eos = eos
        self._pieces: dict[int, str] = {}
        added = tokenizer.get_added_tokens_decoder()
        for number, piece in _pieces(tokenizer):
            if number != eos and number not in added and _OF_EXPRESSIONS.fullmatch(piece):
                self._pieces[number] = piece
        if not any(text.strip().isdigit() for text in self._pieces.values()):
            raise ValueError("the vocabulary has no digits")
        self._following = lru_cache(maxsize=4096)(self._find_following)

    def _find_following(self, place: _Place) -> tuple[dict[int, _Place], Tokens]:
        found = {number: place_ for number, text in self._pieces.items() if (place_ := place.behind(text)) is not None}
        return found, np.array([*found, *([self._eos] if place.whole else [])], dtype=np.int64)

    def place(self, written: Sequence[int]) -> _Place:
        """Return the state after a sequence of tokens that the grammar allowed."""
        place = _Place()
        for token in written:
            place = self._following(place)[0][token]
        return place

    def following(self, place: _Place) -> tuple[dict[int, _Place], Tokens]:
        """Return what each token that may follow leads to, and the ids of those tokens, the end token last where it may."""
        return self._following(place)


class ExpressionConstraint:
    """An arithmetic expression that is complete before the limit.

    Args:
        grammar: The vocabulary's.
        limit: The most tokens that may be written.
    """

    def __init__(self, grammar: ExpressionGrammar, limit: int) -> None:
        self._grammar, self._limit = grammar, limit
        self._place, self._written = _Place(), 0

    def allowed(self, written: Sequence[int]) -> Tokens:
        if len(written) == self._written + 1:  # as it is asked, token after token
            self._place = self._grammar.following(self._place)[0][written[-1]]
        elif len(written) != self._written:
            self._place = self._grammar.place(written)
        self._written = len(written)
        places, ids = self._grammar.following(self._place)
        left = self._limit - len(written) - 1  # tokens behind the next one
        if self._place.needs < left - 4:
            return ids
        nearer = [number for number, place in places.items() if place.needs <= max(0, min(left, self._place.needs - 1))]
        if self._place.whole:
            return np.array([*nearer, int(ids[-1])], dtype=np.int64) if left > 0 else ids[-1:]
        return np.array(nearer, dtype=np.int64) if nearer else ids


def _pieces(tokenizer: TextTokenizer) -> Iterator[tuple[int, str]]:
    """Yield a vocabulary's ids and what stands for them; one by one, since all of them together take megabytes."""
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    for number in range(max(count, *(number + 1 for number in added)) if added else count):
        piece = tokenizer.id_to_token(number)
        if piece is not None:
            yield number, piece.replace("Ġ", " ").replace("▁", " ")


_RUN = re.compile(r"[\d(][-+*/() .,\d]*$")
_EQUALS = re.compile(r"=\s*$")
_LOOK_BACK = 160  # characters before an equals sign that are searched for the operation


class Calculator:
    """Lets a student reason with right results: after `76 + 4 =` it can only write 80.

    A small student learns which operation a sentence calls for long before it learns to calculate; the results that it writes
    are then wrong, what follows builds on them, and the rationale's conclusion cannot be compared with the answer. The
    operation stays the student's; our own parser computes its result (as Cobbe et al. 2021 do with a calculator).

    Args:
        tokenizer: The student's.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._written = lru_cache(maxsize=4096)(self._find_written)
        self._signs = frozenset(number for number, piece in _pieces(tokenizer) if "=" in piece)
        without = (number for number, piece in _pieces(tokenizer) if not piece[:1].isdigit())
        self._no_digit = np.fromiter(without, dtype=np.int64)

    def of_row(self) -> Constraint:
        """Return the calculator of one text."""
        return _Calculation(self)

    def result(self, written: Sequence[int]) -> list[int]:
        """Return the tokens of the result of the operation that a text ends with; none where it does not."""
        text = self._tokenizer.decode(list(written), skip_special_tokens=True)
        sign = _EQUALS.search(text)
        if sign is None:
            return []
        operation = _operation_at_end(text[: sign.start()].rstrip()[-_LOOK_BACK:])
        value = operation.value if operation is not None else None
        if value is None or value < 0 or (value * 100).denominator != 1:
            return []  # not written that way by people
        return list(self._written(text.endswith(" "), number_text(value)))

    def _find_written(self, spaced: bool, number: str) -> tuple[int, ...]:
        """Return the tokens of a number after an equals sign; none where the tokenizer would merge them with it."""
        begun = self._tokenizer.encode("= " if spaced else "=", add_special_tokens=False).ids
        whole = self._tokenizer.encode(f"= {number}", add_special_tokens=False).ids
        return tuple(whole[len(begun) :]) if whole[: len(begun)] == begun else ()

    def begins(self, token: int) -> bool:
        """Whether a token contains an equals sign."""
        return token in self._signs

    @property
    def no_digit(self) -> Tokens:
        """The tokens that do not continue a number."""
        return self._no_digit


def _operation_at_end(text: str) -> Expression | None:
    """Return the arithmetic operation that a text ends with; None where it ends with none."""
    run = _RUN.search(text)
    if run is not None:
        try:
            found = parse(run[0])
            return found if found.operator else None
        except ExpressionError:
            pass  # `12. 12 / 4`: two numbers; whoever reads prose tells them apart
    whole = f"{text} = 0"  # a result shows how far the operation reaches, words of unit included
    operations = find_expressions(whole)
    return operations[-1].expression if operations and operations[-1].end == len(whole) else None


class _Calculation:
    """How much of a result was written."""

    def __init__(self, calculator: Calculator) -> None:
        self._calculator = calculator
        self._coming: list[int] = []
        self._ended = False

    def allowed(self, written: Sequence[int]) -> Tokens | None:
        if self._coming:
            token = self._coming.pop(0)
            self._ended = not self._coming
            return np.array([token], dtype=np.int64)
        if self._ended:
            self._ended = False
            return self._calculator.no_digit
        if written and self._calculator.begins(written[-1]):
            self._coming = self._calculator.result(written)
            if self._coming:
                return self.allowed(written)
        return None
