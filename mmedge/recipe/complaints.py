"""What is wrong with a recipe, in words: the field's path, what it must be, what was found, and the nearest known name.

    raise complaint(error, Recipe, values, "intents.yaml")
    intents.yaml: field 'training.stage1.epochs' must be greater than 0, found 0

pydantic finds the problems; this file alone knows how it names them. Knows no field of any section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mmedge.errors import MmedgeError, nearest
from mmedge.sections import Section, SettingsByName, SettingsOf

# What a value must be, by pydantic's name of the problem; braces are filled from the problem's context
_MUST_BE = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping, with lines of `name: value`",
    "model_type": "a section, with lines of `field: value`",
    "model_attributes_type": "a section, with lines of `field: value`",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "greater_than": "greater than {gt:.10g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than": "less than {lt:.10g}",
    "less_than_equal": "at most {le:.10g}",
    "string_too_long": "at most {max_length} characters long",
    "literal_error": "{expected}",
    "invalid-json-value": "a value that JSON has",
}
_PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]*$": "consist of lower-case letters, digits and . _ -, and begin with a letter or a digit",
    r"^[a-z0-9][a-z0-9_-]*$": "consist of lower-case letters, digits and _ -, and begin with a letter or a digit",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "be the name of an environment variable: letters, digits and _",
    r"^\d{4}-\d{2}-\d{2}$": "be a date such as 2025-01-31",
}
_BRANCH = re.compile(r"^(str|int|float|bool|.*\[.*\])$", re.DOTALL)  # how pydantic calls one of the types that a field may have


@dataclass(frozen=True)
class _Problem:
    """One problem, at the path of fields, names and places in lists that a reader of the recipe sees."""

    path: tuple[str, ...]
    branched: bool
    details: ErrorDetails

    @property
    def field(self) -> str:
        return ".".join(self.path)


def complaint(error: ValidationError, section: type[Section], values: Mapping[str, Any], where: str) -> MmedgeError:
    """Return the error that tells the first problem of a validation, and what to do about it.

    Args:
        error: What pydantic found.
        section: The section that was validated.
        values: The values that it was validated with.
        where: What the recipe is called, such as its file.
    """
    problems = [_seen(details, section, values) for details in error.errors(include_url=False)]
    # a misspelt field is also missing by its right name
    unknown = next((one for one in problems if one.details["type"] == "extra_forbidden"), None)
    if unknown is not None:
        known = sorted(_section_at(unknown.path[:-1], section, values)[0].model_fields)
        advice = f"{nearest(unknown.path[-1], known)}allowed here: {', '.join(known)}"
        return MmedgeError(f"{where}: unknown field {unknown.field!r}", advice)
    first = problems[0]
    together = [one for one in problems if one.branched and one.path[: len(first.path)] == first.path] if first.branched else []
    deepest = max(together, key=lambda one: len(one.path), default=first)
    if len(deepest.path) > len(first.path):  # of the types that the field may have, this one fits but for one of its items
        first, together = deepest, []
    what, advice = _words(first, together or [first], section, values)
    return MmedgeError(f"{where}: {what}", advice)


def _words(problem: _Problem, together: Sequence[_Problem], section: type[Section], values: Mapping[str, Any]) -> tuple[str, str]:
    """Return a problem in words, and what to do about it; `together` are those of all types that the field may have."""
    kind, field, context = problem.details["type"], problem.field, problem.details.get("ctx") or {}
    if kind == "value_error":
        return _own_words(problem, section, values), ""
    if kind == "missing" and problem.details["loc"] and isinstance(problem.details["loc"][-1], int):
        listed = ".".join(problem.path[:-1])
        return f"field {listed!r} has too few items: the one at place {int(problem.path[-1]) + 1} is missing", ""
    if kind == "missing":
        return f"field {field!r} is missing", _description(problem.path, section, values)
    found = problem.details["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = re.findall(r"'([^']*)'", context.get("expected_tags", "")) or list(_by_kind(problem.path, section, values))
        given = found.get("kind") if isinstance(found, Mapping) else None
        said = "is missing; it" if given is None else f"is {_shown(given)}, but"
        advice = nearest(given, tags).strip() if isinstance(given, str) else ""
        return f"field '{field}.kind' {said} must be one of {', '.join(tags)}", advice
    must = _must(together)
    advice = ""
    if kind == "literal_error" and isinstance(found, str):
        advice = nearest(found, re.findall(r"'([^']*)'", context.get("expected", ""))).strip()
    if kind == "string_type" and isinstance(found, (bool, int, float)):
        advice = "put it in quotes"
    return f"field {field!r} {must}, found {_shown(found)}", advice


def _must(together: Sequence[_Problem]) -> str:
    """Return what a value must be."""
    details = together[0].details
    kind, context = details["type"], details.get("ctx") or {}
    if kind in ("string_too_short", "too_short"):
        unit = "characters" if kind == "string_too_short" else "items"
        return f"must have at least {context['min_length']} {unit}" if context["min_length"] > 1 else "must not be empty"
    if kind == "too_long":
        return f"must have at most {context['max_length']} items"
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return f"must {_PATTERNS.get(pattern, f'match the pattern {pattern}')}"
    words = [_MUST_BE.get(one.details["type"], "").format(**(one.details.get("ctx") or {})) for one in together]
    if all(words):
        return f"must be {' or '.join(dict.fromkeys(words))}"
    return f"is invalid: {details['msg']}"


def _own_words(problem: _Problem, section: type[Section], values: Mapping[str, Any]) -> str:
    """Return what a validator of ours says, which may begin with the name of a field of its section."""
    said = problem.details["msg"].removeprefix("Value error, ")
    named, colon, _ = said.partition(": ")
    if not problem.path:
        return said
    inside, settled = _section_at(problem.path, section, values)
    if colon and settled and named.partition(".")[0] in inside.model_fields:
        return f"{problem.field}.{said}"
    return f"field {problem.field!r}: {said}"


def _shown(value: object) -> str:
    """Return a value as a recipe has it."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return f"{value!r:.60}"


# ------------------------------------------------------------------------------------------------ where a problem is


def _seen(details: ErrorDetails, section: type[Section], values: Mapping[str, Any]) -> _Problem:
    """Return a problem at its path, without the kinds and types that pydantic has between fields."""
    parts = list(details["loc"])
    kept: list[str] = []
    branched = False
    for place, part in enumerate(parts):
        if isinstance(part, str) and part in _by_kind(kept, section, values) and place and parts[place - 1] == kept[-1]:
            continue
        if isinstance(part, str) and _BRANCH.match(part) and place:
            branched = branched or part != "[key]"
            continue
        kept.append(str(part))
    return _Problem(tuple(kept), branched, details)


def _section_at(path: Sequence[str], section: type[Section], values: Any) -> tuple[type[Section], bool]:
    """Return the section at a path, or the last one on the way, and whether the path ends at it."""
    here, settled = values, True
    entries: SettingsByName | None = None
    for part in path:
        here = here.get(part) if isinstance(here, Mapping) else None
        field = section.model_fields.get(part)
        found = entries.section_of(part) if entries else _section_in(field, here) if field else None
        entries = next((mark for mark in field.metadata if isinstance(mark, SettingsByName)), None) if field else None
        section, settled = found or section, found is not None
    return section, settled


def _section_in(field: FieldInfo, value: Any) -> type[Section] | None:
    """Return the section that a field holds, or None where it holds none."""
    kind = value.get("kind") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    for mark in field.metadata:
        if isinstance(mark, SettingsOf):
            return mark.section_of(kind)
    sections = _sections_in(field.annotation)
    return sections[0] if len(sections) == 1 else _kinds(sections).get(str(kind))


def _sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections among the types that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [one for inner in get_args(annotation) for one in _sections_in(inner)]


def _kinds(sections: Sequence[type[Section]]) -> dict[str, type[Section]]:
    return {kind: one for one in sections if "kind" in one.model_fields for kind in get_args(one.model_fields["kind"].annotation)}


def _by_kind(path: Sequence[str], section: type[Section], values: Mapping[str, Any]) -> dict[str, type[Section]]:
    """Return the sections that the field at a path may hold, by their kinds; empty where there is no choice."""
    if not path:
        return {}
    field = _section_at(path[:-1], section, values)[0].model_fields.get(path[-1])
    sections = _sections_in(field.annotation) if field is not None else []
    return _kinds(sections) if len(sections) > 1 else {}


def _description(path: Sequence[str], section: type[Section], values: Mapping[str, Any]) -> str:
    """Return what a field is, as the recipe reference says it."""
    inside, settled = _section_at(path[:-1], section, values)
    field = inside.model_fields.get(path[-1]) if settled else None
    return (field.description or "") if field is not None else ""
