"""A task that somebody keeps: its message is acked, and the task is dispatched again later.

What dispatches it again is a new message, which says since when there has been the task and how
often it was delivered, so that the history from before still counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dagnats_worker._protocol import HEADER_MSG_ID
from dagnats_worker._transport import Delivery

HEADER_KEPT = "Dagnats-Kept"
OF_ONE_MESSAGE = "nats-"
"""How the headers begin that a server or a library wrote for one message, and for no other."""

_partition = re.compile(r"\d+\.(?=task\.)")
_earlier = re.compile(r"(\d{1,19}) (\d{1,9})")


class Earlier(NamedTuple):
    """What was before the message that brings a task.

    Attributes:
        since_ns: When the task was dispatched for the first time; 0 where it was now.
        deliveries: How often it was delivered before.
    """

    since_ns: int = 0
    deliveries: int = 0


NOTHING = Earlier()


@dataclass(frozen=True, slots=True)
class KeptTask:
    """A task, for a plugin that keeps it and has it dispatched again.

    Attributes:
        message: Which message brought the task: its stream and its sequence there. Whoever gets
            that message again after ``step.released`` with ``kept`` was stored, acks it.
        stream: The stream of that message.
        sequence: Its sequence there.
        deliveries: How often the task was delivered until now.
        subject: Where the task is to be published, so that every worker of its type may take it.
        data: Its body.
        headers: Its headers, with an id that is the same however often they are published.
    """

    message: str
    stream: str
    sequence: int
    deliveries: int
    subject: str
    data: bytes
    headers: Mapping[str, str]


def message_name(delivery: Delivery) -> str:
    """What tells one task message from all others."""
    return f"{delivery.stream}.{delivery.sequence}"


def earlier_of(headers: Mapping[str, str]) -> Earlier:
    """What a message says of the time before it; nothing where it is not readable."""
    found = _earlier.fullmatch(headers.get(HEADER_KEPT, ""))
    return Earlier(int(found[1]), int(found[2])) if found else NOTHING


def kept_task(delivery: Delivery, task_id: str, earlier: Earlier, ordinary: str) -> KeptTask:
    """The message that dispatches a task again.

    Args:
        earlier: With this delivery counted.
        ordinary: A subject for the task where it was not published on one of its own.
    """
    headers = {
        name: value
        for name, value in delivery.headers.items()
        if not name.lower().startswith(OF_ONE_MESSAGE)
    }
    message = message_name(delivery)
    headers[HEADER_KEPT] = f"{earlier.since_ns} {earlier.deliveries}"
    headers[HEADER_MSG_ID] = f"{task_id}.kept.{message}"
    subject = _partition.sub("", delivery.subject, count=1)
    return KeptTask(
        message=message,
        stream=delivery.stream,
        sequence=delivery.sequence,
        deliveries=earlier.deliveries,
        subject=subject if subject.startswith("task.") else ordinary,
        data=delivery.data,
        headers=headers,
    )
