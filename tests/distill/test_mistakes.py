"""Learning from answers that were judged wrong: what they share with right ones is not unlearned, and pairs are pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.objectives import OBJECTIVES, LessonSource, Objective
from mmedge.distill.streams import LessonStream, encode_lesson
from mmedge.recipe import MethodSection, StageSection, StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.passes import LossPass
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.forms.expression import ExpressionForm
from tests.conftest import mmedge, tiny_recipe, write_recipe
from tests.distill.given import small_student, trainer_of


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def student(request: pytest.FixtureRequest, tiny_llama: Path) -> TorchStudent:
    section = StudentSection(source=str(tiny_llama))
    if request.param == "decoder-only":
        return load_student(section, resolve_source(section), 128, [], 0)
    return small_student("Ann has 6 boxes of 8 plums 6 * 8 6 + 8 right: wrong:")


def _annotated() -> AnnotatedExample:
    def cot(sample: int, rationale: str, answer: str, verdict: Verdict) -> EvaluatedCot:
        return EvaluatedCot(sample, ChainOfThought(rationale, answer), (SelfEvaluation("so", verdict),))

    cots = (
        cot(0, "Six boxes of eight.", "6 * 8", Verdict.CORRECT),
        cot(1, "Six and eight.", "6 + 8", Verdict.WRONG),
        cot(2, "Misjudged.", "8 * 6", Verdict.WRONG),
    )
    return AnnotatedExample(Example("q", "Ann has 6 boxes of 8 plums. How many?", "6 * 8"), cots)


def _objective(name: str, student: TorchStudent, **settings: object) -> Objective:
    added = {name: {"share": 1.0, "stage": "stage2"} | settings}
    method = MethodSection.model_validate({"self_evaluation": False, "keep": "judged_correct", "objectives": added})
    encoder = replace(student.encoder, prompts=replace(student.encoder.prompts, **OBJECTIVES[name].prompts))
    return OBJECTIVES[name](method.objectives[name], LessonSource([_annotated()], method, ExpressionForm(), encoder))


def test_only_the_token_where_an_answer_goes_wrong_becomes_unlikely(student: TorchStudent, tmp_path: Path) -> None:
    objective = _objective("unlikelihood", student, strength=0.5)
    (lesson,) = objective.lessons(0)
    encoded = encode_lesson(lesson, student.encoder, 64)
    wrong, right = student.encoder.target("6 + 8", 64), student.encoder.target("6 * 8", 64)
    first = next(place for place, (a, b) in enumerate(zip(wrong, right, strict=False)) if a != b)
    learned = [one.ids for target in encoded.targets for one in target.segments if one.part == "unlikelihood" and one.weight]
    assert learned == [(wrong[first],)]  # and "8 * 6" has the trusted value
    one = LessonStream("unlikelihood", objective, 4, 1.0)

    def losses() -> tuple[float, float]:
        with torch.no_grad():
            found = LossPass(student.model.eval(), student.encoder).token_losses([encoded])
            return float(found.losses[found.of_part("unlikelihood")].mean()), float(found.losses[found.of_part("predict")].mean())

    before = losses()
    trainer_of(student, [one], StageSection(max_steps=30, batch_size=4, learning_rate=5e-3), tmp_path).run()
    after = losses()
    assert after[0] - after[1] > before[0] - before[1] and after[1] < before[1]


def test_wrong_ones_are_learned_behind_a_word_of_their_own(student: TorchStudent) -> None:
    objective = _objective("control_words", student)
    encoder = objective.source.encoder
    said: dict[str, set[str]] = {"right:": set(), "wrong:": set()}
    weights = 0.0
    for epoch in range(2):
        (lesson,) = objective.lessons(epoch)
        weights += sum(segment.weight for target in lesson.targets if target.kind == "predict" for segment in target.segments)
        for target, one in zip(lesson.targets, encode_lesson(lesson, encoder, 64).targets, strict=True):
            word = "wrong:" if target.control == "wrong:" else "right:"
            assert encoder.text(one.begun).endswith(word) or student.family == "encoder-decoder"
            said[word].add(target.segments[0].text)
    assert "6 * 8" in said["right:"] and said["wrong:"] >= {"6 + 8"} and "6 + 8" not in said["right:"]
    assert weights == pytest.approx(2.0)
    context = encoder.prompts.reasoning_context("How many?")
    assert encoder.begun("predict", context) != student.encoder.begun("predict", context)
    assert encoder.prompts.to_json()["control"] == "right:"


def test_pairs_differ_in_their_value_and_the_better_one_comes_first(student: TorchStudent) -> None:
    answers = _objective("preference", student).lessons(0)
    assert [lesson.targets[0].segments[0].text for lesson in answers] == ["6 * 8", "6 + 8"]
    rationales = _objective("preference", student, prefer="rationales", length_normalized=True).lessons(0)
    assert [lesson.targets[0].kind for lesson in rationales] == ["explain", "explain"]
    assert all(0 < lesson.targets[0].segments[0].weight < 0.5 for lesson in rationales)


@pytest.mark.parametrize(
    "objectives",
    [
        {"unlikelihood": {"share": 1}},
        {"control_words": {"share": 1}},
        {"preference": {"share": 0.3, "weight": 0.1, "stage": "stage2"}},
    ],
    ids=lambda one: next(iter(one)),
)
def test_they_train(objectives: dict[str, object], tmp_path: Path) -> None:
    method = {"self_evaluation": False, "keep": "judged_correct", "cots_per_visit": 1, "objectives": objectives}
    done = mmedge("distill", write_recipe(tmp_path / "r.yaml", tiny_recipe(method=method)), "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err
    (name,) = objectives
    lines = [json.loads(line) for line in (tmp_path / "run" / "stage2" / "metrics.jsonl").read_text().splitlines()]
    part = {"unlikelihood": "unlikelihood", "control_words": "predict", "preference": "preference"}[name]
    assert any(f"{name}_{part}_loss" in line for line in lines)
