"""The bill of a run's annotations: what was sent, what came back, and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from mmedge.annotations.collection import Collection
from mmedge.annotations.records import Spending
from mmedge.annotations.store import AnnotationStore
from mmedge.recipe import OpenAITeacherSection, Recipe


@dataclass(frozen=True)
class Bill:
    """Sums over all requests of a store.

    Attributes:
        answered: Requests that brought texts.
        failed: How many others there were, by what happened, the most frequent first.
        texts: By kind (`cot`, `evaluation`), what became of all texts that came back and of how many.
        prompt_tokens: Tokens that the teacher read.
        completion_tokens: Tokens that it wrote.
        estimated: Requests whose tokens are estimated.
        cost: What all of it cost.
        lost: How much of that is for replies that did not arrive whole, at most.
        currency: Of the costs; None where no prices are given.
        seconds_per_answer: Mean time of a request that was answered, in seconds.
        unaccounted: What may have been in flight when a collector was killed, at most; not part of the sums.
    """

    answered: int
    failed: dict[str, int]
    texts: dict[str, dict[str, int]]
    prompt_tokens: int
    completion_tokens: int
    estimated: int
    cost: float
    lost: float
    currency: str | None
    seconds_per_answer: float | None
    unaccounted: Spending

    @property
    def requests(self) -> int:
        return self.answered + sum(self.failed.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "texts": self.texts,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "requests_with_estimated_tokens": self.estimated,
            "cost": self.cost,
            "of_which_for_answers_that_did_not_arrive_at_most": self.lost,
            "currency": self.currency,
            "seconds_per_answer": self.seconds_per_answer,
            "in_flight_when_killed": {"requests_at_most": self.unaccounted.requests, "cost_at_most": self.unaccounted.cost},
        }


def bill(recipe: Recipe, store: AnnotationStore) -> Bill | None:
    """Return the bill of a store, or None if no teacher was asked."""
    collection = Collection(store)
    totals = collection.totals()
    if not totals:
        return None
    prices = recipe.teacher.prices if isinstance(recipe.teacher, OpenAITeacherSection) else None
    answered = [total for total in totals if total.status == "ok"]
    failed: Counter[str] = Counter()
    for total in totals:
        if total.status != "ok":
            failed[total.status] += total.requests
    requests = sum(total.requests for total in answered)
    return Bill(
        answered=requests,
        failed=dict(failed.most_common()),
        texts=collection.outcomes(),
        prompt_tokens=sum(total.prompt_tokens for total in totals),
        completion_tokens=sum(total.completion_tokens for total in totals),
        estimated=sum(total.tokens_estimated for total in totals),
        cost=sum(total.cost for total in totals),
        lost=sum(total.cost for total in totals if total.status != "ok"),
        currency=prices.currency if prices is not None and (prices.input or prices.output) else None,
        seconds_per_answer=sum(total.seconds for total in answered) / requests if requests else None,
        unaccounted=collection.unaccounted(),
    )
