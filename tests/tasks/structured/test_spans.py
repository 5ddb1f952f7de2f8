"""Where the fields of a written answer stand: every field's text is its own, in both spellings."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from mmedge.tasks.forms import open_form
from mmedge.tasks.forms.structured.compact import Place, ordered, write
from mmedge.tasks.forms.structured.comparing import fields_of
from mmedge.tasks.forms.structured.schemas import fits
from mmedge.tasks.forms.structured.schemas import read as read_schema
from mmedge.tasks.forms.structured.spans import compact_pieces, json_pieces, spans
from mmedge.tasks.forms.structured.values import plain_value, to_json
from tests.tasks.structured import schemas_at_random


def test_pieces_make_up_what_is_written_and_name_every_field() -> None:
    random, seen = Random(3), 0
    for _ in range(400):
        schema = schemas_at_random.schema(random)
        node = read_schema(plain_value(schema))
        place = Place((node,))
        value = plain_value(schemas_at_random.value(random, schema))
        if not fits(node, value):
            continue
        value = ordered(place, value)
        for pieces, written in ((compact_pieces(place, value), write(place, value)), (json_pieces(value), to_json(value))):
            text, found = spans(pieces)
            assert text == written
            assert found.keys() == fields_of(value).keys() or value == {}
            taken = sorted(found.values())
            assert all(end <= start for (_, end), (start, _) in pairwise(taken))  # none overlap
        seen += 1
    assert seen > 150


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "BookTable",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "people": {"type": "integer"}, "note": {"type": "string"}},
            },
        },
    },
    {"type": "function", "function": {"name": "Stop", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.mark.parametrize("spelling", ["compact", "json"])
def test_fields_of_a_call_are_found_and_judged_one_by_one(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    settings = {"spelling": spelling, "compare": {"city": "casefold", "note": "ignore"}}
    form = open_form({"form": "tools", "settings": {"file": "tools.json", **settings}}, tmp_path)
    label = form.canonical('{"name": "BookTable", "arguments": {"city": "OSLO", "people": 4, "note": "x"}}')
    answer = form.canonical('{"name": "BookTable", "arguments": {"city": "Oslo", "people": 5, "note": "y"}}')
    assert label and answer
    found = form.field_spans(answer)
    texts = {path: answer[start:end] for path, (start, end) in found.items()}
    assert list(texts) == ["name", "BookTable.city", "BookTable.people", "BookTable.note"]
    assert "Oslo" in texts["BookTable.city"] and "5" in texts["BookTable.people"] and "Oslo" not in texts["name"]
    assert form.fields_right(answer, label) == {"name": True, "BookTable.city": True, "BookTable.people": False}
    stop = form.canonical('{"name": "Stop", "arguments": {}}')
    assert stop and form.fields_right(stop, label) == {"name": False} and list(form.field_spans(stop)) == ["name"]
    assert form.field_spans("no call at all") == {} == form.fields_right("no call at all", label)
    assert form.field_spans(f" {answer}") == {}  # spelled otherwise than it would be: nothing is claimed
