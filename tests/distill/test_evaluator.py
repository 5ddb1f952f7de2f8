"""Evaluations as lessons: before their verdicts, and as explanations and corrections of the question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.objectives import OBJECTIVES, LessonSource, Objective
from mmedge.distill.streams import encode_lesson
from mmedge.recipe import MethodSection, StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.expression import ExpressionForm
from tests.conftest import mmedge, tiny_recipe, write_recipe
from tests.distill.given import small_student


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def encoder(request: pytest.FixtureRequest, tiny_llama: Path) -> PromptEncoder:
    section = StudentSection(source=str(tiny_llama))
    causal = request.param == "decoder-only"
    return (load_student(section, resolve_source(section), 128, [], 0) if causal else small_student("Ann has 6 boxes")).encoder


def _cot(sample: int, answer: str, verdict: Verdict, evaluation: str) -> EvaluatedCot:
    return EvaluatedCot(sample, ChainOfThought(f"way {sample}", answer), (SelfEvaluation(evaluation, verdict),))


def _question(*cots: EvaluatedCot) -> AnnotatedExample:
    return AnnotatedExample(Example("q", "Ann has 6 boxes of 8 plums. How many?"), cots)


def _objective(name: str, encoder: PromptEncoder, annotated: AnnotatedExample, **settings: object) -> Objective:
    added = {name: {"share": 1.0, "stage": "stage2"} | settings}
    method = MethodSection.model_validate({"self_evaluation": False, "objectives": added})
    prompts = replace(encoder.prompts, **OBJECTIVES[name].prompts)
    source = LessonSource([annotated], method, ExpressionForm(), replace(encoder, prompts=prompts))
    return OBJECTIVES[name](method.objectives[name], source)


def test_a_verdict_behind_its_evaluation_is_learned_where_it_is_asked(encoder: PromptEncoder) -> None:
    annotated = _question(_cot(0, "6 + 8", Verdict.WRONG, "It must multiply."))
    objective = _objective("evaluation_first", encoder, annotated)
    asking = objective.source.encoder
    (lesson,) = objective.lessons(0)
    (target,) = encode_lesson(lesson, asking, 64).targets
    context = asking.prompts.evaluation_context(annotated.example.question, annotated.cots[0].cot)
    asked = asking.prompt("predict", asking.prompts.reasoned_context(context, "It must multiply."))
    ids = [token for segment in target.segments for token in segment.ids]
    assert [*asked.begun, *asking.target("wrong", 64)] == [*target.begun, *ids]
    assert asking.prompt("explain", context).begun == target.begun
    assert {segment.part for segment in target.segments} == {"explain", "predict"}
    assert asking.prompts.evaluation_of("It must multiply. verdict: wrong") == "It must multiply."
    assert asking.prompts.evaluation_of("It must") == "It must"


def test_evaluations_explain_the_question_and_correct_what_was_judged_wrong(encoder: PromptEncoder) -> None:
    judged = _question(
        _cot(0, "6 + 8", Verdict.WRONG, "It should be 6 * 8 = 48."), _cot(1, "8 - 6", Verdict.WRONG, "Rather 8 * 6 = 48.")
    )
    objective = _objective("evaluator", encoder, judged)
    (lesson,) = objective.lessons(0)
    assert [one.segments[0].text for one in lesson.targets if one.kind == "predict"] == ["6 * 8"]
    explained = {one.segments[0].text: one.segments[0].weight for one in lesson.targets if one.kind == "explain"}
    assert explained == {"way 0": 0.25, "way 1": 0.25, "It should be 6 * 8 = 48.": 0.5}
    again = {one.segments[0].text for one in objective.lessons(1)[0].targets}
    assert "Rather 8 * 6 = 48." in again
    split = _question(_cot(0, "6 + 8", Verdict.WRONG, "It is 6 * 8 = 48."), _cot(1, "8 - 6", Verdict.WRONG, "It is 6 + 6 = 12."))
    right = _question(_cot(0, "6 * 8", Verdict.CORRECT, "Right."), _cot(1, "8 - 6", Verdict.WRONG, "It is 6 + 6 = 12."))
    for annotated, answers in ((split, {"6 + 8", "8 - 6"}), (right, {"6 * 8", "8 - 6"})):
        (lesson,) = _objective("evaluator", encoder, annotated).lessons(0)
        assert {one.segments[0].text for one in lesson.targets if one.kind == "predict"} == answers
    (plain,) = _objective("evaluator", encoder, judged, correct=False).lessons(0)
    assert {one.segments[0].text for one in plain.targets if one.kind == "predict"} == {"6 + 8", "8 - 6"}


@pytest.mark.parametrize(
    "objectives",
    [{"evaluation_first": {"share": 0.25, "stage": "stage2"}}, {"evaluator": {"share": 1}}],
    ids=lambda one: next(iter(one)),
)
def test_they_train(objectives: dict[str, object], tmp_path: Path) -> None:
    method = {"self_evaluation": False, "cots_per_visit": 1, "objectives": objectives}
    done = mmedge("distill", write_recipe(tmp_path / "r.yaml", tiny_recipe(method=method)), "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["after"]["verdict"]["auroc"] is not None
    if "evaluation_first" in objectives:
        assert mmedge("export", tmp_path / "run", "--fp32", "-q").code == 0
        question = "Ann has 6 boxes with 8 plums in each. How many plums?"
        asked = mmedge("run", tmp_path / "run" / "bundle-fp32", question, "--evaluate", "--explain", "--json")
        assert asked.code == 0 and json.loads(asked.out)["verdict"], asked.err


def test_shuffled_evaluations_explain_other_questions(encoder: PromptEncoder) -> None:
    questions = [
        replace(one, example=replace(one.example, id=str(number)))
        for number in range(8)
        for one in [_question(_cot(0, "6 * 8", Verdict.CORRECT, f"Right, as in {number}."))]
    ]

    def explained(**settings: bool) -> list[list[str]]:
        added = {"evaluator": {"share": 1.0}}
        method = MethodSection.model_validate({"self_evaluation": False, "objectives": added, **settings})
        source = LessonSource(questions, method, ExpressionForm(), encoder)
        lessons = OBJECTIVES["evaluator"](method.objectives["evaluator"], source).lessons(0)
        return [[target.segments[0].text for target in lesson.targets] for lesson in lessons]

    true, exchanged = explained(), explained(shuffle_evaluations=True)
    assert exchanged != true
    assert sorted(map(tuple, exchanged)) == sorted(map(tuple, true))
