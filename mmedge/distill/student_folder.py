"""Files beside a distilled student: the tokens and phrases of its task, and the questions that it is measured with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmedge.annotations.reading import AnnotatedExample
from mmedge.distill.material import Material
from mmedge.distill.scoring import judged_cots
from mmedge.distill.stages import learned_texts
from mmedge.engines.drafting import FILE_NAME as DRAFTS
from mmedge.engines.drafting import PhraseTable
from mmedge.folders import DETAILS
from mmedge.recipe import Recipe, recipe_values
from mmedge.storage import Json, atomic_folder, read_json
from mmedge.students.encoded import KINDS
from mmedge.students.saved import save_student
from mmedge.students.student import TorchStudent
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.evaluation_set import FILE_NAME, HeldOutCot, evaluation_set_of, write_evaluation_set
from mmedge.tasks.prompts import Context

CALIBRATION_QUESTIONS = 64
RECOVERY_QUESTIONS = 256


def write_measuring_set(folder: Path, material: Material) -> None:
    """Write what export verifies with and bench measures with, unless it exists."""
    path = folder / FILE_NAME
    if path.is_file() and (folder / "student").is_dir():
        return
    held = [
        HeldOutCot(judged.example, number, judged.cot, judged.correct, judged.teacher_verdict and judged.teacher_verdict.value)
        for number, judged in enumerate(judged_cots(material.verdict_test, material.task))
    ]
    validation = [annotated.example for annotated in material.validation]
    step = max(1, len(material.train) // CALIBRATION_QUESTIONS)
    calibration = [annotated.example for annotated in material.train[::step][:CALIBRATION_QUESTIONS]]
    rest = [annotated.example for annotated in material.train if annotated.example not in calibration]
    recovery = rest[:: max(1, len(rest) // RECOVERY_QUESTIONS)][:RECOVERY_QUESTIONS]
    task, tests = material.task, material.splits.tests
    evaluation = evaluation_set_of(task.name, task.form, validation, calibration, recovery, tests, {"verdict_test": held})
    write_evaluation_set(path, evaluation)


def write_student(student: TorchStudent, folder: Path, metrics: Json, material: Material, recipe: Recipe) -> None:
    """Write a student, with what its task is made of: tokens for `export --trim-vocab`, and phrases for the runtime's drafts.

    Args:
        student: The student, adapters merged.
        folder: Where it goes; what is there is replaced when all of it is written.
        metrics: Its scores.
        material: What it learned from.
        recipe: How.
    """
    examples = [*material.train, *material.validation, *material.verdict_test]
    limit = recipe.training.max_target_tokens
    details = {"recipe": recipe_values(recipe), "metrics": metrics, "learned": _learned(recipe)}
    with atomic_folder(folder) as temporary:
        save_student(student, temporary, details | {"data_hash": material.hash}, task_tokens(examples, student.encoder, limit))
        PhraseTable.of(explanations(material.train, student.encoder, limit)).save(temporary / DRAFTS)


def _learned(recipe: Recipe) -> list[str] | None:
    """Return what a student has learned to write besides answers, what it began with included; None where that is not known."""
    found = learned_texts(recipe.method)
    begun = Path(recipe.student.source) / DETAILS
    if not begun.is_file():
        return found
    before = read_json(begun).get("learned")
    return None if before is None else sorted({*found, *before})


def explanations(examples: Sequence[AnnotatedExample], encoder: PromptEncoder, max_target_tokens: int) -> Iterator[list[int]]:
    """Yield every rationale and evaluation in tokens, after its task word and with its end token."""
    begun = list(encoder.begun("explain", Context("")))
    for annotated in examples:
        for evaluated in annotated.cots:
            for text in (evaluated.cot.rationale, *(evaluation.rationale for evaluation in evaluated.evaluations)):
                if text:
                    yield [*begun, *encoder.target(text, max_target_tokens)]


def task_tokens(examples: Sequence[AnnotatedExample], encoder: PromptEncoder, max_target_tokens: int) -> list[int]:
    """Return the ids of all tokens that a student reads or writes when it learns from some examples, rising.

    Args:
        examples: Annotated questions.
        encoder: The student's prompts.
        max_target_tokens: The longest target.
    """
    found: set[int] = set()
    for text in encoder.prompts.marks():
        found.update(encoder.target(text, max_target_tokens))
    for annotated in examples:
        contexts = [encoder.prompts.reasoning_context(annotated.example)]
        texts = [text for text in (annotated.example.label, *annotated.example.choices) if text]
        for evaluated in annotated.cots:
            contexts.append(encoder.prompts.evaluation_context(annotated.example, evaluated.cot))
            texts += [evaluated.cot.rationale, evaluated.cot.pseudo_label]
            texts += [text for evaluation in evaluated.evaluations for text in (evaluation.rationale, evaluation.verdict.value)]
        for context in contexts:
            found.update(encoder.context(context))
            for kind in KINDS:
                found.update(encoder.begun(kind, context))
        for text in texts:
            found.update(encoder.target(text, max_target_tokens))
    return sorted(found)
