"""The prompt that asks for a new question, and the question in what comes back.

    === user for each seed
    The right label for it is: music.
    === assistant for each seed
    Input: Play some jazz
    === user
    Of the labels lights, music, timer, the right one for it is: music. … Wording: casual. Length: about 5 words. …

    "Sure! Here is one:\n\nInput: put some fado on\nAnswer: music"     →  "put some fado on"

A teacher sees its seeds as a conversation in which it has written them itself, each after what its answer is: small teachers then
write requests as people do, where a list of examples makes many ask the person something or spell out a call.

What a teacher adds is left out: an opening, an answer, a second question. What holds no question, or a placeholder where a value
should be or a name of the schema, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedge.errors import MmedgeError, is_broken
from mmedge.openai import Message
from mmedge.storage import require_file
from mmedge.synthesis.briefs import Brief
from mmedge.tasks import Example, Unparsed
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.reading import one_paragraph
from mmedge.teachers.prompting import TEMPLATES, Template, read_template
from mmedge.teachers.sampling import is_refusal

ONE_MORE = "Write one."  # where the form leaves open what an answer is
BUILT_IN = TEMPLATES / "new_question.txt"
PLACES = ("seeds", "seed", "wish", "style", "words", "reply", "form")
_ONE_LINE = "Reply with one line: Input: TEXT"
_TWO_LINES = "Reply with two lines: Question: TEXT, then Choices: (a) TEXT (b) TEXT …"
_THINKING = re.compile(r"^\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_NAME = r"(?:(?:the\s+)?new\s+)?(?:question|input|request|problem)\b"
_MARK = re.compile(rf"^[\W\d]*{_NAME}[\s\d*_#]*:[\s*_]*", re.IGNORECASE | re.MULTILINE)
_OTHER = r"choices|options|answer|label|explanation|note|output|json|call"
_OTHER_PART = re.compile(rf"\n\s*\n|\n[\W\d]*(?:{_NAME}|{_OTHER})[^\n:]{{0,20}}:", re.IGNORECASE)
_CHOICES = re.compile(r"^\W*(?:answer\s+)?(?:choices|options)\W*:", re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(r"\(?\b([a-zA-Z])\s*[).]\s*(.*?)(?=\s*[,;]?\s*\(?\b[a-zA-Z]\s*[).]\s|\s*\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(r"\[[A-Za-z][\w /'’-]*\]|\{[\w ]*\}|<[A-Za-z][\w ]*>|\bTEXT\b|_{3,}")
_PAIRS = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("`", "`"))
_OPENING = re.compile(r"(?:sure|certainly|of course|okay|ok|here (?:is|are)|here['’]s)\b[^\n]*:", re.IGNORECASE)
_LONGEST = 4000  # characters of a question


@dataclass(frozen=True)
class QuestionPrompts:
    """How a teacher is asked for new questions.

    Attributes:
        template: The prompt.
        briefs: What each is asked to be, by its id; grows.
        form: What answers look like.
    """

    template: Template
    briefs: dict[str, Brief]
    form: AnswerForm

    def about_question(self, example: Example) -> tuple[Message, ...]:
        """Return what asks for the question that is called as this one is."""
        brief = self.briefs[example.id]
        values = {
            "seeds": "\n".join(f"- {_shown(seed)}" for seed in brief.seeds),
            "wish": brief.wish or (ONE_MORE if self.template.each else ""),
            "style": brief.style,
            "words": str(brief.words),
            "reply": _TWO_LINES if self.form.takes_choices else _ONE_LINE,
            "form": self.form.instruction(),
        }
        return self.template.filled_with(values, [values | self._of_seed(seed) for seed in brief.seeds])

    def _of_seed(self, seed: Example) -> dict[str, str]:
        """Return what the placeholders stand for in the messages about a seed."""
        written = f"Question: {_shown(seed, chr(10))}" if self.form.takes_choices else f"Input: {_shown(seed)}"
        return {"wish": self.form.wish_met(seed) or ONE_MORE, "seed": written}

    def about_cot(self, example: Example, text: str) -> tuple[Message, ...]:
        """Return no messages: nothing is asked about a new question here."""
        return ()

    def to_json(self) -> dict[str, object]:
        """Return the template."""
        each = {"each": sorted(self.template.each)} if self.template.each else {}
        return {"question": self.template.messages, **each}

    def typical_lengths(self) -> tuple[float, float]:
        """Return how long the texts are, in characters, before any was seen: as the seeds."""
        lengths = [len(seed.question) + 20 for brief in self.briefs.values() for seed in brief.seeds]
        return sum(lengths) / max(1, len(lengths)), 0.0


def load_template(path: Path | None) -> Template:
    """Return the prompt, the built-in one where no file is named.

    Raises:
        MmedgeError: See `read_template`; or it shows no seeds, or one outside of the messages for each.
    """
    found = read_template(BUILT_IN if path is None else require_file(path, "synthesis.prompt"), (), PLACES)
    if not any("{reply}" in text for _, text in found.messages):
        raise MmedgeError(f"{found.source}: the placeholder {{reply}} is missing", "it says in what form the teacher replies")
    if not any(place in text for _, text in found.messages for place in ("{seeds}", "{seed}")):
        raise MmedgeError(
            f"{found.source}: neither of the placeholders {{seeds}} and {{seed}} is there",
            "put {seed} into messages 'for each seed', or {seeds} where a list of them is to stand",
        )
    for place, (_, text) in enumerate(found.messages):
        if "{seed}" in text and place not in found.each:
            raise MmedgeError(
                f"{found.source}: {{seed}} stands in a message that is not 'for each seed'", "write === user for each seed above it"
            )
    return found


def _shown(example: Example, separator: str = " ") -> str:
    choices = " ".join(f"({chr(ord('a') + place)}) {choice}" for place, choice in enumerate(example.choices))
    return one_paragraph(example.question) + (f"{separator}Choices: {choices}" if choices else "")


# -------------------------------------------------------------------------------------------- what comes back


@dataclass(frozen=True)
class QuestionReader:
    """Reads new questions; what an answer form's `lacks_answer` is to chains of thought.

    Attributes:
        takes_choices: Whether a question needs choices.
        names: Names of a schema that nobody would write; a question that has one is not read.
    """

    takes_choices: bool = False
    names: tuple[str, ...] = ()

    def lacks_answer(self, text: str, example: Example) -> Unparsed | None:
        """Return why a text holds no question, or None if it holds one."""
        found = self.read(text)
        return found if isinstance(found, Unparsed) else None

    def goes_on(self, text: str) -> bool:
        """Whether something follows the question, so that it is whole although the text was cut off."""
        body = _THINKING.sub("", text).strip()
        mark = _MARK.search(body)
        return not self.takes_choices and mark is not None and "\n" in body[mark.end() :]

    def read(self, text: str) -> tuple[str, tuple[str, ...]] | Unparsed:
        """Return the question and its choices."""
        body = _THINKING.sub("", text).strip()
        if not body:
            return Unparsed.EMPTY
        mark = _MARK.search(body)
        if mark is None and (is_refusal(body) or _OPENING.match(body) or (len(body.splitlines()) > 1 and not self.takes_choices)):
            return Unparsed.NO_ANSWER
        rest = body[mark.end() :] if mark else body
        end = _OTHER_PART.search(rest)
        question = _unquoted(one_paragraph(rest[: end.start()] if end else rest))
        if inside := re.search(r"\bchoices\s*:", question, re.IGNORECASE):
            question = question[: inside.start()].strip()
        if not re.search(r"\w\W*\w", question) or len(question) > _LONGEST or question.endswith(":") or is_refusal(question):
            return Unparsed.NO_ANSWER
        if (
            _PLACEHOLDER.search(question)
            or is_broken(question)
            or any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question) for name in self.names)
        ):
            return Unparsed.INVALID
        choices = _choices(rest) if self.takes_choices else ()
        if self.takes_choices and len(choices) < 2:
            return Unparsed.NO_ANSWER
        return question, choices


def _choices(text: str) -> tuple[str, ...]:
    """Return the lettered choices behind a question; none where they are not different texts (a), (b), (c) …"""
    mark = _CHOICES.search(text) or re.search(r"\bchoices\s*:", text, re.IGNORECASE)
    if mark is None:
        return ()
    block = re.split(r"\n\s*\n|\n\W*answer\b", text[mark.end() :], maxsplit=1, flags=re.IGNORECASE)[0]
    found: Sequence[tuple[str, str]] = _CHOICE.findall(block)
    letters = "".join(letter.lower() for letter, _ in found)
    texts = tuple(one_paragraph(choice).strip(" ,;") for _, choice in found)
    good = (
        letters == "abcdefghijklmnopqrstuvwxyz"[: len(letters)] and all(texts) and len({t.casefold() for t in texts}) == len(texts)
    )
    return texts if good else ()


def _unquoted(text: str) -> str:
    text = text.strip().strip("*").strip()
    for left, right in _PAIRS:
        if len(text) > 2 and text.startswith(left) and text.endswith(right):
            return text[1:-1].strip()
    return text
