"""Reading what teachers write: raw text in, rationale and pseudo-label out, or the reason why not.

Real teachers run on into the next question, end in `Answer: 42`, `Hence the answer is 42.`, `(84 / 2)`, a bare equation,
a sentence without a number, or in mid-sentence. Nothing here guesses: a text in which no answer is stated is `Unparsed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from mmedge.tasks.base import ChainOfThought, Example, SelfEvaluation, Unparsed, Verdict
from mmedge.tasks.expressions import (
    Expression,
    ExpressionError,
    find_expressions,
    find_numbers,
    leaf,
    operation,
    parse,
    same_value,
)
from mmedge.tasks.forms.judges import AnyJudge, plain

_RUN_ON = re.compile(r"\n\s*(?:Q\s*:|Question\s*:|Problem\s*:|Premise\s*:|###)", re.IGNORECASE)
_HEAD = re.compile(r"^\s*(?:(?:rationale|explanation|reasoning|solution|a)\s*:\s*)+", re.IGNORECASE)
_MARKER = re.compile(
    r"(?:\b(?:so|hence|therefore|thus|and so)\b[,:]?\s*)?\b(?:the\s+)?(?:final\s+|correct\s+|best\s+)?answer"
    r"(?:\s+choice)?\s*(?:\bis\b\s*:?|:|=|\bwould be\b|\bmust be\b)\s*",
    re.IGNORECASE,
)
_THINKING = re.compile(r"^\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_UNKNOWN = re.compile(r"\(\s*[A-Za-z]+\s*[-+*/]|[-+*/]\s*\(?\s*[A-Za-z]+\s*\)")  # `(some - 12)`, `(2 * x)`
_PLAIN_NUMBER = re.compile(r"(?<![\d.,])\d{1,12}(?![\d.,]*\d)")
_BARE = re.compile(r"[$€£]?\s*-?\d[\d,]*(?:\.\d+)?(?:\s+[A-Za-z]+){0,3}")
_WHOLE_END = re.compile(r"[.!?)\]\"'”’]\s*$")


def trim(text: str) -> str:
    """Return the text up to where the teacher runs on into another question, without the label that it starts with.

    What a reasoning model thinks aloud before its answer (`<think>…</think>`) is left out too.
    """
    if "<think" in text:
        text = _THINKING.sub("", text)
    if "\n" in text:
        text = _RUN_ON.split(text, maxsplit=1)[0]
    return _HEAD.sub("", text).strip()


def runs_on(text: str) -> bool:
    """Whether the teacher went on to another question after this one: a text that was cut off there is whole."""
    return _RUN_ON.search(_THINKING.sub("", text)) is not None


def one_paragraph(text: str) -> str:
    """Return the text with every run of white space as one space."""
    return re.sub(r"\s+", " ", text).strip()


def _answer_sections(text: str) -> list[tuple[str, str]]:
    """Return (what stands before, what stands after) for each statement of an answer, the last one first."""
    return [(text[: match.start()], text[match.end() :]) for match in reversed(list(_MARKER.finditer(text)))]


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


# ---------------------------------------------------------------------------------------------- arithmetic


def _stated_number(section: str) -> Expression | None:
    """Read the answer behind `the answer is`: an expression, or the first number of the line."""
    line = _first_line(section)
    if _UNKNOWN.search(line.split(". ")[0]):
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
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    for before, after in _answer_sections(body):
        stated = _stated_number(after)
        if stated is None and _UNKNOWN.search(_first_line(after)):
            return Unparsed.NO_ANSWER  # "The answer is (2 * x)."
        if stated is not None:
            rationale = one_paragraph(before) or one_paragraph(after)
            return ChainOfThought(rationale, expression_for(stated, before + " " + _first_line(after), question).text())
    try:
        return ChainOfThought(one_paragraph(body), parse(body.rstrip(". \n")).text())
    except ExpressionError:
        pass
    return _read_unmarked_arithmetic(body, question)


def _read_unmarked_arithmetic(body: str, question: str) -> ChainOfThought | Unparsed:
    """Read a text that never says "the answer is": its last line must end in a result."""
    last_line = body.split("\n")[-1]
    equations = [found for found in find_expressions(body) if found.stated is not None]
    whole = bool(_WHOLE_END.search(body))
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
    numbers = find_numbers(sentences[-1]) if sentences else []
    if not numbers:
        return Unparsed.NO_ANSWER if whole else Unparsed.TRUNCATED
    if not whole and len(body.split("\n")) == 1:
        return Unparsed.TRUNCATED
    distinct = list(dict.fromkeys(numbers))
    calculated = {found.expression.value for found in find_expressions(body)}
    candidates = [number for number in distinct if number in calculated] or distinct[-1:]
    return ChainOfThought(one_paragraph(body), expression_for(leaf(candidates[-1]), body, question).text())


# ------------------------------------------------------------------------------------------------- choices


_LETTERS = re.compile(r"\(([A-Za-z])\)")
_SEVERAL = re.compile(r"\([A-Za-z]\)[^()]{0,40}?(?:\b(?:or|and)\b|,)\s*\([A-Za-z]\)")


def _choice_named(text: str, choices: Sequence[str], judge: AnyJudge) -> str | None:
    """Return the choice that a piece of text names first: by letter in parentheses, by letter alone, or by its words."""
    line = _first_line(text)
    if len(set(_LETTERS.findall(line.split(". ")[0]))) > 1 and _SEVERAL.search(line):
        return None  # "(b) jail time or (e) going to prison"
    if match := re.match(r"\s*\(?([A-Za-z])\)", line) or re.match(r"\s*\(?([A-Za-z])\s*(?:[.,:;]|$)", line):
        return judge.canonical(match[1], choices)
    low = plain(line)
    named = [choice for choice in choices if re.match(rf"(?:the |an? |to )?{re.escape(plain(choice))}\b", low)]
    return max(named, key=len, default=None)


def _choices_mentioned(text: str, choices: Sequence[str]) -> list[str]:
    """Return the choices whose words occur in a text; one inside a longer one that occurs there does not count."""
    low = f" {plain(text)} "
    found: list[str] = []
    for choice in sorted(dict.fromkeys(choices), key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(plain(choice))}(?!\w)"
        if re.search(pattern, low):
            found.append(choice)
            low = re.sub(pattern, " ", low)
    return found


def read_choice(text: str, choices: Sequence[str], judge: AnyJudge) -> ChainOfThought | Unparsed:
    """Read a chain of thought that ends in one of several choices, or one of a task's labels."""
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    for before, after in _answer_sections(body):
        named = _choice_named(after, choices, judge)
        if named is None and _SEVERAL.search(_first_line(after)):
            return Unparsed.AMBIGUOUS
        if named is None:
            mentioned = _choices_mentioned(_first_line(after).split(".")[0], choices)
            named = mentioned[0] if len(mentioned) == 1 else None
        if named is not None:
            return ChainOfThought(one_paragraph(before) or one_paragraph(after), named)
    first = _choice_named(body, choices, judge) if not re.match(r"\s*[A-Za-z][ \t]", body) else None
    if first is not None:
        return ChainOfThought(one_paragraph(body), first)
    mentioned = _choices_mentioned(body, choices)
    if len(mentioned) == 1:
        return ChainOfThought(one_paragraph(body), mentioned[0])
    if len(mentioned) > 1:
        return Unparsed.AMBIGUOUS
    return Unparsed.NO_ANSWER if _WHOLE_END.search(body) else Unparsed.TRUNCATED


def read_exact(text: str, judge: AnyJudge) -> ChainOfThought | Unparsed:
    """Read a chain of thought whose answer is free text: only what follows a statement of the answer counts."""
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    for before, after in _answer_sections(body):
        answer = judge.canonical(_first_line(after).rstrip("."))
        if answer:
            return ChainOfThought(one_paragraph(before) or answer, answer)
    return Unparsed.NO_ANSWER


def read_task_text(text: str, example: Example, judge: AnyJudge) -> ChainOfThought | Unparsed:
    """Read a chain of thought by the judge that its task has."""
    if judge.name == "expression":
        return read_arithmetic(text, example.question)
    if judge.name == "choice":
        return read_choice(text, example.choices, judge)
    if judge.name == "label":
        return read_choice(text, getattr(judge, "labels", ()), judge)
    return read_exact(text, judge)


def lacks_answer(text: str, example: Example, judge: AnyJudge) -> Unparsed | None:
    """Return why a chain of thought cannot be read, or None where it can: as reading it says, but several times faster."""
    if judge.name == "expression":
        body = trim(text)
        marker = _MARKER.search(body, max(0, body.rfind("answer") - 12))
        if marker is not None:
            line = _first_line(body[marker.end() :])
            if "answer" not in line.lower() and _PLAIN_NUMBER.search(line) and not _UNKNOWN.search(line):
                return None
    found = read_task_text(text, example, judge)
    return found if isinstance(found, Unparsed) else None


# ---------------------------------------------------------------------------------------- self-evaluations

_VERDICT = re.compile(
    r"\b(?:verdict|conclusion|judge?ment|(?:the|this)\s+(?:given\s+|proposed\s+)?(?:answer|solution|reasoning)\s+is)\b"
    r"[*\"']*\s*(?:is|:|=)?\s*[*\"'(]*"
    r"(correct|right|wrong|incorrect|uncertain|unsure)\b",
    re.IGNORECASE,
)
_VERDICT_WORDS = {
    "correct": Verdict.CORRECT,
    "right": Verdict.CORRECT,
    "wrong": Verdict.WRONG,
    "incorrect": Verdict.WRONG,
    "uncertain": Verdict.UNCERTAIN,
    "unsure": Verdict.UNCERTAIN,
}


def read_self_evaluation(text: str, verdict: str | None) -> SelfEvaluation | Unparsed:
    """Read a self-evaluation whose verdict is recorded beside it, or stated in its text.

    Args:
        text: What the teacher wrote.
        verdict: The recorded verdict in any spelling, or None to look for one in the text.
    """
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    if verdict is not None:
        known = _VERDICT_WORDS.get(plain(verdict))
        return SelfEvaluation(one_paragraph(body), known) if known else Unparsed.NO_VERDICT
    matches = list(_VERDICT.finditer(body))
    if not matches:
        return Unparsed.NO_VERDICT
    rationale = one_paragraph(body[: matches[-1].start()]) or one_paragraph(body)
    return SelfEvaluation(rationale, _VERDICT_WORDS[matches[-1][1].lower()])


def lacks_verdict(text: str) -> Unparsed | None:
    """Return why a self-evaluation cannot be read that states its verdict in its text, or None where it can."""
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    return None if _VERDICT.search(body) else Unparsed.NO_VERDICT
