"""Stage 3: a student learns to judge what it writes itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.chain import StageChain
from mmedge.distill.labels import trusted_answer
from mmedge.distill.objectives import LessonSource
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.distill.own import graded_by
from mmedge.distill.scoring import OwnCot
from mmedge.distill.stages import STAGES, lessons_per_step, parts_of
from mmedge.errors import MmedgeError
from mmedge.recipe import MethodSection, Recipe, load_recipe
from mmedge.tasks.base import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.forms.choice import ChoiceForm
from mmedge.tasks.forms.expression import ExpressionForm
from tests.conftest import killed_when_lines_are_there, mmedge, tiny_recipe, write_recipe
from tests.distill.given import small_student

OWN = {"own_cots": 2, "own_temperature": 1.2, "cots_per_visit": 1, "rehearsal": 0.25}


def _recipe(folder: Path, **method: object) -> Path:
    values = tiny_recipe(method={**OWN, **method})
    values["training"] = {**values["training"], "stage3": {"max_steps": 20, "batch_size": 8, "evaluate_every": 10}}  # type: ignore[dict-item]
    return write_recipe(folder / "own.yaml", values)


def test_killed_in_stage_3_it_continues_with_the_same_chains_of_thought(tmp_path: Path) -> None:
    recipe, run = _recipe(tmp_path), tmp_path / "run"
    arguments = ["distill", recipe, "--out", run, "-q", "--set", "training.checkpoint_minutes=0"]
    killed_when_lines_are_there(arguments, run / "stage3" / "metrics.jsonl", 4)
    own = (run / "stage3" / "own.json").read_bytes()
    done = mmedge(*arguments)
    assert done.code == 0, done.err
    assert (run / "stage3" / "own.json").read_bytes() == own
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["stages"]["stage3"]["steps"] == 20
    validation = metrics["stages"]["stage3"]["validations"][-1]
    assert {"answer", "agreement", "own_verdict"} <= set(validation)
    columns = json.loads(own)["value"]
    assert len(columns) == 2 and len({len(column) for column in columns}) == 1
    greedy, drawn = ([rationale for rationale, *_ in column] for column in columns)
    assert greedy != drawn
    assert "Stage 3" in (run / "training.html").read_text()
    other = mmedge(*arguments, "--set", "method.own_cots=3")  # stages 1 and 2 do not depend on it
    assert other.code != 0 or "stage 2" not in other.err


def test_stages_before_do_not_depend_on_stage_3(tmp_path: Path) -> None:
    def keys(recipe: Recipe) -> tuple[str, str, str]:
        class Material:
            hash = "x"

        class Source:
            fingerprint = "y"

        found = StageChain(recipe, Material(), Source(), None, None)  # type: ignore[arg-type]
        return found.key(STAGES[0]), found.key(STAGES[1]), found.key()

    own = keys(load_recipe(_recipe(tmp_path)))
    more = keys(load_recipe(_recipe(tmp_path, own_cots=5)))
    none = keys(load_recipe(_recipe(tmp_path, own_cots=0)))
    assert own[:2] == more[:2] == none[:2]
    assert len({own[2], more[2], none[2]}) == 3 and none[2] == none[1]


def test_without_human_labels_the_teacher_s_own_judgement_says_what_is_right() -> None:
    def cot(sample: int, answer: str, verdict: Verdict) -> EvaluatedCot:
        return EvaluatedCot(sample, ChainOfThought("because", answer), (SelfEvaluation("so", verdict),))

    example = Example("q", "?", "9")
    judged = (
        cot(0, "7", Verdict.WRONG),
        cot(1, "4 + 4", Verdict.CORRECT),
        cot(2, "8", Verdict.CORRECT),
        cot(3, "9", Verdict.CORRECT),
    )
    annotated = AnnotatedExample(example, judged)
    assert trusted_answer(annotated, ExpressionForm(), human=True) == "9"
    assert trusted_answer(annotated, ExpressionForm(), human=False) == "4 + 4"
    assert trusted_answer(AnnotatedExample(example, judged[:1]), ExpressionForm(), human=False) is None


def test_own_chains_of_thought_are_graded_by_what_their_rationale_comes_to() -> None:
    """An answer that was written beside a rationale says nothing about where the rationale ends."""
    form, example = ExpressionForm(), Example("q", "Ann has 6 boxes of 8 plums. How many plums?", "6 * 8")
    own = [
        OwnCot(answer, rationale, form.conclusion(rationale, example))
        for answer, rationale in (
            ("6 * 8", "Six boxes of eight: 6 * 8 = 48."),
            ("6 * 8", "Six and eight: 6 + 8 = 14."),
            ("6 + 8", "Six boxes of eight: 6 * 8 = 48."),
            ("6 * 8", "There are plums in boxes."),
        )
    ]
    assert [one.agrees(form, example) for one in own] == [True, False, False, False]
    graded = graded_by("6 * 8", own, form, example)
    found = [(one.cot.pseudo_label, one.evaluations[0].verdict) for one in graded]
    right, wrong = Verdict.CORRECT, Verdict.WRONG
    assert found == [("6 * 8", right), ("6 + 8", wrong), ("6 * 8", right)]  # where the last one ends, nobody knows
    assert graded_by(None, own, form, example) == ()
    annotated = AnnotatedExample(example, (EvaluatedCot(0, ChainOfThought("Of the teacher.", "6 * 8"), ()),))
    encoder = small_student("Ann has 6 boxes").encoder
    (lesson,) = Reasoning(None, LessonSource([annotated], MethodSection(own_cots=4), form, encoder, [graded])).lessons(0)
    learned = [target.segments[0].text for target in lesson.targets if target.kind == "explain"]
    assert learned == ["Of the teacher.", "Six boxes of eight: 6 * 8 = 48."]


def test_a_choice_is_graded_as_it_is_where_its_rationale_states_none() -> None:
    form, example = ChoiceForm(), Example("q", "Where?", "roof", ("roof", "cellar"))
    assert OwnCot("roof", "It is high up.", None).judgeable(form)
    (graded,) = graded_by("roof", [OwnCot("roof", "It is high up.", None)], form, example)
    assert graded.evaluations[0].verdict is Verdict.CORRECT


def test_recipes_that_contradict_themselves_are_named(tmp_path: Path) -> None:
    with pytest.raises(MmedgeError, match=r"requires training\.stage3"):
        load_recipe(write_recipe(tmp_path / "r.yaml", tiny_recipe(method=OWN)))
    with pytest.raises(MmedgeError, match=r"requires method\.self_evaluation"):
        load_recipe(_recipe(tmp_path, self_evaluation=False))
    for share, count in ((0.5, 24), (0.2, 6)):
        parts = parts_of(STAGES[2], MethodSection(own_cots=1, own_share=share))
        assert lessons_per_step(parts, 24) == [24, count] and [part.weight for part in parts] == [1 - share, share]
