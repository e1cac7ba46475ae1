"""What a server holds for workers, as data; what is wrong with it, others judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """A consumer of a task stream.

    Attributes:
        filters: The subjects that it takes; ``>`` where it has no filter.
        durable: It stays when nobody pulls from it.
        sourcing: It feeds another stream, so that tasks leave through it.
        pulls: Requests of workers that wait for tasks at this moment.
        active_at: When something was last delivered; None for never.
    """

    name: str
    filters: tuple[str, ...]
    durable: bool
    sourcing: bool
    ack_policy: str
    ack_wait: timedelta
    max_deliver: int
    max_ack_pending: int
    unacked: int
    queued: int
    pulls: int
    pulls_max: int
    created_at: datetime | None = None
    active_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """A stream, also that of a bucket.

    Attributes:
        sources: The subjects that it takes over from the task stream; empty for any other stream.
    """

    name: str
    subjects: tuple[str, ...]
    retention: str
    discard: str
    max_messages: int
    max_bytes: int
    messages: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at a server.

    Attributes:
        clock_ahead: How far the clock of this machine is ahead of the server's; None where the
            server did not tell its time.
        store_max: Bytes that the account may store; -1 for no limit.
        streams: By their names; None where the user may not look at them.
        consumers: Of the stream of tasks; None where the user may not look at them.
        queued: How many tasks lie on each subject of that stream; not all where there are too many.
        denied: What the user may not look at.
    """

    url: str
    version: tuple[int, int, int]
    round_trip: timedelta
    clock_ahead: timedelta | None
    store_used: int
    store_max: int
    streams: Mapping[str, StreamFacts] | None = field(default_factory=dict)
    consumers: tuple[ConsumerFacts, ...] | None = ()
    queued: Mapping[str, int] = field(default_factory=dict)
    denied: tuple[str, ...] = ()
