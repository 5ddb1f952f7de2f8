"""What is asked for, and what is read out of a teacher's texts."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mmedge.recipe import SynthesisSection
from mmedge.synthesis.asking import QuestionReader
from mmedge.synthesis.briefs import Briefs
from mmedge.tasks import Example, Unparsed
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.tools import ToolsForm
from mmedge.teachers.sampling import outcome

LABELS = LabelForm(("lights", "music", "timer"))
SEEDS = [Example(str(n), f"question number {n} about it", LABELS.labels[n % 2]) for n in range(10)]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Question: put some fado on", "put some fado on"),
        ('Sure! Here is one:\n\n**Question:** "put some fado on"\n\nAnswer: music', "put some fado on"),
        ("New input: put some\nfado on\nLabel: music", "put some fado on"),
        ("1. Question: put some fado on\n2. Question: skip it", "put some fado on"),
        ("<think>\nQuestion: no\n</think>\nQuestion: put some fado on", "put some fado on"),
        ("“put some fado on”", "put some fado on"),
        ("Question: how many are <5 or >7?", "how many are <5 or >7?"),
        ("Question: Was kostet das?", "Was kostet das?"),
    ],
)
def test_a_question_is_read_whatever_stands_around_it(text: str, question: str) -> None:
    assert QuestionReader().read(text) == (question, ())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", Unparsed.EMPTY),
        ("<think>hm", Unparsed.EMPTY),
        ("I'm sorry, but I cannot help with that.", Unparsed.NO_ANSWER),
        ("Question: I'm sorry, I can't do that", Unparsed.NO_ANSWER),
        ("Question:", Unparsed.NO_ANSWER),
        ("Question: ?!", Unparsed.NO_ANSWER),
        ("Here are the new inputs:", Unparsed.NO_ANSWER),
        ("Sure, here you are: put some fado on", Unparsed.NO_ANSWER),  # nobody knows where it begins
        ("one\ntwo\nthree\nfour", Unparsed.NO_ANSWER),
        ("Question: play [song name] by {artist}", Unparsed.INVALID),
        ("Question: " + "word " * 2000, Unparsed.NO_ANSWER),
    ],
)
def test_what_is_no_question_is_not_taken_for_one(text: str, why: Unparsed) -> None:
    assert QuestionReader().read(text) is why
    assert QuestionReader().lacks_answer(text, Example("x", "")) is why


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("Question: put some fado on\nAnswer: mus", "whole"),
        ("Question: put some fado on\n\nThis one is about", "whole"),
        ("Question: put some fa", "truncated"),
        ("Sure, here is one that is", "truncated"),
    ],
)
def test_a_text_that_was_cut_off_behind_its_question_is_whole(text: str, becomes: str) -> None:
    assert outcome(text, "length", "cot", QuestionReader(), Example("x", "")) == becomes


def test_choices_are_read_and_needed() -> None:
    reader = QuestionReader(takes_choices=True)
    lines = "Question: Where do fish live?\nChoices: (a) in the sea (b) on trees (c) in a (small) box\nAnswer: (a)"
    assert reader.read(lines) == ("Where do fish live?", ("in the sea", "on trees", "in a (small) box"))
    below = "Question: Where do fish live?\nChoices:\na) in the sea\nb) on trees"
    assert reader.read(below) == ("Where do fish live?", ("in the sea", "on trees"))
    for bad in ("Question: Where?", "Question: Where now?\nChoices: (a) here (c) there", "Question: Where?\nChoices: (a) x (b) X"):
        assert reader.read(bad) is Unparsed.NO_ANSWER


def test_briefs_are_diverse_balanced_and_do_not_depend_on_the_count() -> None:
    briefs = Briefs(LABELS, SEEDS, SynthesisSection())
    assert briefs.shares(400) == {"lights": 134, "music": 133, "timer": 133}
    made = [briefs.brief("lights", number) for number in range(30)]
    assert made == [Briefs(LABELS, SEEDS, SynthesisSection(count=7)).brief("lights", number) for number in range(30)]
    assert len({brief.id for brief in made}) == 30 and all("lights" in brief.wish for brief in made)
    assert Counter(brief.style for brief in made) == dict.fromkeys(SynthesisSection().styles, 3)
    assert len({brief.words for brief in made}) > 3
    shown = Counter(seed.id for brief in made for seed in brief.seeds)
    assert set(shown) == {"0", "2", "4", "6", "8"} and max(shown.values()) - min(shown.values()) <= 1  # its own, in rotation
    assert {seed.id for brief in (briefs.brief("timer", n) for n in range(20)) for seed in brief.seeds} == {s.id for s in SEEDS}


def test_function_calls_get_sampled_arguments(tmp_path: Path) -> None:
    properties = {
        "city": {"type": "string", "description": "the city"},
        "day": {"enum": ["fri", "sat"]},
        "fast": {"type": "boolean"},
    }
    weather = {"name": "Weather", "description": "Tell the weather", "parameters": {"type": "object", "properties": properties}}
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([weather, {"name": "Stop"}]))
    form = ToolsForm.from_settings({"file": str(path)})
    label = form.canonical('{"name": "Weather", "arguments": {"city": "Oslo", "day": "fri"}}')
    seeds = [
        Example("a", "how is Oslo on friday", label),
        Example("b", "stop", form.canonical('{"name": "Stop", "arguments": {}}')),
    ]
    briefs = Briefs(form, seeds, SynthesisSection())
    wishes = [briefs.brief("Weather", number).wish for number in range(60)]
    combinations = {tuple(name for name in properties if f"{name} " in wish.split("others:")[-1]) for wish in wishes}
    assert len(combinations) >= 5
    assert {day for wish in wishes for day in ("fri", "sat") if f'day ("{day}")' in wish} == {"fri", "sat"}
    assert "city (the city)" in " ".join(wishes) and "Tell the weather" in wishes[0]
    assert {seed.id for number in range(5) for seed in briefs.brief("Weather", number).seeds} == {"a"}
    assert briefs.brief("Stop", 0).wish == "What it asks for is a call of Stop without any values."


def test_schemas_choices_and_open_answers_say_what_they_want(tmp_path: Path) -> None:
    path, draw = tmp_path / "book.json", random.Random(0)
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "year": {"type": "integer"}}, "required": ["title"]}
    path.write_text(json.dumps(schema))
    form = SchemaForm.from_settings({"file": str(path)})
    wishes = {form.wish("", [Example("a", "Dune", form.canonical('{"title": "Dune"}'))], draw) for _ in range(20)}
    assert all("title" in wish for wish in wishes) and any("year" in wish for wish in wishes)
    places = {ChoiceForm().wish("", [Example("a", "Where?", None, ("x", "y", "z"))], draw) for _ in range(40)}
    assert places == {f"It has 3 choices, of which exactly one is right: ({place})." for place in "abc"}
    assert ExpressionForm().wish("", [], draw) == ""
