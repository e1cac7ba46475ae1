"""Which deliveries of a message are run, and which are the same message once more.

Method: ``Held`` alone, with deliveries made by hand. Real: the class. Fake: the source, which is
never asked for anything.
"""

from __future__ import annotations

from typing import Any

from dagnats_worker._inflight import Held, InFlight
from dagnats_worker._transport import Delivery


def delivered(deliveries: int = 1) -> InFlight:
    source: Any = None
    delivery = Delivery(
        "task.t.run",
        b"{}",
        {},
        ack_subject=f"$JS.ACK.{deliveries}",
        stream="TASK_QUEUES",
        deliveries=deliveries,
        sequence=7,
        timestamp_ns=0,
    )
    return InFlight(delivery, source, timeout_s=1.0)


def test_message_that_is_held_is_not_run_beside_itself() -> None:
    held, first, second = Held(), delivered(), delivered(2)
    assert held.add(first) is None
    assert held.add(second) is first
    assert first.ack_subject == second.delivery.ack_subject
    assert list(held) == [first]


def test_message_that_was_given_back_is_run_again_before_it_is_let_go() -> None:
    held, first, second = Held(), delivered(), delivered(2)
    held.add(first)
    first.settled = True
    assert held.add(second) is None
    held.remove(first)
    assert list(held) == [second]
    held.remove(second)
    assert len(held) == 0
