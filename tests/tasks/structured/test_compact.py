"""The compact spelling: short, and never another value than the one that was written."""

from __future__ import annotations

from random import Random

import pytest

from mmedge.tasks.forms.structured.compact import Place, ordered, read, short_names, write
from mmedge.tasks.forms.structured.grammar import Grammar
from mmedge.tasks.forms.structured.regex import Completions, Regex
from mmedge.tasks.forms.structured.schemas import fits, problem
from mmedge.tasks.forms.structured.schemas import read as read_schema
from mmedge.tasks.forms.structured.values import parse, plain_value, same, to_json
from tests.tasks.structured import schemas_at_random


def test_every_value_comes_back() -> None:
    random, seen = Random(1), 0
    for _ in range(500):
        schema = schemas_at_random.schema(random)
        node = read_schema(plain_value(schema))
        place = Place((node,))
        for _ in range(4):
            value = plain_value(schemas_at_random.value(random, schema))
            if fits(node, value):
                text = write(place, ordered(place, value))
                assert same(read(place, text), value), (schema, value, text)
                assert text.strip() == text and text and "\n" not in text
                seen += 1
    assert seen > 800


def _at_random(regex: Regex, random: Random, most: int) -> str:
    """Return a text that matches: a random walk, then the shortest way to the end."""
    automaton, ways = regex.automaton, Completions(regex.automaton, "a0 ")
    states, text = automaton.start, ""
    for _ in range(random.randint(0, most)):
        state = random.choice(sorted(states))
        edge = automaton.edges[state]
        if edge is None:
            return text
        low, high = random.choice(edge[0].ranges)
        character = chr(random.randint(low, min(high, low + 90)))
        states, text = automaton.after(states, character), text + character
    nearest = ways.nearest(states)
    assert nearest is not None
    return text + ways.text(nearest)


@pytest.mark.parametrize("compact", [True, False], ids=["compact", "json"])
def test_every_text_of_a_grammar_is_valid_and_every_valid_text_of_the_form_is_in_it(compact: bool) -> None:
    random, made = Random(2), 0
    for _ in range(150):
        schema = schemas_at_random.schema(random)
        node = read_schema(plain_value(schema))
        place = Place((node,))
        try:
            regex = Grammar(compact).whole(node)
        except ValueError as error:
            assert "no value fits" in str(error) or "combine" in str(error)
            continue
        for _ in range(4):
            text = _at_random(regex, random, 60)
            value = read(place, text) if compact else parse(text)
            assert problem(node, value) is None, (schema, text)
            made += 1
            value = plain_value(schemas_at_random.value(random, schema))
            if fits(node, value) and "anyOf" not in str(schema) and "." not in to_json(value):  # at most 6 decimals are written
                spelled = ordered(place, value)
                assert regex.matches(write(place, spelled) if compact else to_json(spelled)), (schema, value)
    assert made > 400


def test_short_names_are_the_first_word_that_no_other_key_has() -> None:
    keys = ("party_size_number", "party_size_description", "timeRange", "name", "movie_name", "x:y", "é")
    assert list(short_names(keys).values()) == ["number", "description", "time", "name", "movie", '"x:y"', '"é"']
    assert len(set(short_names(["a_b", "b_a", "ab", "A", "B"]).values())) == 5


@pytest.mark.parametrize(
    "text", ["", "city", "city: ", "city: a; city: b", "town: a", 'city: "a', "city: (a", "city: a) b", "city: a; ", "["]
)
def test_what_is_not_a_value_is_refused_in_one_line(text: str) -> None:
    place = Place((read_schema({"type": "object", "properties": {"city": {"type": "string"}}}),))
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        found = read(place, text)
        assert found == {} and not text  # a text without members is no text
        raise ValueError("empty")
