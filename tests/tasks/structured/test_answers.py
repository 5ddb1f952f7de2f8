"""The forms `schema`, `tools` and `regex`: judging, reading teachers, and what is refused before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.tasks import build_task
from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.forms import open_form
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.structured import schemas
from mmedge.tasks.forms.tools import ToolsForm

BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "day": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
        "author": {"type": "object", "properties": {"full_name": {"type": "string"}}},
    },
    "required": ["title"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "GetWeather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "timeRange": {"type": "string"}},
                "additionalProperties": False,
            },
        },
    },
    {"name": "StopAll", "description": "Stop."},
]
EXAMPLE = Example("q", "question")


def _schema(folder: Path, document: Any = BOOK, **settings: Any) -> SchemaForm:
    path = folder / "book.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return SchemaForm.from_settings({"file": str(path), **settings})


def _tools(folder: Path, document: Any = TOOLS, **settings: Any) -> ToolsForm:
    path = folder / "functions.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return ToolsForm.from_settings({"file": str(path), **settings})


# ------------------------------------------------------------------------------------------------------- judging


def test_answers_are_judged_by_value(tmp_path: Path) -> None:
    form = _schema(tmp_path)
    label = '{"title": "Dune", "year": 1965, "tags": ["a", "b"]}'
    assert form.agrees('{"tags":["a","b"], "year": 1965.0,\n "title": "Dune"}', label)
    assert form.agrees("title: Dune; year: 1965; tags: [a; b]", label)
    for wrong in (
        '{"title": "Dune"}',
        '{"title": "dune", "year": 1965, "tags": ["a", "b"]}',
        "title: Dune; year: 1965; tags: [b; a]",
    ):
        assert not form.agrees(wrong, label)
    assert not form.agrees('{"year": 1965}', '{"year": 1965}')  # what does not fit agrees with nothing


@pytest.mark.parametrize(
    ("rule", "answer", "agrees"),
    [
        ({"title": "casefold"}, {"title": "DUNE  two"}, True),
        ({"title": "exact"}, {"title": "DUNE  two"}, False),
        ({"title": "ignore"}, {"title": "another"}, True),
        ({"note": "ignore"}, {"note": "new"}, True),
        ({"tags": "set"}, {"tags": ["b", "a", "a"]}, True),
        ({"tags": "set"}, {"tags": ["b"]}, False),
        ({"day": "date"}, {"day": "May 4, 2024"}, True),
        ({"day": "date"}, {"day": "2024-05-05"}, False),
        ({"full_name": "number"}, {"author": {"full_name": "1000.0"}}, True),
        ({"author.full_name": "number"}, {"author": {"full_name": "1,001"}}, False),
        ({"*": "casefold", "title": "exact"}, {"title": "DUNE two"}, False),
        ({"author": "casefold"}, {"author": {"full_name": "1,000"}}, True),
    ],
)
def test_each_field_is_compared_as_its_rule_says(tmp_path: Path, rule: dict[str, str], answer: Any, agrees: bool) -> None:
    form = _schema(tmp_path, compare=rule)
    label = {"title": "Dune two", "tags": ["a", "b"], "day": "2024-05-04", "author": {"full_name": "1,000"}}
    assert form.agrees(json.dumps({**label, **answer}), json.dumps(label)) == agrees


def test_a_call_has_a_name_and_arguments(tmp_path: Path) -> None:
    form = _tools(tmp_path, compare={"GetWeather.city": "casefold"})
    call = '{"arguments": {"timeRange": "at noon", "city": "oslo"}, "name": "GetWeather"}'
    assert form.canonical(call) == "get; city: oslo; time: at noon"
    assert form.agrees("get; city: OSLO; time: at noon", call)
    assert not form.agrees("get; city: OSLO; time: At noon", call)
    assert form.canonical('{"name": "StopAll", "arguments": {}}') == "stop"
    assert form.value_of("stop") == '{"name":"StopAll","arguments":{}}'
    assert not form.agrees("stop", call) and form.value_of("walk; city: Oslo") is None


def test_json_is_spelled_where_the_recipe_says_so(tmp_path: Path) -> None:
    form = _tools(tmp_path, spelling="json")
    assert form.canonical("get; time: 4; city: Oslo") == '{"name":"GetWeather","arguments":{"city":"Oslo","timeRange":"4"}}'


def test_fields_are_counted(tmp_path: Path) -> None:
    form = _tools(tmp_path)
    found = form.scores(["get; city: Oslo; time: now", "stop", "nonsense"], ["get; city: Oslo", "get; city: Bergen", "stop"])
    assert found["valid"] == pytest.approx(2 / 3) and found["answers"] == 3
    assert found["fields"]["name"] == {"f1": 0.4, "precision": 0.5, "recall": pytest.approx(1 / 3), "labels": 3}
    assert found["fields"]["GetWeather.city"] == {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "labels": 2}
    assert found["fields"]["GetWeather.timeRange"]["precision"] == 0.0


# ------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text",
    [
        'It asks for Oslo.\nAnswer: {"name": "GetWeather", "arguments": {"city": "Oslo"}}',
        'It asks for Oslo. The answer is: {"name": "GetWeather", "arguments": {"city": "Oslo"}} since no time is said.',
        'It asks for Oslo.\nAnswer:\n```json\n{"name": "GetWeather",\n "arguments": {"city": "Oslo"}}\n```\nThat is all.',
        'It asks for Oslo.\n```\n{"name": "GetWeather", "arguments": {"city": "Oslo"}}\n```',
        'It asks for Oslo.\n{"arguments": {"city": "Oslo"}, "name": "GetWeather"}\n\nQ: Another one?\nAnswer: {"name": "StopAll"}',
        "It asks for Oslo.\nAnswer: get; city: Oslo",
        'It asks for Oslo.\nAnswer: `{"name": "GetWeather", "arguments": {"city": "Oslo"}}`.',
    ],
)
def test_calls_are_read_from_what_teachers_write(tmp_path: Path, text: str) -> None:
    assert _tools(tmp_path).read(text, EXAMPLE) == ChainOfThought("It asks for Oslo.", "get; city: Oslo")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", Unparsed.EMPTY),
        ("Nothing is asked for.", Unparsed.NO_ANSWER),
        ("It asks for the", Unparsed.TRUNCATED),
        ("No function does this.\nAnswer: none", Unparsed.NO_ANSWER),
        ("That is no request. Answer: `null`", Unparsed.NO_ANSWER),
        ("That is no request. Answer: no call of a function", Unparsed.NO_ANSWER),
        ('{"name": "GetWeather", "arguments": {}} does not fit.\nAnswer: none', Unparsed.NO_ANSWER),
        ("Answer: Oslo is", Unparsed.TRUNCATED),
        ('Oslo. Answer: {"name": "GetWeather", "arguments": {"city": "Os', Unparsed.TRUNCATED),
        ('```json\n{"name": "GetWeather", "arguments": {"city": "Oslo"}', Unparsed.TRUNCATED),
        ('Oslo. Answer: {"name": "GetWeather", "arguments": {"town": "Oslo"}}', Unparsed.INVALID),
        ("Oslo. Answer: {'name': 'GetWeather', 'arguments': {}}", Unparsed.INVALID),
        ('Oslo. Answer: {"name": "StopAll", "name": "StopAll", "arguments": {}}', Unparsed.INVALID),
    ],
)
def test_what_is_cut_off_invalid_or_missing_is_kept_apart(tmp_path: Path, text: str, why: Unparsed) -> None:
    assert _tools(tmp_path).read(text, EXAMPLE) is why


def test_an_answer_within_a_value_is_no_answer(tmp_path: Path) -> None:
    form = _schema(tmp_path)
    text = 'A quote. Answer: {"title": "The answer is: {\\"title\\": \\"x\\"}", "note": "Answer: 42"}'
    found = form.read(text, EXAMPLE)
    assert isinstance(found, ChainOfThought) and found.rationale == "A quote."
    assert form.agrees(found.pseudo_label, text[text.index("{") :])
    shown = f"{found.rationale} Answer: {form.value_of(found.pseudo_label)}"
    assert form.read(shown, EXAMPLE) == found


def test_scalars_are_answers_too(tmp_path: Path) -> None:
    form = _schema(tmp_path, {"type": ["integer", "null"]})
    assert form.read("Two and two. The answer is 4.", EXAMPLE) == ChainOfThought("Two and two.", "4")
    assert form.agrees("4.0", "4") and form.canonical("none") is None


def test_a_text_that_looks_like_json_comes_back(tmp_path: Path) -> None:
    form = _schema(tmp_path, {"enum": ["{}", "[1]", '{"a": 1}', "4", 4]})
    for value in ("{}", "[1]", '{"a": 1}', "4"):
        answer = form.canonical(json.dumps(value))
        assert answer is not None and form.value_of(answer) == json.dumps(value) and form.language().matches(answer)


def test_a_text_of_a_pattern_is_read(tmp_path: Path) -> None:
    form = open_form({"form": "regex", "settings": {"pattern": "[A-Z]{2}-[0-9]+( [a-z]+)?"}}, tmp_path)
    assert form.read("Seen on the box. The answer is **AB-12** as printed.", EXAMPLE) == ChainOfThought("Seen on the box.", "AB-12")
    assert form.read("The answer is 12.", EXAMPLE) is Unparsed.INVALID
    assert form.agrees(" AB-12", "AB-12") and not form.agrees("AB-13", "AB-12") and form.canonical("ab-12") is None
    with pytest.raises(MmedgeError, match="look-around"):
        open_form({"form": "regex", "settings": {"pattern": "(?=a)"}}, tmp_path)


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"type": "object", "type": "array"}', "the key 'type' occurs twice"),
        ('{"maximum": NaN}', "NaN is not JSON"),
        ('{"maximum": 9007199254740993}', "beyond 2"),
        ('{"enum": ["\\ud800"]}', "lone surrogate"),
        ('{"type": "object"', "not JSON"),
        ({"properties": {"a": {"$ref": "#"}}}, "recursive schemas are not supported"),
        ({"oneOf": [{}]}, "the keyword 'oneOf' is not supported"),
        ({"pattern": "(a{900}){900}"}, "too large"),
        ({"description": "x" * 1_000_000}, "larger than 256 kB"),
    ],
)
def test_a_bad_schema_is_one_line_that_names_the_file(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(MmedgeError, match=message) as error:
        _schema(tmp_path, document)
    line = str(error.value).splitlines()[0]
    assert str(tmp_path / "book.json") in line and len(line) < 400


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "must be a list"),
        ([], "must be a list"),
        ([{"type": "function"}], r"\[0\]: must be an object with a function's name"),
        ([{"name": "a"}, {"name": "a"}], "two functions 'a'"),
        ([{"name": "a\x1b[31m"}], "a function.s name has at most 200 characters"),
        ([{"name": "a\nb"}], "no line breaks"),
        ([{"name": "a" * 201}], "at most 200 characters"),
        ([{"name": "a", "parameters": {"type": "string"}}], "function 'a': the type of its parameters must be object"),
        ([{"name": "a", "parameters": {"not": {}}}], "function 'a': #: the keyword 'not'"),
    ],
)
def test_a_bad_list_of_functions_is_one_line(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(MmedgeError, match=message):
        _tools(tmp_path, document)


def test_a_rule_for_no_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MmedgeError, match=r"compare\.titles: .* has no field of this name"):
        _schema(tmp_path, compare={"titles": "casefold"})
    with pytest.raises(MmedgeError, match=r"compare\.town: no function in .* has an argument of this name"):
        _tools(tmp_path, compare={"town": "casefold"})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ('{"year": 1965}', "the key 'title' is missing"),
        ('{"title": "x", "year": "1965"}', "year: must be integer, found"),
        ('{"title": "x", "titles": "y"}', "titles: there is no such key"),
        ('{"title": "x", "title": "y"}', "the key 'title' occurs twice"),
        ('{"title": "x", "year": NaN}', "NaN is not JSON"),
        ('{"title": "x", "year": 9007199254740993}', "beyond 2"),
        ('{"title": "\\ud800"}', "lone surrogate"),
        ('"title: x; year: soon"', "year: must be integer"),
    ],
)
def test_a_label_that_does_not_fit_is_named_with_file_and_line(tmp_path: Path, label: str, message: str) -> None:
    (tmp_path / "book.json").write_text(json.dumps(BOOK))
    train = tmp_path / "train.jsonl"
    train.write_text('{"question": "a", "label": {"title": "Answer: x"}}\n{"question": "b", "label": ' + label + "}\n")
    section = {"kind": "jsonl", "train_file": str(train), "form": {"kind": "schema", "file": str(tmp_path / "book.json")}}
    with pytest.raises(MmedgeError, match=message) as error:
        build_task(section).load()
    assert str(error.value).startswith(f"{train}:2: ")


def test_a_bundle_needs_no_file_of_the_recipe(tmp_path: Path) -> None:
    for form in (_schema(tmp_path, compare={"title": "casefold"}), _tools(tmp_path, spelling="json")):
        bundle = tmp_path / form.name
        bundle.mkdir()
        for name, content in form.files().items():
            (bundle / name).write_bytes(content)
        stated = json.loads(json.dumps(form.to_json()))
        assert open_form(stated, bundle) == form


def test_snips_is_read_as_its_readme_says(real_data: Path) -> None:
    snips = real_data / "snips"
    files = {"train_file": str(snips / "train.jsonl"), "test_files": {"test": str(snips / "test.jsonl")}}
    task = build_task({"kind": "jsonl", **files, "form": {"kind": "tools", "file": str(snips / "tools.json")}})
    splits = task.load()
    examples = {example.id: example for example in splits.train}
    right = {0: 0, 1: 0}
    for line in (snips / "teacher_cots.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found = task.form.read(record["text"], examples[record["id"]])
        assert isinstance(found, ChainOfThought)
        right[record["sample"]] += task.form.agrees(found.pseudo_label, examples[record["id"]].label or "")
    assert right == {0: 622, 1: 584}
    for example in (*splits.train, *splits.tests["test"]):
        value = task.form.value_of(example.label or "")
        assert value is not None and task.form.canonical(value) == example.label


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "integer", "minimum": 10, "maximum": 2}, "#: minimum 10 is above maximum 2"),
        ({"properties": {"lamp": {"minLength": 5, "maxLength": 2}}}, "#/properties/lamp: minLength 5 is above maxLength 2"),
        (False, "no value fits the schema"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "no value fits the schema"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value fits the schema"),
        ({"enum": ["b"], "pattern": "^a$"}, "no value fits the schema"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "no value fits the schema"),
    ],
)
def test_a_schema_that_nothing_fits_is_refused(tmp_path: Path, schema: Any, why: str) -> None:
    with pytest.raises(MmedgeError) as found:
        _schema(tmp_path, schema)
    assert why in str(found.value)
    if isinstance(schema, dict):
        with pytest.raises(MmedgeError, match=r"function 'Go': (no arguments fit|.* is above|the type of its parameters)"):
            _tools(tmp_path, [{"name": "Go", "parameters": {"type": "object", **schema}}])


def test_a_long_enumeration_takes_time_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []

    def same(left: Any, right: Any) -> bool:
        compared.append(left)
        return bool(left == right)

    monkeypatch.setattr(schemas, "same", same)
    towns = {"enum": [f"v{n}" for n in range(3000)]}
    _tools(tmp_path, [{"name": "Go", "parameters": {"type": "object", "properties": {"to": towns}}}])
    assert len(compared) < 3 * 3000


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1,000", "1000", True),
        ("1,234,567.50", "1234567.5", True),
        ("1,5", "15", False),
        ("3,14", "314", False),
        ("1,00", "100", False),
        ("1_000", "1000", False),
        (" 2.0 ", "2", True),
    ],
)
def test_a_comma_between_digits_is_not_always_of_thousands(tmp_path: Path, left: str, right: str, same: bool) -> None:
    form = _schema(tmp_path, {"properties": {"n": {"type": "string"}}}, compare={"n": "number"})
    assert form.agrees(json.dumps({"n": left}), json.dumps({"n": right})) == same
