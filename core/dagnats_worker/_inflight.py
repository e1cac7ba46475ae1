"""The messages that a worker holds: what is known of each, from arrival until it is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from dagnats_worker._transport import Delivery, Source

if TYPE_CHECKING:
    from dagnats_worker._execution import Execution
    from dagnats_worker._hook_calls import Implementation, Seen

RENEWALS_PER_LEASE = 3


class Ending(Enum):
    """Why the worker ends a task that would have gone on by itself."""

    TIMEOUT = "timeout"
    RUN_CANCELLED = "run cancelled"
    DRAIN = "drain"
    LEASE_LOST = "lease lost"


class InFlight:
    """One held message.

    The thread that renews leases reads it, so what that thread reads is only ever replaced.

    Attributes:
        ack_subject: Of the newest delivery of this message that has reached us.
        received_at: When its lease can have begun at the earliest; on the monotonic clock, as every
            ``_at`` here.
        renewed_at: When the lease was renewed last.
        confirmed_at: When the last renewal was sent that the server has answered; it is asked for
            an answer where the source confirms leases.
        renew_until: From then on it is left to lapse.
        started_at: When the handler was started; 0 before.
        timeout_s: How long the handler may run.
        in_handler: An interruption reaches the handler and nothing else.
        waits_for_handler: The handler cannot be interrupted by a cancelled run; its end is awaited.
        hook: The plugin's hook that is awaited now.
        hook_late: How often the clock has cancelled it.
        watched: The run is watched for cancellation.
        settled: The verdict is on its way, so the message may be delivered again at any moment.
        cancelled_task: The interruption has cancelled ``task``.
    """

    __slots__ = (
        "ack_subject",
        "cancelled_task",
        "confirmed_at",
        "delivery",
        "ending",
        "execution",
        "hook",
        "hook_late",
        "in_handler",
        "received_at",
        "renew_until",
        "renewed_at",
        "settled",
        "source",
        "started_at",
        "task",
        "timeout_s",
        "waits_for_handler",
        "watched",
    )

    def __init__(self, delivery: Delivery, source: Source, timeout_s: float) -> None:
        now = time.monotonic()
        self.delivery = delivery
        self.source = source
        self.ack_subject = delivery.ack_subject
        self.received_at = self.renewed_at = self.confirmed_at = delivery.sent_after or now
        self.renew_until = now + timeout_s
        self.timeout_s = timeout_s
        self.started_at = 0.0
        self.in_handler = False
        self.waits_for_handler = False
        self.watched = False
        self.settled = False
        self.cancelled_task = False
        self.ending: Ending | None = None
        self.execution: Execution | None = None
        self.hook: Implementation | Seen | None = None
        self.hook_late = 0
        self.task: asyncio.Task[Any] | None = None

    @property
    def renew_every_s(self) -> float:
        """The source's lease may change while the message is held, so it is asked each time."""
        return self.source.ack_wait.total_seconds() / RENEWALS_PER_LEASE

    @property
    def lease_may_have_lapsed(self) -> bool:
        """Somebody else may have been given this message meanwhile."""
        lease_s = self.source.ack_wait.total_seconds()
        return time.monotonic() - self.received_at > lease_s

    def interrupt(self, ending: Ending) -> None:
        """End the handler, for a reason that is then stronger than its outcome."""
        if self.ending is not None:
            return
        self.ending = ending
        if self.execution is not None:
            self.execution.set_cancelled()
        spared = self.waits_for_handler and ending is Ending.RUN_CANCELLED
        if self.in_handler and not spared and self.task is not None:
            self.cancelled_task = self.task.cancel()


class Held:
    """Every message that the worker holds, by stream and sequence."""

    def __init__(self) -> None:
        self._by_message: dict[tuple[str, int], InFlight] = {}

    def __iter__(self) -> Iterator[InFlight]:
        return iter(list(self._by_message.values()))

    def __len__(self) -> int:
        return len(self._by_message)

    def add(self, inflight: InFlight) -> InFlight | None:
        """Hold a message; where it is held already, return that one and take over its new lease.

        One that was given back and is only being let go is not in the way of the next delivery.
        """
        delivery = inflight.delivery
        key = (delivery.stream, delivery.sequence)
        other = self._by_message.get(key)
        if other is None or other.settled:
            self._by_message[key] = inflight
            return None
        other.ack_subject = delivery.ack_subject
        other.renewed_at = inflight.renewed_at
        other.confirmed_at = inflight.confirmed_at
        return other

    def remove(self, inflight: InFlight) -> None:
        delivery = inflight.delivery
        key = (delivery.stream, delivery.sequence)
        if self._by_message.get(key) is inflight:
            del self._by_message[key]
