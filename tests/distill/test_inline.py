"""Inline verdicts: what is learned is what is asked on the device, and a wrong chain of thought teaches its verdict alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.objectives import OBJECTIVES, LessonSource
from mmedge.distill.streams import encode_lesson
from mmedge.recipe import MethodSection, StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.prompts import VERDICT_MARK
from tests.conftest import mmedge, tiny_recipe, write_recipe
from tests.distill.given import small_student

INLINE = {"inline_verdict": {"share": 1.0}}


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def encoder(request: pytest.FixtureRequest, tiny_llama: Path) -> PromptEncoder:
    section = StudentSection(source=str(tiny_llama))
    causal = request.param == "decoder-only"
    student = load_student(section, resolve_source(section), 128, [], 0) if causal else small_student("Ann has 6 boxes of plums")
    return replace(student.encoder, prompts=replace(student.encoder.prompts, verdict=VERDICT_MARK))


def _annotated() -> AnnotatedExample:
    def cot(sample: int, rationale: str, answer: str, verdict: Verdict) -> EvaluatedCot:
        return EvaluatedCot(sample, ChainOfThought(rationale, answer), (SelfEvaluation("so", verdict),))

    cots = cot(0, "Six boxes of eight.", "6 * 8", Verdict.CORRECT), cot(1, "Six and eight.", "6 + 8", Verdict.WRONG)
    return AnnotatedExample(Example("q", "Ann has 6 boxes of 8 plums. How many?", "6 * 8"), cots)


def test_a_verdict_is_learned_where_it_is_asked(encoder: PromptEncoder) -> None:
    annotated, method = _annotated(), MethodSection.model_validate({"self_evaluation": False, "objectives": INLINE})
    source = LessonSource([annotated], method, ExpressionForm(), encoder)
    objective = OBJECTIVES["inline_verdict"](method.objectives["inline_verdict"], source)
    (lesson,) = objective.lessons(0)
    encoded = encode_lesson(lesson, encoder, 64)
    branches = [(t, e) for t, e in zip(lesson.targets, encoded.targets, strict=True) if t.kind == "explain"]
    assert len(branches) == 2
    for evaluated, (target, one) in zip(annotated.cots, branches, strict=True):
        asked = encoder.prompt("predict", encoder.prompts.evaluation_context(annotated.example.question, evaluated.cot))
        ids = [token for segment in one.segments for token in segment.ids]
        verdict = encoder.target(target.segments[-1].text, 64)
        assert asked.context == encoded.context
        assert [*asked.begun, *verdict] == [*one.begun, *ids]
        text = encoder.text([token for token in ids if token != encoder.special.eos])
        if encoder.family == "decoder-only":  # the small student's tokenizer does not know every letter
            assert encoder.prompts.split(text) == (evaluated.cot.rationale, evaluated.cot.pseudo_label)
        right = evaluated.evaluations[0].verdict is Verdict.CORRECT
        learned = {segment.part for segment in one.segments if segment.weight}
        assert learned == ({"explain", "verdict"} if right else {"verdict"})
    totals = objective.totals([encoded])
    assert all(totals[part] > 0 for part in objective.parts)
    assert sum(objective.weights().values()) == pytest.approx(1.0)


def test_what_is_written_is_split_where_the_answer_begins(encoder: PromptEncoder) -> None:
    prompts = encoder.prompts
    assert prompts.split("The answer: 3 is wrong. answer: 6 * 8 verdict: correct") == ("The answer: 3 is wrong.", "6 * 8")
    assert prompts.split("It was cut off") == ("It was cut off", None)
    plain = replace(prompts, verdict="")
    assert plain.split("So answer: 6 verdict: correct") == ("So answer: 6 verdict: correct", None)
    assert "verdict" not in plain.to_json() and prompts.to_json()["verdict"] == VERDICT_MARK


def test_inline_verdicts_through_the_whole_chain(tmp_path: Path) -> None:
    """No lesson is spent on judging, and the bundle judges what it writes."""
    method = {"cots_per_visit": 1, "self_evaluation": False, "balance_verdicts": True, "objectives": INLINE}
    recipe, run = write_recipe(tmp_path / "r.yaml", tiny_recipe(method=method)), tmp_path / "run"
    done = mmedge("distill", recipe, "--out", run, "-q")
    assert done.code == 0, done.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["stage2"] and metrics["after"]["verdict"]["auroc"] is not None
    logged = [json.loads(line) for line in (run / "stage2" / "metrics.jsonl").read_text().splitlines()]
    assert any("inline_verdict_verdict_loss" in line for line in logged)
    assert json.loads((run / "student" / "mmedge.json").read_text())["prompts"]["verdict"] == VERDICT_MARK
    exported = mmedge("export", run, "--fp32", "-q")
    assert exported.code == 0, exported.err
    asked = mmedge("run", run / "bundle-fp32", "Ann has 6 boxes with 8 plums in each. How many plums?", "--evaluate", "--json")
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["verdict"] in ("correct", "wrong", "uncertain")


def test_shuffled_evaluations_change_what_verdicts_are_learned_and_nothing_else(encoder: PromptEncoder) -> None:
    one = _annotated()
    examples = [replace(one, example=replace(one.example, id=f"q{number}")) for number in range(8)]

    def learned(**settings: bool) -> tuple[list[str], list[tuple[str, float]]]:
        method = MethodSection.model_validate({"self_evaluation": False, "objectives": INLINE, **settings})
        objective = OBJECTIVES["inline_verdict"](
            method.objectives["inline_verdict"], LessonSource(examples, method, ExpressionForm(), encoder)
        )
        segments = [part for lesson in objective.lessons(0) for target in lesson.targets for part in target.segments]
        others = [(part.text, part.weight) for part in segments if not part.verdict]
        return [part.text for part in segments if part.verdict], others

    (true, others), (shuffled, same) = learned(), learned(shuffle_evaluations=True)
    assert same == others
    assert shuffled != true
    assert sorted(shuffled) == sorted(true)
    assert learned(shuffle_evaluations=True)[0] == shuffled


def test_shuffled_evaluations_need_something_that_judges() -> None:
    with pytest.raises(ValueError, match="shuffle_evaluations: requires self_evaluation"):
        MethodSection.model_validate({"self_evaluation": False, "shuffle_evaluations": True})
