"""Constrained answers of the forms `schema`, `tools` and `regex`: valid and whole, whatever is drawn."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import tokenizers

from mmedge.bundle import open_bundle
from mmedge.errors import MmedgeError
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import PromptEncoder, load_tokenizer
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.forms.regex import RegexForm
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.structured.guided import GuidedConstrainer, GuidedConstraint, Language, Vocabulary
from mmedge.tasks.forms.structured.regex import parse
from mmedge.tasks.forms.tools import ToolsForm
from tests.conftest import REPOSITORY
from tests.tasks.structured import schemas_at_random
from tests.tasks.structured.test_answers import TOOLS

pytest.importorskip("llguidance")
EXAMPLE = Example("q", "question")


def _encoder(run: Path) -> PromptEncoder:
    bundle = open_bundle(run / "bundle-int8")
    tokenizer, stated = load_tokenizer(bundle.folder / "tokenizer.json"), bundle.manifest
    return PromptEncoder(tokenizer, stated.family, stated.prompts, stated.special_tokens, 100)


@pytest.fixture(params=["tiny_run", "llama_run"])
def encoder(request: pytest.FixtureRequest) -> PromptEncoder:
    return _encoder(request.getfixturevalue(request.param))


@pytest.fixture
def llama(llama_run: Path) -> PromptEncoder:
    return _encoder(llama_run)


def _drawn(constraint: GuidedConstraint, limit: int, eos: int, random: Random) -> tuple[list[int], bool]:
    """Return tokens that are drawn at random from what is allowed, and whether they ended."""
    written: list[int] = []
    while len(written) < limit:
        forced = constraint.forced(written)
        ids = constraint.allowed(written)
        assert len(ids), written
        assert not forced or list(ids) == forced[:1]
        token, other = int(random.choice(ids.tolist())), random.randrange(300)
        if constraint.near:  # where one by one more may follow than all together are looked at
            token = other if constraint.permits(written, other) else token
        else:
            assert constraint.permits(written, token)
            assert constraint.permits(written, other) == (other in ids)
        if token == eos:
            return written, True
        written.append(token)
    return written, False


def _constrainer(form: AnswerForm, encoder: PromptEncoder) -> GuidedConstrainer:
    found = form.constrainer(encoder)
    assert isinstance(found, GuidedConstrainer)
    return found


def _assert_valid(form: AnswerForm, encoder: PromptEncoder, random: Random, trials: int) -> None:
    constrainer = _constrainer(form, encoder)
    least = constrainer.least_limit()
    for _ in range(trials):
        limit = least + random.randint(0, 60)
        constraint = constrainer.answer(EXAMPLE, limit)
        tokens, ended = _drawn(constraint, limit, encoder.special.eos, random)
        text = encoder.text(tokens)
        assert ended and form.canonical(text) is not None, (form, limit, text, form.problem(text))


@pytest.mark.parametrize("spelling", ["compact", "json"])
def test_whatever_is_drawn_fits_the_schema_before_the_limit(llama: PromptEncoder, spelling: str) -> None:
    random, forms = Random(3), 0
    while forms < 40:
        form = SchemaForm(schemas_at_random.schema(random), spelling)
        try:
            form.language()
        except ValueError:
            continue  # nothing fits it
        _assert_valid(form, llama, random, 5)
        forms += 1


def test_calls_and_patterns_are_whole_in_both_kinds_of_vocabulary(encoder: PromptEncoder) -> None:
    for form in (ToolsForm(TOOLS), RegexForm("[0-9]{1,3}( (apples|pears))?"), SchemaForm({"enum": ["yes", "no", 4]})):
        _assert_valid(form, encoder, Random(4), 20)


def test_what_a_student_learns_is_allowed(encoder: PromptEncoder) -> None:
    form = ToolsForm(TOOLS)
    for answer in ("get; city: oslo; time: at noon", "stop", "get; time: 4"):
        target = encoder.target(answer, 64)
        constraint = _constrainer(form, encoder).answer(EXAMPLE, 64)
        for place, token in enumerate(target):
            assert token in constraint.allowed(target[:place]), (answer, place)
    half = target[:2]
    constraint.allowed(target)
    assert set(constraint.allowed(half)) == set(_constrainer(form, encoder).answer(EXAMPLE, 64).allowed(half))  # it finds its place


def test_what_must_follow_is_told(llama: PromptEncoder) -> None:
    form = ToolsForm(TOOLS, "json")
    constraint = _constrainer(form, llama).answer(EXAMPLE, 120)
    forced = constraint.forced([])
    assert llama.text(forced) == '{"name":"'
    stop = llama.target('{"name":"StopAll","arguments":{}}', 120)
    rest = constraint.forced(stop[: len(forced) + 1])
    assert llama.text([*stop[: len(forced) + 1], *rest]).startswith('{"name":"StopAll","arguments":{')


def test_a_limit_that_no_answer_fits_is_refused_beforehand(llama: PromptEncoder) -> None:
    constrainer = _constrainer(SchemaForm({"enum": ["abcdefghijklmnopqrstuvwxyz" * 4]}), llama)
    with pytest.raises(MmedgeError, match=r"the shortest answer that fits takes .* more than the limit of 12"):
        constrainer.answer(EXAMPLE, 12)


def test_what_a_vocabulary_of_whole_characters_cannot_write_is_named() -> None:
    pieces = ["<unk>", "</s>", "▁", "▁yes", *"yesnoabc0123;:"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -1.0) for piece in dict.fromkeys(pieces)], 0, False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    vocabulary = Vocabulary(tokenizer, 1)
    language = Language(vocabulary, parse(" (yes|no|[0-9]{2,4}); a*", whole=True))
    for _ in range(30):
        tokens, ended = _drawn(GuidedConstraint(language, 14), 14, 1, Random(6))
        assert ended and language.automaton.accepts(b"".join(vocabulary.bytes[one] or b"" for one in tokens).decode())
    with pytest.raises(ValueError, match="the student's vocabulary cannot write '漢'"):
        Language(vocabulary, parse(" (漢|[q-t]{2})", whole=True))


def test_a_schema_that_is_no_regular_language_is_named(llama: PromptEncoder) -> None:
    form = SchemaForm({"type": "string", "pattern": "^a+$", "maxLength": 4})
    assert form.canonical("aaa") == "aaa" and form.canonical("aaaaa") is None  # judged all the same
    with pytest.raises(MmedgeError, match="minLength and maxLength cannot be combined with pattern"):
        _constrainer(form, llama).answer(EXAMPLE, 100)


def test_without_llguidance_the_extra_is_named(llama: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MmedgeError, match="package 'llguidance', which is not installed") as error:
        _constrainer(ToolsForm(TOOLS), llama).answer(EXAMPLE, 100)
    assert "mmedge[structured]" in error.value.hint


def test_numbers_stay_within_their_bounds(llama: PromptEncoder) -> None:
    for low, high in ((0.25, 0.5), (-3.5, -0.125), (-1, 1), (99.5, 1000.25)):
        form = SchemaForm({"type": "number", "minimum": low, "exclusiveMaximum": high})
        _assert_valid(form, llama, Random(5), 20)
        assert json.dumps(low).rstrip("0").rstrip(".") and form.language().matches(json.dumps(low).removesuffix(".0"))
        assert not form.language().matches(json.dumps(high))


def test_answers_of_schemas_of_real_shapes_are_valid_by_another_judge(tiny_run: Path, llama_run: Path, tmp_path: Path) -> None:
    for run in (tiny_run, llama_run):
        asked = [
            "benchmarks/validity.py",
            str(run / "bundle-int8"),
            "--schemas",
            "4",
            "--answers",
            "32",
            "--out",
            str(tmp_path / "out.json"),
        ]
        ended = subprocess.run([sys.executable, *asked], cwd=REPOSITORY, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        assert (found["answers"], found["valid"]) == (32, 32)


def test_the_other_judge_refuses() -> None:
    judged = runpy.run_path(str(REPOSITORY / "benchmarks" / "validity.py"))["judged"]
    document = {"type": "object", "properties": {"due": {"type": "string", "format": "date"}}, "required": ["due"]}
    form = SchemaForm(document, "json")
    assert judged(document, form, '{"due":"2024-02-29"}') is None
    assert "required" in str(judged(document, SchemaForm({"type": "object"}, "json"), "{}"))
    assert "not a 'date'" in str(judged(document, SchemaForm({"type": "object"}, "json"), '{"due":"2023-02-29"}'))


def test_an_answer_that_the_limit_ends_says_so(llama: PromptEncoder) -> None:
    form = SchemaForm({"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}}, "json")
    wanted = llama.target('{"city":"Oslo","day":"today"}', 120)
    eos, constrainer = llama.special.eos, _constrainer(form, llama)

    def written(limit: int) -> tuple[str, bool]:
        """Write what is wanted as far as there is room."""
        constraint, found = constrainer.answer(EXAMPLE, limit), list[int]()
        while True:
            token = wanted[len(found)] if found == wanted[: len(found)] else eos
            if not constraint.permits(found, token):
                token = int(constraint.allowed(found)[0])
            if token == eos:
                return llama.text(found), constraint.cut_short
            found.append(token)
            assert len(found) < limit

    assert written(len(wanted)) == written(200) == ('{"city":"Oslo","day":"today"}', False)
    texts = [written(limit) for limit in range(4, len(wanted))]
    assert all(cut and form.canonical(text) is not None for text, cut in texts)
    assert any(text.startswith('{"city":"O') for text, _ in texts), "as much as there is room for is the student's own"
