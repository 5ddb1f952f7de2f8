"""What is collected from a sampled teacher, and within which limits, from the recipe and the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmedge.annotations.records import Spending
from mmedge.openai import NO_PRICES, Prices
from mmedge.recipe import OpenAITeacherSection, SampledTeacherSection

UNLIMITED = 10**15
NOTHING_SPENT = Spending()


@dataclass(frozen=True)
class Limits:
    """The most that all collections of a store may send and spend together; None for no limit.

    Attributes:
        max_cost: In the currency of the prices.
        max_requests: Requests.
        elsewhere: What was sent and spent for the run beside these collections; it counts.
    """

    max_cost: float | None = None
    max_requests: int | None = None
    elsewhere: Spending = NOTHING_SPENT

    def spending(self) -> Spending | None:
        """Return both as what may be spent, or None where neither is limited."""
        if self.max_cost is None and self.max_requests is None:
            return None
        cost = float(UNLIMITED) if self.max_cost is None else max(0.0, self.max_cost - self.elsewhere.cost)
        requests = UNLIMITED if self.max_requests is None else max(0, self.max_requests - self.elsewhere.requests)
        return Spending(requests, cost)


NO_LIMITS = Limits()


@dataclass(frozen=True)
class CollectionPlan:
    """What is collected, and within which limits.

    Attributes:
        cots: Chains of thought per question.
        evaluations: Self-evaluations per chain of thought.
        attempts: How many responses may be sampled for each text that is wanted, at most.
        cot_tokens: The longest chain of thought, in tokens.
        evaluation_tokens: The longest evaluation.
        seed: All seeds derive from it.
        per_request: The most texts that one request asks for; None for as many as are needed.
        prices: What tokens cost.
        limits: The most that may be sent and spent.
        patience: Seconds without one success until the collection gives up.
    """

    cots: int
    evaluations: int
    attempts: float
    cot_tokens: int
    evaluation_tokens: int
    seed: int = 0
    per_request: int | None = None
    prices: Prices = NO_PRICES
    limits: Limits = NO_LIMITS
    patience: float = 600.0

    def wanted(self, kind: str) -> tuple[int, int]:
        """Return how many annotations of a kind belong together, and how many responses may be sampled for them at most."""
        count = self.cots if kind == "cot" else self.evaluations
        return count, max(count, round(count * self.attempts))

    def max_tokens(self, kind: str) -> int:
        """Return the longest text of a kind, in tokens."""
        return self.cot_tokens if kind == "cot" else self.evaluation_tokens


def collection_plan(section: SampledTeacherSection, stricter: Limits = NO_LIMITS) -> CollectionPlan:
    """Return what a recipe's teacher is asked for.

    Args:
        section: The recipe's.
        stricter: Limits that take the place of the recipe's.
    """
    plan = CollectionPlan(
        cots=section.cots_per_question,
        evaluations=section.evaluations_per_cot,
        attempts=section.attempts,
        cot_tokens=section.max_cot_tokens,
        evaluation_tokens=section.max_evaluation_tokens,
        seed=section.seed,
        per_request=1,  # on this machine every text is a row of a batch
        limits=stricter,
    )
    if not isinstance(section, OpenAITeacherSection):
        return plan
    return replace(
        plan,
        per_request=section.choices_per_request,
        prices=Prices(section.prices.input, section.prices.output),
        limits=Limits(
            section.max_cost if stricter.max_cost is None else stricter.max_cost,
            section.max_requests if stricter.max_requests is None else stricter.max_requests,
        ),
        patience=60 * section.patience_minutes,
    )
