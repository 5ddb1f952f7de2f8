"""Comparing values field by field, and what a set of answers is worth: whole answers, fields, validity.

    rules = Rules({"time": "casefold", "tags": "set", "note": "ignore"})
    rules.agree({"time": "Noon", "tags": ["a", "b"]}, {"time": "noon", "tags": ["b", "a"], "note": "x"})     True

A rule is for the fields whose path ends in its name: `city` is for `city` and for `address.city`, and for what lies in them. The
longest name that fits decides; `*` is for all others; without it they are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args

from mmedge.tasks.forms.structured.values import Value, same

Comparison = Literal["exact", "casefold", "number", "date", "set", "ignore"]
COMPARISONS: tuple[str, ...] = get_args(Comparison)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%b %d %Y")


def _same_text(left: Value, right: Value) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return " ".join(left.casefold().split()) == " ".join(right.casefold().split())
    return same(left, right)


def _number(value: Value) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    if "_" in text or ("," in text and not _THOUSANDS.fullmatch(text)):  # 1,5 may be one and a half
        return None
    try:
        found = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def _same_number(left: Value, right: Value) -> bool:
    found = _number(left), _number(right)
    return _same_text(left, right) if None in found else found[0] == found[1]


def _date(value: Value) -> date | None:
    if not isinstance(value, str):
        return None
    text = " ".join(value.split())
    for form in _DATES:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None


def _same_date(left: Value, right: Value) -> bool:
    found = _date(left), _date(right)
    return _same_text(left, right) if None in found else found[0] == found[1]


_LEAVES: Mapping[str, Callable[[Value, Value], bool]] = {"casefold": _same_text, "number": _same_number, "date": _same_date}


@dataclass(frozen=True)
class Rules:
    """How the fields of two values are compared.

    Attributes:
        by_name: A comparison by the name of a field, or the end of its path.
    """

    by_name: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: str, inherited: str = "exact") -> str:
        """Return how the field at a dotted path is compared; `inherited` where no rule names it."""
        fitting = [name for name in self.by_name if path == name or path.endswith(f".{name}")]
        return self.by_name[max(fitting, key=len)] if fitting else inherited

    def agree(self, left: Value, right: Value, path: str = "", inherited: str | None = None) -> bool:
        """Return whether two values are the same as far as the rules compare them."""
        rule = self.of(path, self.by_name.get("*", "exact") if inherited is None else inherited)
        if rule == "ignore":
            return True
        if isinstance(left, dict) and isinstance(right, dict):
            for key in {*left, *right}:
                place = f"{path}.{key}" if path else key
                if self.of(place, rule) == "ignore":
                    continue
                if key not in left or key not in right or not self.agree(left[key], right[key], place, rule):
                    return False
            return True
        if isinstance(left, list) and isinstance(right, list):
            if rule == "set":
                return all(any(same(one, other) for other in right) for one in left) and all(
                    any(same(one, other) for other in left) for one in right
                )
            return len(left) == len(right) and all(
                self.agree(one, other, path, rule) for one, other in zip(left, right, strict=True)
            )
        return _LEAVES.get(rule, same)(left, right)

    def unknown(self, fields: Iterable[str]) -> str | None:
        """Return a name that is for none of a schema's fields."""
        known = list(fields)
        return next((name for name in self.by_name if name != "*" and not any(_ends(path, name) for path in known)), None)


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}") or path.startswith(f"{name}.") or f".{name}." in path


def fields_of(value: Value, path: str = "") -> dict[str, Value]:
    """Return the fields of a value by dotted path; an array is one field."""
    if not isinstance(value, dict) or (not value and path):
        return {path or "value": value}
    return {place: found for key, one in value.items() for place, found in fields_of(one, f"{path}.{key}" if path else key).items()}


@dataclass
class FieldCounts:
    """How often a field was right, written wrongly, and missed.

    Attributes:
        right: It was written as the label has it.
        wrong: It was written, and the label has another value or none.
        missed: The label has it, and it was not written so.
    """

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float | None:
        """The share of written fields that are right; None where none was written."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """The share of the labels' fields that were written; None where there is none."""
        return self.right / (self.right + self.missed) if self.right + self.missed else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else None

    def to_json(self) -> dict[str, float | int | None]:
        return {"f1": self.f1, "precision": self.precision, "recall": self.recall, "labels": self.right + self.missed}


def count_fields(pairs: Sequence[tuple[Mapping[str, Value] | None, Mapping[str, Value]]], rules: Rules) -> dict[str, FieldCounts]:
    """Count over answers how often each field was right.

    Args:
        pairs: The fields of each answer, None where it is invalid, and of its label.
        rules: How fields are compared; ignored ones are left out.
    """
    counts: dict[str, FieldCounts] = {}
    for answer, label in pairs:
        written = answer or {}
        for path in {*written, *label}:
            if rules.of(path, rules.by_name.get("*", "exact")) == "ignore":
                continue
            found = counts.setdefault(path, FieldCounts())
            right = path in written and path in label and rules.agree(written[path], label[path], path)
            found.right += right
            found.wrong += path in written and not right
            found.missed += path in label and not right
    return dict(sorted(counts.items()))
