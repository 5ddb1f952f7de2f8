"""What a student reads and writes: four prompts, told apart by a task word, and one verdict vocabulary.

An encoder-decoder student has the task word in front, as in the paper:

    predict: Luke scored 84 points …                                          →  84 / 2
    explain: Luke scored 84 points …                                          →  Luke scored 84 points in 2 rounds …
    predict: Luke scored 84 points … solution: Luke … answer: 84 / 2          →  correct
    explain: Luke scored 84 points … solution: Luke … answer: 84 / 2          →  Equal scoring over 2 rounds calls for …

A decoder-only student has it behind the question, so that everything before it is read once and shared by both tasks, in
training (one pass, several branches) and on the device (one prefill). Bundles carry these prompts as plain text.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from mmedge.tasks.base import ChainOfThought, Example, Verdict

VERDICTS = tuple(verdict.value for verdict in Verdict)

_PLACE = re.compile(r"\{(question|cot)\}")


def render_question(example: Example) -> str:
    """Return the question as the student sees it, with lettered choices where there are any, in one paragraph."""
    question = re.sub(r"\s+", " ", example.question).strip()
    if not example.choices:
        return question
    listed = " ".join(f"({chr(ord('a') + index)}) {choice}" for index, choice in enumerate(example.choices))
    return f"{question} Choices: {listed}"


def render_chain_of_thought(cot: ChainOfThought) -> str:
    """Return a chain of thought as it is shown to whoever evaluates it."""
    return f"{cot.rationale} answer: {cot.pseudo_label}"


@dataclass(frozen=True)
class StudentPrompts:
    """The templates of one student family.

    Attributes:
        question: What reasoning starts from; has the place `{question}`.
        solution: What self-evaluation starts from; has the places `{question}` and `{cot}`.
        predict_before: The task word of answer and verdict, in front of `question` or `solution`.
        explain_before: The task word of rationale and evaluation, in front.
        predict_after: The same, behind.
        explain_after: The same, behind.
        target: What stands in front of every target.
    """

    question: str
    solution: str
    predict_before: str
    explain_before: str
    predict_after: str
    explain_after: str
    target: str

    def reasoning_context(self, question: str) -> str:
        """Return the part of the prompt that answer and rationale share."""
        return _fill(self.question, question=question, cot="")

    def evaluation_context(self, question: str, cot: ChainOfThought) -> str:
        """Return the part of the prompt that verdict and evaluation share."""
        return _fill(self.solution, question=question, cot=render_chain_of_thought(cot))

    def predict(self, context: str) -> str:
        """Return the whole prompt for the short task: an answer or a verdict."""
        return self.predict_before + context + self.predict_after

    def explain(self, context: str) -> str:
        """Return the whole prompt for the long task: a rationale or an evaluation."""
        return self.explain_before + context + self.explain_after

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def _fill(template: str, **places: str) -> str:
    """Fill the places in one pass, so that text from a question is never read as a place."""
    return _PLACE.sub(lambda match: places[match[1]], template)


ENCODER_DECODER_PROMPTS = StudentPrompts(
    question="{question}",
    solution="{question} solution: {cot}",
    predict_before="predict: ",
    explain_before="explain: ",
    predict_after="",
    explain_after="",
    target="",
)

DECODER_ONLY_PROMPTS = StudentPrompts(
    question="{question}\n",
    solution="{question}\nsolution: {cot}\n",
    predict_before="",
    explain_before="",
    predict_after="predict:",
    explain_after="explain:",
    target=" ",
)
