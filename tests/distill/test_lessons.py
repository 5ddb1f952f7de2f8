"""Lessons: sharing a context changes what is computed, not what is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.batches import micro_batches
from mmedge.distill.lessons import Lesson, Segment, Target
from mmedge.distill.material import Material
from mmedge.distill.objectives import LessonSource
from mmedge.distill.objectives.judging import Judging
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.distill.streams import EncodedStream, LessonStream, encode_lesson
from mmedge.errors import MmedgeError
from mmedge.recipe import MethodSection, ScratchSection, StudentSection
from mmedge.students.encoded import KINDS, EncodedLesson, padded_tokens
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.passes import LossPass, branch_mask
from mmedge.students.scratch import build_scratch
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.encoding import Family, PromptEncoder
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.prompts import Context
from tests.conftest import TINY_SCRATCH
from tests.distill.given import Given

LESSONS = (
    Lesson(
        Context("Luke scored 84 points after 2 rounds.\n"),
        (
            Target.of("predict", "84 / 2", 0.75),
            Target.of("predict", "84 * 2", 0.25),
            Target.of("explain", "He scored 84 in 2 rounds."),
        ),
    ),
    Lesson(
        Context("A question with other numbers, 5 and 6 and 7?\n"),
        (Target.of("predict", "5 + 6"), Target.of("explain", "We add.")),
    ),
)


def _source(examples: list[AnnotatedExample], encoder: PromptEncoder, method: MethodSection) -> LessonSource:
    return LessonSource(examples, method, ExpressionForm(), encoder)


def _reasoning(examples: list[AnnotatedExample], encoder: PromptEncoder, method: MethodSection, epoch: int) -> Sequence[Lesson]:
    return Reasoning(None, _source(examples, encoder, method)).lessons(epoch)


def _segments(lesson: Lesson) -> list[tuple[str, Segment]]:
    return [(target.kind, segment) for target in lesson.targets for segment in target.segments]


def _encoded(student: TorchStudent) -> Callable[[Lesson], EncodedLesson]:
    return lambda lesson: encode_lesson(lesson, student.encoder, 64)


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
        lesson_pass = LossPass(student.model, student.encoder, packs=packs)
        assert lesson_pass.packs == packs
        found = lesson_pass.token_losses(encoded)
        expected = []
        for lesson in encoded:
            for target in lesson.targets:
                (segment,) = target.segments
                context, read = torch.tensor([lesson.context]), torch.tensor([target.begun + segment.ids])
                if family == "decoder-only":
                    logits = student.model(input_ids=torch.cat([context, read], 1)).logits
                else:
                    logits = student.model(input_ids=context, decoder_input_ids=read).logits
                chances = logits[0, -len(segment.ids) - 1 : -1].log_softmax(-1)
                losses = -chances[range(len(segment.ids)), list(segment.ids)]
                expected += [(float(loss), segment.weight, target.kind == "explain") for loss in losses]
    columns = found.losses.tolist(), (found.weighted / found.losses).tolist(), found.of_part("explain").tolist()
    got = [(loss, round(weight, 4), explain) for loss, weight, explain in zip(*columns, strict=True)]
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
        lesson = _reasoning([example], encoder, MethodSection(cots_per_visit=1), epoch)[0]
        rationales |= {segment.text for kind, segment in _segments(lesson) if kind == "explain"}
        answers = {segment.text: segment.weight for kind, segment in _segments(lesson) if kind == "predict"}
        assert answers == {"1 + 1": pytest.approx(2 / 3), "2": pytest.approx(1 / 3)}
    assert rationales == {"way 0", "way 1", "way 2"}
    whole = _reasoning([example], encoder, MethodSection(labels="human"), 0)[0]
    assert [(kind, segment.text) for kind, segment in _segments(whole)] == [
        ("predict", "2"),
        ("explain", "way 0"),
        ("explain", "way 1"),
        ("explain", "way 2"),
    ]


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_micro_batches_hold_everything_and_respect_the_limit(family: Family) -> None:
    groups = [(EncodedLesson(tuple(range(length)), ()),) for length in (5, 90, 12, 40, 41, 3)]
    cut = micro_batches(groups, family, 100, 10)
    assert sorted(len(lesson.context) for one in cut for (lesson,) in one) == [3, 5, 12, 40, 41, 90]
    assert all(len(one) == 1 or padded_tokens([lesson for (lesson,) in one], family) <= 100 for one in cut)


def test_pairs_stay_together_in_micro_batches() -> None:
    pairs = [(EncodedLesson((1,) * length, ()), EncodedLesson((2,) * (60 - length), ())) for length in (5, 50, 12, 40)]
    cut = micro_batches(pairs, "decoder-only", 120, 10)
    assert sorted(map(id, [pair for one in cut for pair in one])) == sorted(map(id, pairs))
    assert len(cut) > 1


def test_micro_batches_weigh_padding_against_passes() -> None:
    groups = [(EncodedLesson(tuple(range(length)), ()),) for length in (10, 100, 11, 99)]
    lengths = [[lesson.tokens for (lesson,) in cut] for cut in micro_batches(groups, "decoder-only", 1000, 50)]
    assert lengths == [[10, 11], [99, 100]]
    assert len(micro_batches(groups, "decoder-only", 1000, 500)) == 1


def test_balanced_verdicts_weigh_the_same_in_total(students: dict[str, TorchStudent]) -> None:
    def judged(number: int, verdict: Verdict) -> AnnotatedExample:
        cot = EvaluatedCot(0, ChainOfThought("way", "2"), (SelfEvaluation("Because.", verdict),))
        return AnnotatedExample(Example(str(number), "What is 1 + 1?", "2"), (cot,))

    examples = [judged(i, Verdict.WRONG if i < 3 else Verdict.CORRECT) for i in range(12)]
    encoder = students["decoder-only"].encoder
    for balanced, expected in ((False, (9, 3)), (True, (6, 6))):
        lessons = Judging(None, _source(examples, encoder, MethodSection(balance_verdicts=balanced))).lessons(0)
        found = [lesson.targets[0].segments[0] for lesson in lessons]
        sums = [sum(segment.weight for segment in found if segment.text == verdict) for verdict in ("correct", "wrong")]
        assert sums == pytest.approx(expected)


def test_a_batch_of_one_verdict_does_not_undo_the_balance(students: dict[str, TorchStudent]) -> None:
    def judged(number: int, verdict: Verdict) -> AnnotatedExample:
        cot = EvaluatedCot(0, ChainOfThought("way", "2"), (SelfEvaluation("", verdict),))
        return AnnotatedExample(Example(str(number), f"What is {number}?", "2"), (cot,))

    examples = [judged(i, Verdict.WRONG if i < 3 else Verdict.CORRECT) for i in range(12)]
    encoder = students["decoder-only"].encoder
    objective = Judging(None, _source(examples, encoder, MethodSection(balance_verdicts=True)))
    stream = LessonStream("self_evaluation", objective, 3, 1.0)
    given = {"correct": 0.0, "wrong": 0.0}
    for first in range(0, 12, 3):  # each batch has verdicts of one kind
        lessons = objective.lessons(0)[first : first + 3]
        encoded = [encode_lesson(lesson, encoder, 64) for lesson in lessons]
        factor = stream.factors(objective.totals(encoded))["predict"]
        for lesson, one in zip(lessons, encoded, strict=True):
            weights = sum(segment.weight * len(segment.ids) for segment in one.targets[0].segments)
            given[lesson.targets[0].segments[0].text] += factor * weights / 4
    assert given == {"correct": pytest.approx(0.5), "wrong": pytest.approx(0.5)}


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_the_end_of_a_verdict_does_not_take_half_of_its_loss(students: dict[str, TorchStudent], family: str) -> None:
    cot = EvaluatedCot(0, ChainOfThought("way", "2"), (SelfEvaluation("", Verdict.WRONG),))
    encoder = students[family].encoder
    objective = Judging(None, _source([AnnotatedExample(Example("a", "What?", "2"), (cot,))], encoder, MethodSection()))
    (target,) = encode_lesson(objective.lessons(0)[0], encoder, 64).targets
    ids = [token for segment in target.segments for token in segment.ids]
    assert ids == encoder.target("wrong", 64)
    weights = [segment.weight for segment in target.segments for _ in segment.ids]
    common, deciding = encoder.verdict_tokens()
    assert ids[len(common)] == deciding[1] and weights[len(common)] == 1.0
    assert weights[-1] <= 0.1 and sum(weights) - 1.0 <= 0.1 * (len(ids) - 1) + 1e-9


def test_contrasted_lessons_come_from_questions_that_were_judged_differently(students: dict[str, TorchStudent]) -> None:
    def annotated(name: str, *verdicts: Verdict) -> AnnotatedExample:
        cots = [
            EvaluatedCot(sample, ChainOfThought(f"way {sample}", "2"), (SelfEvaluation("Because.", verdict),))
            for sample, verdict in enumerate(verdicts)
        ]
        return AnnotatedExample(Example(name, f"What is {name}?", "2"), tuple(cots))

    right, wrong = Verdict.CORRECT, Verdict.WRONG
    examples = [annotated("1", right, right), annotated("2", right, wrong), annotated("3", wrong), annotated("4", right)]
    method = MethodSection(contrast_verdicts=True)
    lessons = Judging(None, _source(examples, students["decoder-only"].encoder, method)).lessons(0)
    assert [lesson.targets[0].segments[0].text for lesson in lessons] == ["correct", "wrong"]
    assert all("What is 2?" in lesson.context.read for lesson in lessons)


def test_an_encoder_decoder_reads_the_question_alone_and_judges_what_its_decoder_has_written(
    students: dict[str, TorchStudent],
) -> None:
    encoder = students["encoder-decoder"].encoder
    cot = ChainOfThought("He scored 84 points", "84 / 2")
    context = encoder.prompts.evaluation_context("Luke scored 84 points?", cot)
    reasoning = encoder.prompts.reasoning_context("Luke scored 84 points?")
    for kind in KINDS:
        assert encoder.prompt(kind, context).context == encoder.prompt(kind, reasoning).context
        assert "answer: 84 / 2" in encoder.text(encoder.prompt(kind, context).begun)
    causal = students["decoder-only"].encoder
    assert "answer: 84 / 2" in causal.text(causal.prompt("predict", causal.prompts.evaluation_context("Luke?", cot)).context)


def test_every_step_has_a_whole_batch_and_every_lesson_its_turn(students: dict[str, TorchStudent]) -> None:
    lessons = [Lesson(Context(f"Question {number}?\n"), (Target.of("predict", str(number)),)) for number in range(10)]
    encoder = students["decoder-only"].encoder
    for batch, steps in ((4, 5), (32, 5)):
        source = EncodedStream(LessonStream("given", Given(lessons), batch, 1.0), encoder, 16, 0, "stage2/0")
        seen = [one.context for step in range(steps) for (one,) in source.batch(step)]
        assert len(seen) == batch * steps
        assert set(Counter(seen).values()) == {batch * steps // 10}
        again = [one.context for (one,) in source.batch(2)]  # in whatever order steps are asked for
        assert again == seen[2 * batch : 3 * batch]


def test_lessons_of_a_group_come_together(students: dict[str, TorchStudent]) -> None:
    class Pairs(Given):
        group = 2

    lessons = [Lesson(Context(f"Question {number}?\n"), (Target.of("predict", str(number)),)) for number in range(10)]
    encoder = students["decoder-only"].encoder
    source = EncodedStream(LessonStream("pairs", Pairs(lessons), 6, 1.0), encoder, 16, 0, "stage2/0")
    contexts = [encoder.context(lesson.context) for lesson in lessons]
    pairs = [tuple(contexts.index(one.context) for one in group) for step in range(5) for group in source.batch(step)]
    assert len(pairs) == 15 and set(pairs) == {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)}
    with pytest.raises(MmedgeError, match="cannot be divided into groups of 2"):
        EncodedStream(LessonStream("pairs", Pairs(lessons[:9]), 6, 1.0), encoder, 16, 0, "stage2/0")


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_a_text_behind_another_in_one_branch_is_read_after_it(students: dict[str, TorchStudent], family: str, packs: bool) -> None:
    """A rationale that is read and not learned, then an answer and a verdict that count differently."""
    student = students[family]
    student.model.eval()
    segments = (Segment("He scored 84.", 0.0, "rationale"), Segment("84 / 2", 1.0, "answer"), Segment("wrong", 0.5, "verdict"))
    inline = encode_lesson(Lesson(LESSONS[0].context, (Target("explain", segments),)), student.encoder, 64)
    (target,) = inline.targets
    with torch.no_grad():
        found = LossPass(student.model, student.encoder, packs=packs).token_losses([*map(_encoded(student), LESSONS), inline])
        context, read = torch.tensor([inline.context]), torch.tensor([target.read])
        if family == "decoder-only":
            logits = student.model(input_ids=torch.cat([context, read], 1)).logits
        else:
            logits = student.model(input_ids=context, decoder_input_ids=read).logits
    ids = [token for segment in target.segments for token in segment.ids]
    chances = logits[0, -len(ids) :].log_softmax(-1)
    losses = [-float(chances[place, token]) for place, token in enumerate(ids)]
    start = len(target.segments[0].ids)
    own = found.of_lessons(2, 3)
    assert {one.part for one in own.learned} == {"answer", "verdict"}
    middle = start + len(target.segments[1].ids)
    answer, verdict = own.weighted[own.of_part("answer")], own.weighted[own.of_part("verdict")]
    assert answer.tolist() == pytest.approx(losses[start:middle], abs=1e-4)
    assert verdict.tolist() == pytest.approx([loss / 2 for loss in losses[middle:]], abs=1e-4)
    assert ids.count(student.encoder.special.eos) == 1 and ids[-1] == student.encoder.special.eos
    (total,) = own.log_probabilities.tolist()
    assert total == pytest.approx(-float(own.weighted.sum()), rel=1e-5)


def test_the_first_chains_of_thought_are_those_that_there_are() -> None:
    cots = tuple(EvaluatedCot(sample, ChainOfThought(f"way {sample}", "2"), ()) for sample in (3, 1, 2))
    example = AnnotatedExample(Example("a", "What is 1 + 1?", "2"), cots)
    material = Material(None, None, [example], [], [], None, "")  # type: ignore[arg-type]
    assert [evaluated.sample for evaluated in material.limited(1).train[0].cots] == [1]
    assert [evaluated.sample for evaluated in material.limited(2).train[0].cots] == [1, 2]
