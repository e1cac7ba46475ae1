"""A task that somebody keeps: what is stored of it, and what its next message says.

Method: deliveries and histories written by hand. Nothing is fake, and nothing does I/O.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from dagnats_worker._kept import NOTHING, Earlier, earlier_of, kept_task
from dagnats_worker._redelivery import read_past
from dagnats_worker._transport import Delivery, StoredEvent


def delivery(subject: str = "task.ask.r1", **headers: str) -> Delivery:
    return Delivery(
        subject,
        b"{}",
        {name.replace("_", "-"): value for name, value in headers.items()},
        ack_subject="ack",
        stream="TASK_QUEUES",
        deliveries=2,
        sequence=7,
        timestamp_ns=5,
    )


def test_next_message_has_the_headers_of_the_task_and_not_those_of_its_message() -> None:
    old = delivery(traceparent="t", Nats_Msg_Id="r1.s.queued", Nats_Stream_Source="S", Colour="red")
    kept = kept_task(old, "r1.s", Earlier(5, 2), "task.ask.r1")
    assert kept.headers == {
        "traceparent": "t",
        "Colour": "red",
        "Dagnats-Kept": "5 2",
        "Nats-Msg-Id": "r1.s.kept.TASK_QUEUES.7",
    }
    assert (kept.message, kept.stream, kept.sequence) == ("TASK_QUEUES.7", "TASK_QUEUES", 7)
    assert (kept.deliveries, kept.data) == (2, b"{}")


@pytest.mark.parametrize(
    ("subject", "again"),
    [
        ("task.ask.r1", "task.ask.r1"),
        ("task.ask.eu.r1", "task.ask.eu.r1"),
        ("3.task.ask.eu.r1", "task.ask.eu.r1"),
        ("sticky.ask.worker-1.r1", "task.ask.r1"),
    ],
)
def test_task_is_dispatched_where_every_worker_may_take_it(subject: str, again: str) -> None:
    assert kept_task(delivery(subject), "r1.s", Earlier(5, 2), "task.ask.r1").subject == again


@pytest.mark.parametrize("text", ["", "5", "5 x", "-5 1", "5 1 1", "5  1", "9" * 20 + " 1"])
def test_header_that_is_not_readable_says_nothing(text: str) -> None:
    assert earlier_of({"Dagnats-Kept": text}) == NOTHING
    assert earlier_of({"Dagnats-Kept": "5 1"}) == Earlier(5, 1)


def event(kind: str, message_id: str = "", **payload: Any) -> StoredEvent:
    body = {"type": kind, "run_id": "r1", "step_id": "s", "payload": payload}
    if not payload:
        del body["payload"]
    return StoredEvent(1, json.dumps(body).encode(), message_id)


def test_kept_start_is_no_attempt_and_no_crash() -> None:
    released = event("step.released", reason="parked", kept="TASK_QUEUES.7")
    started = event("step.started", "r1.s.step.started.1.d3")
    past = read_past([started, started, released], "s")
    assert (past.kept, past.crashes, past.attempt) == ({"TASK_QUEUES.7"}, 0, 2)
    assert past.last_delivery == 3


@pytest.mark.parametrize("kept", ["", 7, None])
def test_release_that_names_no_message_keeps_nothing(kept: Any) -> None:
    past = read_past([event("step.released", reason="parked", kept=kept)], "s")
    assert past.kept == set()
