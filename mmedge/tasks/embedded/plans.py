"""What the stories of version 2 of the embedded task say: their kinds, meanings and operations, and numbers that fit.

    Plan("goods", "product", ("loss",), "left")      so many in each of some boxes, then some are lost: how many are left?
    draw_numbers(plan, rng)                          6 * 8, then - 5

Knows nothing about words.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import cache

from mmedge.tasks.embedded import frames, measures
from mmedge.tasks.embedded.problem import SolutionStep, solve

LARGEST = 2000  # the largest quantity of a problem, given or intermediate
STEP_SHARES = (44, 40, 16)  # how often one, two and three operations are tried; numbers that do not fit cost the longer ones more

# The operation of each meaning: with a number of its own on the right, or on the left where the second field says so.
_OPERATIONS: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(("product", "times_as_many", "two_times", "times_older", "price", "over", "many"), ("*", False)),
    **dict.fromkeys(("sum", "more_than", "undone_loss", "two_more", "gain", "older", "in_years", "in_years_alone"), ("+", False)),
    **dict.fromkeys(("fewer_than", "undone_gain", "two_fewer", "loss", "done", "off", "younger", "part"), ("-", False)),
    **dict.fromkeys(("whole_part", "more", "lost", "years_ago", "years_ago_alone", "difference", "older_than"), ("-", False)),
    **dict.fromkeys(("fewer", "gained", "change", "younger_than", "difference_back", "purchase"), ("-", True)),
    **dict.fromkeys(("half_as_many", "halved", "half_as_old", "share", "pack"), ("/", False)),
    **dict.fromkeys(("reach", "fit"), ("/", True)),
    "together": ("+", False),
}  # fmt: skip
_LESS = ("loss", "halved", "purchase", "done", "off")  # events after which one asks what is left
_MORE = ("sum", "product", "gain")  # what one asks the total of
COMPARED = ("more_than", "fewer_than", "times_as_many", "half_as_many")  # sources with two people: the question must say whose
_ALONE = {  # sources that go with these questions alone
    "undone_loss": ("first",), "undone_gain": ("first",), "rate": ("over", "reach"), "each": ("many", "fit"),
    "two": ("together", "difference", "difference_back"), "two_more": ("together",), "two_fewer": ("together",),
    "two_times": ("together",), "whole": ("rest",), "whole_part": ("rest",),
}  # fmt: skip
_SOURCES = ("state", "product", "sum", "more_than", "fewer_than", "times_as_many", "half_as_many", *_ALONE)
_EVENTS = ("gain", "loss", "halved", "done", "off", "purchase", "part", "older", "younger", "times_older", "half_as_old")

KINDS: dict[str, frames.Frames] = {
    "goods": frames.GOODS,
    "crowd": frames.CROWD,
    "money": frames.MONEY,
    "length": measures.LENGTH,
    "stuff": measures.STUFF,
    "work": measures.WORK,
    "age": measures.AGE,
    "unit": measures.UNIT,
    "price": measures.PRICE,
    "pair": measures.PAIR,
    "part": measures.PART,
    "bill": measures.BILL,
}
_KIND_WEIGHTS = {"goods": 34, "crowd": 9, "money": 11, "length": 6, "stuff": 7, "work": 9, "age": 5, "unit": 5, "price": 4,
                 "pair": 5, "part": 4, "bill": 5}  # fmt: skip


@dataclass(frozen=True)
class StoryPlan:
    """What a problem says: its kind of story, and the meanings of its sentences."""

    kind: str
    source: str
    events: tuple[str, ...]
    question: str

    @property
    def meanings(self) -> tuple[str, ...]:
        """The meanings in the order of the sentences."""
        return (self.source, *self.events, self.question)

    @property
    def operations(self) -> int:
        """How many operations the answer takes."""
        return sum(meaning in _OPERATIONS for meaning in self.meanings) + ("purchase" in self.events)


def _sensible(plan: StoryPlan) -> bool:
    """Whether people would ask this question after these sentences."""
    source, events, question = plan.source, plan.events, plan.question
    if not 1 <= plan.operations <= 3 or events.count("halved") > 1:
        return False
    if "purchase" in events and (source != "state" or events[0] != "purchase" or "purchase" in events[1:]):
        return False
    if source in _ALONE:
        return question in _ALONE[source] and events == (("part",) if source == "whole" else ())
    if question in {asked for questions in _ALONE.values() for asked in questions}:
        return False
    if plan.kind == "age":
        alone = question in ("older_than", "younger_than") or question.endswith("_alone")
        return len(events) == (0 if alone else 1)
    if plan.kind == "work" and (source == "state" or "done" in events or question in ("pack", "share")):  # what is yet to be done
        return source == "state" and (events, question) in ((("done",), "left"), (("done",), "share"), ((), "share"), ((), "pack"))
    if question == "left":
        return bool(events) and events[-1] in _LESS
    if question == "total":
        return source not in COMPARED and not set(events) & set(_LESS) and bool({source, *events} & set(_MORE))
    if question == "lost":
        return not set(events) & set(_LESS)
    return question != "count" or bool(events) or source != "sum"


@cache
def plans(kind: str) -> dict[int, tuple[StoryPlan, ...]]:
    """Return every sensible plan of a kind of story, by its number of operations."""
    meanings = KINDS[kind]
    sources = [name for name in _SOURCES if name in meanings]
    events = [name for name in _EVENTS if name in meanings]
    questions = [name for name in meanings if name not in (*sources, *events)]
    found: dict[int, list[StoryPlan]] = {1: [], 2: [], 3: []}
    for source, question in itertools.product(sources, questions):
        for happened in ((), *itertools.product(events), *itertools.product(events, events)):
            plan = StoryPlan(kind, source, happened, question)
            if _sensible(plan):
                found[plan.operations].append(plan)
    return {operations: tuple(made) for operations, made in found.items()}


def draw_plan(rng: random.Random) -> StoryPlan:
    """Return what a problem says."""
    kind = rng.choices(tuple(_KIND_WEIGHTS), tuple(_KIND_WEIGHTS.values()))[0]
    by_operations = plans(kind)
    weights = [share if by_operations[index + 1] else 0 for index, share in enumerate(STEP_SHARES)]
    chosen = by_operations[rng.choices((1, 2, 3), weights)[0]]
    question = rng.choice(sorted({plan.question for plan in chosen}))  # else the few questions with many plans would be most
    return rng.choice([plan for plan in chosen if plan.question == question])


@dataclass
class Numbers:
    """The numbers of a problem as they are drawn: a quantity that operations change.

    Attributes:
        given: By the name of their slot, a list for each sentence.
        steps: The operations so far.
        quantity: What the last one gave.
    """

    rng: random.Random
    given: list[dict[str, int]] = field(default_factory=list)
    steps: list[SolutionStep] = field(default_factory=list)
    quantity: int = 0

    def apply(self, meaning: str, value: int) -> None:
        """Change the quantity; it is -1 where that is not whole."""
        operator, reversed_ = _OPERATIONS[meaning]
        known = None if self.steps else self.quantity
        left, right = (value, self.quantity) if reversed_ else (self.quantity, value)
        self.steps.append(
            SolutionStep(operator, value, known, meaning) if reversed_ else SolutionStep(operator, known, value, meaning)
        )
        if operator == "/":
            self.quantity = left // right if right > 0 and left % right == 0 else -1
        else:
            self.quantity = {"+": left + right, "-": left - right, "*": left * right}[operator]


def _amount(rng: random.Random, *, money: bool = False) -> int:
    """Return a quantity as word problems have them: small, sometimes a round hundred."""
    if rng.random() < (0.25 if money else 0.12):
        return 10 * rng.randint(5, 60) if rng.random() < 0.7 else 50 * rng.randint(2, 18)
    return rng.randint(3, 99)


def _draw_source(plan: StoryPlan, numbers: Numbers) -> None:
    rng, source, kind = numbers.rng, plan.source, plan.kind
    given: dict[str, int] = {}
    if source in ("product", "times_as_many", "two_times", "rate", "each"):
        given["n"] = rng.randint(2, 30) if rng.random() < 0.85 else 10 * rng.randint(2, 20)
    else:
        given["n"] = rng.randint(5, 70) if kind == "age" else _amount(rng, money=kind in ("money", "bill"))
    numbers.quantity = given["n"]
    if source in ("product", "times_as_many", "two_times"):
        given["b"] = rng.randint(2, 5) if source != "product" else rng.randint(2, 12)
        numbers.apply(source, given["b"])
    elif source in ("half_as_many",):
        numbers.apply(source, 2)
    elif source in ("fewer_than", "undone_gain", "two_fewer", "whole_part"):
        given["m"] = rng.randint(2, max(2, given["n"] - 1))
        numbers.apply(source, given["m"])
    elif source == "two":
        given["m"] = _amount(rng)
    elif source in _OPERATIONS:
        given["m"] = _amount(rng)
        numbers.apply(source, given["m"])
    numbers.given.append(given)


def _draw_event(event: str, numbers: Numbers) -> None:
    rng, quantity = numbers.rng, numbers.quantity
    given: dict[str, int] = {}
    if event in ("halved", "half_as_old"):
        numbers.apply(event, 2)
    elif event == "purchase":
        given["b"], given["k"] = rng.randint(2, 9), rng.randint(2, 30)
        numbers.steps.append(SolutionStep("*", given["b"], given["k"], "product"))
        numbers.quantity = given["b"] * given["k"]
        numbers.apply(event, quantity)
        numbers.given.append(given)
        return
    else:
        takes = _OPERATIONS[event][0] == "-"
        high = max(2, quantity - 1) if takes else 5 if event == "times_older" else 20 if event == "older" else 60
        given["e"] = rng.randint(2, high)
        numbers.apply(event, given["e"])
    numbers.given.append(given)


def _draw_question(plan: StoryPlan, numbers: Numbers) -> None:
    rng, question, quantity = numbers.rng, plan.question, numbers.quantity
    given: dict[str, int] = {}
    if question in ("together", "difference", "difference_back"):
        first = numbers.given[0]
        if plan.source == "two":
            numbers.apply(question, first["m"])
        else:
            numbers.steps.append(SolutionStep("+", first["n"], None, question))
            numbers.quantity += first["n"]
    elif question in _OPERATIONS:
        operator, reversed_ = _OPERATIONS[question]
        if operator == "/" and not reversed_:
            divisors = [value for value in range(2, 26) if quantity % value == 0 and quantity // value > 1]
            given["q"] = rng.choice(divisors) if divisors else 0
        elif operator == "/":
            given["q"] = quantity * rng.randint(2, 12)
        elif operator == "*":
            given["q"] = rng.randint(2, 12)
        elif operator == "-" and not reversed_:
            given["q"] = rng.randint(2, max(2, quantity - 1))
        elif question == "change":
            given["q"] = next((note for note in (10, 20, 50, 100, 200, 500) if note > quantity), quantity + rng.randint(2, 60))
        else:
            given["q"] = rng.randint(2, 30) if operator == "+" else quantity + rng.randint(2, 60)
        numbers.apply(question, given["q"])
    numbers.given.append(given)


def draw_numbers(plan: StoryPlan, rng: random.Random) -> Numbers | None:
    """Return numbers for a plan, or None where results are not whole, positive, small and told from all that is given."""
    numbers = Numbers(rng)
    _draw_source(plan, numbers)
    for event in plan.events:
        if not 1 < numbers.quantity <= LARGEST:
            return None
        _draw_event(event, numbers)
    if not 1 < numbers.quantity <= LARGEST:
        return None
    _draw_question(plan, numbers)
    given = [value for part in numbers.given for value in part.values()]
    given += [2] if set(plan.meanings) & {"halved", "half_as_many", "half_as_old"} else []
    if not 0 < numbers.quantity <= LARGEST or max(given) > LARGEST or len(set(given)) < len(given):
        return None
    if plan.kind == "age" and max(numbers.quantity, *given) > 100:
        return None
    results = [solve(tuple(numbers.steps[: index + 1])).value for index in range(len(numbers.steps) - 1)]
    if any(result is None or result in given or not 0 < result <= LARGEST for result in results) or len(set(results)) < len(
        results
    ):
        return None
    return numbers
