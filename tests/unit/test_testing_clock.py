"""The clock that a test moves.

Method: timers that write down what the clock shows. Nothing is fake, and nothing is waited for.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dagnats_worker.testing import FakeClock

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_it_begins_where_it_is_told_and_stands_still() -> None:
    clock = FakeClock(START)
    assert clock.now() == clock.now() == START


def test_it_begins_now_when_not_told() -> None:
    assert abs(FakeClock().now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_timers_fall_due_in_order_each_at_its_time() -> None:
    clock, seen = FakeClock(START), []
    clock.call_later(3 * SECOND, lambda: seen.append(("late", clock.now() - START)))
    clock.call_later(1 * SECOND, lambda: seen.append(("early", clock.now() - START)))
    clock.advance(2 * SECOND)
    assert seen == [("early", 1 * SECOND)]
    clock.advance(2 * SECOND)
    assert seen == [("early", 1 * SECOND), ("late", 3 * SECOND)]
    assert clock.now() == START + 4 * SECOND


def test_a_timer_may_set_another_that_falls_due_on_the_same_way() -> None:
    clock, seen = FakeClock(START), []

    def again() -> None:
        seen.append(clock.now() - START)
        clock.call_later(SECOND, again)

    clock.call_later(SECOND, again)
    clock.advance(timedelta(seconds=3.5))
    assert seen == [1 * SECOND, 2 * SECOND, 3 * SECOND]


def test_a_cancelled_timer_does_not_fall_due() -> None:
    clock, seen = FakeClock(), []
    clock.call_later(SECOND, lambda: seen.append(1)).cancel()
    clock.advance(2 * SECOND)
    assert seen == []


def test_a_listener_is_told_of_all_the_time_that_passes() -> None:
    clock = FakeClock()
    passed: list[timedelta] = []
    end = clock.listen(passed.append)
    clock.call_later(SECOND, lambda: None)
    clock.advance(3 * SECOND)
    end()
    clock.advance(SECOND)
    assert passed == [1 * SECOND, 2 * SECOND]


def test_it_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="forward"):
        FakeClock().advance(-SECOND)
