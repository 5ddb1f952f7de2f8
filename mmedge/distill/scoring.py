"""How good a student is: its greedy answers, and its verdicts on chains of thought, computed in torch.

Answers are judged by the task's answer form, by value where they are expressions. A verdict is one look at the logits of the
first token that tells the verdicts apart; no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmedge.annotations.reading import AnnotatedExample
from mmedge.engines.generation import Decoding
from mmedge.engines.torch_decoding import batch_rows, torch_speaker
from mmedge.progress import Progress
from mmedge.statistics import Proportion, auroc, balanced_accuracy, proportion
from mmedge.students.student import TorchStudent
from mmedge.tasks import ChainOfThought, Example, Task, Verdict
from mmedge.tasks.encoding import Kind
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.prompts import VERDICTS, render_question


@dataclass(frozen=True)
class JudgedCot:
    """A chain of thought that is known to be right or wrong.

    Attributes:
        example: The question.
        cot: The chain of thought.
        correct: Whether its pseudo-label agrees with the human label; where there is none, whether the teacher judged it so.
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


def judged_cots(examples: Sequence[AnnotatedExample], task: Task) -> list[JudgedCot]:
    """Return the chains of thought that are known to be right or wrong, in the examples' order."""
    judged = []
    for annotated in examples:
        example = annotated.example
        for evaluated in annotated.cots:
            verdict = evaluated.evaluations[0].verdict if evaluated.evaluations else None
            if example.label is not None:
                correct = task.form.agrees(evaluated.cot.pseudo_label, example.label, example.choices)
            elif verdict is not None:
                correct = verdict is Verdict.CORRECT
            else:
                continue
            judged.append(JudgedCot(example, evaluated.cot, correct, verdict))
    return judged


def own_cots(
    student: TorchStudent,
    form: AnswerForm,
    examples: Sequence[Example],
    limits: tuple[int, int],
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[ChainOfThought]:
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
    return [ChainOfThought(rationale, answer) for answer, rationale in zip(texts["predict"], texts["explain"], strict=True)]


def answers_right(
    student: TorchStudent,
    task: Task,
    examples: Sequence[Example],
    references: Sequence[str],
    max_new_tokens: int,
    progress: Progress | None = None,
    name: str = "answers",
) -> list[bool]:
    """Let a student answer, and return for each example whether it is right, against one reference each."""
    if not examples:
        return []
    speaker = torch_speaker(student, task.form, max_new_tokens)
    contexts = [speaker.reasoning_context(example) for example in examples]
    with (progress or Progress(quiet=True)).task(name, total=len(contexts)) as step:
        answers = speaker.write_all("predict", contexts, max_new_tokens, batch_rows(student), step.advance)
    return [
        task.form.agrees(answer, reference, example.choices)
        for answer, example, reference in zip(answers, examples, references, strict=True)
    ]


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


def verdicts_of(student: TorchStudent, cots: Sequence[JudgedCot]) -> Verdicts | None:
    """Let a student judge chains of thought; None where there are none."""
    if not cots:
        return None
    speaker = torch_speaker(student)
    contexts = [speaker.evaluation_context(render_question(judged.example), judged.cot) for judged in cots]
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
