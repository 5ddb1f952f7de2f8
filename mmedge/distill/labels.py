"""Which answer counts as right: for learning, for validation, and for grading what the student wrote itself."""

from __future__ import annotations

from collections.abc import Sequence

from mmedge.annotations.reading import AnnotatedExample
from mmedge.annotations.selection import Selection, select
from mmedge.recipe.method import MethodSection
from mmedge.tasks.forms import AnswerForm


def majority_labels(examples: Sequence[AnnotatedExample], form: AnswerForm) -> dict[str, str]:
    """Return the answer of most chains of thought by the question's id; the first such answer where several are as frequent.

    Where somebody has given the label in a review, that is the answer.
    """
    kept = select(examples, "self_consistent", form)
    found = {annotated.example.id: annotated.cots[0].cot.pseudo_label for annotated in kept if annotated.cots}
    return found | {one.example.id: one.example.label for one in examples if one.decided and one.example.label is not None}


def reference(annotated: AnnotatedExample, form: AnswerForm, method: MethodSection) -> str | None:
    """Return the right answer for validation, of the kind that is learned: a student without human labels is not chosen by them.

    Args:
        annotated: The question.
        form: Says which answers mean the same.
        method: Its labels and the chains of thought that it keeps.

    Returns:
        The human label; or the answer of most of the chains of thought that are kept, or of all where none is kept; None where
        there are none.
    """
    example = annotated.example
    if (method.labels == "human" or annotated.decided) and example.label is not None:
        return example.label
    keep: Selection = method.keep if method.labels == "pseudo" else "all"
    found = majority_labels(select([annotated], keep, form), form) or majority_labels([annotated], form)
    return found.get(example.id, example.label)


def trusted_answer(annotated: AnnotatedExample, form: AnswerForm, *, human: bool) -> str | None:
    """Return the answer that the student's own answers to a training question are judged by.

    Args:
        annotated: The question.
        form: Says which answers mean the same.
        human: Take the human label where there is one.

    Returns:
        Without human labels, the answer of most of the chains of thought that the teacher itself judges correct; None where there
        are none.
    """
    if (human or annotated.decided) and annotated.example.label is not None:
        return annotated.example.label
    return majority_labels(select([annotated], "judged_correct", form), form).get(annotated.example.id)
