"""Lessons: sharing a context changes what is computed, not what is learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.lessons import (
    TASKS,
    Encoded,
    Lesson,
    LessonPass,
    Target,
    branch_mask,
    encode_lesson,
    evaluation_lessons,
    micro_batches,
    padded_tokens,
    reasoning_lessons,
)
from mmedge.distill.material import Material
from mmedge.distill.training import Course, _Lessons
from mmedge.recipe import MethodSection, ScratchSection, StudentSection
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.scratch import build_scratch
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.encoding import Family
from mmedge.tasks.prompts import Context
from tests.conftest import TINY_SCRATCH

LESSONS = (
    Lesson(
        Context("Luke scored 84 points after 2 rounds.\n"),
        (
            Target("predict", "84 / 2", 0.75),
            Target("predict", "84 * 2", 0.25),
            Target("explain", "He scored 84 in 2 rounds.", 1.0),
        ),
    ),
    Lesson(
        Context("A question with other numbers, 5 and 6 and 7?\n"),
        (Target("predict", "5 + 6", 1.0), Target("explain", "We add.", 1.0)),
    ),
)


@pytest.fixture(scope="module")
def students(tiny_llama: Path) -> dict[str, TorchStudent]:
    section = StudentSection(source=str(tiny_llama))
    causal = load_student(section, resolve_source(section), 128, [], 0)
    scratch = build_scratch(ScratchSection(**TINY_SCRATCH), ["predict: explain: He scored 84 points in 2 rounds."], 128, 0)
    return {"decoder-only": causal, "encoder-decoder": scratch}


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_shared_contexts_give_the_losses_of_separate_sequences(students: dict[str, TorchStudent], family: str, packs: bool) -> None:
    student = students[family]
    student.model.eval()
    encoded = [encode_lesson(lesson, student.encoder, 64) for lesson in LESSONS]
    with torch.no_grad():
        lesson_pass = LessonPass(student.model, student.encoder, packs=packs)
        assert lesson_pass.packs == packs
        found = lesson_pass.token_losses(encoded)
        expected = []
        for lesson in encoded:
            for target in lesson.targets:
                context, read = torch.tensor([lesson.context]), torch.tensor([target.begun + target.ids])
                if family == "decoder-only":
                    logits = student.model(input_ids=torch.cat([context, read], 1)).logits
                else:
                    logits = student.model(input_ids=context, decoder_input_ids=read).logits
                chances = logits[0, -len(target.ids) - 1 : -1].log_softmax(-1)
                losses = -chances[range(len(target.ids)), list(target.ids)]
                expected += [(float(loss), target.weight, target.kind == "explain") for loss in losses]
    got = list(zip(found.losses.tolist(), found.weights.tolist(), found.explains.tolist(), strict=True))
    for group in {(weight, explain) for _, weight, explain in expected}:
        left, right = (sorted(loss for loss, *rest in losses if tuple(rest) == group) for losses in (got, expected))
        assert left == pytest.approx(right, abs=1e-4)
    assert len(got) == len(expected)


def test_branches_do_not_see_each_other() -> None:
    mask = branch_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.float32)[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_every_chain_of_thought_becomes_a_target_and_pseudo_labels_count_by_share(students: dict[str, TorchStudent]) -> None:
    cots = [EvaluatedCot(i, ChainOfThought(f"way {i}", label), ()) for i, label in enumerate(("1 + 1", "2", "1 + 1"))]
    example = AnnotatedExample(Example("a", "What is 1 + 1?", "2"), tuple(cots))
    encoder = students["decoder-only"].encoder
    rationales = set()
    for epoch in range(3):
        lesson = reasoning_lessons([example], encoder, MethodSection(cots_per_visit=1), epoch)[0]
        rationales |= {target.text for target in lesson.targets if target.kind == "explain"}
        answers = {target.text: target.weight for target in lesson.targets if target.kind == "predict"}
        assert answers == {"1 + 1": pytest.approx(2 / 3), "2": pytest.approx(1 / 3)}
    assert rationales == {"way 0", "way 1", "way 2"}
    whole = reasoning_lessons([example], encoder, MethodSection(labels="human"), 0)[0]
    assert [(target.kind, target.text) for target in whole.targets] == [
        ("predict", "2"),
        ("explain", "way 0"),
        ("explain", "way 1"),
        ("explain", "way 2"),
    ]


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_micro_batches_hold_everything_and_respect_the_limit(family: Family) -> None:
    lessons = [Encoded(tuple(range(length)), ()) for length in (5, 90, 12, 40, 41, 3)]
    groups = micro_batches(lessons, family, 100, 10)
    assert sorted(len(lesson.context) for group in groups for lesson in group) == [3, 5, 12, 40, 41, 90]
    assert all(len(group) == 1 or padded_tokens(group, family) <= 100 for group in groups)


def test_micro_batches_weigh_padding_against_passes() -> None:
    lessons = [Encoded(tuple(range(length)), ()) for length in (10, 100, 11, 99)]
    lengths = [[lesson.tokens for lesson in group] for group in micro_batches(lessons, "decoder-only", 1000, 50)]
    assert lengths == [[10, 11], [99, 100]]
    assert len(micro_batches(lessons, "decoder-only", 1000, 500)) == 1


def test_balanced_verdicts_weigh_the_same_in_total(students: dict[str, TorchStudent]) -> None:
    def judged(number: int, verdict: Verdict) -> AnnotatedExample:
        cot = EvaluatedCot(0, ChainOfThought("way", "2"), (SelfEvaluation("Because.", verdict),))
        return AnnotatedExample(Example(str(number), "What is 1 + 1?", "2"), (cot,))

    examples = [judged(i, Verdict.WRONG if i < 3 else Verdict.CORRECT) for i in range(12)]
    encoder = students["decoder-only"].encoder
    for balanced, expected in ((False, (9, 3)), (True, (6, 6))):
        targets = [lesson.targets[0] for lesson in evaluation_lessons(examples, encoder, balance_verdicts=balanced)]
        sums = [sum(target.weight for target in targets if target.text == verdict) for verdict in ("correct", "wrong")]
        assert sums == pytest.approx(expected)


def test_contrasted_lessons_come_from_questions_that_were_judged_differently(students: dict[str, TorchStudent]) -> None:
    def annotated(name: str, *verdicts: Verdict) -> AnnotatedExample:
        cots = [
            EvaluatedCot(sample, ChainOfThought(f"way {sample}", "2"), (SelfEvaluation("Because.", verdict),))
            for sample, verdict in enumerate(verdicts)
        ]
        return AnnotatedExample(Example(name, f"What is {name}?", "2"), tuple(cots))

    right, wrong = Verdict.CORRECT, Verdict.WRONG
    examples = [annotated("1", right, right), annotated("2", right, wrong), annotated("3", wrong), annotated("4", right)]
    lessons = evaluation_lessons(examples, students["decoder-only"].encoder, contrast_verdicts=True)
    assert [lesson.targets[0].text for lesson in lessons] == ["correct", "wrong"]
    assert all("What is 2?" in lesson.context.read for lesson in lessons)


def test_an_encoder_decoder_reads_the_question_alone_and_judges_what_its_decoder_has_written(
    students: dict[str, TorchStudent],
) -> None:
    encoder = students["encoder-decoder"].encoder
    cot = ChainOfThought("He scored 84 points", "84 / 2")
    context = encoder.prompts.evaluation_context("Luke scored 84 points?", cot)
    reasoning = encoder.prompts.reasoning_context("Luke scored 84 points?")
    for kind in TASKS:
        assert encoder.prompt(kind, context).context == encoder.prompt(kind, reasoning).context
        assert "answer: 84 / 2" in encoder.text(encoder.prompt(kind, context).begun)
    causal = students["decoder-only"].encoder
    assert "answer: 84 / 2" in causal.text(causal.prompt("predict", causal.prompts.evaluation_context("Luke?", cot)).context)


def test_every_step_has_a_whole_batch_and_every_lesson_its_turn(students: dict[str, TorchStudent]) -> None:
    lessons = [Lesson(Context(f"Question {number}?\n"), (Target("predict", str(number), 1.0),)) for number in range(10)]
    course = Course(lambda _: lessons, 4, 0.5, 1.0)
    for batch, steps in ((4, 5), (32, 5)):
        source = _Lessons(replace(course, batch=batch), students["decoder-only"], 16, 0, "stage2/0")
        seen = [one.context for step in range(steps) for one in source.batch(step)]
        assert len(seen) == batch * steps
        assert set(Counter(seen).values()) == {batch * steps // 10}
        assert [one.context for one in source.batch(2)] == seen[2 * batch : 3 * batch]  # in whatever order steps are asked for


def test_the_first_chains_of_thought_are_those_that_there_are() -> None:
    cots = tuple(EvaluatedCot(sample, ChainOfThought(f"way {sample}", "2"), ()) for sample in (3, 1, 2))
    example = AnnotatedExample(Example("a", "What is 1 + 1?", "2"), cots)
    material = Material(None, None, [example], [], [], None, "")  # type: ignore[arg-type]
    assert [evaluated.sample for evaluated in material.limited(1).train[0].cots] == [1]
    assert [evaluated.sample for evaluated in material.limited(2).train[0].cots] == [1, 2]
