"""The embedded task: what it promises about problems, splits and determinism."""

from __future__ import annotations

import re
from collections import Counter

from mmedge.tasks.embedded.grammar import DISTRACTORS, EVENTS, QUESTIONS, SOURCES
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.expressions import find_numbers, parse

TASK = ArithmeticTask(train=1500, test=150)


def _sentence_parts(held_out: bool) -> list[re.Pattern[str]]:
    """Return patterns of the fixed words of every sentence pattern of one kind."""
    found = []
    for group in (*SOURCES.values(), *EVENTS.values(), *QUESTIONS.values(), DISTRACTORS):
        for pattern in group.held_out if held_out else group.seen:
            if pattern:
                escaped = re.escape(pattern)
                escaped = re.sub(r"\\\[(.*?)\\\]", lambda match: "(?:" + match[1].replace(r"\|", "|") + ")", escaped)
                found.append(re.compile(re.sub(r"\\\{\w\\\}", r"\\w+", escaped), re.IGNORECASE))
    return found


def test_all_operations_and_one_and_two_steps_occur() -> None:
    problems = TASK.problems()["train"][0].values()
    operators = Counter(step.operator for problem in problems for step in problem.steps)
    assert all(operators[operator] > 0.08 * sum(operators.values()) for operator in "+-*/"), operators
    steps = Counter(len(problem.steps) for problem in problems)
    assert set(steps) == {1, 2} and min(steps.values()) > 500
    assert 0.15 < sum(problem.distractor is not None for problem in problems) / len(problems) < 0.25


def test_the_share_of_training_problems_with_a_distractor_is_ours_to_set_and_leaves_the_tests_alone() -> None:
    harder = ArithmeticTask(train=600, test=150, train_distractors=0.6)
    problems = list(harder.problems()["train"][0].values())
    assert 0.5 < sum(problem.distractor is not None for problem in problems) / len(problems) < 0.7
    assert harder.load().tests == TASK.load().tests


def test_every_problem_is_whole_and_its_label_uses_only_its_own_numbers() -> None:
    for split, (problems, _) in TASK.problems().items():
        for problem in problems.values():
            value = problem.expression.value
            assert value is not None and value.denominator == 1 and value > 0, (split, problem)
            assert set(problem.expression.numbers()) <= set(find_numbers(problem.text)), problem.text
            assert parse(problem.expression.text()) == problem.expression
            assert "{" not in problem.text and "[" not in problem.text


def test_a_distractor_is_in_the_question_and_not_in_the_solution() -> None:
    for problem in TASK.problems()["train"][0].values():
        if problem.distractor is not None:
            assert problem.distractor in find_numbers(problem.text)
            assert problem.distractor not in problem.expression.numbers()


def test_held_out_patterns_never_occur_in_training() -> None:
    held_out = _sentence_parts(held_out=True)
    for problem in TASK.problems()["train"][0].values():
        assert not any(pattern.search(problem.text) for pattern in held_out), problem.text


def test_every_held_out_problem_uses_a_held_out_pattern() -> None:
    held_out = _sentence_parts(held_out=True)
    for problem in TASK.problems()["held_out_patterns"][0].values():
        assert any(pattern.search(problem.text) for pattern in held_out), problem.text


def test_splits_share_no_question_and_are_the_same_every_time() -> None:
    splits = TASK.load()
    texts = [example.question for example in (*splits.train, *splits.tests["new_combinations"], *splits.tests["held_out_patterns"])]
    assert len(texts) == len(set(texts)) == 1800
    assert ArithmeticTask(train=1500, test=150).load() == splits
    assert ArithmeticTask(seed=1, train=1500, test=150).load() != splits
