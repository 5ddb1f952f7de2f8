"""The embedded task's teacher: it reasons in several ways, is wrong in known ways, and evaluates itself.

    cot         "There are 6 boxes of 8 plums, which makes 6 * 8 = 48 plums. Then 48 - 5 = 43. The answer is 43."
    evaluation  "6 times 8 is right for the plums in the boxes, and taking away 5 is right. Verdict: correct"

A given share of the chains of thought is flawed as real ones are: a wrong operation, a misread number, a number that has
nothing to do with the question, a slip in the sum. Evaluations name the flaw, and are wrong themselves at a set rate. What it
writes depends on the seed, the question and the sample's number alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mmedge.annotations.annotation import Annotation
from mmedge.errors import MmedgeError
from mmedge.storage import sha256_json
from mmedge.tasks import Example
from mmedge.tasks.embedded.problem import Problem, SolutionStep
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.expressions import number_text
from mmedge.tasks.synthesized import PREFIX, is_synthesized

NAME = "embedded"
FLAWS = ("wrong operation", "misread number", "distractor used", "slip in the sum")
FLAW_WEIGHTS = (4, 3, 3, 1)  # large teachers mistake what is asked far more often than they miscalculate

_WORDS = {
    "+": ("adding {right} to {left}", "{left} and {right} together", "the sum of {left} and {right}"),
    "-": ("taking {right} from {left}", "the difference of {left} and {right}", "{left} without {right}"),
    "*": ("{left} times {right}", "multiplying {left} by {right}", "the product of {left} and {right}"),
    "/": ("dividing {left} by {right}", "{left} split by {right}", "{left} in parts of {right}"),
}
_REASONS = {
    "product": "every one holds the same number",
    "sum": "both kinds count",
    "more_than": "one has more than the other",
    "times_as_many": "it is so many times as much",
    "gain": "some are added",
    "loss": "some go away",
    "share": "they are shared equally",
    "pack": "they are packed in equal groups",
    "price": "every one counts the same",
    "more": "two amounts are compared",
    "gained": "the rest is new",
    "lost": "the rest is gone",
    # what only version 2 of the task has
    "fewer_than": "one has less than the other",
    "half_as_many": "it is half as much",
    "halved": "half of it goes away",
    "undone_loss": "what is gone was there before",
    "undone_gain": "what was added was not there before",
    "two_more": "one has more than the other",
    "two_fewer": "one has less than the other",
    "two_times": "it is so many times as much",
    "together": "both amounts count",
    "difference": "two amounts are compared",
    "difference_back": "two amounts are compared",
    "purchase": "what is paid goes away",
    "done": "some is done",
    "off": "it costs less",
    "change": "the rest comes back",
    "part": "the others are the rest",
    "whole_part": "the others are the rest",
    "fewer": "two amounts are compared",
    "over": "every time counts the same",
    "many": "every one counts the same",
    "reach": "it takes equal parts",
    "fit": "it takes equal parts",
    "older": "one is older",
    "younger": "one is younger",
    "times_older": "it is so many times as much",
    "half_as_old": "it is half as much",
    "in_years": "the years are added",
    "in_years_alone": "the years are added",
    "years_ago": "the years were not there yet",
    "years_ago_alone": "the years were not there yet",
    "older_than": "two ages are compared",
    "younger_than": "two ages are compared",
}
_NAMES_OF_OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a chain of thought.

    Attributes:
        kind: One of `FLAWS`.
        step: Index of the step that is wrong.
        detail: What an attentive evaluator says about it.
    """

    kind: str
    step: int
    detail: str


@dataclass(frozen=True)
class Solution:
    """A worked solution: steps with their operands and results written out, and the flaw, if there is one."""

    steps: tuple[tuple[str, Fraction, Fraction, Fraction, str], ...]  # operator, left, right, result, part
    flaw: Flaw | None

    @property
    def answer(self) -> Fraction:
        return self.steps[-1][3]


def _calculate(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else left


def _work_out(
    steps: Sequence[SolutionStep], slip: tuple[int, int] | None = None
) -> list[tuple[str, Fraction, Fraction, Fraction, str]]:
    worked: list[tuple[str, Fraction, Fraction, Fraction, str]] = []
    result = Fraction(0)
    for index, step in enumerate(steps):
        left = result if step.left is None else Fraction(step.left)
        right = result if step.right is None else Fraction(step.right)
        result = _calculate(step.operator, left, right)
        if slip is not None and slip[0] == index:
            result += slip[1]
        worked.append((step.operator, left, right, result, step.part))
    return worked


def _misread(value: int, rng: random.Random) -> int:
    digits = str(value)
    if len(digits) == 2 and digits[0] != digits[1] and digits[1] != "0" and rng.random() < 0.4:
        return int(digits[::-1])
    place = rng.randrange(len(digits))
    other = rng.choice([digit for digit in "123456789" if digit != digits[place]])
    return int(digits[:place] + other + digits[place + 1 :])


def _flawed(problem: Problem, rng: random.Random) -> Solution:
    """Return a solution with one flaw whose answer is wrong."""
    right_answer = _work_out(problem.steps)[-1][3]
    while True:
        kind = rng.choices(FLAWS, FLAW_WEIGHTS)[0]
        index = rng.randrange(len(problem.steps))
        step = problem.steps[index]
        steps, slip, detail = list(problem.steps), None, ""
        if kind == "wrong operation":
            operator = rng.choice([other for other in "+-*/" if other != step.operator])
            steps[index] = replace(step, operator=operator)
            wrong, right = _NAMES_OF_OPERATIONS[operator], _NAMES_OF_OPERATIONS[step.operator]
            detail = f"It must {right} and not {wrong}, because {_REASONS[step.part]}."
        elif kind in ("misread number", "distractor used"):
            side = "left" if step.right is None or (step.left is not None and rng.random() < 0.5) else "right"
            old = step.left if side == "left" else step.right
            if old is None or (kind == "distractor used" and problem.distractor is None):
                continue
            new = _misread(old, rng) if kind == "misread number" else problem.distractor or 0
            steps[index] = replace(step, left=new) if side == "left" else replace(step, right=new)
            if kind == "misread number":
                if str(new) in problem.text.replace(".", " ").replace(",", " ").split():
                    continue
                detail = f"There is no {new} in the question, it says {old}."
            else:
                detail = f"The {new} has nothing to do with it, it should use {old}."
        else:
            slip = (index, rng.choice((-10, -2, -1, 1, 2, 10)))
        worked = _work_out(steps, slip)
        if any(result <= 0 or (operator == "/" and result.denominator > 1) for operator, _, _, result, _ in worked):
            continue
        if worked[-1][3] == right_answer:
            continue
        if slip is not None:
            operator, left, right_, result, _ = worked[index]
            true = number_text(_calculate(operator, left, right_))
            detail = f"{number_text(left)} {operator} {number_text(right_)} is {true} and not {number_text(result)}."
        return Solution(tuple(worked), Flaw(kind, index, detail))


def _write_cot(problem: Problem, solution: Solution, style: int, rng: random.Random) -> str:
    """Write a solution in one of several styles."""
    thing, lines = problem.thing, []
    for index, (operator, left, right, result, part) in enumerate(solution.steps):
        slots = {"left": number_text(left), "right": number_text(right)}
        equation = f"{slots['left']} {operator} {slots['right']} = {number_text(result)}"
        words = rng.choice(_WORDS[operator]).format(**slots)
        last = index == len(solution.steps) - 1
        if style == 0:
            lines.append(f"{'Then' if index else 'First'} {_REASONS[part]}, so {equation}.")
        elif style == 1:
            lines.append(f"{words[0].upper()}{words[1:]} gives {equation}{'' if last else ' ' + thing}.")
        elif style == 2:
            lines.append(f"Because {_REASONS[part]}, we {_NAMES_OF_OPERATIONS[operator]}: {equation}.")
        elif style == 3:
            lines.append(f"{'Now' if index else 'For the ' + thing + ' of ' + problem.person}, {equation}.")
        else:
            lines.append(f"Step {index + 1}: {_REASONS[part]}. {equation}.")
    ending = ("The answer is {}.", "Answer: {}", "So the answer is {}.", "Hence the answer is {}.", "The answer is {}.")[style]
    return " ".join([*lines, ending.format(number_text(solution.answer))])


def _write_evaluation(solution: Solution, *, finds_fault: bool, rng: random.Random) -> str:
    """Write an evaluation that finds the flaw, finds none, or invents one."""
    if finds_fault and solution.flaw is not None:
        return solution.flaw.detail
    operator, left, right, _, part = rng.choice(solution.steps)
    if finds_fault:
        other = rng.choice([other for other in "+-*/" if other != operator])
        return f"It must {_NAMES_OF_OPERATIONS[other]} and not {_NAMES_OF_OPERATIONS[operator]} here."
    operation = f"{number_text(left)} {operator} {number_text(right)}"
    return rng.choice(
        (
            f"The numbers are those of the question, and {operation} is right because {_REASONS[part]}.",
            f"{operation} is what is needed, because {_REASONS[part]}.",
            f"It is right to {_NAMES_OF_OPERATIONS[operator]}, since {_REASONS[part]}, and the numbers fit.",
        )
    )


@dataclass(frozen=True)
class EmbeddedTeacher:
    """The teacher of the arithmetic task.

    Attributes:
        task: The task whose problems it explains.
        seed: What it writes depends on it.
        cots_per_question: m, how many differently worded chains of thought a question gets.
        evaluations_per_cot: n, how many self-evaluations each of them gets.
        flawed_share: The share of chains of thought that are flawed.
        wrong_evaluation_share: The share of self-evaluations with the wrong verdict.
    """

    task: ArithmeticTask
    seed: int = 0
    cots_per_question: int = 3
    evaluations_per_cot: int = 1
    flawed_share: float = 0.25
    wrong_evaluation_share: float = 0.03

    def fingerprint(self) -> str:
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "task"}
        task = {name: getattr(self.task, name) for name in ("seed", "train", "test", "train_distractors")}
        if self.task.version > 1:
            task |= {"version": self.task.version, "unfamiliar": self.task.unfamiliar}
        return sha256_json({"kind": NAME, "version": 1, "task": task, **settings})

    def solution(self, problem: Problem, example_id: str, sample: int) -> Solution:
        """Return how this teacher works a problem out in its `sample`-th chain of thought."""
        rng = random.Random(f"{self.seed}/solution/{example_id}/{sample}")
        if rng.random() < self.flawed_share:
            return _flawed(problem, rng)
        return Solution(tuple(_work_out(problem.steps)), None)

    def chains_of_thought(self, examples: Sequence[Example]) -> Iterator[Annotation]:
        problems = self._problems()
        for example in examples:
            problem = self._problem(problems, example.id)
            styles = list(range(5))
            random.Random(f"{self.seed}/styles/{example.id}").shuffle(styles)
            for sample in range(self.cots_per_question):
                origin = f"seed {self.seed}"
                rng = random.Random(f"{self.seed}/wording/{example.id}/{sample}")
                solution = self.solution(problem, example.id, sample)
                text = _write_cot(problem, solution, styles[sample % len(styles)], rng)
                yield Annotation(example.id, "cot", sample, 0, text, None, NAME, origin)

    def self_evaluations(self, cots: Sequence[tuple[Example, Annotation]]) -> Iterator[Annotation]:
        problems = self._problems()
        for example, cot in cots:
            solution = self.solution(self._problem(problems, example.id), example.id, cot.sample)
            for number in range(self.evaluations_per_cot):
                rng = random.Random(f"{self.seed}/evaluation/{example.id}/{cot.sample}/{number}")
                mistaken = rng.random() < self.wrong_evaluation_share
                finds_fault = (solution.flaw is not None) != mistaken
                text = _write_evaluation(solution, finds_fault=finds_fault, rng=rng)
                verdict = "wrong" if finds_fault else "correct"
                yield Annotation(example.id, "evaluation", cot.sample, number, text, verdict, NAME, f"seed {self.seed}")

    def _problems(self) -> dict[str, Problem]:
        return {id_: problem for made, _ in self.task.problems().values() for id_, problem in made.items()}

    def _problem(self, problems: dict[str, Problem], example_id: str) -> Problem:
        number = example_id.removeprefix(PREFIX)
        if is_synthesized(example_id) and number.isdecimal():
            return self.task.synthesized(int(number))
        if example_id not in problems:
            raise MmedgeError(f"the embedded teacher does not know the question {example_id!r}", "use it with its own task")
        return problems[example_id]
