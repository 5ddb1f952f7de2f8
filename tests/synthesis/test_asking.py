"""What is asked for, and what is read out of a teacher's texts."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.recipe import SynthesisSection
from mmedge.synthesis.asking import QuestionPrompts, QuestionReader, load_template
from mmedge.synthesis.briefs import Briefs
from mmedge.tasks import Example, Unparsed
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.forms.choice import ChoiceForm, LabelForm
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.tools import ToolsForm
from mmedge.teachers.prompting import read_template
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
        ("Input: add this song by [Artist's Name] to my playlist", Unparsed.INVALID),
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
    assert set(shown) == {"0", "2", "4", "6", "8"} and set(shown.values()) <= {10, 20}  # its own, in rotation
    assert made[0].seeds == made[9].seeds != made[10].seeds  # few seeds: servers read the same ones once
    assert {seed.id for brief in (briefs.brief("timer", n) for n in range(30)) for seed in brief.seeds} == {s.id for s in SEEDS}
    seeds = [Example(str(n), f"question number {n} about it", "lights") for n in range(45)]
    many = Briefs(LABELS, seeds, SynthesisSection())
    assert {seed.id for n in range(30) for seed in many.brief("lights", n).seeds} == {seed.id for seed in seeds}


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


# ------------------------------------------------------------------------------------------------- the conversation


def _tools(folder: Path) -> ToolsForm:
    items = {"type": "array", "items": {"type": "object", "properties": {"item_name": {"type": "string"}}}}
    properties = {"city": {"type": "string"}, "timeRange": {"type": "string"}, "items": items}
    path = folder / "tools.json"
    path.write_text(
        json.dumps([{"name": "GetWeather", "parameters": {"type": "object", "properties": properties}}, {"name": "stop"}])
    )
    return ToolsForm.from_settings({"file": str(path)})


def _prompt(form: AnswerForm, seeds: list[Example], folder: Path, template: str | None = None) -> list[tuple[str, str]]:
    path = None
    if template is not None:
        path = folder / "prompt.txt"
        path.write_text(template)
    prompts = QuestionPrompts(load_template(path), {}, form)
    brief = Briefs(form, seeds, SynthesisSection(shown=2)).brief(form.kinds()[0] if form.kinds() else "", 0)
    prompts.briefs[brief.id] = brief
    return list(prompts.about_question(brief.subject()))


def test_seeds_are_shown_as_what_was_asked_for_and_written_before(tmp_path: Path) -> None:
    form = _tools(tmp_path)
    label = form.canonical('{"name": "GetWeather", "arguments": {"timeRange": "tomorrow", "city": "Oslo"}}')
    system, *conversation, last = _prompt(form, [Example("a", "Oslo\ntomorrow {city}?", label)], tmp_path)
    assert system[0] == "system" and [role for role, _ in conversation] == ["user", "assistant"]
    wish = 'What it asks for is a call of GetWeather with these values and no others: city = "Oslo"; timeRange = "tomorrow".'
    assert conversation == [("user", wish), ("assistant", "Input: Oslo tomorrow {city}?")]
    assert last[0] == "user" and "GetWeather" in last[1] and "Input: TEXT" in last[1] and "Oslo" not in last[1]


def test_every_form_says_which_wish_a_seed_meets(tmp_path: Path) -> None:
    assert LABELS.wish_met(Example("a", "Dim it", "lights")) == "The right label for it is: lights."
    choices = ("in the sea", "on trees", "in a box")
    assert (
        ChoiceForm()
        .wish_met(Example("a", "Where?", "on trees", choices))
        .endswith("3 choices, of which exactly one is right: (b).")
    )
    path = tmp_path / "book.json"
    path.write_text(json.dumps({"type": "object", "properties": {"title": {"type": "string"}}}))
    form = SchemaForm.from_settings({"file": str(path)})
    met = form.wish_met(Example("a", "Dune", form.canonical('{"title": "Dune"}')))
    assert met == 'What can be read from it: a record with these values and no others: title = "Dune".'
    assert form.wish_met(Example("a", "?", form.canonical("{}"))) == "What can be read from it: a record without any values."
    for each in (LABELS, ChoiceForm(), form, _tools(tmp_path), ExpressionForm()):
        assert each.wish_met(Example("a", "not labelled")) == ""


def test_open_answers_and_choices_have_a_conversation_too(tmp_path: Path) -> None:
    found = _prompt(ExpressionForm(), [Example("a", "How many?", "3"), Example("b", "How few?")], tmp_path)
    assert [text for role, text in found[1:-1] if role == "user"] == ["Write one."] * 2
    assert [text for role, text in found if role == "assistant"] in (
        ["Input: How many?", "Input: How few?"],
        ["Input: How few?", "Input: How many?"],
    )
    found = _prompt(ChoiceForm(), [Example("a", "Where?", "here", ("here", "there"))], tmp_path)
    written = found[2][1]
    assert written == "Question: Where?\nChoices: (a) here (b) there"
    assert QuestionReader(takes_choices=True).read(written) == ("Where?", ("here", "there"))  # what is shown is what is read


def test_templates_with_a_list_of_seeds_still_work(tmp_path: Path) -> None:
    old = "=== user\nSuch as:\n{seeds}\n{wish} {style} {words} {form} {reply}"
    (role, text), *others = _prompt(LABELS, SEEDS, tmp_path, old)
    assert role == "user" and not others and text.count("\n- question number") == 2 and LABELS.instruction() in text


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("=== user\n{wish} {reply}", "neither of the placeholders"),
        ("=== user\n{seed} {reply}", "is not 'for each seed'"),
        ("=== user for each seed\n{seed} {reply}", "the last message must be the user's"),
        ("=== user for every seed\n{seed}\n=== user\n{reply}", "'=== user for every seed' is no heading"),
        (
            "=== user for each seed\n{seed}\n=== assistant for all\n{seed}\n=== user\n{reply}",
            "prompt.txt:3: '=== assistant for all' is",
        ),
        ("=== user for each seed\n{seed}\n=== user\n{wish}", "placeholder {reply} is missing\n  → it says in what form"),
        ("=== system for each seed\n{seed}\n=== user\n{reply}", "prompt.txt:1: the system message is one"),
    ],
)
def test_templates_that_cannot_work_are_refused(tmp_path: Path, template: str, complaint: str) -> None:
    with pytest.raises(MmedgeError, match=re.escape(complaint)):
        _prompt(LABELS, SEEDS, tmp_path, template)


def test_prompts_of_annotations_have_no_messages_for_each_seed(tmp_path: Path) -> None:
    path = tmp_path / "cot.txt"
    path.write_text("=== system for each seed\nx\n=== user\n{question}")
    with pytest.raises(MmedgeError, match="only prompts for new questions"):
        read_template(path, ("question",))


def test_broken_characters_are_no_question() -> None:
    for text in ("Dim the \ufffd lamp", "Dim the \x1b[31m lamp", "Dim\ud800 it now", "Dim the \u202e lamp"):
        assert QuestionReader().read(text) is Unparsed.INVALID, text
    assert QuestionReader().read("أطفئ \u200fMAX\u200e الآن") == ("أطفئ \u200fMAX\u200e الآن", ())


def test_texts_that_spell_names_of_the_schema_are_not_questions(tmp_path: Path) -> None:
    form = _tools(tmp_path)
    assert form.unspoken() == ("GetWeather", "item_name", "timeRange")  # not city and stop, which people say
    reader = QuestionReader(names=form.unspoken())
    for text in ("Input: GetWeather(Oslo)", "Input: weather in Oslo with timeRange tomorrow", "Input: city: Oslo, timeRange: now"):
        assert reader.read(text) is Unparsed.INVALID
    assert reader.read("Input: stop, I can forgetWeather in the city") == ("stop, I can forgetWeather in the city", ())
    assert LABELS.unspoken() == ()
