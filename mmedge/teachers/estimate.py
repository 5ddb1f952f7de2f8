"""Estimates what a collection will take before anything is sent: requests, tokens, money.

Prompts are built and measured, not sent. Tokens per character and lengths of answers are taken from what the
store holds of this teacher; if it holds nothing, from English text (4 characters per token) and the answers that the
prompt shows as examples. Texts that must be sampled again are not included; the upper bound includes all that are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmedge.annotations.collection import Collection
from mmedge.annotations.records import TokenMeans
from mmedge.annotations.store import AnnotationStore
from mmedge.openai import Message
from mmedge.tasks import Example
from mmedge.teachers.plan import CollectionPlan
from mmedge.teachers.prompting import Asking

CHARACTERS_PER_TOKEN = 4.0
SAMPLE = 500  # prompts that are built to find their mean length


@dataclass(frozen=True)
class CollectionEstimate:
    """What is still to be collected, and what it takes.

    Attributes:
        questions: All questions of the task.
        cots: Chains of thought that are missing.
        evaluations: Self-evaluations that are missing.
        requests: Requests, if every text can be read.
        requests_at_most: If every attempt that is allowed is needed.
        prompt_tokens: Tokens that are read.
        completion_tokens: Tokens that are written.
        cost: What that costs.
        cost_at_most: If every attempt is needed and every text is as long as it may be.
        measured: Whether lengths were measured on this teacher's texts, or assumed.
    """

    questions: int
    cots: int
    evaluations: int
    requests: int
    requests_at_most: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    cost_at_most: float
    measured: bool

    def with_bound(self, requests_at_most: int) -> CollectionEstimate:
        """Return the same with another bound of the requests; its cost in proportion."""
        more = requests_at_most / self.requests_at_most if self.requests_at_most else 1.0
        return replace(self, requests_at_most=requests_at_most, cost_at_most=self.cost_at_most * more)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    examples: Sequence[Example], prompts: Asking, plan: CollectionPlan, store: AnnotationStore | None
) -> CollectionEstimate:
    """Return what is still to be asked.

    Args:
        examples: The questions.
        prompts: How they are asked.
        plan: What is wanted.
        store: What is there already, or None.
    """
    ids = {example.id for example in examples}
    cots_there = store.counts("cot", plan.cots) if store else {}
    evaluations_there = store.counts("evaluation", plan.cots, plan.evaluations) if store else {}
    missing = [plan.cots - cots_there.get(id_, 0) for id_ in ids]
    cots = sum(missing)
    evaluations = len(ids) * plan.cots * plan.evaluations - sum(evaluations_there.get(id_, 0) for id_ in ids)
    cot_requests = sum(count > 0 for count in missing) if plan.per_request is None else _ceil(cots, plan.per_request)
    evaluation_requests = _ceil(evaluations, plan.per_request or max(1, plan.evaluations))

    means = Collection(store).token_means() if store else {}
    cot, evaluation = _assumed(examples, prompts)
    cot, evaluation = means.get("cot", cot), means.get("evaluation", evaluation)
    prompt_tokens = cot_requests * cot.prompt + evaluation_requests * evaluation.prompt
    completion_tokens = cots * cot.text + evaluations * evaluation.text
    worst_prompt = (cots * cot.prompt + evaluations * evaluation.prompt) * plan.attempts
    worst_completion = (cots * plan.cot_tokens + evaluations * plan.evaluation_tokens) * plan.attempts
    return CollectionEstimate(
        questions=len(ids),
        cots=cots,
        evaluations=evaluations,
        requests=cot_requests + evaluation_requests,
        requests_at_most=round((cots + evaluations) * plan.attempts),
        prompt_tokens=round(prompt_tokens),
        completion_tokens=round(completion_tokens),
        cost=plan.prices.cost(prompt_tokens, completion_tokens),
        cost_at_most=plan.prices.cost(worst_prompt, worst_completion),
        measured=bool(means),
    )


def _assumed(examples: Sequence[Example], prompts: Asking) -> tuple[TokenMeans, TokenMeans]:
    """Return the tokens of a chain of thought and of an evaluation, and of their prompts, before any was seen."""
    sample = examples[:: max(1, len(examples) // SAMPLE)]
    cot, evaluation = prompts.typical_lengths()
    cot_prompt = _mean([_length(prompts.about_question(example)) for example in sample])
    evaluation_prompt = _mean([_length(prompts.about_cot(example, "x" * round(cot))) for example in sample])
    return (
        TokenMeans(cot_prompt / CHARACTERS_PER_TOKEN, cot / CHARACTERS_PER_TOKEN),
        TokenMeans(evaluation_prompt / CHARACTERS_PER_TOKEN, evaluation / CHARACTERS_PER_TOKEN),
    )


def _length(messages: Sequence[Message]) -> int:
    return sum(len(content) for _, content in messages)


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 0.0


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
