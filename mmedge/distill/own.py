"""The student's own chains of thought on its training questions, each with the verdict that it deserves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedge.annotations.reading import EvaluatedCot
from mmedge.distill.devices import Devices
from mmedge.distill.durable import once
from mmedge.distill.labels import trusted_answer
from mmedge.distill.material import Material
from mmedge.distill.scoring import OwnCot, own_cots
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.students.student import TorchStudent
from mmedge.tasks.base import Example, SelfEvaluation, Verdict
from mmedge.tasks.forms import AnswerForm

FIRST_SAMPLE = 1000  # the number of the first, after all of the teacher's


def graded_own_cots(
    student: TorchStudent | None, recipe: Recipe, material: Material, path: Path, key: str, devices: Devices, progress: Progress
) -> list[tuple[EvaluatedCot, ...]]:
    """Let a student write chains of thought to its training questions, and grade them by the trusted answer.

    Args:
        student: The student; None where it is known that everything was written before.
        recipe: Says how many, how long, and which answers are trusted.
        material: The training questions.
        path: Where what was written is kept, so that it is written once.
        key: Hash of everything that it depends on.
        devices: The main process writes; the others wait for it.
        progress: Where it is shown.

    Returns:
        For each training question its chains of thought; none where no answer is trusted, or where a rationale comes to no answer.
        A chain of thought ends in what its rationale comes to, whatever the answer beside it, and is right where that is trusted.
    """
    method, limits = recipe.method, (recipe.generation.max_answer_tokens, recipe.generation.max_rationale_tokens)
    form, examples = material.task.form, [annotated.example for annotated in material.train]

    def written() -> list[list[list[str | None]]]:
        assert student is not None
        found = []
        for number in range(method.own_cots):
            temperature = method.own_temperature if number else 0.0
            cots = own_cots(student, form, examples, limits, temperature, recipe.seed * 1000 + number, progress)
            found.append([[cot.rationale, cot.answer, cot.conclusion] for cot in cots])
        return found

    columns = devices.from_main(lambda: once(path, key, written))
    graded: list[tuple[EvaluatedCot, ...]] = []
    agreeing = 0
    for place, annotated in enumerate(material.train):
        example, trusted = annotated.example, trusted_answer(annotated, form, human=method.labels == "human")
        own = [OwnCot(answer, rationale, stated) for rationale, answer, stated in (column[place] for column in columns)]
        agreeing += sum(one.agrees(form, example) for one in own)
        graded.append(graded_by(trusted, own, form, example))
    right = [cot.evaluations[0].verdict is Verdict.CORRECT for cots in graded for cot in cots]
    progress.line(
        f"own chains of thought: {len(columns) * len(graded)}, of which {agreeing} come to the answer beside them;"
        f" {len(right)} can be graded, of which {sum(right)} reach the trusted answer"
    )
    return graded


def graded_by(trusted: str | None, own: Sequence[OwnCot], form: AnswerForm, example: Example) -> tuple[EvaluatedCot, ...]:
    """Grade a question's own chains of thought by the trusted answer; those that cannot be graded are left out."""
    return tuple(
        EvaluatedCot(FIRST_SAMPLE + number, one.cot, (SelfEvaluation("", Verdict.CORRECT if right else Verdict.WRONG),))
        for number, one in enumerate(own)
        if trusted is not None and one.judgeable(form)
        for right in [form.agrees(one.cot.pseudo_label, trusted, example.choices)]
    )
