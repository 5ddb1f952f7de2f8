"""A student's answer to one question, and parts of its text while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmedge.engines.speaker import Written
from mmedge.runtime.escalation import EscalatedAnswer
from mmedge.runtime.strategies import Sample

_WHERE_KNOWN = ("value", "confidence", "signal", "rationale", "verdict", "probability_correct", "evaluation", "guess", "problem")


@dataclass(frozen=True)
class Answer:
    """The student's answer to one question.

    Attributes:
        text: The answer as written; empty where it is withheld.
        value: The answer's value, as text; None for tasks whose answers have no values, or if this one has none.
        confidence: P(right). From the answer's own probability where nothing more was asked for, or nothing could be calibrated;
            otherwise from the signal that did best when the bundle was exported.
        signal: Where the confidence comes from: `answer`, `evaluation`, `combined`, or `samples` (the share of the votes).
        calibrated: Whether the confidence was calibrated on validation questions.
        fields: P(right) of each field of a structured answer, by path; None for other answers. Calibrated where the bundle's are.
        probabilities: P of each label or choice among all of them, the likeliest first, if it was asked for; not calibrated.
        rationale: The chain of thought, if it was asked for.
        verdict: The student's own verdict on rationale and answer, if it was asked for: `correct`, `wrong` or `uncertain`.
        probability_correct: P(correct) among the three, from the verdict's logits; not calibrated.
        evaluation: The rationale of the verdict, if it was asked for.
        withheld: Whether the confidence is below the threshold and no bigger model answered.
        doubt: Why it was withheld or escalated, in words.
        guess: The student's answer to a question that was withheld or escalated, as people read it: a structured one as JSON.
        source: `student`, or the name of the bigger model that answered.
        escalation: What the bigger model's answer cost.
        problem: Why a bigger model could not be asked.
        samples: The chains of thought that were sampled.
        written: The tokens that the student wrote, how many of the oldest messages it did not read (`left_out` in JSON),
            whether the question's end was not read (`question_cut`), and whether a constrained answer was ended at the limit
            (`cut_short`), so that its last values are not the student's; no part of what answers are compared by.
    """

    text: str
    value: str | None = None
    confidence: float | None = None
    signal: str | None = None
    calibrated: bool = False
    fields: Mapping[str, float] | None = None
    probabilities: Mapping[str, float] | None = None
    rationale: str | None = None
    verdict: str | None = None
    probability_correct: float | None = None
    evaluation: str | None = None
    withheld: bool = False
    doubt: str | None = None
    guess: str | None = None
    source: str = "student"
    escalation: EscalatedAnswer | None = None
    problem: str | None = None
    samples: tuple[Sample, ...] = ()
    written: Written | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, object]:
        """Return it for a JSON-lines file; what was not asked for is left out."""
        found: dict[str, object] = {"answer": None if self.withheld else self.text}
        for name in _WHERE_KNOWN:
            value = getattr(self, name)
            if value is not None:
                found[name] = round(value, 4) if isinstance(value, float) else value
        if self.confidence is not None:
            found["calibrated"] = self.calibrated
        if self.fields is not None:
            found["fields"] = {path: round(value, 4) for path, value in self.fields.items()}
        if self.probabilities is not None:
            found["probabilities"] = {text: round(value, 4) for text, value in self.probabilities.items()}
        if self.withheld:
            found["withheld"] = True
        if self.source != "student":
            found["source"] = self.source
        if self.escalation is not None:
            found["escalation"] = self.escalation.to_json()
        if self.written is not None and self.written.left_out:
            found["left_out"] = self.written.left_out
        if self.written is not None and self.written.question_cut:
            found["question_cut"] = True
        if self.written is not None and self.written.cut_short and not self.withheld and self.source == "student":
            found["cut_short"] = True
        if self.samples:
            found["samples"] = [sample.text for sample in self.samples]
        return found


@dataclass(frozen=True)
class Piece:
    """The next part of a stream.

    Attributes:
        part: `answer`, `rationale` or `evaluation`.
        text: What was written since the last one of this part.
    """

    part: str
    text: str
