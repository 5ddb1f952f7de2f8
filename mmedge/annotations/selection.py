"""Choosing which of the teacher's chains of thought a student learns to reason from.

    all               every one, flawed ones included (the paper)
    self_consistent   those whose answer is the most frequent among the chains of thought of their question
    judged_correct    those that the teacher's own self-evaluations call correct

The student still learns to judge what is left out here: judging needs flawed chains of thought. Human labels play no part in the
choice, but for those of a review: where somebody has given the label, what comes to another answer is left out, and a chain of
thought that somebody has accepted stays.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.tasks.base import Example, Verdict
from mmedge.tasks.forms import AnswerForm

Selection = Literal["all", "self_consistent", "judged_correct"]


def select(examples: Sequence[AnnotatedExample], how: Selection, form: AnswerForm) -> list[AnnotatedExample]:
    """Return the examples, in their order, with the chains of thought that are kept; an example may be left with none.

    Args:
        examples: What the teacher wrote.
        how: What is kept.
        form: Says which answers mean the same.
    """
    return [_selected(annotated, how, form) for annotated in examples]


def _selected(annotated: AnnotatedExample, how: Selection, form: AnswerForm) -> AnnotatedExample:
    example, cots, label = annotated.example, annotated.cots, annotated.example.label
    if annotated.decided and label is not None:
        cots = tuple(one for one in cots if one.accepted or form.agrees(one.cot.pseudo_label, label, example.choices))
    if how == "judged_correct":
        cots = tuple(filter(judged_correct, cots))
    elif how == "self_consistent":
        kept = {one.sample for one in _most_frequent(cots, example, form)}
        cots = tuple(one for one in cots if one.accepted or one.sample in kept)
    return annotated if len(cots) == len(annotated.cots) else replace(annotated, cots=cots)


def groups_of(cots: Sequence[EvaluatedCot], example: Example, form: AnswerForm) -> list[list[EvaluatedCot]]:
    """Return chains of thought in groups with the same answer, in the order in which the answers first occur."""
    groups: list[list[EvaluatedCot]] = []
    for evaluated in cots:
        answer = evaluated.cot.pseudo_label
        same = (group for group in groups if form.agrees(answer, group[0].cot.pseudo_label, example.choices))
        if (group := next(same, None)) is None:
            groups.append([evaluated])
        else:
            group.append(evaluated)
    return groups


def judged_correct(evaluated: EvaluatedCot) -> bool:
    """Whether more than half of the self-evaluations say `correct`, or somebody has accepted it."""
    approving = sum(evaluation.verdict is Verdict.CORRECT for evaluation in evaluated.evaluations)
    return evaluated.accepted or 2 * approving > len(evaluated.evaluations)


def with_shuffled_evaluations(cots: Sequence[EvaluatedCot]) -> list[EvaluatedCot]:
    """Return chains of thought, in their order, with the evaluations of all of them exchanged at random; the same each time.

    Verdicts stay as frequent as they were and say nothing any more: the control that shows what they are worth.
    """
    judged = [evaluated.evaluations for evaluated in cots if evaluated.evaluations]
    random.Random("shuffled evaluations").shuffle(judged)
    drawn = iter(judged)
    return [replace(evaluated, evaluations=next(drawn)) if evaluated.evaluations else evaluated for evaluated in cots]


def _most_frequent(cots: Sequence[EvaluatedCot], example: Example, form: AnswerForm) -> tuple[EvaluatedCot, ...]:
    """Return the largest group of chains of thought with the same answer; all of the largest, where several are as large."""
    groups = groups_of(cots, example, form)
    largest = max(map(len, groups), default=0)
    kept = {evaluated.sample for group in groups if len(group) == largest for evaluated in group}
    return tuple(evaluated for evaluated in cots if evaluated.sample in kept)
