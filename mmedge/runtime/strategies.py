"""How a student finds an answer: at once, judging itself, sampling several chains of thought, or sampling only when in doubt.

answer       one short `predict:`                                              costs 1
confidence   answer, rationale, and the student's own verdict on them
samples      k sampled chains of thought; their answers vote
retry        like confidence; where that is low, like samples, with the first answer among them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mmedge.errors import MmedgeError
from mmedge.tasks.forms import AnswerForm

StrategyKind = Literal["answer", "confidence", "samples", "retry"]
Choice = Literal["majority", "self_evaluation", "both"]
COLDEST = 1e-3  # sampling temperature; logits divided by less overflow
MOST_SAMPLES = 64


@dataclass(frozen=True)
class Strategy:
    """How to find answers.

    Attributes:
        kind: `answer`, `confidence`, `samples` or `retry`.
        samples: How many chains of thought are sampled.
        choose_by: Which answer wins: the most frequent one (`majority`; self-consistency, Wang et al. 2023), the one that the
            student judges best (`self_evaluation`), or the one with the largest sum of P(correct) (`both`).
        temperature: Sampling temperature.
        seed: Sampling seed; the same seed gives the same texts, whatever else is asked in the batch.
        retry_below: The confidence below which `retry` samples more.
    """

    kind: StrategyKind = "answer"
    samples: int = 5
    choose_by: Choice = "both"
    temperature: float = 0.7
    seed: int = 0
    retry_below: float = 0.5

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, get_args(StrategyKind)), ("choose_by", self.choose_by, get_args(Choice))):
            if value not in allowed:
                raise MmedgeError(f"strategy: invalid {name} {value!r}", f"it must be one of {', '.join(allowed)}")
        for name, number in (("samples", self.samples), ("seed", self.seed)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise MmedgeError(f"strategy: {name} must be a whole number of at least 0, got {number!r}")
        for name, share in (("retry_below", self.retry_below), ("temperature", self.temperature)):
            if isinstance(share, bool) or not isinstance(share, (int, float)):
                raise MmedgeError(f"strategy: {name} must be a number, got {share!r}")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise MmedgeError(f"strategy: samples must be from 1 to {MOST_SAMPLES}, got {self.samples}")
        if not 0 <= self.retry_below <= 1:
            raise MmedgeError(f"strategy: retry_below must be from 0 to 1, got {self.retry_below}")
        if not COLDEST <= self.temperature <= 10:
            raise MmedgeError(f"strategy: temperature must be from {COLDEST:g} to 10, got {self.temperature:g}")

    def changed(self, changes: Mapping[str, Any]) -> Strategy:
        """Return the same with some settings changed.

        Raises:
            MmedgeError: A setting is not allowed, or would change nothing.
        """
        found = Strategy(**(asdict(self) | dict(changes)))
        settings = [name for name in changes if name != "kind"]
        if settings and found.kind not in ("samples", "retry"):
            raise MmedgeError(
                f"{settings[0]} is for the strategies samples and retry, not for {found.kind}",
                "choose one of these strategies, or leave the setting out",
            )
        if found.kind == "samples" and "retry_below" in changes:
            raise MmedgeError("retry_below is for the strategy retry", "choose that strategy, or leave the setting out")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """One sampled chain of thought.

    Attributes:
        text: Its answer.
        rationale: Its rationale.
        probability_correct: The student's own P(correct) of it, not calibrated.
    """

    text: str
    rationale: str
    probability_correct: float


def vote(samples: Sequence[Sample], form: AnswerForm, choices: Sequence[str], choose_by: Choice) -> tuple[int, float]:
    """Return the place of the sample whose answer wins, and the share of the votes that the answer has.

    Answers that mean the same are one candidate; text that is not an answer wins only if there is nothing else. Of the
    samples with the winning answer, the one that the student judges best is returned.

    Args:
        samples: At least one.
        form: Which answers mean the same.
        choices: Of the question.
        choose_by: See `Strategy`.
    """
    groups: list[list[int]] = []
    nothing: list[int] = []
    for place, sample in enumerate(samples):
        if form.canonical(sample.text, choices) is None:
            nothing.append(place)
            continue
        for group in groups:
            if form.agrees(sample.text, samples[group[0]].text, choices):
                group.append(place)
                break
        else:
            groups.append([place])
    if not groups:
        return nothing[0], 0.0

    def votes(group: Sequence[int]) -> float:
        if choose_by == "majority":
            return float(len(group))
        probabilities = [samples[place].probability_correct for place in group]
        return max(probabilities) if choose_by == "self_evaluation" else sum(probabilities)

    weights = [votes(group) for group in groups]
    best = max(range(len(groups)), key=lambda number: (weights[number], -groups[number][0]))
    speaker = max(groups[best], key=lambda place: (samples[place].probability_correct, -place))
    whole = len(samples) if choose_by == "majority" else sum(weights)
    return speaker, weights[best] / whole if whole else 0.0
