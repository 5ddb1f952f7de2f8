"""Schemas: the official suite, what jsonschema says, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest

from mmedge.tasks.forms.structured.formats import FORMATS
from mmedge.tasks.forms.structured.schemas import KEYWORDS, canonical, fits, problem, read
from mmedge.tasks.forms.structured.values import plain_value, same
from tests.tasks.structured import schemas_at_random

LEAST_TESTS = {"$ref": 35, "format": 0}  # of the suite's groups within what is supported; of each other keyword at least 4


def test_the_official_suite_agrees_for_every_supported_keyword(real_data: Path) -> None:
    suite = real_data / "json_schema_suite" / "draft2020-12"
    counts: Counter[str] = Counter()
    files = {keyword: suite / f"{keyword.removeprefix('$')}.json" for keyword in KEYWORDS if keyword != "format"}
    files |= {name: suite / "optional" / "format" / f"{name}.json" for name in FORMATS}
    for extra in ("boolean_schema", "infinite-loop-detection", "default", "vocabulary"):
        files[extra] = suite / f"{extra}.json"
    for name, path in files.items():
        for group in json.loads(path.read_text(encoding="utf-8")):
            try:
                node = read(plain_value(group["schema"]))
            except ValueError as error:
                assert "\n" not in str(error)
                continue  # refused, and said so
            for test in group["tests"]:
                found = problem(node, plain_value(test["data"]))
                assert (found is None) == test["valid"], (name, group["description"], test["description"], found)
                counts[name] += 1
    assert all(counts[name] >= LEAST_TESTS.get(name, 4) for name in (*KEYWORDS, *FORMATS)), counts


def test_random_schemas_agree_with_jsonschema() -> None:
    random, valid = Random(0), 0
    for _ in range(400):
        schema = schemas_at_random.schema(random)
        node = read(plain_value(schema))
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(["date", "ipv4", "uuid"]))
        for _ in range(4):
            value = plain_value(schemas_at_random.value(random, schema))
            if "time" not in json.dumps(schema):
                assert fits(node, value) == validator.is_valid(value), (schema, value)
            valid += fits(node, value)
    assert valid > 600


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"oneOf": [{}]}, "#: the keyword 'oneOf' is not supported"),
        ({"properties": {"a": {"not": {}}}}, "#/properties/a: the keyword 'not' is not supported"),
        ({"type": "text"}, "#/type: must be of object, array"),
        ({"properties": []}, "#/properties: must be an object"),
        ({"required": "a"}, "#/required: must be a list of keys"),
        ({"minLength": -1}, "#/minLength: must be a whole number"),
        ({"minimum": "4"}, "#/minimum: must be a number"),
        ({"format": "hostname"}, "#/format: 'hostname' is not supported; known: date"),
        ({"pattern": r"(a)\1"}, "#/pattern: .*back-references"),
        ({"$ref": "https://example.com/x"}, r"#/\$ref: .* references must begin with '#/'"),
        ({"$ref": "#/$defs/x"}, r"there is no '#/\$defs/x'"),
        ({"properties": {"child": {"$ref": "#"}}}, "recursive schemas are not supported"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "recursive"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "recursive"),
        ({"$schema": "https://example.com/own"}, "must be of draft 2020-12"),
        ({"anyOf": []}, "#/anyOf: must be a list of at least one schema"),
        ("object", "a schema must be an object"),
    ],
)
def test_what_is_not_supported_is_named_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(schema)


def test_references_that_multiply_are_refused() -> None:
    definitions = {f"d{n}": {"prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(8)} | {"d8": {}}
    with pytest.raises(ValueError, match="more than 20000 schemas"):
        read({"$defs": definitions, "$ref": "#/$defs/d0"})


def test_a_problem_names_the_place_and_what_was_found() -> None:
    node = read({"properties": {"who": {"properties": {"age": {"type": "integer", "minimum": 0}}, "additionalProperties": False}}})
    assert problem(node, {"who": {"age": -1}}) == "who.age: must be at least 0, found -1"
    assert problem(node, {"who": {"age": "4"}}) == 'who.age: must be integer, found "4"'
    assert problem(node, {"who": {"aeg": 4}}) == "who.aeg: there is no such key"


SAME: list[tuple[Any, Any]] = [
    ({"type": "string", "title": "x", "description": "y", "default": "z"}, {"type": ["string"]}),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, {"type": "integer"}),
    ({"enum": [2, 1]}, {"type": "integer", "enum": [1, 2, "x"]}),
    ({"const": {"a": 1, "b": 2}}, {"enum": [{"b": 2, "a": 1}]}),
    ({"properties": {"a": {}, "b": {}}, "required": ["b", "a"]}, {"required": ["a", "b"], "properties": {"b": True, "a": {}}}),
    ({"anyOf": [{"type": "null"}, {"minimum": 1}]}, {"anyOf": [{"minimum": 1.0}, {"type": "null"}]}),
]
DIFFERENT: list[tuple[Any, Any]] = [
    ({"additionalProperties": False}, {}),
    ({"enum": [1]}, {"enum": [True]}),
    ({"required": ["a"]}, {"required": []}),
    ({"prefixItems": [{"type": "null"}, {}]}, {"prefixItems": [{}, {"type": "null"}]}),
    ({"pattern": "a"}, {"pattern": "b"}),
    ({"items": False}, {"items": True}),
]


def test_schemas_that_say_the_same_have_one_canonical_form() -> None:
    for one, other in SAME:
        assert canonical(read(one)) == canonical(read(other)), one
    for one, other in DIFFERENT:
        assert not same(canonical(read(one)), canonical(read(other))), one
