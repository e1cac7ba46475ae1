"""What may go on, and in which order.

Method: lanes alone, with messages made by hand; then random lives of messages, of which each has to
be handed out in its order. Nothing is real, nothing is fake.
"""

from __future__ import annotations

import random
from typing import Literal

import pytest

from dagnats_worker.hookspecs import Delivery
from dagnats_worker_partitions._lanes import Lanes

Settlement = Literal["", "done", "given back", "lost"]


def message(sequence: int, run: str = "r1", deliveries: int = 1) -> Delivery:
    return Delivery(
        f"task.mail.{run}",
        b"",
        {},
        ack_subject=f"ack.{sequence}.{deliveries}",
        stream="S",
        deliveries=deliveries,
        sequence=sequence,
        timestamp_ns=0,
    )


def handed_out(lanes: Lanes) -> list[Delivery]:
    found = []
    while (delivery := lanes.next()) is not None:
        found.append(delivery)
    return found


def sequences(deliveries: list[Delivery]) -> list[int]:
    return [one.sequence for one in deliveries]


def end(lanes: Lanes, delivery: Delivery, how: Settlement, now: float = 0.0) -> None:
    delivery.settlement = how
    lanes.settled(delivery, now)


def lanes_with(*deliveries: Delivery, ordered: bool = True) -> Lanes:
    lanes = Lanes(ordered=ordered, lost_for_s=10)
    for one in deliveries:
        lanes.add(one, 0.0)
    return lanes


def test_without_order_everything_goes_at_once() -> None:
    lanes = lanes_with(message(1), message(2), message(3, "r2"), ordered=False)
    assert sequences(handed_out(lanes)) == [1, 2, 3]
    assert lanes.running == 3


def test_runs_do_not_wait_for_each_other() -> None:
    lanes = lanes_with(message(1), message(2), message(3, "r2"))
    first, other = handed_out(lanes)
    assert (first.sequence, other.sequence) == (1, 3)
    end(lanes, first, "done")
    assert sequences(handed_out(lanes)) == [2]


def test_what_was_given_back_keeps_its_lane_until_it_comes_again() -> None:
    lanes = lanes_with(message(1), message(2))
    (first,) = handed_out(lanes)
    end(lanes, first, "given back")
    lanes.look(1e9)
    assert handed_out(lanes) == []
    lanes.add(message(1, deliveries=2), 0.0)
    assert sequences(handed_out(lanes)) == [1]


def test_what_was_lost_keeps_its_lane_only_for_a_while() -> None:
    lanes = lanes_with(message(1), message(2))
    (first,) = handed_out(lanes)
    end(lanes, first, "lost", now=100.0)
    lanes.look(109.0)
    assert handed_out(lanes) == []
    lanes.look(111.0)
    assert sequences(handed_out(lanes)) == [2]


@pytest.mark.parametrize("ordered", [True, False])
def test_message_that_waits_and_comes_again_has_the_newer_lease(*, ordered: bool) -> None:
    lanes = lanes_with(message(1), message(1, deliveries=2), ordered=ordered)
    (only,) = handed_out(lanes)
    assert only.deliveries == 2


def test_message_that_runs_and_comes_again_is_no_second_one() -> None:
    lanes = lanes_with(message(1), message(2))
    (first,) = handed_out(lanes)
    again = message(1, deliveries=2)
    lanes.add(again, 0.0)
    assert handed_out(lanes) == []
    assert lanes.copy() is again
    lanes.settled(again, 0.0)  # whoever was given it only took its lease
    assert handed_out(lanes) == []
    end(lanes, first, "done")
    assert sequences(handed_out(lanes)) == [2]


def test_copy_that_outlives_the_first_delivery_keeps_the_lane() -> None:
    lanes = lanes_with(message(1), message(2))
    (first,) = handed_out(lanes)
    again = message(1, deliveries=2)
    lanes.add(again, 0.0)
    assert lanes.copy() is again
    end(lanes, first, "given back")
    assert handed_out(lanes) == []
    assert lanes.running == 1
    end(lanes, again, "done")
    assert sequences(handed_out(lanes)) == [2]


def test_message_that_was_refused_as_it_came_is_waited_for() -> None:
    lanes = lanes_with()
    lanes.refuse(message(1))
    lanes.add(message(2), 0.0)
    assert handed_out(lanes) == []
    lanes.add(message(1, deliveries=2), 0.0)
    (first,) = handed_out(lanes)
    assert first.sequence == 1


def test_message_in_the_middle_that_was_dropped_is_waited_for() -> None:
    lanes = lanes_with(message(1), message(2), message(3))
    (first,) = handed_out(lanes)
    lanes.drop(next(one for one in lanes.due(100, 1) if one.delivery.sequence == 2))
    end(lanes, first, "done")
    assert handed_out(lanes) == []
    lanes.add(message(2, deliveries=2), 0.0)
    (second,) = handed_out(lanes)
    end(lanes, second, "done")
    assert sequences(handed_out(lanes)) == [3]


def test_what_waits_is_given_back_and_what_runs_is_not() -> None:
    lanes = lanes_with(message(1), message(2), message(3, "r2"))
    (running,) = [lanes.next()]
    assert running is not None
    lanes.add(message(1, deliveries=2), 0.0)
    assert sorted(one.sequence for one in lanes.clear()) == [1, 2, 3]
    assert (lanes.running, lanes.waiting) == (1, 0)
    lanes.add(message(2), 0.0)
    assert handed_out(lanes) == [], "its run goes on with the one that runs"
    end(lanes, running, "done")
    assert sequences(handed_out(lanes)) == [2]


def test_nothing_is_kept_of_runs_that_are_over() -> None:
    lanes = lanes_with(*(message(number, f"r{number}") for number in range(1, 100)))
    for one in handed_out(lanes):
        end(lanes, one, "done")
    assert lanes._lanes == {}
    assert (lanes.running, lanes.waiting, lanes.is_ready) == (0, 0, False)


@pytest.mark.parametrize("seed", range(40))
def test_order_holds_in_random_lives(seed: int) -> None:
    """A server that gives each message again until it is done, in any order but the first time."""
    chance = random.Random(seed)  # noqa: S311 - a test's own dice
    lanes = Lanes(ordered=True, lost_for_s=1e9)
    total, fresh, counts = 60, 1, dict[int, int]()
    outside, running, done = set[int](), list[Delivery](), dict[str, list[int]]()
    while sum(map(len, done.values())) < total:
        step = chance.random()
        if step < 0.4 and fresh <= total:
            outside.add(fresh)
            fresh += 1
        if outside and (step < 0.6 or fresh > total):
            newest = min(outside) if chance.random() < 0.5 else chance.choice(sorted(outside))
            if newest in counts or newest == 1 or newest - 1 in counts:
                counts[newest] = counts.get(newest, 0) + 1
                one = message(newest, f"r{newest % 3}", counts[newest])
                outside.discard(newest)
                if chance.random() < 0.2:
                    lanes.refuse(one)
                    outside.add(newest)
                else:
                    lanes.add(one, 0.0)
        running += handed_out(lanes)
        assert len({one.subject for one in running}) == len(running), "one at a time"
        if running and step > 0.5:
            one = running.pop(chance.randrange(len(running)))
            how: Settlement = chance.choice(["done", "done", "given back", "lost"])
            end(lanes, one, how)
            if how == "done":
                done.setdefault(one.subject, []).append(one.sequence)
            else:
                outside.add(one.sequence)
    assert all(found == sorted(found) for found in done.values())
