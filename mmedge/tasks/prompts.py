"""What a student reads and writes: four prompts, told apart by a task word, and one verdict vocabulary.

    context                                                         task word     target
    Luke scored 84 points …                                         predict:   →  84 / 2
    Luke scored 84 points …                                         explain:   →  Luke scored 84 points in 2 rounds …
    Luke scored 84 points … solution: Luke … answer: 84 / 2         predict:   →  correct
    Luke scored 84 points … solution: Luke … answer: 84 / 2         explain:   →  Equal scoring over 2 rounds calls for …

A student that learned to judge inline reads no chain of thought again, it goes on after the one that it wrote:

    Luke scored 84 points …                                         explain:   →  Luke … answer: 84 / 2 verdict: correct

Where a question ends a dialogue, what was said before comes first. Earlier answers stand behind the task word, token by token as
the student wrote them, so a follow-up reads only what is new:

    user: book a table for two at the bar
    predict: restaurant; number: two; type: bar
    user: and for eight people too                                  predict:   →  restaurant; number: eight; type: bar

The paper puts the task word in front of the question. Here it comes after it (for an encoder-decoder: in what the decoder
writes), so that the context is read once and shared by both tasks: in training, where that saves half of the tokens, and on
the device, where answer, rationale and judgement follow from one reading. An encoder-decoder has the chain of thought that it
judges in its decoder, as if it had just written it: judging then grows out of what it learned for reasoning, token by token,
and the question need not be read again with it. Bundles carry these prompts as text.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mmedge.errors import MmedgeError
from mmedge.tasks.base import ChainOfThought, Example, Turn, Verdict

VERDICTS = tuple(verdict.value for verdict in Verdict)

Kind = Literal["predict", "explain"]

_OPTIONAL = ("verdict", "answer_verdict", "reasoned", "control", "turn")
_PLACE = re.compile(r"\{(question|cot)\}")


def render_question(example: Example) -> str:
    """Return the question as the student sees it, with lettered choices where there are any, in one paragraph.

    What was said before it is not part of it.
    """
    question = re.sub(r"\s+", " ", example.question).strip()
    if not example.choices:
        return question
    listed = " ".join(f"({chr(ord('a') + index)}) {choice}" for index, choice in enumerate(example.choices))
    return f"{question} Choices: {listed}"


ANSWER_MARK = "answer:"
VERDICT_MARK = "verdict:"


def render_chain_of_thought(cot: ChainOfThought) -> str:
    """Return a chain of thought as it is shown to whoever evaluates it."""
    return f"{cot.rationale} {ANSWER_MARK} {cot.pseudo_label}"


@dataclass(frozen=True)
class Context:
    """What comes before a task word.

    Attributes:
        read: What the student reads: for an encoder-decoder, in its encoder.
        written: What an encoder-decoder's decoder has in front of the task word; empty for a decoder-only student.
        behind: Texts after the task word `begun`, as if the student had written them; the verdict follows. They replace the task
            word that is asked for. The first one is cut where all of it would be too long.
        begun: That task word, where there are such texts.
        turns: What was said before, which is read first; the oldest turns are left out where all of it would be too long.
    """

    read: str
    written: str = ""
    behind: tuple[str, ...] = ()
    begun: Kind = "explain"
    turns: tuple[Turn, ...] = ()


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
        verdict: What comes between a chain of thought and its verdict where the student judges inline, after the rationale and the
            answer that it has just written; empty where it judges after `predict:`.
        answer_verdict: What comes between an answer and the verdict on it; empty where the student does not judge bare answers.
        reasoned: What comes between an evaluation and its verdict where the student writes the evaluation first; mostly empty.
        control: What follows the task word, such as `right:`, where the student has learned wrong answers and rationales
            behind another word; mostly empty.
        turn: What a message of a dialogue becomes, the question included, where the student reads dialogues; has the placeholders
            `{role}` and `{text}`. Empty where it reads single questions.
    """

    question: str
    solution: str
    predict: str
    explain: str
    target: str
    judged: str = ""
    verdict: str = ""
    answer_verdict: str = ""
    reasoned: str = ""
    control: str = ""
    turn: str = ""

    def reasoning_context(self, question: Example | str) -> Context:
        """Return the context that answer and rationale share.

        Args:
            question: An example, or the text of a question that stands alone.

        Raises:
            MmedgeError: It is part of a dialogue, and the student reads single questions.
        """
        text, turns = self._asked(question)
        return Context(_fill(self.question, question=text, cot=""), turns=turns)

    def evaluation_context(self, question: Example | str, cot: ChainOfThought) -> Context:
        """Return the context that verdict and evaluation share; see `reasoning_context`."""
        if self.verdict:
            return replace(self.reasoning_context(question), behind=self.inline(cot))
        text, turns = self._asked(question)
        places = {"question": text, "cot": render_chain_of_thought(cot)}
        return Context(_fill(self.solution, **places), _fill(self.judged, **places), turns=turns)

    def _asked(self, question: Example | str) -> tuple[str, tuple[Turn, ...]]:
        """Return the text of a question, and what was said before it."""
        text, turns = (question, ()) if isinstance(question, str) else (render_question(question), question.turns)
        if turns and not self.turn:
            raise MmedgeError(
                "this student was trained on single questions, and reads no earlier messages",
                "send the last message alone, or distil with dialogues among the training questions",
            )
        return self._said("user", text) if self.turn else text, turns

    def _said(self, role: str, text: str) -> str:
        return self.turn.replace("{role}", role).replace("{text}", text)

    def before(self, turn: Turn) -> str:
        """Return an earlier message as it is read in front of the question; of an answer, what follows the task word."""
        if turn.role == "assistant":
            return self.target + turn.text
        return _fill(self.question, question=self._said(turn.role, turn.text), cot="")

    def answer_context(self, question: Example | str, answer: str) -> Context:
        """Return the context of the verdict on a bare answer."""
        return replace(self.reasoning_context(question), behind=(answer, self.answer_verdict), begun="predict")

    def reasoned_context(self, context: Context, evaluation: str) -> Context:
        """Return the context of the verdict that follows from an evaluation, for the context of that evaluation."""
        return replace(context, behind=(evaluation, self.reasoned), begun="explain")

    def inline(self, cot: ChainOfThought) -> tuple[str, str, str]:
        """Return what is written before a verdict that follows a chain of thought: rationale, answer, and a mark."""
        return cot.rationale, f"{ANSWER_MARK} {cot.pseudo_label}", self.verdict

    def split(self, text: str) -> tuple[str, str | None]:
        """Return the rationale in what was written after `explain:`, and the answer that it states there, where it does."""
        if not self.verdict:
            return text, None
        before, found, _ = text.rpartition(self.verdict)
        rationale, stated, answer = (before if found else text).rpartition(ANSWER_MARK)
        return (rationale.strip(), answer.strip()) if stated else (text, None)

    def marks(self) -> tuple[str, ...]:
        """Return the words that the student reads and writes besides its task's texts, task words aside."""
        before = [text for text in (self.verdict, self.answer_verdict, self.reasoned) if text]
        return (*before, *(VERDICTS if before else ()), *([self.control] if self.control else ()))

    def evaluation_of(self, text: str) -> str:
        """Return the evaluation in what was written after `explain:`, without the verdict that may follow."""
        before, found, _ = text.rpartition(self.reasoned) if self.reasoned else ("", "", "")
        return before.strip() if found else text

    def to_json(self) -> dict[str, str]:
        """Return the templates; without those that only some students have, where there are none."""
        return {name: text for name, text in asdict(self).items() if text or name not in _OPTIONAL}


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

PLAIN_TURN, CHAT_TURN = "{role}: {text}", "{text}"  # a chat's roles are its template's

# the assistant's first words in a chat; a model that reasons in a block of its own has an empty one in front of an answer, and a
# rationale is that block
CHAT_PROMPTS = StudentPrompts(
    question="{question}", solution="{question}\nsolution: {cot}", predict="predict:", explain="explain:", target=" "
)
REASONING_CHAT_PROMPTS = replace(CHAT_PROMPTS, predict="<think>\n\n</think>\n\n", explain="<think>\n", target="")
DECODER_ONLY_PROMPTS = StudentPrompts(
    question="{question}\n", solution="{question}\nsolution: {cot}\n", predict="predict:", explain="explain:", target=" "
)
