"""What a student reads and writes: four prompts, told apart by a task word, and one verdict vocabulary.

    context                                                         task word     target
    Luke scored 84 points …                                         predict:   →  84 / 2
    Luke scored 84 points …                                         explain:   →  Luke scored 84 points in 2 rounds …
    Luke scored 84 points … solution: Luke … answer: 84 / 2         predict:   →  correct
    Luke scored 84 points … solution: Luke … answer: 84 / 2         explain:   →  Equal scoring over 2 rounds calls for …

The paper puts the task word in front of the question. Here it comes after it (for an encoder-decoder: in what the decoder
writes), so that the context is read once and shared by both tasks: in training, where that saves half of the tokens, and on
the device, where answer, rationale and judgement follow from one reading. An encoder-decoder has the chain of thought that it
judges in its decoder, as if it had just written it: judging then grows out of what it learned for reasoning, token by token,
and the question need not be read again with it. Bundles carry these prompts as text.
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
class Context:
    """What comes before a task word.

    Attributes:
        read: What the student reads: for an encoder-decoder, in its encoder.
        written: What an encoder-decoder's decoder has in front of the task word; empty for a decoder-only student.
    """

    read: str
    written: str = ""


@dataclass(frozen=True)
class StudentPrompts:
    """The templates of one student family.

    Attributes:
        question: The context of reasoning; has the placeholder `{question}`.
        solution: What is read for self-evaluation; has the placeholders `{question}` and `{cot}`.
        predict: The task word of answer and verdict.
        explain: The task word of rationale and evaluation.
        target: What comes before every target.
        judged: What an encoder-decoder's decoder has before the task word in self-evaluation; has the placeholder `{cot}`.
    """

    question: str
    solution: str
    predict: str
    explain: str
    target: str
    judged: str = ""

    def reasoning_context(self, question: str) -> Context:
        """Return the context that answer and rationale share."""
        return Context(_fill(self.question, question=question, cot=""))

    def evaluation_context(self, question: str, cot: ChainOfThought) -> Context:
        """Return the context that verdict and evaluation share."""
        places = {"question": question, "cot": render_chain_of_thought(cot)}
        return Context(_fill(self.solution, **places), _fill(self.judged, **places))

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def _fill(template: str, **places: str) -> str:
    """Fill the placeholders in one pass, so that text from a question is never read as a placeholder."""
    return _PLACE.sub(lambda match: places[match[1]], template)


ENCODER_DECODER_PROMPTS = StudentPrompts(
    question="{question}",
    solution="{question}",
    predict="predict:",
    explain="explain:",
    target="",
    judged="solution: {cot}",
)

DECODER_ONLY_PROMPTS = StudentPrompts(
    question="{question}\n", solution="{question}\nsolution: {cot}\n", predict="predict:", explain="explain:", target=" "
)
