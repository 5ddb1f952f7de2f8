"""How good a student is: its greedy answers, and its verdicts on chains of thought, computed in torch.

Answers are judged by the task's answer form, by value where they are expressions. A verdict is one look at the logits of the
first token that tells the verdicts apart; no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmedge.annotations.reading import AnnotatedExample
from mmedge.engines.generation import Decoding
from mmedge.engines.speaker import Evidence, Wanted
from mmedge.engines.torch_decoding import batch_rows, torch_speaker
from mmedge.progress import Progress
from mmedge.statistics import Proportion, auroc, balanced_accuracy, proportion
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, Task, Verdict
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.prompts import VERDICTS, Kind


@dataclass(frozen=True)
class JudgedCot:
    """A chain of thought that is known to be right or wrong.

    Attributes:
        example: The question.
        cot: The chain of thought.
        correct: Whether its answer agrees with the right one; where none is known, whether the teacher judged it so.
        teacher_verdict: The teacher's own verdict, or None.
    """

    example: Example
    cot: ChainOfThought
    correct: bool
    teacher_verdict: Verdict | None


@dataclass(frozen=True)
class VerdictScore:
    """How well verdicts agree with the truth.

    Attributes:
        accuracy: The share of chains of thought whose verdict is right; `uncertain` counts as "not correct".
        balanced: The mean of both classes' recalls, 0.5 for a student that always says the same; None with one class only.
        auroc: How often P(correct) is higher for a right chain of thought than for a wrong one; None where it is not known.
        always_correct: What always saying `correct` would score.
        agrees_with_teacher: The share on which student and teacher give the same verdict.
    """

    accuracy: Proportion
    balanced: float | None
    always_correct: Proportion
    agrees_with_teacher: Proportion
    auroc: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy.to_json(),
            "balanced_accuracy": self.balanced,
            "auroc": self.auroc,
            "always_correct": self.always_correct.to_json(),
            "agrees_with_teacher": self.agrees_with_teacher.to_json(),
        }


def judged_cots(examples: Sequence[AnnotatedExample], task: Task, *, human: bool = True) -> list[JudgedCot]:
    """Return the chains of thought that are known to be right or wrong, in the examples' order.

    Args:
        examples: The questions.
        task: Says which answers mean the same.
        human: Whether human labels say what is right; without them, the teacher's own verdicts do.
    """
    judged = []
    for annotated in examples:
        example = annotated.example
        for evaluated in annotated.cots:
            verdict = evaluated.evaluations[0].verdict if evaluated.evaluations else None
            if (human or annotated.decided) and example.label is not None:
                correct = task.form.agrees(evaluated.cot.pseudo_label, example.label, example.choices)
            elif verdict is not None:
                correct = verdict is Verdict.CORRECT
            else:
                continue
            judged.append(JudgedCot(example, evaluated.cot, correct, verdict))
    return judged


@dataclass(frozen=True)
class OwnCot:
    """What a student wrote to a question: an answer, and a rationale beside it that may come to another one.

    Attributes:
        answer: The answer.
        rationale: The rationale.
        conclusion: The answer that the rationale comes to; None where it states none.
    """

    answer: str
    rationale: str
    conclusion: str | None

    @property
    def cot(self) -> ChainOfThought:
        """The chain of thought: a verdict on it is about its conclusion, as a teacher's chain of thought ends in its answer."""
        return ChainOfThought(self.rationale, self.conclusion or self.answer)

    def judgeable(self, form: AnswerForm) -> bool:
        """Whether it is known what the rationale comes to; rationales of other forms than calculations rarely state it."""
        return self.conclusion is not None or not form.calculates

    def agrees(self, form: AnswerForm, example: Example) -> bool:
        """Whether answer and rationale come to the same."""
        return self.conclusion is not None and form.agrees(self.answer, self.conclusion, example.choices)


def own_cots(
    student: TorchStudent,
    form: AnswerForm,
    examples: Sequence[Example],
    limits: tuple[int, int],
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[OwnCot]:
    """Let a student write a chain of thought to each question, as the runtime does: with right results where it calculates.

    Args:
        student: The student.
        form: What answers look like.
        examples: The questions.
        limits: The most tokens of an answer and of a rationale.
        temperature: Sampling temperature; 0 writes greedily.
        seed: Sampling seed; with the question's place it decides what is written.
        progress: Where it is shown.
    """
    speaker = torch_speaker(student, form, *limits)
    contexts = [speaker.reasoning_context(example) for example in examples]
    texts: dict[Kind, list[str]] = {}
    parts: tuple[tuple[Kind, int], ...] = (("predict", limits[0]), ("explain", limits[1]))
    for part, (kind, limit) in enumerate(parts):
        texts[kind] = [""] * len(contexts)
        with (progress or Progress(quiet=True)).task(f"own chains of thought: {kind}", len(contexts)) as step:
            for rows, prompts in speaker.batches(kind, contexts, batch_rows(student)):
                allowed = tuple(speaker.constrainer.rationale() if kind == "explain" else None for _ in rows)
                seeds = tuple((seed * 2 + part) * 10_000_019 + row for row in rows) if temperature else ()
                how = Decoding(temperature, seeds=seeds, constraints=allowed if any(allowed) else ())
                for row, text in zip(rows, speaker.write_prompts(prompts, limit, how), strict=True):
                    texts[kind][row] = text
                step.advance(len(rows))
    found = []
    for answer, text, example in zip(texts["predict"], texts["explain"], examples, strict=True):
        rationale, stated = student.encoder.prompts.split(text)
        found.append(OwnCot(answer, rationale, stated or form.conclusion(rationale, example)))
    return found


def own_answers(
    student: TorchStudent,
    form: AnswerForm,
    examples: Sequence[Example],
    limit: int,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "answers to unseen questions",
) -> list[str]:
    """Let a student answer each question.

    Args:
        student: The student.
        form: What answers look like.
        examples: The questions.
        limit: The most tokens of an answer.
        temperature: Sampling temperature; 0 answers greedily.
        seed: Sampling seed; with the question's place it decides what is written.
        progress: Where it is shown.
        name: What it is called there.
    """
    speaker = torch_speaker(student, form, limit)
    contexts = [speaker.reasoning_context(example) for example in examples]
    texts = [""] * len(contexts)
    with (progress or Progress(quiet=True)).task(name, len(contexts)) as step:
        for rows, prompts in speaker.batches("predict", contexts, batch_rows(student)):
            seeds = tuple(seed * 10_000_019 + row for row in rows) if temperature else ()
            for row, text in zip(rows, speaker.write_prompts(prompts, limit, Decoding(temperature, seeds=seeds)), strict=True):
                texts[row] = text
            step.advance(len(rows))
    return texts


def answer_verdicts(student: TorchStudent, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Return the log-odds of `correct` that a student gives bare answers."""
    speaker = torch_speaker(student)
    prompts = student.encoder.prompts
    contexts = [prompts.answer_context(one, answer) for one, answer in zip(examples, answers, strict=True)]
    found = np.zeros(len(contexts))
    for rows, asked in speaker.batches("predict", contexts, batch_rows(student)):
        chances = speaker.verdict_probabilities(asked).clip(1e-12)
        found[rows] = np.log(chances[:, 0] / chances[:, 1:].sum(1))
    return [float(value) for value in found]


@dataclass(frozen=True)
class Signals:
    """What a student shows of how likely its answers to some questions are right, each the higher the likelier.

    Attributes:
        answer: Log-probability of each answer.
        right: Whether each is right, as 0 or 1.
        verdict: Log-odds of its verdict on the chain of thought that it writes to each of the first questions; may be empty.
        agreement: Of the same, 1 where the rationale comes to the answer, -1 where it comes to another, 0 where to none.
        answer_verdict: Log-odds of its verdict on each bare answer; empty where it has not learned to give one.
        concluded: Of the same as `verdict`, whether what the rationale comes to is right, as 0 or 1: what the verdict is about.
    """

    answer: list[float]
    right: list[int]
    verdict: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    concluded: list[int] = field(default_factory=list)
    answer_verdict: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Answered:
    """Greedy answers to some questions.

    Attributes:
        texts: The answers.
        right: Whether each is right.
        log_probabilities: Of each, its end included, in nats.
    """

    texts: list[str]
    right: list[bool]
    log_probabilities: list[float]


def answered(
    student: TorchStudent,
    task: Task,
    examples: Sequence[Example],
    references: Sequence[str],
    max_new_tokens: int,
    progress: Progress | None = None,
    name: str = "answers",
) -> Answered:
    """Let a student answer, each against one reference."""
    speaker = torch_speaker(student, task.form, max_new_tokens)
    contexts = [speaker.reasoning_context(example) for example in examples]
    texts, chances = [""] * len(contexts), [0.0] * len(contexts)
    with (progress or Progress(quiet=True)).task(name, total=len(contexts)) as step:
        for rows, prompts in speaker.batches("predict", contexts, batch_rows(student)):
            written = speaker.engine.generate(prompts, max_new_tokens, Decoding(scored=True))
            for row, tokens, scores in zip(rows, written.tokens, written.log_probabilities, strict=True):
                texts[row], chances[row] = speaker.encoder.text(tokens), sum(scores)
            step.advance(len(rows))
    right = [
        task.form.agrees(answer, reference, example.choices)
        for answer, example, reference in zip(texts, examples, references, strict=True)
    ]
    return Answered(texts, right, chances)


@dataclass(frozen=True)
class Verdicts:
    """A student's verdicts on some chains of thought.

    Attributes:
        confidences: P(correct) of each.
        correct: Whether each is right.
        said_correct: Whether the student says so.
        score: How well that agrees.
    """

    confidences: list[float]
    correct: list[bool]
    said_correct: list[bool]
    score: VerdictScore


def own_evidence(
    student: TorchStudent, task: Task, examples: Sequence[Example], limits: tuple[int, int]
) -> list[tuple[Evidence, bool]]:
    """Let a student answer, write a rationale and judge it, as on the device.

    Returns:
        What that says of each answer, and whether what the rationale comes to is right by the human label.
    """
    speaker = torch_speaker(student, task.form, *limits)
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].question))
    found: dict[int, tuple[Evidence, bool]] = {}
    for first in range(0, len(order), batch_rows(student)):
        rows = order[first : first + batch_rows(student)]
        asked = [examples[row] for row in rows]
        thoughts = speaker.thoughts(asked, Wanted(judgement=True))
        for row, example, thought in zip(rows, asked, thoughts, strict=True):
            right = task.form.agrees(thought.conclusion or "", example.label or "", example.choices)
            found[row] = speaker.evidence(example, thought), right
    return [found[place] for place in range(len(examples))]


def verdicts_of(student: TorchStudent, cots: Sequence[JudgedCot], max_evaluation_tokens: int) -> Verdicts | None:
    """Let a student judge chains of thought; None where there are none.

    Args:
        student: The student.
        cots: The chains of thought.
        max_evaluation_tokens: The longest evaluation, where the student writes it before the verdict.
    """
    if not cots:
        return None
    speaker = torch_speaker(student, max_rationale_tokens=max_evaluation_tokens)
    questions = [judged.example for judged in cots]
    contexts = speaker.judging_contexts(questions, [judged.cot for judged in cots], batch_rows(student))
    probabilities = np.zeros((len(cots), len(VERDICTS)))
    for rows, prompts in speaker.batches("predict", contexts, batch_rows(student)):
        probabilities[rows] = speaker.verdict_probabilities(prompts)
    said = [VERDICTS[index] for index in probabilities.argmax(-1).tolist()]
    confidences = probabilities[:, VERDICTS.index(Verdict.CORRECT.value)].tolist()
    score = replace(score_verdicts(said, cots), auroc=auroc(confidences, [judged.correct for judged in cots]))
    return Verdicts(confidences, [judged.correct for judged in cots], [v == Verdict.CORRECT.value for v in said], score)


def score_verdicts(verdicts: Sequence[str], cots: Sequence[JudgedCot]) -> VerdictScore:
    """Compare verdicts with the truth and with the teacher."""
    says_correct = [verdict == Verdict.CORRECT.value for verdict in verdicts]
    actual = [judged.correct for judged in cots]
    teacher = [
        verdict == judged.teacher_verdict.value for verdict, judged in zip(verdicts, cots, strict=True) if judged.teacher_verdict
    ]
    return VerdictScore(
        accuracy=proportion([said == true for said, true in zip(says_correct, actual, strict=True)]),
        balanced=balanced_accuracy(says_correct, actual),
        always_correct=proportion(actual),
        agrees_with_teacher=proportion(teacher),
    )
