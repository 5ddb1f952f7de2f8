"""Reading what teachers write: what all answer forms have in common, and self-evaluations.

Real teachers run on into the next question, end in `Answer: 42`, `Hence the answer is 42.`, `(84 / 2)`, a bare equation,
a sentence without a number, or in mid-sentence. Nothing here guesses: a text in which no answer is stated is `Unparsed`.
"""

from __future__ import annotations

import re
from collections import deque

from mmedge.tasks.base import SelfEvaluation, Unparsed, Verdict

_RUN_ON = re.compile(r"\n\s*+(?:Q\s*:|Question\s*:|Problem\s*:|Premise\s*:|###)", re.IGNORECASE)
_HEAD = re.compile(r"^\s*(?:(?:rationale|explanation|reasoning|solution|a)\s*:\s*)+", re.IGNORECASE)
MARKER = re.compile(
    r"(?:\b(?:so|hence|therefore|thus|and so)\b[,:]?\s*)?\b(?:the\s+)?(?:final\s+|correct\s+|best\s+)?answer"
    r"(?:\s+choice)?\s*(?:\bis\b\s*:?|:|=|\bwould be\b|\bmust be\b)\s*",
    re.IGNORECASE,
)
# a reasoning block; where the prompt has begun it, the text shows its end alone; one that never ends is all there is
_THINKING = re.compile(
    r"^\s*(?:<think(?:ing)?>|\[THINK\])(?P<thoughts>.*?)(?:</think(?:ing)?>|\[/THINK\]|\Z)"
    r"|^(?P<begun>(?:(?!<think).)*?)</think(?:ing)?>",
    re.DOTALL,
)
_RESPONSE = re.compile(r"^\s*<response>(.*?)(?:</response>\s*|\Z)", re.DOTALL)  # around what follows a block (Granite 3)
_SECTIONS = 32  # statements of an answer in one text
_WHOLE_END = re.compile(r"[.!?)\]\"'”’]\s*$")


def trim(text: str) -> str:
    """Return the text up to where the teacher runs on into another question, without the label that it starts with.

    A reasoning model's thoughts before its answer (`<think>…</think>`) are left out too, unless nothing but the answer follows:
    then they are the rationale.
    """
    text = _after_thinking(text)
    if "\n" in text:
        text = _RUN_ON.split(text, maxsplit=1)[0]
    return _HEAD.sub("", text).strip()


def _after_thinking(text: str) -> str:
    """Return what follows a reasoning block, or the block's thoughts and the answer where that is all that follows."""
    block = _THINKING.match(text) if "<think" in text or "</think" in text or "[THINK]" in text else None
    if block is None:
        return text
    rest = _RESPONSE.sub(r"\1", text[block.end() :]).strip()
    stated = answer_sections(rest)
    if not stated or stated[-1][0].strip(" *#\n"):
        return rest
    return f"{one_paragraph(block['thoughts'] or block['begun'] or '')} {rest}"


def runs_on(text: str) -> bool:
    """Whether the teacher went on to another question after this one: a text that was cut off there is whole."""
    return _RUN_ON.search(_THINKING.sub("", text)) is not None


def one_paragraph(text: str) -> str:
    """Return the text with every run of white space as one space."""
    return re.sub(r"\s+", " ", text).strip()


def plain(text: str) -> str:
    """Return text for comparison: lower case, single spaces, no quotes or final punctuation."""
    return re.sub(r"\s+", " ", text).strip().strip("\"'`“”‘’").rstrip(".,;:!").strip().lower()


def ends_whole(text: str) -> bool:
    """Whether a text ends at the end of a sentence."""
    return bool(_WHOLE_END.search(text))


def answer_sections(text: str) -> list[tuple[str, str]]:
    """Return the text (before, after) each statement of an answer, the last one first; of a text in circles only the last ones."""
    return [(text[: match.start()], text[match.end() :]) for match in reversed(deque(MARKER.finditer(text), _SECTIONS))]


def first_line(text: str) -> str:
    """Return the first line of a text."""
    return text.strip().split("\n", 1)[0]


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
    """Return why a self-evaluation that states its verdict in its text cannot be read, or None if it can."""
    body = trim(text)
    if not body:
        return Unparsed.EMPTY
    return None if _VERDICT.search(body) else Unparsed.NO_VERDICT
