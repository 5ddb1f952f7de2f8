"""Answers that are numbers or arithmetic expressions, judged by value.

    ExpressionForm().agrees("84 / 2", "42")                                True
    ExpressionForm().read("… 4 * 16 = 64 points. The answer is 64.", …)     pseudo-label `4 * 16`

Real teachers end in `Answer: 42`, `Hence the answer is 42.`, `(84 / 2)`, `\\boxed{\\frac{84}{2}}`, a bare equation, a sentence
without a number, or in mid-sentence. Nothing here guesses: a text in which no answer is stated is `Unparsed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.expressions import (
    Expression,
    ExpressionError,
    find_expressions,
    find_numbers,
    leaf,
    number_text,
    operation,
    parse,
    same_value,
    value_of,
)
from mmedge.tasks.forms.constraints import Constrainer
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.latex import UNREADABLE, from_latex
from mmedge.tasks.reading import MARKER, answer_sections, ends_whole, first_line, one_paragraph, trim

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings

_UNKNOWN = re.compile(r"\(\s*[A-Za-z]+\s*[-+*/]|[-+*/]\s*\(?\s*[A-Za-z]+\s*\)")  # `(some - 12)`, `(2 * x)`
_PLAIN_NUMBER = re.compile(r"(?<![\d.,])\d{1,12}(?![\d.,]*\d)")
_BARE = re.compile(r"[$€£]?\s*-?\d[\d,]*(?:\.\d+)?(?:\s+[A-Za-z]+){0,3}")


@dataclass(frozen=True)
class ExpressionForm(AnswerForm):
    """An answer is a number or an arithmetic expression; right when its value is the label's."""

    name: ClassVar[str] = "expression"
    templates: ClassVar[str] = "svamp"
    calculates: ClassVar[bool] = True

    @classmethod
    def settings_type(cls) -> type[FormSettings]:
        from mmedge.tasks.forms.settings import ExpressionSettings

        return ExpressionSettings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], folder: Path | None = None) -> ExpressionForm:
        return cls()

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        try:
            return parse(answer).text()
        except ExpressionError:
            return None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        try:
            return same_value(parse(answer).value, parse(reference).value)
        except ExpressionError:
            return False

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        return read_arithmetic(text, example.question)

    def lacks_answer(self, text: str, example: Example) -> Unparsed | None:
        """Return why a text cannot be read, or None; texts that plainly state a number are not parsed, which is much faster."""
        body = trim(text)
        marker = MARKER.search(body, max(0, body.rfind("answer") - 12)) if "\\" not in body else None
        if marker is not None:
            line = first_line(body[marker.end() :])
            if "answer" not in line.lower() and _PLAIN_NUMBER.search(line) and not _unknown(line):
                return None
        return super().lacks_answer(text, example)

    def value_of(self, answer: str) -> str | None:
        try:
            value = value_of(answer)
        except ExpressionError:
            return None
        return None if value is None else number_text(value)

    def expected(self) -> str:
        return "a number or an arithmetic expression such as ( 84 / 2 )"

    def instruction(self) -> str:
        return "an arithmetic expression over the numbers of the question, such as ( 12 - 5 ) * 2"

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        from mmedge.tasks.forms.expression_constraints import ExpressionConstrainer

        return ExpressionConstrainer(encoder)


def _unknown(line: str) -> bool:
    """Whether a line states something other than plain arithmetic: `(2 * x)`, or mathematics without a plain form."""
    sentence = line.split(". ")[0]
    return bool(_UNKNOWN.search(sentence) or UNREADABLE.search(sentence))


def _stated_number(section: str) -> Expression | None:
    """Read the answer after `the answer is`: an expression, or the first number of the line."""
    line = first_line(section)
    if _unknown(line):
        return None
    found = find_expressions(line)
    numbers = find_numbers(line)
    if found and not (numbers and numbers[0] not in found[0].expression.numbers()):
        return found[0].expression
    sign = re.match(r"\s*[$€£]?\s*-\s*[$€£]?\s*\d", line)
    return leaf(-numbers[0] if sign else numbers[0]) if numbers else None


def _expanded(expression: Expression, earlier: dict[Fraction, Expression], given: set[Fraction], depth: int = 0) -> Expression:
    """Replace intermediate results by the operations that made them, so that only the question's numbers remain."""
    if depth > 8:
        return expression
    if expression.operator is None:
        source = earlier.get(expression.number)
        if source is None or expression.number in given:
            return expression
        rest = {value: made for value, made in earlier.items() if value != expression.number}
        return _expanded(source, rest, given, depth + 1)
    left, right = (_expanded(operand, earlier, given, depth + 1) for operand in expression.operands)
    return operation(expression.operator, left, right)


def expression_for(answer: Expression, rationale: str, question: str) -> Expression:
    """Return the expression in a rationale that yields the answer, written in the question's numbers; else the answer.

    Small students cannot multiply, but they can say what to multiply: `224` becomes `(4 * 16) * 17` where the rationale
    says so. Results of earlier equations are expanded unless the question itself gives that number.
    """
    given = set(find_numbers(question))
    earlier: dict[Fraction, Expression] = {}
    chosen: Expression | None = None
    for found in find_expressions(rationale):
        value = found.expression.value
        if value is None:
            continue
        expanded = _expanded(found.expression, earlier, given)
        if found.stated is None or same_value(found.stated, value):
            if same_value(value, answer.value):
                chosen = expanded
            earlier.setdefault(value, expanded)
    if answer.operator is not None:
        return _expanded(answer, earlier, given)
    return chosen if chosen is not None and same_value(chosen.value, answer.value) else answer


def read_arithmetic(text: str, question: str) -> ChainOfThought | Unparsed:
    """Read a chain of thought that ends in a number or an arithmetic expression."""
    body = from_latex(trim(text))
    if not body:
        return Unparsed.EMPTY
    if "\\boxed" in body:  # its braces never close
        return Unparsed.TRUNCATED
    for before, after in answer_sections(body):
        stated = _stated_number(after)
        if stated is None and _unknown(first_line(after)):
            return Unparsed.NO_ANSWER  # "The answer is (2 * x)."
        if stated is not None:
            rationale = one_paragraph(before) or one_paragraph(after)
            return ChainOfThought(rationale, expression_for(stated, before + " " + first_line(after), question).text())
    try:
        return ChainOfThought(one_paragraph(body), parse(body.rstrip(". \n")).text())
    except ExpressionError:
        pass
    return _read_unmarked_arithmetic(body, question)


def _read_unmarked_arithmetic(body: str, question: str) -> ChainOfThought | Unparsed:
    """Read a text that never says "the answer is": its last line must end in a result."""
    last_line = body.split("\n")[-1]
    equations = [found for found in find_expressions(body) if found.stated is not None]
    whole = ends_whole(body)
    if equations:
        tail = body[equations[-1].end :]
        if len(tail.split()) <= 6 and not find_numbers(tail):  # "… = 42 points per round."
            answer = leaf(equations[-1].stated or Fraction(0))
            return ChainOfThought(one_paragraph(body), expression_for(answer, body, question).text())
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", last_line.strip()) if part]
    said = [part for part in re.split(r"(?<=[.!?])\s+|\n", body) if part]
    if not whole and len(said) > 3 and (max(Counter(said).values()) >= 3 or len(set(said)) <= 2):
        return Unparsed.TRUNCATED  # it turned in circles until it was cut off
    if _BARE.fullmatch(body):
        whole = True  # "40 pounds"
    numbers = find_numbers(sentences[-1]) if sentences and not UNREADABLE.search(sentences[-1]) else []
    if not numbers:
        return Unparsed.NO_ANSWER if whole else Unparsed.TRUNCATED
    if not whole and len(body.split("\n")) == 1:
        return Unparsed.TRUNCATED
    distinct = list(dict.fromkeys(numbers))
    calculated = {found.expression.value for found in find_expressions(body)}
    candidates = [number for number in distinct if number in calculated] or distinct[-1:]
    return ChainOfThought(one_paragraph(body), expression_for(leaf(candidates[-1]), body, question).text())
