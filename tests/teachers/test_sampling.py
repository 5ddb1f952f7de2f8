"""Which responses are sampled, and what becomes of them: no clock, no network."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmedge.annotations.records import Response
from mmedge.tasks import Example
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.teachers.sampling import outcome, runs_of, seed_for, subject_state

TASK = ArithmeticTask(train=10, test=10)
EXAMPLE = Example("q", "Ann has 3 apples. Ben gives Ann 4 more apples. How many apples are there now?")


def _responses(*texts: str, first: int = 0) -> dict[int, Response]:
    """Responses with these texts, in order; an empty one stands for a text that could not be read."""
    return {first + i: Response(first + i, "stop", "whole" if text else "no answer found", text) for i, text in enumerate(texts)}


def test_a_wave_asks_for_as_many_texts_as_are_missing() -> None:
    assert subject_state(3, 9, {}, True).missing == (0, 1, 2)
    after_one_wave = subject_state(3, 9, _responses("a", "", "a"), True)  # one good, one unread, one said before
    assert after_one_wave.missing == (3, 4) and after_one_wave.accepted == (0,)
    done = subject_state(3, 9, _responses("a", "", "a", "b", "c"), True)
    assert done.missing == () and done.accepted == (0, 3, 4)
    assert dict(done.outcomes) == {0: "accepted", 2: "identical", 3: "accepted", 4: "accepted"}


def test_no_more_responses_are_sampled_than_allowed() -> None:
    given_up = subject_state(2, 4, _responses("a", "a", "a", "a"), True)
    assert given_up.missing == () and given_up.accepted == (0,)


def test_a_text_that_differs_in_case_spaces_or_what_follows_the_next_question_says_the_same() -> None:
    same = subject_state(2, 2, _responses("3 + 4 = 7. The answer is 7.", "3 + 4 = 7.  The ANSWER is 7.\n\nQ: What else?"), True)
    assert same.accepted == (0,)
    assert subject_state(2, 2, _responses("x", "x"), False).accepted == (0, 1)  # evaluations need not be distinct


@given(st.permutations(range(7)), st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=7, max_size=7))
def test_the_order_of_arrival_decides_nothing(order: list[int], texts: list[str]) -> None:
    sampled = _responses(*texts)
    shuffled = {number: sampled[number] for number in order}
    assert subject_state(3, 7, sampled, True) == subject_state(3, 7, shuffled, True)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", ""]), min_size=20, max_size=20), st.integers(1, 4), st.integers(0, 3))
def test_asking_for_more_later_keeps_what_was_accepted(texts: list[str], wanted: int, more: int) -> None:
    sampled = _responses(*texts)
    before, after = subject_state(wanted, 20, sampled, True), subject_state(wanted + more, 20, sampled, True)
    assert after.accepted[: len(before.accepted)] == before.accepted


def test_seeds_depend_on_everything_that_names_a_response() -> None:
    names = [(s, e, k, n, d) for s in (0, 1) for e in "ab" for k in ("cot", "evaluation") for n in (0, 1) for d in (0, 1)]
    seeds = {seed_for(*name) for name in names}
    assert len(seeds) == len(names) and all(0 <= seed < 2**31 for seed in seeds)


def test_what_is_no_whole_text_is_named() -> None:
    def of(text: str, finish: str = "stop", kind: str = "cot") -> str:
        return outcome(text, finish, kind, TASK.form, EXAMPLE)

    assert of("3 + 4 = 7. The answer is 7.") == "whole"
    assert of("3 + 4 = 7. The answer is 7", "length") == "truncated"
    assert of("The answer is 7.\n\nQuestion: Next, and so o", "length") == "whole"  # what was cut off is the next question
    assert of("", "stop") == "empty"
    assert of("", "length") == "truncated"
    assert of("The answer is 7.", "content_filter") == "refused"
    assert of("I'm sorry, but I can't help with that.") == "refused"
    assert of("There is no telling.") == "no answer found"
    assert of("<think>3 + 4 is 7, the answer is 7") == "empty"  # it never stopped thinking
    assert of("<think>hm</think>The answer is 7.") == "whole"
    assert of("Both count.\nVerdict: correct", kind="evaluation") == "whole"
    assert of("Both count.", kind="evaluation") == "no verdict"


def test_runs_of_numbers() -> None:
    assert runs_of([]) == []
    assert runs_of([0, 1, 2, 5, 6, 9]) == [(0, 3), (5, 2), (9, 1)]
