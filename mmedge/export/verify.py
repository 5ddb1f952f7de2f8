"""Is the bundle the same model? Compared with the torch student on validation questions, and refused where it differs.

fp32 must give the same greedy answers, with logits within rounding. int8 must choose the same token nearly always and must
not lose more accuracy than the recipe allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmedge.distill.engine import TorchEngine
from mmedge.distill.scoring import generate
from mmedge.distill.students import Student
from mmedge.errors import MmedgeError
from mmedge.runtime.decoding import Engine
from mmedge.runtime.student import EdgeStudent
from mmedge.tasks.base import Example
from mmedge.tasks.judges import AnyJudge
from mmedge.tasks.prompts import render_question

# float32 sums in another order differ, and the difference grows with depth; small students stay below 1e-4
FP32_TOLERANCE = 2e-3
INT8_MIN_TOP1 = 0.95  # of the student's own answer tokens, teacher-forced


@dataclass(frozen=True)
class Verification:
    """How a bundle compares with its student.

    Attributes:
        questions: How many validation questions were asked.
        same_answers: How many greedy answers are the same, word for word.
        largest_difference: The largest difference of any logit, as a share of the largest logit, teacher-forced.
        top1_agreement: The share of answer tokens for which both choose the same, teacher-forced.
        mean_kl: Mean Kullback-Leibler divergence of the bundle from the student, in nats per token.
        accuracy_student: Share of right answers of the student; None without labels.
        accuracy_bundle: The same of the bundle.
    """

    questions: int
    same_answers: int
    largest_difference: float
    top1_agreement: float
    mean_kl: float
    accuracy_student: float | None
    accuracy_bundle: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    student: Student, bundle: EdgeStudent, examples: Sequence[Example], judge: AnyJudge, max_answer_tokens: int
) -> Verification:
    """Ask both the same questions and compare answers and logits.

    Args:
        student: The torch student.
        bundle: The bundle.
        examples: Validation questions.
        judge: How answers are judged.
        max_answer_tokens: The longest answer.
    """
    contexts = [student.encoder.prompts.reasoning_context(render_question(example)) for example in examples]
    expected = generate(student, "predict", contexts, max_answer_tokens)
    reference: Engine = TorchEngine(student)
    answers, differences, agreements, divergences = [], [], [], []
    for context, wanted in zip(contexts, expected, strict=True):
        answers.append(bundle.write("predict", [context], max_answer_tokens)[0])
        prompt = student.encoder.prompt("predict", context)
        target = student.encoder.target(wanted, max_answer_tokens)
        left, right = reference.forced_logits(prompt, target), bundle.engine.forced_logits(prompt, target)
        differences.append(float(np.abs(left - right).max() / max(1.0, np.abs(left).max())))
        agreements += (left.argmax(-1) == right.argmax(-1)).tolist()
        divergences += _kl(left, right).tolist()

    def accuracy(texts: Sequence[str]) -> float | None:
        outcomes = [
            judge.agrees(text, example.label, example.choices)
            for text, example in zip(texts, examples, strict=True)
            if example.label is not None
        ]
        return sum(outcomes) / len(outcomes) if outcomes else None

    return Verification(
        questions=len(examples),
        same_answers=sum(a == b for a, b in zip(answers, expected, strict=True)),
        largest_difference=max(differences, default=0.0),
        top1_agreement=sum(agreements) / max(1, len(agreements)),
        mean_kl=sum(divergences) / max(1, len(divergences)),
        accuracy_student=accuracy(expected),
        accuracy_bundle=accuracy(answers),
    )


def _kl(left: Any, right: Any) -> Any:
    """Return KL(left ‖ right) of rows of logits, in nats."""
    left_log = left - _log_sum(left)
    right_log = right - _log_sum(right)
    return (np.exp(left_log) * (left_log - right_log)).sum(-1)


def _log_sum(logits: Any) -> Any:
    top = logits.max(-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))


def check(found: Verification, precision: str, max_accuracy_drop: float) -> None:
    """Refuse a bundle that is not the same model.

    Args:
        found: The comparison.
        precision: `fp32` or `int8`.
        max_accuracy_drop: The largest loss of accuracy on validation questions, in points.

    Raises:
        MmedgeError: It differs; the message says how.
    """
    problems = []
    if not np.isfinite([found.largest_difference, found.mean_kl]).all():
        problems.append("its logits are not finite")
    if precision == "fp32":
        if found.same_answers < found.questions:
            problems.append(f"{found.questions - found.same_answers} of {found.questions} greedy answers differ")
        if found.largest_difference > FP32_TOLERANCE:
            problems.append(f"logits differ by {found.largest_difference:.1e} of the largest")
    else:
        if found.top1_agreement < INT8_MIN_TOP1:
            problems.append(f"it chooses another token {100 * (1 - found.top1_agreement):.1f} % of the time")
        if found.accuracy_student is not None and found.accuracy_bundle is not None:
            drop = 100 * (found.accuracy_student - found.accuracy_bundle)
            if drop > max_accuracy_drop:
                problems.append(f"accuracy drops by {drop:.1f} points (allowed: {max_accuracy_drop})")
    if problems:
        raise MmedgeError(
            f"the {precision} graphs are refused: {'; '.join(problems)}",
            "no bundle was written; see the student's own accuracy first",
        )
