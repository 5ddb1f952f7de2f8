"""The embedded task: arithmetic word problems of our own, written by a grammar, so that the whole chain runs offline.

    "Mara has 6 boxes with 8 plums in each. Noah read 31 pages last night. Then Mara sells 5 plums.
     How many plums are there now?"                                                   → ( 6 * 8 ) - 5

A problem is a source of a quantity, perhaps an event, and a question; each part is a choice of meaning, of sentence pattern
and of words. There are one- and two-step problems, all four operations, and numbers that are not needed. Two test splits:
`new_combinations` (known sentence patterns, other names, things and numbers) and `held_out_patterns` (every sentence that
has one is a pattern that training never shows).
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass, field, replace

from mmedge.errors import MmedgeError
from mmedge.tasks.base import Example
from mmedge.tasks.embedded import stories
from mmedge.tasks.embedded.grammar import CONTAINERS, DISTRACTORS, EVENTS, NAMES, QUESTIONS, SOURCES, THINGS, Patterns, expand
from mmedge.tasks.embedded.patterns import Group
from mmedge.tasks.embedded.problem import DISTRACTOR_SHARE, Problem, SolutionStep, solve
from mmedge.tasks.forms.expression import ExpressionForm
from mmedge.tasks.task import Splits

LARGEST = 400  # the largest quantity of a problem, given or intermediate
ONE_STEP_SHARE = 0.5
UNFAMILIAR = "unfamiliar_patterns"

_SOURCE_OPERATOR = {"direct": None, "product": "*", "sum": "+", "more_than": "+", "times_as_many": "*"}
_EVENT_OPERATOR = {"none": None, "gain": "+", "loss": "-"}
_QUESTION_OPERATOR = {"count": None, "share": "/", "pack": "/", "price": "*", "more": "-", "gained": "-", "lost": "-"}


Plan = tuple[str, str, str]  # the meanings of source, event and question


def _operations(plan: Plan) -> int:
    """Return how many operations a plan takes."""
    source, event, question = plan
    operators = (_SOURCE_OPERATOR[source], _EVENT_OPERATOR[event], _QUESTION_OPERATOR[question])
    return sum(operator is not None for operator in operators)


def _plans() -> list[Plan]:
    """Return every combination of source, event and question that takes one or two operations."""
    plans = itertools.product(_SOURCE_OPERATOR, _EVENT_OPERATOR, _QUESTION_OPERATOR)
    return [plan for plan in plans if _operations(plan) in (1, 2)]


PLANS = _plans()
ONE_STEP_PLANS = [plan for plan in PLANS if _operations(plan) == 1]
TWO_STEP_PLANS = [plan for plan in PLANS if _operations(plan) == 2]


def _draw_numbers(plan: Plan, rng: random.Random) -> tuple[dict[str, int], list[SolutionStep]] | None:
    """Return random numbers for a plan, or None where the results are not whole, positive, distinct and small."""
    source, event, question = plan
    numbers: dict[str, int] = {}
    steps: list[SolutionStep] = []
    if source in ("product", "times_as_many"):
        numbers["b"], numbers["n"] = rng.randint(2, 9), rng.randint(2, 25)
        quantity = numbers["b"] * numbers["n"]
        steps.append(SolutionStep("*", numbers["b"], numbers["n"], source))
    else:
        numbers["n"] = quantity = rng.randint(3, 99)
        if source in ("sum", "more_than"):
            numbers["m"] = rng.randint(2, 60)
            quantity += numbers["m"]
            steps.append(SolutionStep("+", numbers["n"], numbers["m"], source))

    def apply(operator: str, name: str, value: int, part: str, *, reversed_: bool = False) -> int:
        numbers[name] = value
        known = None if steps else quantity
        steps.append(SolutionStep(operator, value, known, part) if reversed_ else SolutionStep(operator, known, value, part))
        if reversed_:
            return value - quantity
        if operator == "/":
            return quantity // value if quantity % value == 0 else -1
        return {"+": quantity + value, "-": quantity - value, "*": quantity * value}[operator]

    if event == "gain":
        quantity = apply("+", "e", rng.randint(2, 60), event)
    elif event == "loss":
        quantity = apply("-", "e", rng.randint(2, max(2, quantity - 1)), event)
    if question in ("share", "pack"):
        divisors = [divisor for divisor in range(2, 13) if quantity % divisor == 0 and quantity // divisor > 1]
        if not divisors:
            return None
        quantity = apply("/", "q", rng.choice(divisors), question)
    elif question == "price":
        quantity = apply("*", "q", rng.randint(2, 9), question)
    elif question in ("more", "lost"):
        quantity = apply("-", "q", rng.randint(1, max(1, quantity - 1)), question)
    elif question == "gained":
        quantity = apply("-", "q", quantity + rng.randint(2, 60), question, reversed_=True)
    intermediate = solve(tuple(steps[:1])).value
    given = list(numbers.values())
    if not 0 < quantity <= LARGEST or len(set(given)) < len(given):
        return None
    if intermediate is None or intermediate > LARGEST or (len(steps) == 2 and intermediate in given):
        return None
    return numbers, steps


def generate(rng: random.Random, *, held_out: bool, distractors: float = DISTRACTOR_SHARE) -> Problem:
    """Write one problem.

    Args:
        rng: The only source of randomness.
        held_out: Whether every part that has held-out sentence patterns uses one of them.
        distractors: How often there is a number that the answer does not need.
    """
    while True:
        plan = rng.choice(ONE_STEP_PLANS if rng.random() < ONE_STEP_SHARE else TWO_STEP_PLANS)
        drawn = _draw_numbers(plan, rng)
        if drawn is not None:
            break
    numbers, steps = drawn
    people = rng.sample(NAMES, 3)
    thing, other_thing = rng.sample(THINGS, 2)
    slots = {"A": people[0], "B": people[1], "D": people[2], "T": thing, "U": other_thing, "C": rng.choice(CONTAINERS)}
    slots |= {name: str(value) for name, value in numbers.items()}

    def sentence(patterns: Patterns, number: str) -> str:
        pattern = rng.choice(patterns.held_out if held_out else patterns.seen)
        return expand(pattern, slots | ({"k": str(numbers[number])} if number in numbers else {}), rng)

    parts = [sentence(SOURCES[plan[0]], "n"), sentence(EVENTS[plan[1]], "e")]
    question = sentence(QUESTIONS[plan[2]], "q")
    distractor = None
    if rng.random() < distractors:
        distractor = rng.choice([value for value in range(2, 60) if value not in numbers.values()])
        pattern = rng.choice(DISTRACTORS.held_out if held_out else DISTRACTORS.seen)
        parts.insert(rng.randint(0, 2), expand(pattern, slots | {"k": str(distractor)}, rng))
    text = " ".join(part for part in [*parts, question] if part)
    return Problem(text, tuple(_in_reading_order(step, text) for step in steps), thing, people[0], distractor)


def _in_reading_order(step: SolutionStep, text: str) -> SolutionStep:
    """Return a sum or product of two given numbers with the operand first that the text names first, as people write it."""
    if step.operator not in "+*" or step.left is None or step.right is None:
        return step
    words = re.findall(r"\d+", text)
    if words.index(str(step.right)) < words.index(str(step.left)):
        return replace(step, left=step.right, right=step.left)
    return step


@dataclass(frozen=True)
class ArithmeticTask:
    """The embedded task.

    Args:
        seed: The problems depend on it alone.
        train: How many training problems.
        test: How many problems in each of the two test splits.
        version: 1, or 2 for hundreds of sentence patterns (`stories.py`).
        unfamiliar: Version 2: how many validation problems there are of patterns that neither training nor the tests have.
        train_distractors: The share of training problems with a number that the answer does not need; in the tests it is 0.2
            always. They are what a student learns last: with 0.2 it could answer four in five while it uses every number.
    """

    seed: int = 0
    train: int = 8000
    test: int = 400
    train_distractors: float = DISTRACTOR_SHARE
    version: int = 1
    unfamiliar: int = 200
    name: str = "arithmetic"
    form: ExpressionForm = field(default_factory=ExpressionForm)

    def problems(self) -> dict[str, tuple[dict[str, Problem], bool]]:
        """Return the problems of each split by example id, and whether the split holds out sentence patterns."""
        splits: dict[str, tuple[dict[str, Problem], bool]] = {}
        seen: set[str] = set()
        sizes: list[tuple[str, int, Group, float]] = [
            ("new_combinations", self.test, "trained", DISTRACTOR_SHARE),
            ("held_out_patterns", self.test, "held_out", DISTRACTOR_SHARE),
            ("train", self.train, "trained", self.train_distractors),
        ]
        if self.version > 1:
            sizes.append((UNFAMILIAR, self.unfamiliar, "calibration", DISTRACTOR_SHARE))
        for split, size, group, distractors in sizes:
            held_out = group != "trained"
            rng = random.Random(f"arithmetic/{self.seed}/{split}")
            made: dict[str, Problem] = {}
            attempts = 0
            while len(made) < size:
                attempts += 1
                if attempts > 20 * size + 1000:
                    raise MmedgeError(f"the grammar cannot write {size} different problems", "ask for fewer")
                if self.version > 1:
                    problem = stories.generate(rng, group, distractors)
                else:
                    problem = generate(rng, held_out=held_out, distractors=distractors)
                if problem.text not in seen:
                    seen.add(problem.text)
                    made[f"arithmetic-{split}-{len(made):05d}"] = problem
            splits[split] = (made, held_out)
        return splits

    def synthesized(self, number: int) -> Problem:
        """Return a problem beside those of the splits; it depends on the seed and its number alone."""
        rng = random.Random(f"arithmetic/{self.seed}/synthesized/{number}")
        if self.version > 1:
            return stories.generate(rng, "trained", self.train_distractors)
        return generate(rng, held_out=False, distractors=self.train_distractors)

    def load(self) -> Splits:
        """Generate the examples; the same seed gives the same examples on every machine."""
        splits = {
            split: tuple(Example(id_, problem.text, problem.expression.text()) for id_, problem in made.items())
            for split, (made, _) in self.problems().items()
        }
        return Splits(splits.pop("train"), splits, splits.pop(UNFAMILIAR, ()))
