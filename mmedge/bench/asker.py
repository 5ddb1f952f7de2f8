"""Asking a variant while it is timed, with as little overhead around the call as possible.

A bundle is asked through the runtime's `Student`, so its answers are those of `mmedge run`; every other engine through its
speaker.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmedge.bench.settings import ASKS, Ask
from mmedge.engines.engine import Engine
from mmedge.engines.entry import OpenedVariant
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.engines.speaker import Wanted
from mmedge.runtime.options import AnswerOptions
from mmedge.runtime.student import Student
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import Prompt


class _RecordingEngine:
    """An engine that records when each text began and how it was written."""

    def __init__(self, engine: Engine, written: list[tuple[float, Generation]]) -> None:
        self._engine, self._written = engine, written

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        started = time.perf_counter()
        found = self._engine.generate(prompts, max_new_tokens, how)
        self._written.append((started, found))
        return found

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self._engine.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self._engine.forced_logits(prompt, target)

    def conversation(self) -> Engine:
        return _RecordingEngine(self._engine.conversation(), self._written)


@dataclass
class TimedAnswers:
    """A variant's answers to some questions, and how long they took.

    Attributes:
        texts: Its answers.
        confidences: P(right) of each, where it was asked for.
        withheld: Whether each was withheld, as a bundle may do.
        seconds: From the questions, as text, to the answers, as text.
        time_to_first_token: Seconds until the first token of the first text.
        decode_seconds: Seconds of writing after first tokens.
        decode_steps: Decoder steps in that time.
        tokens: Tokens written, end tokens not counted.
    """

    texts: list[str]
    confidences: list[float | None] = field(default_factory=list)
    withheld: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    tokens: int = 0


class Asker:
    """Asks an opened variant.

    Args:
        opened: The variant.
    """

    def __init__(self, opened: OpenedVariant) -> None:
        self._written: list[tuple[float, Generation]] = []
        self._speaker = opened.speaker.on(_RecordingEngine(opened.speaker.engine, self._written))
        self._student, self._learned = None, opened.learned
        if opened.bundle is not None:
            self._student = Student(opened.bundle, self._speaker, opened.threads)

    def asks(self) -> list[Ask]:
        """Return what it can be asked for: no student is asked for what it never learned to write.

        A bundle always has a confidence: where its student learned no verdicts, the probability of the answer.
        """
        if self._learned is None:
            return list(ASKS)
        lacks = {"rationale": "rationale" not in self._learned}
        lacks["confidence"] = self._student is None and "verdict" not in self._learned
        return [ask for ask in ASKS if not lacks.get(ask)]

    def ask(self, examples: Sequence[Example], ask: Ask, batch: int) -> TimedAnswers:
        """Ask several questions, `batch` of them together."""
        self._written.clear()
        started = time.perf_counter()
        found = (
            self._of_speaker(examples, ask, batch)
            if self._student is None
            else self._of_student(self._student, examples, ask, batch)
        )
        found.seconds = time.perf_counter() - started
        written = self._written
        found.time_to_first_token = min(begun + one.time_to_first_token for begun, one in written) - started if written else 0.0
        found.decode_seconds = sum(one.seconds - one.time_to_first_token for _, one in written)
        found.decode_steps = sum(one.steps - 1 for _, one in written)
        found.tokens = sum(len(tokens) for _, one in written for tokens in one.tokens)
        return found

    def _of_student(self, student: Student, examples: Sequence[Example], ask: Ask, batch: int) -> TimedAnswers:
        options = AnswerOptions(explain=ask == "rationale", confidence=ask == "confidence")
        answers = student.answer_all(examples, options, batch=batch)
        return TimedAnswers(
            [answer.guess or answer.text for answer in answers],
            [answer.confidence if ask == "confidence" else None for answer in answers],
            [answer.withheld for answer in answers],
        )

    def _of_speaker(self, examples: Sequence[Example], ask: Ask, batch: int) -> TimedAnswers:
        """Answer; a confidence is P(correct) of the student's verdict on its own rationale and answer."""
        wanted = Wanted(rationale=ask != "answer", judgement=ask == "confidence", scored=False)
        found = TimedAnswers([])
        for start in range(0, len(examples), batch):
            thoughts = self._speaker.thoughts(examples[start : start + batch], wanted)
            found.texts += [thought.text for thought in thoughts]
            found.confidences += [one.judgement.probability_correct if one.judgement else None for one in thoughts]
        found.withheld = [False] * len(found.texts)
        return found
