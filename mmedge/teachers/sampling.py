"""Which responses are sampled for a subject, in which order and with which seeds: pure arithmetic, no clock, no network.

    wanted 3, at most 6 responses:   0 1 2  ─►  0 whole, 1 cut off, 2 the same as 0
                                     3 4    ─►  3 whole, 4 whole
                                     accepted: 0 3 4, as samples 0 1 2

Responses are sampled in waves of as many as are still missing; a wave is judged when all of it is there, in the order of their
numbers, never in the order of arrival. So a collection that was killed and continued, or shared by several collectors, holds what
an undisturbed one holds, if the teacher gives the same text for the same prompt and seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mmedge.annotations.records import Response
from mmedge.annotations.schema import ACCEPTED, IDENTICAL, WHOLE
from mmedge.tasks import Example, Unparsed
from mmedge.tasks.reading import lacks_verdict, one_paragraph, trim

TRUNCATED, REFUSED, EMPTY = "truncated", "refused", "empty"
_REFUSAL = re.compile(
    r"^\s*(?:i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|i can(?:no|['’])t\b|i won['’]t\b|i am (?:un|not )able to\b)",
    re.IGNORECASE,
)


class Reader(Protocol):
    """Says whether a text holds what it was asked for; answer forms do."""

    def lacks_answer(self, text: str, example: Example) -> Unparsed | None:
        """Return why a text cannot be read, or None if it can."""
        ...

    def goes_on(self, text: str) -> bool:
        """Whether a text goes on after what was asked for: one that is cut off there is whole."""
        ...


class SubjectState(NamedTuple):
    """How far the collection of one subject is.

    Attributes:
        accepted: The responses that become annotations, in order.
        outcomes: What became of every whole response that was judged: its number, and `accepted` or `identical`.
        missing: The responses to ask for now; empty where nothing more is asked for.
    """

    accepted: tuple[int, ...]
    outcomes: tuple[tuple[int, str], ...]
    missing: tuple[int, ...]


def subject_state(wanted: int, most: int, responses: Mapping[int, Response], distinct: bool) -> SubjectState:
    """Return what a subject has and what it still needs.

    Args:
        wanted: How many annotations it is to have.
        most: How many responses may be sampled for it.
        responses: What was sampled, by number.
        distinct: Whether a text that says the same as an earlier one does not count.
    """
    if not responses:
        return SubjectState((), (), tuple(range(min(wanted, most))))
    distinct = distinct and wanted > 1
    accepted: list[int] = []
    outcomes: list[tuple[int, str]] = []
    said: set[str] = set()
    end = 0
    while len(accepted) < wanted and end < most:
        start, end = end, min(most, end + wanted - len(accepted))
        missing = tuple(number for number in range(start, end) if number not in responses)
        if missing:
            return SubjectState(tuple(accepted), tuple(outcomes), missing)
        for number in range(start, end):
            response = responses[number]
            if response.outcome not in (WHOLE, ACCEPTED, IDENTICAL):
                continue
            words = same_words(response.text) if distinct else ""
            if distinct and words in said:
                outcomes.append((number, IDENTICAL))
                continue
            said.add(words)
            accepted.append(number)
            outcomes.append((number, ACCEPTED))
    return SubjectState(tuple(accepted), tuple(outcomes), ())


def same_words(text: str) -> str:
    """Return what texts that say the same have in common: their words in lower case, up to where the teacher runs on."""
    return one_paragraph(trim(text)).casefold()


def outcome(text: str, finish: str, kind: str, form: Reader, example: Example) -> str:
    """Return what a text is: `whole`, or why it does not count.

    Args:
        text: As it came.
        finish: How the endpoint says it ended: `stop`, `length`, `content_filter`, or whatever else it says.
        kind: `cot` or `evaluation`.
        form: Reads chains of thought.
        example: The question.
    """
    if finish in ("content_filter", "refusal"):
        return REFUSED
    if not text.strip():
        return TRUNCATED if finish == "length" else EMPTY
    if finish == "length" and not form.goes_on(text):
        return TRUNCATED
    unread = form.lacks_answer(text, example) if kind == "cot" else lacks_verdict(text)
    if unread is None:
        return WHOLE
    return REFUSED if is_refusal(text) else unread.value


def is_refusal(text: str) -> bool:
    """Whether a text begins as one in which a model says that it will not answer."""
    return _REFUSAL.match(text) is not None


def seed_for(seed: int, example_id: str, kind: str, sample: int, number: int) -> int:
    """Return the seed of a response: 31 bits that depend on nothing but these."""
    digest = hashlib.blake2b(f"{seed}/{example_id}/{kind}/{sample}/{number}".encode("utf-8", "replace"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return consecutive numbers as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
