"""The bookkeeping of a collection: claims, dead collectors, reservations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.collection import DEAD_SECONDS, Collection
from mmedge.annotations.records import RequestRecord, Response, Settled, Spending, Subject
from mmedge.annotations.store import AnnotationStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    with AnnotationStore(tmp_path / "annotations.sqlite") as found:
        yield found


def _planned(store: AnnotationStore, questions: int = 6) -> Collection:
    collection = Collection(store)
    collection.plan([f"q{number}" for number in range(questions)], cots=(2, 4), evaluations=(1, 3))
    return collection


def test_what_is_claimed_is_nobody_elses_until_it_is_left(store: AnnotationStore) -> None:
    collection = _planned(store)
    one, two = collection.join(), collection.join()
    claimed = collection.claim(one, 4)
    assert [(subject.example_id, subject.wanted, subject.most, cot) for subject, _, cot in claimed][:2] == [
        ("q0", 2, 4, ""),
        ("q1", 2, 4, ""),
    ]
    assert [subject.example_id for subject, _, _ in collection.claim(two, 10)] == ["q4", "q5"]
    assert collection.claimed_by_others(two) == 4
    collection.leave(one)
    assert [subject.example_id for subject, _, _ in collection.claim(two, 10)] == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(
    ("host", "process", "seen_before", "alive"),
    [
        ("here", "999999999 0", 0.0, False),  # there is no such process
        ("here", "1 1", 0.0, False),  # the number belongs to another process by now
        ("far.away", "999999999 0", 10.0, True),  # nobody can tell yet
        ("far.away", "999999999 0", DEAD_SECONDS + 10, False),
    ],
)
def test_the_claims_of_a_dead_collector_are_free_again_and_what_it_reserved_is_not(
    store: AnnotationStore, host: str, process: str, seen_before: float, alive: bool
) -> None:
    collection = _planned(store)
    other, mine = collection.join(), collection.join()
    collection.claim(other, 6)
    collection.reserve(other, Spending(3, 0.5), None)
    with store.transaction() as connection:
        elsewhere = "" if host == "here" else ", host = 'far.away'"
        connection.execute(
            f"UPDATE collectors SET process = ?, seen = seen - ?{elsewhere} WHERE id = ?", (process, seen_before, other)
        )
    assert collection.release_dead(mine) == alive
    assert len(collection.claim(mine, 10)) == (0 if alive else 6)
    assert collection.unaccounted() == (Spending() if alive else Spending(3, 0.5))
    granted, _ = collection.reserve(mine, Spending(10, 1.0), Spending(10, 1.0))
    assert granted == Spending(7, 0.5)  # the dead one's requests may have been served


def _record(subject: Subject, *responses: Response, cost: float = 0.25) -> RequestRecord:
    return RequestRecord(subject, 1, 0, 2, 7, "hash", 0.0, 1.5, "ok", "", 100, 40, False, cost, responses)


def test_what_is_recorded_is_settled_with_its_follow_ups_and_found_again_by_whoever_goes_on(store: AnnotationStore) -> None:
    collection = _planned(store, questions=2)
    number = collection.join()
    (first, second) = (subject for subject, _, _ in collection.claim(number, 2))
    whole, unread = Response(0, "stop", "whole", "The answer is 4."), Response(1, "stop", "no answer found", "Hm.")
    annotation = Annotation("q0", "cot", 0, 0, whole.text, None, "m", "draw 0")
    follow_up = Subject(0, "q0", "evaluation", 0, 1, 3)
    settled = Settled(first, "given up", (annotation,), ((0, "accepted"),), (follow_up,))
    (evaluation,) = collection.record(number, [_record(first, whole, unread), _record(second, whole)], [settled])
    assert evaluation._replace(number=0) == follow_up
    assert collection.outcomes() == {"cot": {"whole": 1, "accepted": 1, "no answer found": 1}, "evaluation": {}}
    assert collection.spent() == Spending(2, 0.5) and collection.token_means()["cot"].text == pytest.approx(80 / 3)
    assert (collection.in_state("open"), collection.in_state("given up"), collection.missing(evaluations=1)) == (2, 1, 5)
    collection.leave(number)
    collection.plan(["q0", "q1"], cots=(2, 6), evaluations=(1, 3))  # more may be sampled now: what was given up is open again
    again = collection.claim(collection.join(), 10)
    assert [(subject.example_id, subject.kind) for subject, _, _ in again] == [("q0", "cot"), ("q1", "cot"), ("q0", "evaluation")]
    assert again[0][1] == (whole._replace(outcome="accepted"), unread)  # the accepted text stands in `annotations`
    assert again[1][1] == (whole,) and again[2][2] == whole.text


def test_a_subject_that_is_postponed_is_open_again_in_the_next_collection(store: AnnotationStore) -> None:
    collection = _planned(store, questions=1)
    number = collection.join()
    ((subject, _, _),) = collection.claim(number, 1)
    collection.postpone(subject)
    assert collection.claim(number, 1) == [] and collection.claimed_by_others(number) == 0
    assert len(_planned(store, questions=1).claim(number, 1)) == 1
