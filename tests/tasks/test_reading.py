"""Reading teachers' texts: the dirt that real ones contain, and what is never accepted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmedge.tasks import ChainOfThought, Unparsed, Verdict
from mmedge.tasks.files import commonsenseqa, svamp
from mmedge.tasks.judges import ChoiceJudge
from mmedge.tasks.reading import read_arithmetic, read_choice, read_self_evaluation
from mmedge.teachers.recorded import RecordedTeacher

LUKE = "Luke scored 84 points after playing 2 rounds. How many points did he score per round?"
CHOICES = ("park", "coloring book", "garden center", "math problem", "gravity")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Luke has 84. 84 / 2 = 42. The answer is (84 / 2).\n\nQ: There are 120 students.\nA: The answer is 40.", "84 / 2"),
        (" Rationale: So, 84 points / 2 rounds = 42 points per round. Answer: 42", "84 / 2"),
        ("we divide: 84 / 2 = 42 points per round. Hence the answer is 42.", "84 / 2"),
        ("Hence the answer is 84 / 2 = 42. Answer: 42", "84 / 2"),
        ("84.0 / 2.0", "84 / 2"),
        ("84 / 2 = 42", "84 / 2"),
        ("It is many. Answer: 42", "42"),
        ("He scored 84 / 2 = 41. The answer is 41.", "41"),  # the expression does not yield it
        ("Answer: -3", "-3"),
        ("The answer is $ 1,234.5.", "1234.5"),
    ],
)
def test_the_expression_that_yields_the_answer_is_the_pseudo_label(text: str, label: str) -> None:
    found = read_arithmetic(text, LUKE)
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == label
    assert found.rationale
    assert "Q:" not in found.rationale


def test_intermediate_results_are_written_in_the_questions_numbers() -> None:
    question = "A mailman gives 4 letters to each of 17 houses in each of 16 blocks. How many letters?"
    found = read_arithmetic("There are 16 * 17 = 272 houses. So 272 * 4 = 1088 letters. The answer is 1088.", question)
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == "( 16 * 17 ) * 4"


def test_a_number_of_the_question_is_not_expanded() -> None:
    question = "Ann has 5 pens and 3 pencils. Bob has 8 pens. How many pens are there?"
    found = read_arithmetic("Ann has 5 + 3 = 8 things. Pens: 5 + 8 = 13. The answer is 13.", question)
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == "5 + 8"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Unparsed.EMPTY),
        ("   \n", Unparsed.EMPTY),
        ("We divide the points by the rounds to find the points of each.", Unparsed.NO_ANSWER),
        ("Luke scored 84 points and then we take the rounds, which", Unparsed.TRUNCATED),
        ("\n\nQ: What is 2 + 2?\nA: The answer is 4.", Unparsed.EMPTY),
    ],
)
def test_what_states_no_answer_is_not_guessed(text: str, reason: Unparsed) -> None:
    assert read_arithmetic(text, LUKE) is reason


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Of the above, only that has numbers. So the answer is (d) math problem.\n\nQ: more", "math problem"),
        (" This is used to teach children. The answer is d.", "math problem"),
        (" Math problem.  The initial number of apples is given.", "math problem"),
        ("It is about numbers, a math problem.", "math problem"),
        ("The answer is: coloring book", "coloring book"),
    ],
)
def test_a_choice_is_read_by_letter_or_text(text: str, label: str) -> None:
    found = read_choice(text, CHOICES, ChoiceJudge())
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == label


def test_a_text_that_names_two_choices_is_ambiguous() -> None:
    assert read_choice("It could be a park or gravity.", CHOICES, ChoiceJudge()) is Unparsed.AMBIGUOUS


def test_verdicts_are_read_beside_the_text_and_in_it() -> None:
    beside = read_self_evaluation("It divides as it should.", "Correct")
    inside = read_self_evaluation("It adds where it must divide. Verdict: wrong", None)
    assert not isinstance(beside, Unparsed) and beside.verdict is Verdict.CORRECT
    assert not isinstance(inside, Unparsed) and inside.verdict is Verdict.WRONG
    assert inside.rationale == "It adds where it must divide."
    assert read_self_evaluation("Hm.", None) is Unparsed.NO_VERDICT
    assert read_self_evaluation("Hm.", "perhaps") is Unparsed.NO_VERDICT


def test_real_svamp_annotations_are_read_at_least_as_well_as_a_crude_parser_does(data: Path) -> None:
    """MEASURED by a last-number parser: 74.5 %, 71.4 %, 71.3 %, 69.5 % of the CoTs agree with the human labels."""
    task = svamp(data / "svamp")
    examples = {example.id: example for example in task.load().train}
    right: Counter[int] = Counter()
    for annotation in RecordedTeacher(data / "svamp" / "teacher_cots.jsonl").chains_of_thought(list(examples.values())):
        example = examples[annotation.example_id]
        found = task.parse_chain_of_thought(annotation.text, example)
        if not isinstance(found, Unparsed):
            right[annotation.sample] += task.judge.agrees(found.pseudo_label, example.label or "")
    shares = [right[sample] / len(examples) for sample in range(4)]
    assert all(share >= crude - 0.005 for share, crude in zip(shares, (0.745, 0.714, 0.713, 0.695), strict=True)), shares


def test_real_commonsenseqa_annotations_are_mostly_read(data: Path) -> None:
    task = commonsenseqa(data / "cqa")
    examples = {example.id: example for example in task.load().train[:600]}
    outcomes: Counter[str] = Counter()
    for annotation in RecordedTeacher(data / "cqa" / "teacher_cots.jsonl").chains_of_thought(list(examples.values())):
        example = examples[annotation.example_id]
        found = task.parse_chain_of_thought(annotation.text, example)
        if isinstance(found, Unparsed):
            outcomes["unparsed"] += 1
        else:
            outcomes["right" if task.judge.agrees(found.pseudo_label, example.label or "", example.choices) else "wrong"] += 1
    total = sum(outcomes.values())
    assert total == 1800
    assert outcomes["unparsed"] / total < 0.25, outcomes
    assert outcomes["right"] / (total - outcomes["unparsed"]) > 0.6, outcomes
