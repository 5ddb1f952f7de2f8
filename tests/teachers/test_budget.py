"""What may be in flight within limits, and what is reserved for it."""

from __future__ import annotations

from mmedge.annotations.records import Spending
from mmedge.teachers.budget import Budget
from mmedge.teachers.plan import NO_LIMITS, Limits


def test_nothing_is_sent_beyond_what_was_granted() -> None:
    budget = Budget(Limits(max_cost=1.0, max_requests=3), most_in_flight=64)
    assert budget.allowed == Spending(3, 1.0) and not budget.admits(0.1)
    budget.granted = Spending(2, 0.5)
    for _ in range(2):
        assert budget.admits(0.2)
        budget.sent(0.2)
    assert not budget.admits(0.0)  # a third request was not granted
    budget.stored(requests=1, worst=0.2)
    assert budget.granted == Spending(1, 0.3) and not budget.admits(0.0)  # what was spent is no longer granted


def test_as_much_is_wished_as_may_soon_be_in_flight() -> None:
    budget = Budget(Limits(max_requests=100), most_in_flight=64)
    assert budget.wish(0.5, room=4) == Spending(4, 1.5 * 0.5 * 4)
    budget.sent(0.5)
    assert budget.wish(0.5, room=4) == Spending(1 + 3, 0.5 + 1.5 * 0.5 * 3)
    assert budget.wish(None, room=4) == Spending(1, 0.5)  # nothing is waiting to be sent


def test_without_limits_everything_is_admitted_and_the_most_that_may_ever_be_in_flight_is_reserved() -> None:
    budget = Budget(NO_LIMITS, most_in_flight=64)
    assert not budget.limited and budget.admits(1e9)
    budget.wish(2.0, room=4)
    assert budget.wish(0.5, room=4) == Spending(64, 1.5 * 2.0 * 64)  # by the dearest seen


def test_the_limit_that_stops_a_collection_is_named_as_the_option_that_raises_it() -> None:
    budget = Budget(Limits(max_cost=0.1, max_requests=37), most_in_flight=4)
    assert budget.exceeded_by(0.01) == "--max-requests 37"
    budget.granted = Spending(5, 0.005)
    assert budget.exceeded_by(0.01) == "--max-cost 0.1" and budget.exceeded_by(0.001) == ""
