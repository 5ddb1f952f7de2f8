"""The parser of arithmetic: what it reads, what it refuses, and what it finds in prose."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedge.tasks.expressions import ExpressionError, find_expressions, find_numbers, leaf, operation, parse, value_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("84.0 / 2.0", 42),
        ("(84 / 2)", 42),
        ("( ( 17.0 + 15.0 ) + 2.0 )", 34),
        ("42", 42),
        ("1,234.5", Fraction(2469, 2)),
        ("-3", -3),
        ("2 - -3", 5),
        ("10 - 2 - 3", 5),
        ("2 + 3 * 4", 14),
        ("24 / 4 / 2", 3),
        ("3 x 4", 12),
        ("6 × 7", 42),
        ("8 ÷ 2", 4),
        ("$ 13", 13),
        (".5", Fraction(1, 2)),
        ("-(2 + 3)", -5),
    ],
)
def test_an_expression_has_its_value(text: str, value: Fraction) -> None:
    assert parse(text).value == value


def test_division_by_zero_is_read_but_has_no_value() -> None:
    assert parse("84 / 0").value is None
    assert parse("1 + 84 / (2 - 2)").value is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "(",
        "((",
        "1 +",
        "1 2",
        "2 ** 3",
        "__import__('os')",
        "1e9",
        "9" * 16,
        "(" * 60 + "1" + ")" * 60,
        "1+" * 300 + "1",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        parse(text)
    find_expressions(text)
    find_numbers(text)


_EXPRESSIONS = st.recursive(
    st.integers(0, 999).map(leaf),
    lambda inner: st.builds(operation, st.sampled_from("+-*/"), inner, inner),
    max_leaves=5,
)


@given(_EXPRESSIONS)
@settings(max_examples=200, deadline=None)
def test_the_canonical_text_means_the_same(expression: object) -> None:
    assert parse(expression.text()) == expression  # type: ignore[attr-defined]


def test_operations_are_found_in_prose() -> None:
    found = find_expressions("So 84 points / 2 rounds = 42 points. He pays $67 * 74 = $ 4,958 and 9 times 4 is 36.")
    assert [item.expression.text() for item in found] == ["84 / 2", "67 * 74", "9 * 4"]
    assert [item.stated for item in found] == [42, 4958, None]


def test_words_and_hyphens_are_no_operations() -> None:
    assert find_expressions("A one-step problem: 12 apples, 5 pears. It is well-known.") == []
    assert find_numbers("12 apples and 1,000 pears cost 2.50") == [12, 1000, Fraction(5, 2)]


@given(
    st.lists(st.sampled_from(["3", "12", "1,000", ".5", "+", "-", "*", "/", "(", ")", " ", "x", "٣", "007", "1" * 16]), max_size=7)
)
def test_the_short_way_to_a_value_is_the_long_one(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        expected = parse(text).value
    except ExpressionError:
        with pytest.raises(ExpressionError):
            value_of(text)
    else:
        assert value_of(text) == expected
