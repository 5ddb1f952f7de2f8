"""How fast a teacher is asked, without a clock: the window, retries, pauses, and when it is hopeless."""

from __future__ import annotations

import pytest

from mmedge.openai import ChatFailure
from mmedge.teachers.pace import FIRST_RETRY, LONGEST_RETRY, Pace, Window

DOWN = ChatFailure("server error 500", "broken")
BUSY = ChatFailure("rate limited", "slow down", overloaded=True)


def test_the_window_grows_with_success_and_shrinks_once_for_each_overload() -> None:
    window = Window(32, 256)
    for _ in range(10):
        window.succeeded(full=True)
    assert window.limit == 42
    window.overloaded(started=1.0, now=2.0)
    window.overloaded(started=1.5, now=2.1)  # was in flight already when the window was cut: the same overload
    assert window.limit == pytest.approx(42 * 0.7)
    window.succeeded(full=False)
    assert window.limit == pytest.approx(42 * 0.7)
    window.succeeded(full=True)
    assert window.limit == pytest.approx(42 * 0.7 + 1 / (42 * 0.7))  # carefully from now on


def test_one_request_goes_ahead() -> None:
    pace = Pace("m", (32, 64), patience=60, now=0.0)
    assert pace.room == 1
    pace.succeeded(full=True, now=0.1)
    assert pace.room == 33


def test_what_never_answered_is_hopeless_soon_and_what_did_is_waited_for() -> None:
    pace = Pace("m", (4, 4), patience=60, now=0.0)
    errors = [pace.failed(ChatFailure("unreachable", "refused"), 0.0, float(second)) for second in range(5)]
    assert errors[:4] == [None] * 4 and "is the server running" in str(errors[4])
    pace = Pace("m", (4, 4), patience=60, now=0.0)
    pace.succeeded(full=False, now=1.0)
    assert all(pace.failed(DOWN, 1.0, 1.0 + second) is None for second in range(60))
    assert "no answer for 1 min 01 s" in str(pace.failed(DOWN, 1.0, 62.0))


def test_a_teacher_that_rejects_everything_is_given_up_and_one_that_rejects_something_is_not() -> None:
    rejected = ChatFailure("rejected 400", "no such parameter", rejected=True)
    pace = Pace("m", (4, 4), patience=60, now=0.0)
    errors = [pace.failed(rejected, 0.0, 0.0) for _ in range(5)]
    assert errors[:4] == [None] * 4 and "m rejects every request: no such parameter" in str(errors[4])
    pace = Pace("m", (4, 4), patience=60, now=0.0)
    pace.succeeded(full=False, now=0.0)
    assert all(pace.failed(rejected, 0.0, 0.0) is None for _ in range(20)) and pace.all_rejected() is None


def test_retries_are_quick_while_others_succeed_and_slow_when_nobody_does() -> None:
    pace = Pace("m", (4, 4), patience=1e9, now=0.0)
    pace.succeeded(full=False, now=0.0)
    assert FIRST_RETRY / 2 <= pace.delay(DOWN, attempts=1) <= 1.5 * FIRST_RETRY
    assert pace.delay(DOWN, attempts=50) <= 1.5 * 4 * FIRST_RETRY
    for _ in range(100):
        pace.failed(DOWN, 0.0, 0.0)
    assert LONGEST_RETRY / 2 <= pace.delay(DOWN, attempts=1) <= 1.5 * LONGEST_RETRY


def test_all_wait_as_long_as_the_endpoint_asks() -> None:
    pace = Pace("m", (4, 4), patience=60, now=0.0)
    asked = ChatFailure("rate limited", "later", 30.0, overloaded=True)
    pace.failed(asked, 0.0, now=5.0)
    pace.failed(BUSY, 0.0, now=6.0)
    assert pace.pause_until == 35.0 and 30.0 <= pace.delay(asked, attempts=1) <= 31.0
