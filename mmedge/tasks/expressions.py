"""Arithmetic as text: a small parser of our own, so that what a model or a data set says is judged and never executed.

    parse("( 84.0 / 2.0 )").value      Fraction(42)
    parse("84 / 0").value              None: well-formed, but it has no value
    parse("1,234.5").text()            "1234.5"
    find_expressions("He has $67 * 74 = $ 4932")   one expression, 67 * 74, said to be 4932

Values are exact fractions. Inputs are bounded in length, depth and digits, so hostile text costs no more than honest text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 400  # the longest label of SVAMP has 31; anything this long is not an answer
MAX_DEPTH = 40
MAX_DIGITS = 15  # no quantity of a word problem has more; the limit keeps exact fractions cheap

_OPERATORS = {"+": "+", "-": "-", "−": "-", "–": "-", "*": "*", "×": "*", "·": "*", "/": "/", "÷": "/"}
_WORD_OPERATORS = {"plus": "+", "minus": "-", "times": "*", "x": "*"}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


class ExpressionError(ValueError):
    """The text is not an arithmetic expression; the message says where it stops being one."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression: a number, or an operation on two expressions.

    Attributes:
        operator: One of `+ - * /`, or None for a number.
        number: The value of a leaf; unused for an operation.
        operands: Left and right of an operation; empty for a number.
    """

    operator: str | None = None
    number: Fraction = Fraction(0)
    operands: tuple[Expression, ...] = ()

    @property
    def value(self) -> Fraction | None:
        """The exact value; None where a division by zero leaves it undefined."""
        if self.operator is None:
            return self.number
        left, right = (operand.value for operand in self.operands)
        if left is None or right is None:
            return None
        if self.operator == "+":
            return left + right
        if self.operator == "-":
            return left - right
        if self.operator == "*":
            return left * right
        return left / right if right != 0 else None

    def text(self) -> str:
        """Return the canonical form: `84 / 2`, `( 17 + 15 ) + 2`; nested operations are always in parentheses."""
        if self.operator is None:
            return number_text(self.number)
        parts = [f"( {part.text()} )" if part.operator else part.text() for part in self.operands]
        return f"{parts[0]} {self.operator} {parts[1]}"

    def numbers(self) -> tuple[Fraction, ...]:
        """Return the leaves from left to right."""
        if self.operator is None:
            return (self.number,)
        return tuple(number for operand in self.operands for number in operand.numbers())


def number_text(number: Fraction | int) -> str:
    """Write a number as people do: `42`, `0.5`, `-3`; repeating decimals are cut after six places."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{float(number):.6f}".rstrip("0").rstrip(".")


def leaf(number: Fraction | int) -> Expression:
    """Return the expression that is just this number."""
    return Expression(number=Fraction(number))


def operation(operator: str, left: Expression, right: Expression) -> Expression:
    """Return the expression `left operator right`."""
    return Expression(operator=operator, operands=(left, right))


_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"\s*(?:(?P<number>{_NUMBER})|(?P<symbol>[-+*/×·÷−–()])|(?P<x>[xX](?![a-zA-Z])))")


def _to_fraction(text: str) -> Fraction:
    plain = text.replace(",", "")
    if sum(character.isdigit() for character in plain) > MAX_DIGITS:
        raise ExpressionError(f"number with more than {MAX_DIGITS} digits")
    if plain.isdigit():
        return Fraction(int(plain))
    return Fraction(plain if not plain.startswith(".") else "0" + plain)


def _tokenize(text: str) -> list[str | Fraction]:
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    cleaned = text.replace("$", " ").replace("€", " ").replace("£", " ").strip()
    tokens: list[str | Fraction] = []
    position = 0
    while position < len(cleaned):
        match = _TOKEN.match(cleaned, position)
        if match is None:
            raise ExpressionError(f"unexpected {cleaned[position : position + 10].strip()!r}")
        if match["number"]:
            tokens.append(_to_fraction(match["number"]))
        elif match["x"]:
            tokens.append("*")
        else:
            tokens.append(_OPERATORS.get(match["symbol"], match["symbol"]))
        position = match.end()
    return tokens


def _parse_tokens(tokens: list[str | Fraction]) -> Expression:
    position = 0

    def peek() -> str | Fraction | None:
        return tokens[position] if position < len(tokens) else None

    def parse_operand(depth: int) -> Expression:
        nonlocal position
        if depth > MAX_DEPTH:
            raise ExpressionError("nested too deeply")
        token = peek()
        position += 1
        if isinstance(token, Fraction):
            return leaf(token)
        if token == "-":
            inner = parse_operand(depth + 1)
            return leaf(-inner.number) if inner.operator is None else operation("-", leaf(0), inner)
        if token == "+":
            return parse_operand(depth + 1)
        if token == "(":
            inner = parse_sum(depth + 1, 1)
            if peek() != ")":
                raise ExpressionError("a parenthesis is not closed")
            position += 1
            return inner
        raise ExpressionError("ends too early" if token is None else f"unexpected {token!r}")

    def parse_sum(depth: int, precedence: int) -> Expression:
        nonlocal position
        left = parse_operand(depth)
        links = 0
        while isinstance(token := peek(), str) and _PRECEDENCE.get(token, 0) >= precedence:
            links += 1
            if links > MAX_DEPTH:
                raise ExpressionError("too many operations")
            position += 1
            left = operation(token, left, parse_sum(depth + 1, _PRECEDENCE[token] + 1))
        return left

    result = parse_sum(0, 1)
    if position != len(tokens):
        raise ExpressionError(f"unexpected {tokens[position]!s:.10}")
    return result


_WHOLE, _SIGN = r"\s*(\d{1,15})\s*", r"([-+*])"
_ONE_STEP = re.compile(rf"{_WHOLE}{_SIGN}{_WHOLE}")
_TWO_STEPS = re.compile(rf"\s*\({_WHOLE}{_SIGN}{_WHOLE}\)\s*{_SIGN}{_WHOLE}|{_WHOLE}{_SIGN}\s*\({_WHOLE}{_SIGN}{_WHOLE}\)\s*")
_PLAINLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def value_of(text: str) -> Fraction | int | None:
    """Return the value of a text that is one arithmetic expression; None if it has none, as with a division by zero.

    One or two operations on whole numbers, which most answers are, are not parsed: 2 µs instead of 15 to 25.

    Raises:
        ExpressionError: It is not an expression.
    """
    if len(text) <= MAX_CHARACTERS:
        if found := _ONE_STEP.fullmatch(text):
            return _PLAINLY[found[2]](int(found[1]), int(found[3]))
        if found := _TWO_STEPS.fullmatch(text):
            a, first, b, second, c, d, third, e, fourth, f = found.groups()
            if first:
                return _PLAINLY[second](_PLAINLY[first](int(a), int(b)), int(c))
            return _PLAINLY[third](int(d), _PLAINLY[fourth](int(e), int(f)))
    return parse(text).value


def parse(text: str) -> Expression:
    """Parse a whole text as one arithmetic expression.

    Accepts decimals, thousands separators, `+ - * /` and their typographic forms, parentheses, signs, currency signs,
    but no `=`: `42 = 42` is not an expression.

    Raises:
        ExpressionError: It is not one.
    """
    tokens = _tokenize(text)
    if not tokens:
        raise ExpressionError("empty")
    return _parse_tokens(tokens)


def same_value(left: Fraction | None, right: Fraction | None) -> bool:
    """Return whether two values are equal up to a relative 1e-6, the last place of a printed decimal; None equals nothing."""
    if left is None or right is None:
        return False
    return abs(left - right) <= max(abs(left), abs(right)) * Fraction(1, 1_000_000)


@dataclass(frozen=True)
class FoundExpression:
    """An arithmetic operation that occurs inside prose.

    Attributes:
        expression: What was written, with at least one operator.
        stated: The result that the text gives it after `=` or "is"/"equals", or None.
        start: Character offset of its first token.
        end: Character offset behind its last token (behind the stated result, if any).
    """

    expression: Expression
    stated: Fraction | None
    start: int
    end: int


_PROSE_TOKEN = re.compile(
    rf"(?P<number>(?<![\w.])(?:{_NUMBER})(?![\d]))|(?P<symbol>[-+*/×·÷−–()=])"
    r"|(?P<word>[A-Za-z][A-Za-z'’-]*)|(?P<currency>[$€£])|(?P<percent>%)|(?P<other>[^\s])"
)
_BRIDGE_WORDS = 3  # "84 points / 2 rounds": the most words of unit between a number and its operator


@dataclass(frozen=True)
class _ProseToken:
    kind: str
    value: str | Fraction
    start: int
    end: int


@functools.lru_cache(maxsize=1024)  # a question is read again for each of its chains of thought
def _prose_tokens(text: str) -> tuple[_ProseToken, ...]:
    tokens: list[_ProseToken] = []
    for match in _PROSE_TOKEN.finditer(text):
        kind, raw = match.lastgroup or "other", match.group()
        value: str | Fraction = raw
        if kind == "currency":
            continue
        if kind == "number":
            try:
                value = _to_fraction(raw)
            except ExpressionError:
                kind = "other"
        elif kind == "symbol":
            kind = {"(": "open", ")": "close", "=": "equals"}.get(raw, "operator")
            value = _OPERATORS.get(raw, raw)
        elif kind == "word" and raw.lower() in _WORD_OPERATORS:
            kind, value = "operator", _WORD_OPERATORS[raw.lower()]
        elif kind == "word" and raw.lower() in ("divided", "multiplied"):
            kind, value = "operator-by", "/" if raw.lower() == "divided" else "*"
        tokens.append(_ProseToken(kind, value, match.start(), match.end()))
    merged: list[_ProseToken] = []
    for token in tokens:
        if merged and merged[-1].kind == "operator-by" and token.value == "by":
            merged[-1] = _ProseToken("operator", merged[-1].value, merged[-1].start, token.end)
        else:
            merged.append(token)
    return tuple(merged)


def _without_units(tokens: Sequence[_ProseToken]) -> list[_ProseToken]:
    """Drop the words between a number and the operator, `=` or parenthesis that follows it."""
    kept: list[_ProseToken] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        kept.append(token)
        index += 1
        if token.kind in ("number", "close"):
            ahead = index
            while ahead < len(tokens) and tokens[ahead].kind == "word" and ahead - index < _BRIDGE_WORDS:
                ahead += 1
            if ahead > index and ahead < len(tokens) and tokens[ahead].kind in ("operator", "equals", "close"):
                index = ahead
    return kept


def _longest_expression(tokens: list[_ProseToken]) -> Expression | None:
    try:
        return _parse_tokens([token.value for token in tokens])
    except ExpressionError:
        return None


def find_expressions(text: str) -> list[FoundExpression]:
    """Return the arithmetic operations in prose, from left to right.

    Words of unit between numbers and operators are skipped (`84 points / 2 rounds = 42 points`), spelled operators are
    read (`9 times 4`), and runs that do not parse as a whole are shortened from either side until they do.
    """
    tokens = _without_units(_prose_tokens(text[: MAX_CHARACTERS * 20]))
    found: list[FoundExpression] = []
    run: list[_ProseToken] = []

    def finish(following: int) -> None:
        if sum(token.kind == "operator" for token in run) and len(run) <= 4 * MAX_DEPTH:
            expression, used = None, run
            for cut in range(min(len(run), 6)):
                for front in range(cut + 1):
                    used = run[front : len(run) - (cut - front)]
                    expression = _longest_expression(used) if used else None
                    if expression is not None:
                        break
                if expression is not None:
                    break
            if expression is not None and expression.operator is not None:
                stated, end = None, used[-1].end
                if used[-1] is run[-1] and following + 1 < len(tokens) and tokens[following].kind == "equals":
                    result = tokens[following + 1]
                    if result.kind == "number" and isinstance(result.value, Fraction):
                        stated, end = result.value, result.end
                found.append(FoundExpression(expression, stated, used[0].start, end))
        run.clear()

    for index, token in enumerate(tokens):
        if token.kind in ("number", "operator", "open", "close"):
            adjacent = bool(run) and run[-1].kind in ("number", "close") and token.kind in ("number", "open")
            if adjacent:  # "12 5": two quantities, no operator between them
                finish(index)
            run.append(token)
        else:
            finish(index)
    finish(len(tokens))
    return found


def find_numbers(text: str) -> list[Fraction]:
    """Return the numbers in prose, from left to right, without signs."""
    return [token.value for token in _prose_tokens(text) if isinstance(token.value, Fraction)]
