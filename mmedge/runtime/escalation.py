"""Escalating a question to a bigger model, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mmedge.errors import MmedgeError
from mmedge.tasks.base import Example
from mmedge.tasks.dialogue import asked_dialogue
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.prompts import render_question


@dataclass(frozen=True)
class EscalatedAnswer:
    """What a bigger model answered.

    Attributes:
        text: The answer in the task's form.
        rationale: Its reasoning.
        prompt_tokens: Tokens that it read.
        completion_tokens: Tokens that it wrote.
        cost: In the currency of the endpoint's prices; 0 where none are given.
        seconds: From the question to the answer, attempts that failed included.
    """

    text: str
    rationale: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.cost, 8),
            "seconds": round(self.seconds, 3),
        }


class BiggerModel(Protocol):
    """Anything that answers what the student is not sure of; called from several threads at once."""

    @property
    def name(self) -> str:
        """What answers call it."""
        ...

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        """Answer one question.

        Raises:
            MmedgeError: It could not be reached, or its text holds no answer.
        """
        ...


def question_for(example: Example, form: AnswerForm) -> str:
    """Return the prompt for a bigger model; a dialogue is there as a whole, earlier structured answers as JSON."""
    return (
        f"{asked_dialogue(example, form, render_question(example))}\n\n"
        f"Reason in one or two sentences. Then end with a line of its own: 'The answer is: ' and {form.instruction()}."
    )


def escalated_all(bigger: BiggerModel, examples: list[Example], form: AnswerForm, at_once: int = 8) -> list[EscalatedAnswer | str]:
    """Ask a bigger model several questions at once; return the reason for those that fail.

    Args:
        bigger: The model.
        examples: The questions.
        form: What answers look like.
        at_once: How many are in flight.
    """
    from concurrent.futures import ThreadPoolExecutor

    def asked(example: Example) -> EscalatedAnswer | str:
        try:
            return bigger.ask(example, form)
        except MmedgeError as error:
            return str(error).splitlines()[0]

    ask: Callable[[Example], EscalatedAnswer | str] = asked
    if len(examples) <= 1:
        return [ask(example) for example in examples]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, examples))
