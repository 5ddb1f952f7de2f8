"""Regular expressions: they match as Python's do, in linear time, and know the shortest way to their end."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedge.tasks.forms.structured.regex import Completions, parse

PARTS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\d", r"\w", "(?:ab|b)", "(a|)", "ab"])
SIGNS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])
PATTERNS = st.lists(st.tuples(PARTS, SIGNS), min_size=1, max_size=5).map(lambda found: "".join(part + sign for part, sign in found))


@given(PATTERNS, st.text("ab1 ", max_size=7))
def test_it_matches_what_python_matches(pattern: str, text: str) -> None:
    assert parse(pattern, whole=True).matches(text) == (re.fullmatch(pattern, text) is not None)
    assert parse(pattern).matches(text) == (re.search(pattern, text) is not None)
    assert parse(f"^{pattern}|b$").matches(text) == (re.search(rf"^{pattern}|b\Z", text) is not None)


@given(PATTERNS)
def test_the_shortest_way_to_the_end_matches(pattern: str) -> None:
    regex = parse(pattern, whole=True)
    ways = Completions(regex.automaton, "ab")
    nearest = ways.nearest(regex.automaton.start)
    assert nearest is not None and regex.matches(ways.text(nearest))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "(a?){200}a{200}"])
def test_nothing_explodes(pattern: str) -> None:
    started = time.process_time()
    regex = parse(pattern)
    assert not regex.matches("a" * 150 + "!")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", "back-references"),
        ("(?=a)b", "look-around"),
        ("(?i)a", "look-around and flags"),
        ("(?P<year>[0-9])", "named groups are written"),
        ("(?P=year)", "look-around and flags"),
        ("a++", "possessive"),
        (r"\p{L}", r"\\p is not supported"),
        ("(a", "not closed"),
        ("a)", "unmatched"),
        ("[a", "ends too early"),
        ("*a", "nothing to repeat"),
        ("a{3,2}", "maximum is below its minimum"),
        ("a{5000}", "repetitions"),
        ("(((a{900}){900}){900}){900}", "too large"),
        ("a^b", "anchors"),
        ("[z-a]", "backwards"),
        ("(" * 200 + ")" * 200, "groups"),
    ],
)
def test_what_is_not_regular_or_too_large_is_named(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(pattern)
