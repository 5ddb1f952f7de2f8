"""What the forms `schema` and `tools` have in common: answers that are JSON values, judged by value.

form.canonical('{"name": "GetWeather", "arguments": {"city": "Oslo"}}')     "get; city: Oslo"
form.value_of("get; city: Oslo")                                            '{"name":"GetWeather","arguments":{"city":"Oslo"}}'
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mmedge.errors import MmedgeError
from mmedge.storage import read_text
from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.constraints import Constrainer
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.forms.structured import schemas, values
from mmedge.tasks.forms.structured.comparing import COMPARISONS, FieldCounts, Rules, count_fields
from mmedge.tasks.forms.structured.grammar import NothingFits
from mmedge.tasks.forms.structured.regex import Regex
from mmedge.tasks.forms.structured.spans import Pieces, Span, spans
from mmedge.tasks.forms.structured.values import Found, Value
from mmedge.tasks.forms.structured.wishes import is_identifier
from mmedge.tasks.reading import MARKER, ends_whole, first_line, one_paragraph, trim

SPELLINGS = ("compact", "json")
MOST_BYTES = 256_000  # of a schema's file: a small student could not learn a larger one
_DECLINED = re.compile(r"\W*(?:none|null|nothing|n/?a|unknown|no (?:answer|call|function|json)\b.*)\W*", re.IGNORECASE)
_BRACKET = re.compile(r"[{\[]")


def read_document(path: Path) -> Value:
    """Read a JSON file that a form needs.

    Raises:
        MmedgeError: It is missing, too large or not JSON; the message names file and reason.
    """
    text = read_text(path)
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise MmedgeError(f"{path}: larger than {MOST_BYTES // 1000} kB", "keep what answers need; descriptions can be shorter")
    try:
        return values.parse(text)
    except ValueError as error:
        raise MmedgeError(f"{path}: {error}") from None


_CONTRADICTS = "correct what contradicts itself, such as a minimum above its maximum, or a required key that has no property"


def refuse_contradiction(language: Callable[[], Regex], path: Path) -> None:
    """Refuse a schema that no value fits; one that is not regular may be learned without constraint.

    Raises:
        MmedgeError: No value fits it.
    """
    try:
        language()
    except NothingFits as error:
        raise MmedgeError(f"{path}: {error}", _CONTRADICTS) from None
    except ValueError:
        return


class StructuredForm(AnswerForm):
    """An answer is a JSON value. Subclasses know what fits, and how it is spelled.

    Attributes:
        spelling: How the student writes values: `compact` or `json`.
        rules: How fields are compared.
        document: What answers must fit, as the recipe states it: a schema, or definitions of functions.
    """

    templates: ClassVar[str] = "structured"
    takes_json: ClassVar[bool] = True
    document: Value
    spelling: str
    rules: Rules

    @property
    def respells(self) -> bool:
        return True

    @abstractmethod
    def canonical_document(self, document: Value, most: int) -> Value:
        """Return what another document says in a form in which neither order nor words that only describe matter.

        Args:
            document: Of the same kind as `document`.
            most: The most schemas that are read of it.

        Raises:
            ValueError: It is not such a document.
        """

    @abstractmethod
    def problem_of(self, value: Value) -> str | None:
        """Return why a value does not fit, in one line; None if it fits."""

    @abstractmethod
    def spelled(self, value: Value) -> str:
        """Return a value that fits, as the student writes it."""

    @abstractmethod
    def compact_value(self, text: str) -> Value:
        """Return the value of a compact text.

        Raises:
            ValueError: It is not one.
        """

    @abstractmethod
    def fields(self, value: Value) -> dict[str, Value]:
        """Return the fields of a value by path."""

    @abstractmethod
    def pieces(self, value: Value) -> Pieces:
        """Yield a value in order as `spelled` spells it, cut at its fields."""

    @abstractmethod
    def in_order(self, value: Value) -> Value:
        """Return a value with its keys in the schema's order."""

    @abstractmethod
    def language(self) -> Regex:
        """Return what a constrained student may write.

        Raises:
            ValueError: It is not regular.
        """

    def says_the_same(self, document: object) -> bool:
        """Return whether another document, read as JSON from anywhere, asks for the same answers."""
        try:
            if len(values.to_json(document)) > self._longest:  # which may take seconds to compare
                return False
            plain = values.plain_value(document)
            if not _collected(plain, _patterns) <= self._patterns:  # which may take long to read
                return False
            return values.same(self.canonical_document(plain, self._size), self._canonical)
        except (ValueError, RecursionError):
            return False

    @cached_property
    def _canonical(self) -> Value:
        return self.canonical_document(self.document, schemas.MOST_NODES)

    @cached_property
    def _patterns(self) -> set[str]:
        return _collected(self.document, _patterns)

    @cached_property
    def _size(self) -> int:
        """The most schemas that a document which says the same can hold, about."""
        return 64 + 4 * values.to_json(self._canonical).count('"types"')

    @cached_property
    def _longest(self) -> int:
        """The most characters of a document that says the same, descriptions included."""
        return 16_384 + 16 * len(values.to_json(self.document))

    # ----------------------------------------------------------------------------------------------- one answer

    def value(self, answer: str) -> Value:
        """Return the value of an answer in JSON or in the compact spelling.

        Raises:
            ValueError: It has none that fits; the message says why, in one line.
        """
        found: str | None
        try:
            value = values.parse(answer)
            found = self.problem_of(value)
            if found is None:
                return value
        except ValueError as error:
            found = str(error)
        if answer.lstrip().startswith("{"):
            raise ValueError(found)  # it was meant as JSON
        value = self.compact_value(answer)
        found = self.problem_of(value)
        if found is not None:
            raise ValueError(found)
        return value

    def canonical(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        try:
            return self.spelled(self.value(answer))
        except ValueError:
            return None

    def problem(self, answer: str, choices: Sequence[str] = ()) -> str | None:
        try:
            self.value(answer)
        except ValueError as error:
            return str(error)
        return None

    def agrees(self, answer: str, reference: str, choices: Sequence[str] = ()) -> bool:
        try:
            left, right = self.value(answer), self.value(reference)
        except ValueError:
            return False
        return self.same(left, right)

    def same(self, left: Value, right: Value) -> bool:
        """Return whether two values that fit are the same answer."""
        return self.rules.agree(left, right)

    def value_of(self, answer: str) -> str | None:
        try:
            return values.to_json(self.in_order(self.value(answer)))
        except ValueError:
            return None

    def field_spans(self, answer: str) -> Mapping[str, Span]:
        try:
            text, found = spans(self.pieces(self.in_order(self.value(answer))))
        except ValueError:
            return {}
        return found if text == answer else {}  # spelled in another way, such as with more white space: it cannot be told

    def fields_right(self, answer: str, reference: str) -> Mapping[str, bool]:
        try:
            written, label = (self.fields(self.value(text)) for text in (answer, reference))
        except ValueError:
            return {}
        every = self.rules.by_name.get("*", "exact")
        return {
            path: path in label and self.rules.agree(value, label[path], path)
            for path, value in written.items()
            if self.rules.of(path, every) != "ignore"
        }

    def unspoken(self) -> tuple[str, ...]:
        return tuple(sorted(filter(is_identifier, _collected(self.document, _keys).union(self.kinds()))))

    def scores(self, answers: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        """Return what answers are worth beyond being right: the share that is valid, and F1 by field and over all fields."""
        pairs = []
        for answer, reference in zip(answers, references, strict=True):
            try:
                written = self.fields(self.value(answer))
            except ValueError:
                written = None
            pairs.append((written, self.fields(self.value(reference))))
        counts = count_fields(pairs, self.rules)
        total = FieldCounts(*(sum(getattr(one, name) for one in counts.values()) for name in ("right", "wrong", "missed")))
        return {
            "answers": len(pairs),
            "valid": sum(written is not None for written, _ in pairs) / max(1, len(pairs)),
            "all_fields": total.to_json(),
            "fields": {path: one.to_json() for path, one in counts.items()},
        }

    # ------------------------------------------------------------------------------------------ a teacher's text

    def read(self, text: str, example: Example) -> ChainOfThought | Unparsed:
        """Read a text that states a value: behind `Answer:`, in a fence, or as its last JSON; what follows it is left out.

        What is cut off is `TRUNCATED`; JSON that is broken or does not fit is `INVALID`; `Answer: none` is `NO_ANSWER`.
        """
        body = trim(text)
        if not body:
            return Unparsed.EMPTY
        whole = [found for found in values.objects(body) if not found.problem]
        invalid = False
        for place, marker in enumerate(reversed(list(MARKER.finditer(body)))):
            if any(found.start < marker.start() < found.end for found in whole):
                continue  # within a value
            if place == 0 and _DECLINED.fullmatch(first_line(body[marker.end() :])):
                return Unparsed.NO_ANSWER
            outcome = self._stated(body, marker.start(), marker.end())
            if isinstance(outcome, ChainOfThought) or outcome is Unparsed.TRUNCATED:
                return outcome
            invalid = invalid or outcome is Unparsed.INVALID
        for found in reversed(list(values.objects(body))):
            if found.problem == values.CUT_OFF:
                return Unparsed.TRUNCATED
            outcome = self._found(body, found, found.start)
            if isinstance(outcome, ChainOfThought):
                return outcome
            invalid = True
        if invalid:
            return Unparsed.INVALID
        return Unparsed.NO_ANSWER if ends_whole(body) else Unparsed.TRUNCATED

    def _stated(self, body: str, start: int, end: int) -> ChainOfThought | Unparsed:
        """Read what is stated behind a marker."""
        line = first_line(body[end:]).strip("`* ")
        bare = self.canonical(line) or self.canonical(line.rstrip("."))
        if bare is not None:
            return _cot(body[:start], bare)
        bracket = _BRACKET.search(body, end)
        found = values.find(body, bracket.start()) if bracket is not None else None
        if found is None:
            return Unparsed.NO_ANSWER
        return Unparsed.TRUNCATED if found.problem == values.CUT_OFF else self._found(body, found, start)

    def _found(self, body: str, found: Found, start: int) -> ChainOfThought | Unparsed:
        """Return the chain of thought that ends in a value within a text; its rationale is what is in front of `start`."""
        if found.problem or self.problem_of(found.value) is not None:
            return Unparsed.INVALID
        return _cot(body[:start], self.spelled(found.value))

    # ------------------------------------------------------------------------------------------------ the student

    def constrainer(self, encoder: PromptEncoder) -> Constrainer:
        from mmedge.tasks.forms.structured.guided import GuidedConstrainer

        return GuidedConstrainer(encoder, self.language)


def _collected(value: Value, own: Callable[[dict[str, Value]], Iterable[str]]) -> set[str]:
    """Return what all objects within a document have of their own."""
    if isinstance(value, list):
        return set().union(*(_collected(one, own) for one in value))
    if not isinstance(value, dict):
        return set()
    return set(own(value)).union(*(_collected(one, own) for one in value.values()))


def _keys(found: dict[str, Value]) -> Iterable[str]:
    """Return the names of an object schema's members."""
    return found["properties"] if isinstance(found.get("properties"), dict) else ()


def _patterns(found: dict[str, Value]) -> Iterable[str]:
    """Return the regular expression of a schema, or what looks like one."""
    return (found["pattern"],) if isinstance(found.get("pattern"), str) else ()


def _cot(before: str, answer: str) -> ChainOfThought:
    rationale = one_paragraph(re.sub(r"```\w*\s*$", "", before.rstrip()))
    return ChainOfThought(rationale or answer, answer)


def read_settings(settings: Mapping[str, Any]) -> tuple[str, Rules]:
    """Return spelling and rules of a form's settings.

    Raises:
        ValueError: One of them is unknown.
    """
    spelling, compare = settings.get("spelling", "compact"), dict(settings.get("compare") or {})
    if spelling not in SPELLINGS:
        raise ValueError(f"spelling must be one of {', '.join(SPELLINGS)}, found {spelling!r}")
    for name, how in compare.items():
        if how not in COMPARISONS:
            raise ValueError(f"compare.{name} must be one of {', '.join(COMPARISONS)}, found {how!r}")
    return spelling, Rules(compare)
