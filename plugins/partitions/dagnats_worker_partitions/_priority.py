"""Pinned consumers of a priority group: made, pulled from and released, which nats-py cannot.

A consumer with the policy ``pinned_client`` serves one process and lets the others wait. The server
names that process by a pin, which comes with its first message and goes into every later pull; who
sends none for longer than the pin lasts loses its place to the next in line.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, NamedTuple

from dagnats_worker_partitions._api import PREFIX, ApiError, JetStreamApi
from dagnats_worker_partitions._names import PRIORITY_GROUP
from dagnats_worker_partitions._overlaps import consumer_filters

HEADER_PIN = "Nats-Pin-Id"
BATCH = 500
"""For how many messages one request asks, as Go's does; the server stops at max_ack_pending."""

ACK_WAIT_DEFAULT_S = 5.0
SHORTEST_S = 1.0
HEARTBEAT_MAX_S = 30.0
TICK_LATER_S = 0.5

OVERLAPS = (10099, 10100, 10138)
EXISTS_OTHERWISE = (10105, 10148)

ACK_TOKENS = 9
ACK_TOKENS_LONG = 11


@dataclass(frozen=True, slots=True)
class Timings:
    """What follows from the AckWait of a member's consumer, in seconds.

    Attributes:
        ack_wait: The lease of a message.
        pinned_ttl: How long a pin lasts without a pull.
        expires: How long the server keeps a pull open.
        heartbeat: How often it says meanwhile that it is there.
        inactive: How long it keeps a consumer that nobody uses.
        tick: After which pause without events a member looks at everything again.
    """

    ack_wait: float
    pinned_ttl: float
    expires: float
    heartbeat: float
    inactive: float
    tick: float


def timings_of(ack_wait: timedelta) -> Timings:
    """The timings that every member with this AckWait computes, in Go too."""
    lease = ack_wait.total_seconds()
    if lease <= 0:
        lease = ACK_WAIT_DEFAULT_S
    expires = max(lease / 2, SHORTEST_S)
    return Timings(
        ack_wait=lease,
        pinned_ttl=max(lease, SHORTEST_S),
        expires=expires,
        heartbeat=min(expires / 2, HEARTBEAT_MAX_S),
        inactive=lease,
        tick=lease + TICK_LATER_S,
    )


# ------------------------------------------------------------------------- the consumer


class Joining(Enum):
    """What the server says to the creation of a member's consumer."""

    JOINED = "it is there, as asked for"
    TAKEN = "another consumer holds one of its partitions"
    DIFFERS = "there is one of that name with another configuration"
    IN_USE = "another process of this member reads from it"


def consumer_config(
    member: str, filters: Sequence[str], timings: Timings, max_ack_pending: int
) -> dict[str, Any]:
    """The consumer of a member, field by field as Go writes it."""
    return {
        "name": member,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": nanoseconds(timings.ack_wait),
        "replay_policy": "instant",
        "max_ack_pending": max_ack_pending,
        "inactive_threshold": nanoseconds(timings.inactive),
        "num_replicas": 0,
        "filter_subjects": list(filters),
        "priority_policy": "pinned_client",
        "priority_timeout": nanoseconds(timings.pinned_ttl),
        "priority_groups": [PRIORITY_GROUP],
    }


async def create_consumer(api: JetStreamApi, stream: str, config: dict[str, Any]) -> Joining:
    """Create a member's consumer; that it is there already is success.

    Raises:
        ApiError: The server refuses it for a reason that is no part of a group's life.
        TransportError: Nobody answered.
    """
    body = {"stream_name": stream, "config": config, "action": "create"}
    try:
        await api.ask(f"CONSUMER.CREATE.{stream}.{config['name']}", body)
    except ApiError as error:
        if error.code in OVERLAPS:
            return Joining.TAKEN
        if error.code in EXISTS_OTHERWISE:
            return Joining.DIFFERS
        raise
    return Joining.JOINED


class Reader(NamedTuple):
    """Who reads from a consumer at the moment.

    Attributes:
        pin: Of the process that is served; empty for none.
        waiting: How many pulls are open.
        unacked: How many messages are delivered and not acked.
        filters: Of the consumer.
    """

    pin: str
    waiting: int
    unacked: int
    filters: frozenset[str]

    def is_of(self, pin: str, filters: Collection[str], *, was_pinned: bool) -> bool:
        """Whether a process that pulls with this pin and these filters may take it away.

        Where nobody is pinned, it may be one that does not pull any more and finishes what it has.
        """
        if self.pin:
            return self.pin == pin
        return self.filters == set(filters) and (was_pinned or not self.unacked)


async def reader_of(api: JetStreamApi, stream: str, consumer: str) -> Reader | None:
    """Who reads from a consumer; None where there is no such consumer."""
    info = await api.consumer(stream, consumer)
    if info is None:
        return None
    pins = [one.get("pinned_client_id", "") for one in info.get("priority_groups") or ()]
    return Reader(
        pin=next(filter(None, pins), ""),
        waiting=int(info.get("num_waiting", 0)),
        unacked=int(info.get("num_ack_pending", 0)),
        filters=frozenset(consumer_filters(info["config"])),
    )


# ------------------------------------------------------------------------- pulls and answers


def pull_subject(stream: str, consumer: str) -> str:
    """Where a pull is sent."""
    return f"{PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def pull_request(timings: Timings, pin: str, batch: int = BATCH) -> bytes:
    """A pull; without a pin it waits until nobody is pinned."""
    body: dict[str, Any] = {
        "expires": nanoseconds(timings.expires),
        "batch": batch,
        "idle_heartbeat": nanoseconds(timings.heartbeat),
    }
    if pin:
        body["id"] = pin
    body["group"] = PRIORITY_GROUP
    return json.dumps(body, separators=(",", ":")).encode()


class Status(Enum):
    """What the server says instead of a message."""

    ALIVE = "idle heartbeat"
    ENDED = "this pull has ended; send another one"
    BUSY = "this pull has ended; send another one in a moment"
    NOT_PINNED = "another process is served, or nobody; pull without a pin"
    GONE = "there is no such consumer any more"
    UNFIT = "the consumer is not the one that we made"
    STALE = "messages of it were in a socket that is gone, and would come out of order"


def status_of(code: str, description: str) -> Status:
    """The meaning of a status message. Source: nats-server, consumer.go."""
    match code:
        case "100":
            return Status.ALIVE
        case "404" | "408":
            return Status.ENDED
        case "423":
            return Status.NOT_PINNED
        case "503":
            return Status.GONE
        case "400":
            return Status.UNFIT
        case "409" if "Consumer Deleted" in description:
            return Status.GONE
    return Status.BUSY


class Meta(NamedTuple):
    """What the acknowledgement subject of a message tells of it."""

    stream: str
    consumer: str
    deliveries: int
    sequence: int
    timestamp_ns: int


def meta_of(reply: str) -> Meta:
    """Read an acknowledgement subject, with or without domain and account.

    Raises:
        ValueError: It is not one.
    """
    tokens = reply.split(".")
    if len(tokens) >= ACK_TOKENS_LONG:
        tokens = [*tokens[:2], *tokens[4:ACK_TOKENS_LONG]]
    if len(tokens) != ACK_TOKENS:
        raise ValueError(f"{reply!r} is not the acknowledgement subject of a message")
    _, _, stream, consumer, deliveries, sequence, _, timestamp, _ = tokens
    return Meta(stream, consumer, int(deliveries), int(sequence), int(timestamp))


def nanoseconds(seconds: float) -> int:
    """A duration as it stands on the wire."""
    return round(seconds * 1_000_000_000)
