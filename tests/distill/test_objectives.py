"""What every objective of mmedge promises: passes with and without padding and lessons shared out give the same step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.objectives import OBJECTIVES, LessonSource
from mmedge.distill.streams import EncodedStream, LessonStream
from mmedge.errors import MmedgeError
from mmedge.recipe import LoraSection, MethodSection, StudentSection
from mmedge.students.adapters import add_adapters
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.passes import LossPass, TokenLosses
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.forms.expression import ExpressionForm
from tests.distill.given import small_student

NAMES = list(OBJECTIVES)


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def student(request: pytest.FixtureRequest, tiny_llama: Path) -> TorchStudent:
    section = StudentSection(source=str(tiny_llama))
    if request.param == "encoder-decoder":
        return small_student("Ann has 6 boxes of 8 plums and 3 of 4")
    found = load_student(section, resolve_source(section), 128, [], 0)
    add_adapters(found, LoraSection(rank=4, alpha=8), 0)  # adapters are part of the model: no objective knows of them
    return found


def _questions() -> list[AnnotatedExample]:
    found = []
    for number in range(4):
        right, wrong = f"{number} * 8", f"{number} + 8"
        cots = (
            EvaluatedCot(0, ChainOfThought("Boxes of eight.", right), (SelfEvaluation("Yes.", Verdict.CORRECT),)),
            EvaluatedCot(1, ChainOfThought("Together.", wrong), (SelfEvaluation("It must multiply.", Verdict.WRONG),)),
        )
        found.append(AnnotatedExample(Example(str(number), f"Ann has {number} boxes of 8 plums. How many?", right), cots))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_same_however_its_lessons_are_laid_out_and_shared(name: str, student: TorchStudent) -> None:
    entry = OBJECTIVES[name]
    stage = "stage2" if "stage2" in entry.stages else entry.stages[0]
    added = {name: {"share": 0.5, "stage": stage}}
    method = MethodSection.model_validate({"balance_verdicts": True, "keep": "judged_correct", "objectives": added})
    encoder = replace(student.encoder, prompts=replace(student.encoder.prompts, **entry.prompts))
    unseen = [(f"{number} * 8", f"{number} + 8") for number in range(4)]
    source = LessonSource(_questions(), method, ExpressionForm(), encoder, unseen=unseen)
    objective = entry(method.objectives[name], source)
    stream = EncodedStream(LessonStream(name, objective, 8, 1.0), encoder, 64, 0, "stage2/0")
    if entry.reference:
        stream.refer([-1.0] * sum(len(lesson.targets) for lesson in stream.distinct(1)))
    lessons = [lesson for group in stream.batch(0) for lesson in group]
    totals = objective.totals(lessons)
    assert all(totals[part] > 0 for part in objective.parts)
    factors = stream.stream.factors(totals)
    assert sum(factors[part] * totals[part] for part in factors) == pytest.approx(1.0)
    student.model.eval()

    def loss(packs: bool, parts: int) -> dict[str, float]:
        found = dict.fromkeys((*objective.parts, *objective.metrics), 0.0)
        size = len(lessons) // parts
        for start in range(0, len(lessons), size):
            some = lessons[start : start + size]
            with torch.no_grad():
                tokens: TokenLosses = LossPass(student.model, encoder, packs=packs).token_losses(some)
                for part, value in objective.sums(tokens).items():
                    found[part] += float(value)
        return found

    whole = loss(packs=False, parts=1)
    for packs, parts in ((True, 1), (False, 2), (True, 2)):
        assert loss(packs, parts) == pytest.approx(whole, rel=1e-3, abs=1e-4)


def test_answers_that_are_learned_are_not_made_unlikely(student: TorchStudent) -> None:
    method = MethodSection.model_validate({"objectives": {"unlikelihood": {"share": 1}}})
    source = LessonSource(_questions(), method, ExpressionForm(), student.encoder)
    with pytest.raises(MmedgeError, match="judged wrong that is not learned as well"):
        OBJECTIVES["unlikelihood"](method.objectives["unlikelihood"], source)
