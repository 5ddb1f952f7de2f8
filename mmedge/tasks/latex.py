r"""LaTeX in teachers' texts as plain arithmetic; what has no plain form stays as it is, so that its value is never guessed.

    unboxed(r"Thus \boxed{42}")                     "Thus The answer is: 42."
    from_latex(r"\frac{84}{2} \times 3 = \$126")    "((84) / (2)) * 3 = $126"
    from_latex(r"3\frac{1}{2}"), from_latex(r"\sqrt{2}")     unchanged: refused by whoever reads a number there

Nothing is evaluated here.
"""

from __future__ import annotations

import re

MAX_DEPTH = 8  # of nested braces; deeper is left as it is

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_STATED = re.compile(r"(?:\banswer\b[^.\n]{0,40}|(?:\bis\b|=|:))\s*[$*\\(\[ ]*$", re.IGNORECASE)
_FRACTION = re.compile(r"(?<![\dA-Za-z)])\\[dt]?frac\s*(?=[{\d])")
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*(?=\{)")
_PLAIN = (
    (re.compile(r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), " * "),
    (re.compile(r"\\div(?![A-Za-z])"), " / "),
    (re.compile(r"\\(?:quad|qquad|displaystyle)(?![A-Za-z])|\\[,;:! ()\[\]]"), " "),
    (re.compile(r"\\([$%#&_])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\$\$|(?<![\d\s])\$(?=[^\d\s])|(?<=[\d)])\$(?=[\s.,;]|$)"), " "),  # math mode; `$5` is an amount
)
UNREADABLE = re.compile(r"[\\^{}√]|\d_")  # in an answer: mathematics that was not turned into arithmetic


def _braced(text: str, start: int) -> tuple[str, int] | None:
    """Return the content of the braces that open at `start`, and where they end; None if they do not, or are nested too deeply."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "{":
            depth += 1
            if depth > MAX_DEPTH:
                return None
        elif text[place] == "}":
            depth -= 1
            if not depth:
                return text[start + 1 : place], place + 1
    return None


def unboxed(text: str) -> str:
    r"""Return a text in which `\boxed{…}` states an answer in words, unless the words before it already do."""
    place = 0
    while match := _BOXED.search(text, place):
        found = _braced(text, match.end())
        if found is None:
            return text
        inside, end = found
        stated = _STATED.search(text[max(0, match.start() - 60) : match.start()])
        said = inside if stated else f"The answer is: {inside}."
        text = text[: match.start()] + said + text[end:]
        place = match.start()
    return text


def from_latex(text: str) -> str:
    """Return a text with LaTeX's arithmetic written plainly; a text without a backslash is returned as it is."""
    if "\\" not in text:
        return text
    text = unboxed(text)
    text = _with_braces(text, _WORDS, 1)
    text = _with_braces(text, _FRACTION, 2)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return text


def _with_braces(text: str, command: re.Pattern[str], count: int) -> str:
    """Replace a command and its one or two arguments, the innermost first: `{a}` by a, `{a}{b}` by a quotient."""
    for match in reversed(list(command.finditer(text))):
        arguments, place = [], match.end()
        for _ in range(count):
            if text[place : place + 1].isdigit():  # \frac12
                arguments.append(text[place])
                place += 1
                continue
            found = _braced(text, place) if text[place : place + 1] == "{" else None
            if found is None:
                break
            arguments.append(found[0])
            place = found[1]
        if len(arguments) == count:
            plain = arguments[0] if count == 1 else f"(({arguments[0]}) / ({arguments[1]}))"
            text = text[: match.start()] + plain + text[place:]
    return text
