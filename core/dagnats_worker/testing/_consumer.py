"""One consumer of the in-memory server: who gets which message, and what becomes of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dagnats_worker._ack import ACKED, Ack, Nak, Term
from dagnats_worker._naming import filters_overlap
from dagnats_worker._protocol import ACK, IN_PROGRESS, NAK, TERM
from dagnats_worker._transport import Delivery
from dagnats_worker.testing._clock import Clock, Timer
from dagnats_worker.testing._stream import StoredMessage, Stream

MAX_ACK_PENDING_DEFAULT = 1000
"""Source: nats-server, JsDefaultMaxAckPending."""

NS_PER_MICROSECOND = 1000


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of one delivery.

    Attributes:
        deliveries: How many times the message had been delivered by then.
        verdict: What the worker said: ``Ack()``, ``Nak(delay)`` or ``Term(reason)``.
    """

    message: StoredMessage
    deliveries: int
    verdict: Ack | Nak | Term


class Pull:
    """A reader that waits for one message."""

    __slots__ = ("deliver", "ended")

    def __init__(self, deliver: Callable[[Delivery], None], ended: Callable[[str], None]) -> None:
        self.deliver = deliver
        self.ended = ended


class Pending:
    """A message that was delivered and is not acked."""

    __slots__ = ("deliveries", "message", "timer")

    def __init__(self, message: StoredMessage) -> None:
        self.message = message
        self.deliveries = 0
        self.timer: Timer | None = None

    def wait(self, timer: Timer | None) -> None:
        """Replace what happens when nothing is heard."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


def parse_verdict(frame: bytes) -> Ack | Nak | Term | None:
    """Read an acknowledgement; None for one that only renews the lease.

    Raises:
        ValueError: None of the server's words.

    Source: nats-server, ADR-15 and consumer.go, processAck.
    """
    if frame in (b"", ACK):
        return ACKED
    if frame == IN_PROGRESS:
        return None
    if frame.startswith(TERM):
        return Term(frame[len(TERM) :].decode().strip())
    if frame.startswith(NAK):
        body = frame[len(NAK) :].strip()
        delay_ns = json.loads(body)["delay"] if body else 0
        return Nak(timedelta(microseconds=delay_ns / NS_PER_MICROSECOND))
    raise ValueError(f"{frame!r} is no acknowledgement")


class Consumer:
    """A pull consumer with explicit acks, shared by everybody who reads it.

    Attributes:
        config: As the server's API shows it.
        pending: What is delivered and not acked, by sequence.
    """

    def __init__(
        self,
        stream: Stream,
        config: dict[str, Any],
        clock: Clock,
        on_settled: Callable[[Settlement], None],
    ) -> None:
        self.stream = stream
        self.config = {"max_ack_pending": MAX_ACK_PENDING_DEFAULT, **config}
        self.name = str(config["name"])
        self.pending: dict[int, Pending] = {}
        self.deleted = False
        self._clock = clock
        self._on_settled = on_settled
        self._again: deque[int] = deque()
        self._waiting: deque[Pull] = deque()
        self._seen = 0
        self._delivered = 0
        self._end_listening = stream.listen(self._on_stored)

    @property
    def filter(self) -> str:
        """The subjects that it reads."""
        return str(self.config["filter_subject"])

    @property
    def ack_wait(self) -> timedelta:
        """How long a reader may hold a message without a word."""
        return timedelta(microseconds=self.config["ack_wait"] / NS_PER_MICROSECOND)

    # ------------------------------------------------------------------ reading

    def take(self, count: int) -> list[Delivery]:
        """Up to ``count`` messages that are there now."""
        taken: list[Delivery] = []
        while len(taken) < count and (delivery := self._next()) is not None:
            taken.append(delivery)
        return taken

    def wait(self, pull: Pull) -> None:
        """Get the next message when there is one; first come first served."""
        self._waiting.append(pull)
        self.serve()

    def leave(self, pull: Pull) -> None:
        """Stop waiting."""
        if pull in self._waiting:
            self._waiting.remove(pull)

    def serve(self) -> None:
        """Give what is there to those who wait."""
        while self._waiting and (delivery := self._next()) is not None:
            self._waiting.popleft().deliver(delivery)

    def delete(self) -> None:
        """Be gone; who waits is told."""
        self.deleted = True
        self._end_listening()
        for pending in self.pending.values():
            pending.wait(None)
        while self._waiting:
            self._waiting.popleft().ended("Consumer Deleted")

    @property
    def has_more(self) -> bool:
        """Whether a reader would get a message now."""
        if any(sequence in self.pending for sequence in self._again):
            return True
        return not self._is_full and self.stream.next(self.filter, self._seen) is not None

    @property
    def _is_full(self) -> bool:
        return len(self.pending) >= int(self.config["max_ack_pending"])

    def _on_stored(self, message: StoredMessage) -> None:
        if self._waiting and filters_overlap(self.filter, message.subject):
            self.serve()

    def _next(self) -> Delivery | None:
        while self._again:
            pending = self.pending.get(self._again.popleft())
            if pending is not None and self.stream.get(pending.message.sequence) is not None:
                return self._deliver(pending)
        if self._is_full:
            return None
        message = self.stream.next(self.filter, self._seen)
        if message is None:
            return None
        self._seen = message.sequence
        self.pending[message.sequence] = Pending(message)
        return self._deliver(self.pending[message.sequence])

    def _deliver(self, pending: Pending) -> Delivery:
        message = pending.message
        pending.deliveries += 1
        self._delivered += 1
        self._lend(pending, self.ack_wait)
        # The last number counts the messages behind this one, which no reader here asks for.
        ack_subject = (
            f"$JS.ACK.{self.stream.name}.{self.name}.{pending.deliveries}.{message.sequence}"
            f".{self._delivered}.{message.timestamp_ns}.0"
        )
        return Delivery(
            message.subject,
            message.data,
            message.headers,
            ack_subject=ack_subject,
            stream=self.stream.name,
            deliveries=pending.deliveries,
            sequence=message.sequence,
            timestamp_ns=message.timestamp_ns,
        )

    # ------------------------------------------------------------------ what becomes of a message

    def acknowledge(self, sequence: int, frame: bytes) -> None:
        """Do what a reader says, of whichever delivery of the message."""
        pending = self.pending.get(sequence)
        if pending is None:
            return
        verdict = parse_verdict(frame)
        if verdict is None:
            if sequence not in self._again:
                self._lend(pending, self.ack_wait)
            return
        if not isinstance(verdict, Nak):
            self._remove(pending)
        elif verdict.delay:
            self._lend(pending, verdict.delay)
        else:
            self.deliver_again(sequence)
        self._on_settled(Settlement(pending.message, pending.deliveries, verdict))
        self.serve()

    def deliver_again(self, sequence: int) -> None:
        """End the lease of a message, which is then next in line."""
        pending = self.pending[sequence]
        pending.wait(None)
        if sequence not in self._again:
            self._again.append(sequence)

    def _lend(self, pending: Pending, duration: timedelta) -> None:
        sequence = pending.message.sequence

        def lapse() -> None:
            self.deliver_again(sequence)
            self.serve()

        pending.wait(self._clock.call_later(duration, lapse))

    def _remove(self, pending: Pending) -> None:
        pending.wait(None)
        del self.pending[pending.message.sequence]
        if self.stream.work_queue:
            self.stream.remove(pending.message.sequence)
