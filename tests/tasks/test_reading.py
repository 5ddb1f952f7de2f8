"""Reading teachers' texts: the dirt that real ones contain, and what is never accepted."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from mmedge.tasks import ChainOfThought, Example, Unparsed, Verdict
from mmedge.tasks.files import FileTask, commonsenseqa, nli, svamp
from mmedge.tasks.forms.choice import ChoiceForm
from mmedge.tasks.forms.expression import ExpressionForm, read_arithmetic
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.reading import lacks_verdict, read_self_evaluation
from mmedge.teachers.recorded import RecordedTeacher
from tests.small_data import write_small_data

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
    found = ChoiceForm().read(text, Example("q", "Which?", None, CHOICES))
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == label


def test_a_text_that_names_two_choices_is_ambiguous() -> None:
    assert ChoiceForm().read("It could be a park or gravity.", Example("q", "Which?", None, CHOICES)) is Unparsed.AMBIGUOUS


def test_verdicts_are_read_beside_the_text_and_in_it() -> None:
    beside = read_self_evaluation("It divides as it should.", "Correct")
    inside = read_self_evaluation("It adds where it must divide. Verdict: wrong", None)
    assert not isinstance(beside, Unparsed) and beside.verdict is Verdict.CORRECT
    assert not isinstance(inside, Unparsed) and inside.verdict is Verdict.WRONG
    assert inside.rationale == "It adds where it must divide."
    assert read_self_evaluation("Hm.", None) is Unparsed.NO_VERDICT
    assert read_self_evaluation("Hm.", "perhaps") is Unparsed.NO_VERDICT


def _read_all(task: FileTask, path: Path) -> dict[int, Counter[str]]:
    """Read every chain of thought of a recording; return outcomes by sample: right, wrong, or why it is unread."""
    examples = {example.id: example for example in task.load().train}
    outcomes: dict[int, Counter[str]] = {}
    for annotation in RecordedTeacher((path,)).chains_of_thought(list(examples.values())):
        example = examples[annotation.example_id]
        found = task.form.read(annotation.text, example)
        assert (task.form.lacks_answer(annotation.text, example) is None) == (not isinstance(found, Unparsed)), annotation.text
        counts = outcomes.setdefault(annotation.sample, Counter())
        if isinstance(found, Unparsed):
            counts[found.value] += 1
        else:
            counts["right" if task.form.agrees(found.pseudo_label, example.label or "", example.choices) else "wrong"] += 1
    return outcomes


def test_texts_of_every_task_are_read(tmp_path: Path) -> None:
    folder = write_small_data(tmp_path)
    for task, name in ((svamp, "svamp"), (commonsenseqa, "cqa"), (nli, "anli")):
        for counts in _read_all(task(folder / name), folder / name / "teacher_cots.jsonl").values():
            assert counts["right"] + counts["wrong"] > 0.6 * counts.total() and counts["right"] > 2 * counts["wrong"], (
                name,
                counts,
            )


def test_real_svamp_annotations_are_read_as_a_careful_reader_reads_them(real_data: Path) -> None:
    """A careful reader without the labels calls 72.9, 71.6, 71.1 and 69.5 % of these texts right."""
    outcomes = _read_all(svamp(real_data / "svamp"), real_data / "svamp" / "teacher_cots.jsonl")
    for sample, careful in enumerate((72.9, 71.6, 71.1, 69.5)):
        assert sum(outcomes[sample].values()) == 800
        assert 100 * outcomes[sample]["right"] / 800 >= careful - 1, outcomes[sample]


def test_real_commonsenseqa_annotations_are_mostly_read(real_data: Path) -> None:
    """By hand, a reader finds a choice in 97, 96 and 95 of 100 texts of the three samples; nine in ten of those must be read."""
    outcomes = _read_all(commonsenseqa(real_data / "cqa"), real_data / "cqa" / "teacher_cots.jsonl")
    for sample, findable in enumerate((0.97, 0.96, 0.95)):
        counts = outcomes[sample]
        read, total = counts["right"] + counts["wrong"], sum(counts.values())
        assert total == 9741
        assert read / total >= 0.9 * findable, counts
        assert counts["right"] / read > (0.76, 0.67, 0.67)[sample], counts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So some - 12 = 14. The answer is (some - 12).", None),
        ("So 2 * x = 12. The answer is (2 * x).", None),
        ("The answer is (54 - (some - 28)).", None),
        (" 40 pounds", "40"),
        ("There are 10 children. The bus is full. The bus is full. The bus is full. The bus is full. The bus is", None),
        ("<think>Perhaps 3? The answer is 3.</think>4 + 4 = 8. The answer is 8.", "4 + 4"),
        ("<think>Perhaps 3? The answer is 3.", None),
        ("Perhaps 3? The answer is 3.</think>4 + 4 = 8. The answer is 8.", "4 + 4"),
        ("[THINK]Perhaps 3?[/THINK]4 + 4 = 8. The answer is 8.", "4 + 4"),
        ("<think>Perhaps 3? No, 4 + 4 = 8.</think>\n\nThe answer is (4 + 4).", "4 + 4"),
        ("<think>Hm.</think><response>4 + 4 = 8. The answer is 8.</response>", "4 + 4"),
        ("The answer is (40 apples - 12 apples).", "40 - 12"),
    ],
)
def test_arithmetic_texts_that_once_were_misread(text: str, answer: str | None) -> None:
    found = read_arithmetic(text, "A question about 40 and 12 and 4.")
    assert (None if isinstance(found, Unparsed) else found.pseudo_label) == answer


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        ("<think>\nFour and\nfour.\n</think>\n\nThe answer is (4 + 4).", "Four and four."),
        ("Four and four.</think>The answer is (4 + 4).", "Four and four."),
        ("<think>Hm.</think>Four more than four. The answer is (4 + 4).", "Four more than four."),
    ],
)
def test_a_reasoning_block_is_the_rationale_where_nothing_but_the_answer_follows_it(text: str, rationale: str) -> None:
    found = read_arithmetic(text, "A question about 4 and 4.")
    assert not isinstance(found, Unparsed)
    assert (found.rationale, found.pseudo_label) == (rationale, "4 + 4")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("So the answer is (b) jail time or (e) going to prison.", None),
        ("The answer is (a), (d), (c), and (e).", None),
        ("C\n\nThe band is the larger group, unlike (a) or (b).", "marching band"),
        ("The answer is (b) jail time, and not (e).", "jail time"),
    ],
)
def test_choices_that_once_were_misread(text: str, choice: str | None) -> None:
    choices = ("party", "jail time", "marching band", "parade", "going to prison")
    found = ChoiceForm().read(text, Example("q", "Which?", None, choices))
    assert (None if isinstance(found, Unparsed) else found.pseudo_label) == choice


def test_the_verdicts_of_the_published_logs_are_read() -> None:
    said = "The given answer calculates 10 * 45.\n\nEvaluation result: the given answer is incorrect."
    found = read_self_evaluation(said, None)
    assert not isinstance(found, Unparsed) and found.verdict.value == "wrong"
    assert lacks_verdict(said) is None and lacks_verdict("Nothing is said.") is Unparsed.NO_VERDICT


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"We divide. \boxed{\frac{84}{2}}", "84 / 2"),
        (r"So $84 \div 2 = 42$. The answer is $\boxed{42}$.", "84 / 2"),
        (r"Thus \[ \frac{84}{2} = 42 \] The final answer is \(42\).", "84 / 2"),
        (r"The answer is \frac12.", "1 / 2"),
        (r"Each gets \boxed{1{,}234 \text{ points}}", "1234"),
        (r"It costs \$84, so the answer is \$42.", "42"),
    ],
)
def test_latex_is_read_as_arithmetic(text: str, label: str) -> None:
    found = read_arithmetic(text, LUKE)
    assert isinstance(found, ChainOfThought)
    assert found.pseudo_label == label


@pytest.mark.parametrize(
    "text",
    [r"\boxed{x^2}", r"The answer is \sqrt{84}.", r"Thus \boxed{3\frac{1}{2}}", r"The answer is 2^{10}."],
)
def test_mathematics_that_is_not_arithmetic_is_refused(text: str) -> None:
    assert read_arithmetic(text, LUKE) is Unparsed.NO_ANSWER
    assert ExpressionForm().lacks_answer(text, Example("q", LUKE)) is Unparsed.NO_ANSWER


def test_a_box_that_never_closes_is_cut_off() -> None:
    assert read_arithmetic(r"Thus \boxed{\frac{84}{2}", LUKE) is Unparsed.TRUNCATED


def test_a_boxed_letter_names_a_choice() -> None:
    found = ChoiceForm().read(r"It has numbers. \boxed{(d)}", Example("q", "Which?", None, CHOICES))
    assert isinstance(found, ChainOfThought) and found.pseudo_label == "math problem"


HOSTILE = (
    "[",
    '{"a":',
    "[1,",
    "The answer is: ",
    "Answer: 3\n",
    "\\boxed{",
    "\n",
    " \n",
    "(",
    "-",
    "1,",
    '"',
    "```json\n",
    "<think>",
)


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_text_in_circles_is_read_quickly(text: str) -> None:
    forms = (ExpressionForm(), ChoiceForm(), SchemaForm({"type": "object", "properties": {"a": {"type": "integer"}}}))
    whole = text * (4000 // len(text))
    before = time.process_time()
    for form in forms:
        for one in (whole, f"The answer is: {whole}"):
            form.read(one, Example("q", LUKE, None, CHOICES))
    assert time.process_time() - before < 3
