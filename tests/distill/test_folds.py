"""Verdicts on bare answers: taught on answers to unseen questions, never by test labels, and the same after a kill."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.folds import folds_of, shortened
from mmedge.distill.objectives import OBJECTIVES, LessonSource
from mmedge.distill.scoring import answer_verdicts
from mmedge.distill.streams import encode_lesson
from mmedge.errors import MmedgeError
from mmedge.export.confidence import prices
from mmedge.recipe import MethodSection, StudentSection, validate
from mmedge.runtime.confidence import Confidence, LinearMap
from mmedge.runtime.student import Student
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.saved import open_student
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.prompts import VERDICT_MARK
from tests.conftest import killed_when_lines_are_there, mmedge, tiny_recipe, write_recipe
from tests.distill.given import small_student

JUDGED = {"answer_verdict": {"share": 1.0, "answers": 2}}
METHOD = {"self_evaluation": False, "cots_per_visit": 1, "keep": "judged_correct", "objectives": JUDGED}


def test_every_question_is_in_one_fold_and_folds_are_even() -> None:
    ids = [f"q{number}" for number in range(11)]
    found = folds_of(ids, 3, 0)
    assert sorted(Counter(found).values()) == [3, 4, 4]
    again = dict(zip(ids[::-1], folds_of(ids[::-1], 3, 0), strict=True))
    assert [again[one] for one in ids] == found != folds_of(ids, 3, 1)


def test_a_fold_student_learns_for_its_share_of_the_steps() -> None:
    training = shortened(validate(tiny_recipe(method=METHOD), "r").training, 1 / 2)
    assert (training.stage1.max_steps, training.stage2.max_steps, training.keep) == (3, 6, "last")


def test_own_chains_of_thought_can_be_those_of_students_that_had_not_seen_the_questions(tmp_path: Path) -> None:
    method = {"cots_per_visit": 1, "rehearsal": 0.25, "own_cots": 2, "own_folds": 2}
    values = tiny_recipe(method=method)
    stage3 = {"max_steps": 4, "batch_size": 8, "evaluate_every": 4}
    values["training"] = {**values["training"], "stage3": stage3}  # type: ignore[dict-item]
    recipe, run = write_recipe(tmp_path / "r.yaml", values), tmp_path / "run"
    done = mmedge("distill", recipe, "--out", run)
    assert done.code == 0, done.err
    assert "fold 2 of 2: a student of 66 questions writes for the other 66" in done.err
    for fold in ("fold1", "fold2"):
        columns = json.loads((run / "stage3" / fold / "own.json").read_text())["value"]
        assert [len(column) for column in columns] == [66, 66]
        assert not list((run / "stage3" / fold).glob("stage*/best"))
    assert not (run / "stage3" / "own.json").exists()
    with pytest.raises(MmedgeError, match="one fold leaves nothing"):
        validate({**values, "method": {**method, "own_folds": 1}}, "r")


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def encoder(request: pytest.FixtureRequest, tiny_llama: Path) -> PromptEncoder:
    section = StudentSection(source=str(tiny_llama))
    causal = request.param == "decoder-only"
    student = load_student(section, resolve_source(section), 128, [], 0) if causal else small_student("Ann has 6 boxes of plums")
    return replace(student.encoder, prompts=replace(student.encoder.prompts, answer_verdict=VERDICT_MARK))


def test_answers_are_graded_by_the_trusted_answer_and_judged_where_they_are_asked(encoder: PromptEncoder) -> None:
    cots = (
        EvaluatedCot(0, ChainOfThought("Six boxes.", "6 * 8"), (SelfEvaluation("so", Verdict.CORRECT),)),
        EvaluatedCot(1, ChainOfThought("Together.", "6 + 8"), (SelfEvaluation("so", Verdict.WRONG),)),
    )
    known = AnnotatedExample(Example("q", "Ann has 6 boxes of 8 plums. How many?", "14"), cots)  # a label that is not used
    unknown = AnnotatedExample(Example("r", "What?", "1"), cots[1:])
    method = MethodSection.model_validate(METHOD)
    unseen = [("8 * 6", "6 + 8", "6 + 8"), ("1",)]
    source = LessonSource([known, unknown], method, ExpressionForm(), encoder, unseen=unseen)
    objective = OBJECTIVES["answer_verdict"](method.objectives["answer_verdict"], source)
    (lesson,) = objective.lessons(0)  # nothing is known of the other question
    judged = [target for target in lesson.targets if target.segments[-1].verdict]
    found = {target.segments[0].text: (target.segments[-1].text, target.segments[-1].weight) for target in judged}
    assert {answer: verdict for answer, (verdict, _) in found.items()} == {"8 * 6": "correct", "6 + 8": "wrong"}
    assert [found[answer][1] for answer in ("8 * 6", "6 + 8")] == pytest.approx([1 / 3, 2 / 3])
    encoded = encode_lesson(lesson, encoder, 64)
    for target, one in zip(lesson.targets, encoded.targets, strict=True):
        if target in judged:
            asked = encoder.prompt("predict", encoder.prompts.answer_context(known.example.question, target.segments[0].text))
            ids = [token for segment in one.segments for token in segment.ids]
            assert [*asked.begun, *encoder.target(target.segments[-1].text, 64)] == [*one.begun, *ids]
            assert {segment.part for segment in one.segments if segment.weight} == {"verdict"}
    every = method.model_copy(update={"keep": "all"})
    nobody = replace(source, method=every, examples=[unknown], unseen=[("1",)])
    with pytest.raises(MmedgeError, match="trusted answer"):
        OBJECTIVES["answer_verdict"](method.objectives["answer_verdict"], nobody)


def test_killed_while_a_fold_trains_it_ends_with_the_same_student(tmp_path: Path) -> None:
    recipe, whole, cut = write_recipe(tmp_path / "r.yaml", tiny_recipe(method=METHOD)), tmp_path / "whole", tmp_path / "cut"
    settings = ["--set", "training.checkpoint_minutes=0"]
    done = mmedge("distill", recipe, "--out", whole, *settings)
    assert done.code == 0, done.err
    assert "fold 2 of 2: a student of 66 questions writes for the other 66" in done.err
    assert "answers to unseen questions: " in done.err
    stage = whole / "stage2"
    first, second = (json.loads((stage / f"fold{n}" / "answers.json").read_text())["value"] for n in (1, 2))
    assert len(first) == len(second) == 66 and all(len(answers) == 2 for answers in first + second)
    assert not (stage / "fold1" / "stage2" / "best").exists()
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert any("answer_verdict_verdict_loss" in line for line in lines)
    arguments = ["distill", recipe, "--out", cut, "-q", *settings]
    killed_when_lines_are_there(arguments, cut / "stage2" / "fold2" / "stage2" / "metrics.jsonl", 1)
    answers = (cut / "stage2" / "fold1" / "answers.json").stat().st_mtime_ns
    again = mmedge(*arguments)
    assert again.code == 0, again.err
    assert (cut / "stage2" / "fold1" / "answers.json").stat().st_mtime_ns == answers
    assert (cut / "student" / "model.safetensors").read_bytes() == (whole / "student" / "model.safetensors").read_bytes()
    after = json.loads((whole / "metrics.json").read_text())["after"]
    assert all(set(areas) == {"answer", "answer_verdict"} for areas in after["signals"].values())
    exported = mmedge("export", whole, "--fp32", "--trim-vocab", "-q")
    assert exported.code == 0, exported.err
    bundle, student = Student.load(whole / "bundle-fp32"), open_student(whole / "student")
    examples = [Example(str(number), f"Ann has {number} boxes with 8 plums in each. How many plums?") for number in (2, 6)]
    found = bundle.examined(examples)
    expected = answer_verdicts(student, examples, [text for text, _ in found])
    assert [evidence.answer_verdict for _, evidence in found] == pytest.approx(expected, abs=1e-3)
    cost = prices(bundle, examples, constrained=False)
    assert cost["answer"] == 1.0 < cost["answer_verdict"] < 2 and cost.keys() == {"answer", "answer_verdict"}
    assert all(evidence.evaluation is None for _, evidence in found)  # which it did not learn to give
    # with a map for it, answers have this confidence unasked
    maps = {"answer_verdict": LinearMap("logistic", (0.5, 0.5)), "answer": LinearMap("platt", (1.0,))}
    bundle.confidence = Confidence(maps, "answer", {}, default="answer_verdict")  # type: ignore[arg-type]
    given = bundle.answer_all(examples)
    assert [answer.signal for answer in given] == ["answer_verdict"] * 2
    assert [answer.confidence for answer in given] == bundle.confidence.of([shown for _, shown in found], "answer_verdict")
    with pytest.raises(MmedgeError, match="did not learn to judge"):  # verdicts on answers are not verdicts on chains of thought
        bundle.answer(examples[0], evaluate=True)
