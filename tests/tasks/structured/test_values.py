"""JSON values: what is read, what is refused, and what is the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedge.tasks.forms.structured.values import CUT_OFF, find, objects, parse, same, to_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "too large"),
        ("9007199254740993", "beyond 2^53"),
        ("9" * 5000, "beyond 2^53"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udc00": 1}', "lone surrogate"),
        ("[" * 100_000, "levels of nesting"),
        ("[" * 70 + "]" * 70, "levels of nesting"),
        ("{'a': 1}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_programs_read_differently_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("^", r"\^")) as error:
        parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@given(JSON)
def test_what_is_written_reads_back(value: Any) -> None:
    assert same(parse(to_json(value)), value)
    assert same(parse(json.dumps(value, indent=2)), value)


def test_spelling_and_order_do_not_matter_but_types_do() -> None:
    assert same(parse('{"a": 1.0, "b": [2e0]}'), parse('{"b":[2],"a":1}'))
    assert not same(parse("[1]"), parse("[true]")) and not same(parse("0"), parse("false"))
    assert not same(parse("[1, 2]"), parse("[2, 1]")) and not same(parse('{"a": null}'), parse("{}"))


def test_json_is_found_within_a_text() -> None:
    found = find('It is {"a": "}\\"{"} as said.')
    assert found is not None and found.value == {"a": '}"{'} and not found.problem
    assert [one.problem for one in objects('[sic] {"a": 1} and {"b": [2, "x')] == [objects_problem("[sic]"), "", CUT_OFF]


def objects_problem(text: str) -> str:
    found = find(text)
    assert found is not None and found.problem
    return found.problem
