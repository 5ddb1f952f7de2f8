"""Checks before a student is trained: that it can read the inputs and write the targets.

With a tokenizer that cannot write a label, or a limit that cuts it off, the student would learn something else, and nobody would
see why it is bad.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mmedge.distill.material import Material
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.students.student import TorchStudent
from mmedge.tasks import Example
from mmedge.tasks.prompts import VERDICTS
from mmedge.tasks.reading import plain

TOLERATED = 0.02  # share of targets that may be damaged, with a warning: a few odd characters in hundreds of texts


def check_targets(recipe: Recipe, material: Material, student: TorchStudent, progress: Progress) -> None:
    """Refuse a training whose answers or verdicts the student cannot write; warn about texts that are cut off.

    Raises:
        MmedgeError: More than a few of them cannot be written, or are longer than a target may be.
    """
    limit = recipe.training.max_target_tokens
    verdicts = list(VERDICTS) if recipe.method.self_evaluation else []
    for what, texts in (("the verdict", verdicts), ("the answer", list(_answers(recipe, material)))):
        damaged = [(text, becomes) for text in texts if (becomes := _written(student, text)) is not None]
        if len(damaged) > TOLERATED * len(texts):
            text, becomes = damaged[0]
            raise MmedgeError(
                f"the student's tokenizer cannot write {what} {text!r:.60}: it becomes {becomes!r:.60}"
                f" ({len(damaged)} of {len(texts)})",
                "choose another student, or labels that it can write",
            )
        if damaged:
            progress.line(f"warning: {len(damaged)} of {len(texts)} answers have characters that the student cannot write")
        long = [text for text in texts if len(student.encoder.target(text, limit + 1)) > limit]
        if len(long) > TOLERATED * len(texts):
            raise MmedgeError(
                f"{what} {long[0]!r:.60} is longer than {limit} tokens ({len(long)} of {len(texts)})",
                "raise training.max_target_tokens",
            )
    _check_lengths(material, student, progress)


def warn_about_questions(material: Material, progress: Progress) -> None:
    """Warn about training questions that teach nothing, and about test questions among them."""
    train = [one for one in material.train if not one.example.out_of_scope]
    empty = sum(one.example.label is None and not one.cots for one in train)
    if empty:
        progress.line(
            f"warning: {empty} of {len(train)} training questions have neither a label nor a chain of thought that can be read,"
            " and teach nothing"
        )
    known = {_said(one.example) for one in [*train, *material.validation]}
    shared = sum(_said(example) in known for examples in material.splits.tests.values() for example in examples)
    if shared:
        progress.line(f"warning: {shared} test questions are also training questions, word for word: their answers are known")


def _said(example: Example) -> tuple[str, ...]:
    return (*(plain(turn.text) for turn in example.turns), plain(example.question), *map(plain, example.choices))


def _check_lengths(material: Material, student: TorchStudent, progress: Progress) -> None:
    """Warn about questions that are cut off, and about dialogues that lose their oldest messages.

    Raises:
        MmedgeError: There is a system message, and the student reads none.
    """
    encoder, examples = student.encoder, [annotated.example for annotated in material.train]
    system = [example for example in examples if example.turns and example.turns[0].role == "system"]
    if system and encoder.chat is None:
        raise MmedgeError(
            f"the question {system[0].id!r:.60} begins with a system message, which only chat students read",
            "set student.prompt: chat, or leave system messages out",
        )
    limit = f"at {encoder.max_input_tokens} tokens (training.max_input_tokens)"
    contexts = [encoder.prompts.reasoning_context(example) for example in examples[:500]]
    cut = sum(len(encoder.context(replace(context, turns=()))) >= encoder.max_input_tokens for context in contexts)
    if cut:
        progress.line(f"warning: {cut} of {len(contexts)} questions are cut off {limit}")
    dialogues = [context for example, context in zip(examples, contexts, strict=False) if example.turns]
    shortened = sum(encoder.fitted(context)[1] > 0 for context in dialogues)
    if shortened:
        progress.line(f"warning: {shortened} of {len(dialogues)} dialogues lose their oldest messages {limit}")


def _answers(recipe: Recipe, material: Material) -> Iterator[str]:
    for annotated in material.train[:2000]:
        if recipe.method.labels == "human":
            if annotated.example.label is not None:
                yield annotated.example.label
        else:
            yield from {evaluated.cot.pseudo_label for evaluated in annotated.cots}


def _written(student: TorchStudent, text: str) -> str | None:
    """Return the text that the student's tokens decode to, if it differs from the original."""
    becomes = student.encoder.text(student.encoder.target(text, 100_000))
    return None if "".join(becomes.split()) == "".join(text.split()) else becomes
