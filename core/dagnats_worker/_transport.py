"""What the core asks of NATS, as protocols: a real server and the in-memory one both answer.

Everything here is data or a protocol; nothing does I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from dagnats_worker._key_value import KeyValue

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from dagnats_worker._inflight import InFlight
    from dagnats_worker._slots import Slots
    from dagnats_worker.hookspecs import KeepAlive

NO_HEADERS: Mapping[str, str] = {}

Settlement = Literal["", "done", "given back", "lost"]
"""Not settled; acked or terminated; to be delivered again; with somebody else, or nobody knows."""

HEADER_BYTES = len("NATS/1.0\r\n\r\n")
PAIR_BYTES = len(": \r\n")


def message_size(data: bytes, headers: Mapping[str, str] | None) -> int:
    """What a message counts against the server's ``max_payload``, in bytes."""
    if not headers:
        return len(data)
    pairs = sum(len(f"{name}{value}".encode()) + PAIR_BYTES for name, value in headers.items())
    return len(data) + HEADER_BYTES + pairs


class Delivery:
    """One delivery of one task message.

    Attributes:
        subject: Where the task was published, ``task.<type>[.<group>].<run id>``.
        data: The body, a TaskPayload as JSON.
        headers: Message headers, as published.
        ack_subject: Where an acknowledgement is sent; any connection may do so.
        stream: The stream that holds the message.
        deliveries: How many times the message has been delivered, 1 for the first time.
        sequence: Sequence of the message in its stream.
        timestamp_ns: When the stream stored the message, in nanoseconds since the epoch.
        doubtful: Somebody else may have been given it although it is said to be the first time: the
            consumer was deleted, its server crashed before it had stored what it knew, or we were
            frozen while the message lay in our socket.
        sent_after: On the monotonic clock: the server sent it, and its lease began, no earlier than
            this; 0 where that is not known.
        relayed: Another stream had it before this one, so it may be older than ``timestamp_ns``.
        settlement: Set by the worker before it says ``settled``: how that was done.
    """

    __slots__ = (
        "ack_subject",
        "data",
        "deliveries",
        "doubtful",
        "headers",
        "relayed",
        "sent_after",
        "sequence",
        "settlement",
        "stream",
        "subject",
        "timestamp_ns",
    )

    def __init__(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        *,
        ack_subject: str,
        stream: str,
        deliveries: int,
        sequence: int,
        timestamp_ns: int,
        doubtful: bool = False,
        sent_after: float = 0.0,
        relayed: bool = False,
        settlement: Settlement = "",
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.ack_subject = ack_subject
        self.stream = stream
        self.deliveries = deliveries
        self.sequence = sequence
        self.timestamp_ns = timestamp_ns
        self.doubtful = doubtful
        self.sent_after = sent_after
        self.relayed = relayed
        self.settlement: Settlement = settlement

    def __repr__(self) -> str:
        return f"Delivery({self.subject!r}, sequence={self.sequence}, deliveries={self.deliveries})"

    @property
    def timestamp(self) -> datetime:
        """When the stream stored the message."""
        return datetime.fromtimestamp(self.timestamp_ns / 1e9, UTC)


class Source(Protocol):
    """Where the tasks of one task type and group come from.

    A plugin may answer ``open_source`` with its own. It accounts for each message through
    ``slots``, so that the worker never holds more than it has slots for, and that a task type with
    nothing queued keeps no slots from the others:

    - While tasks are queued it asks for ``slots.free()`` of them, and does not wait for more.
    - With nothing queued, and where ``slots.may_idle()``, it waits for one message.
    - Else it says ``slots.want()`` and awaits ``slots.changed``, which it clears before it looks.

    What it has yielded, the worker acks, naks and renews, on ``delivery.ack_subject``. What has
    arrived and was not yielded it gives back itself when it is stopped, and says
    ``slots.settled()`` for each.

    A source may have an attribute ``trouble``: a text for ``/readyz`` while it cannot bring any
    tasks, and empty otherwise. It is read from another thread.

    Example:
        ```python
        async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
            queued = True
            while not self.stopped:
                slots.changed.clear()
                if queued and (count := slots.free()):
                    slots.ask(count)
                    messages = await self.fetch(count, wait=False)
                    slots.take_back(count - len(messages))
                    self.take(messages, slots, idle=False)
                    queued = len(messages) == count
                elif not queued and slots.may_idle():
                    slots.ask_idle()
                    messages = await self.fetch(1, wait=True)
                    if not messages:
                        slots.take_back(1, idle=True)
                    self.take(messages, slots, idle=True)
                    queued = bool(messages)
                else:
                    slots.want()
                    await slots.changed.wait()
                while self.arrived:
                    yield self.arrived.popleft()

        def take(self, messages: list[Msg], slots: Slots, *, idle: bool) -> None:
            for message in messages:
                slots.arrived(asked=True, idle=idle)
                self.arrived.append(delivery_of(message))
        ```
    """

    @property
    def ack_wait(self) -> timedelta:
        """The lease: how long the server waits before it delivers again; may change meanwhile."""
        ...

    @property
    def confirm_leases(self) -> bool:
        """Renewals are requests, to be answered within ``ack_wait``.

        Acks are too, except within the first lease of a message that only we were given. Where
        nobody answers, the lease is lost: the handler is cancelled, and nothing is published or
        acked.
        """
        ...

    @property
    def fenced(self) -> bool:
        """Every outcome is published only if nobody has started the step again meanwhile."""
        ...

    def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        """Deliver tasks until ``stop``; an error out of it stops the worker.

        It is iterated once, and not further while the worker takes a delivery over.
        """
        ...

    def settled(self, delivery: Delivery) -> None:
        """This delivery was acked, given back or lost; called once for each that was yielded."""
        ...

    async def stop(self) -> None:
        """Deliver no more, and give back what has arrived and was not yielded.

        Called when a drain begins, while handlers still run; for at most ``hook_timeout``.
        """
        ...

    async def close(self) -> None:
        """Free what the source holds; called after ``stop``, when the last handler has ended."""
        ...


class Stored(NamedTuple):
    """A message that its stream has stored.

    Attributes:
        sequence: Its sequence in the stream.
        duplicate: The stream already had a message with that id, and kept only the older one.
    """

    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One message read back from the history stream."""

    sequence: int
    data: bytes
    message_id: str


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A pull consumer that a task type needs.

    Attributes:
        name: Name of the durable; empty for an ephemeral one.
        ack_wait: What the user asked for; None leaves what the consumer has.
        inactive_threshold: After this long without a reader the server drops an ephemeral consumer.
    """

    stream: str
    name: str
    filter_subject: str
    ack_wait: timedelta | None = None
    inactive_threshold: timedelta | None = None


class Leases(Protocol):
    """Renews the lease of every message that the worker holds."""

    def hold(self, inflight: InFlight) -> None: ...

    def release(self, inflight: InFlight) -> None: ...

    def loop_is_alive(self) -> None:
        """Called by the event loop again and again; a silent loop's leases end some time."""
        ...

    def keep_alive(self, request: KeepAlive, every_s: float) -> Callable[[], None]:
        """Send a request now and then again and again; returns what ends it."""
        ...

    @property
    def renewals(self) -> int: ...


class Transport(Protocol):
    """A connection to NATS, as the core uses it."""

    @property
    def max_payload(self) -> int:
        """Largest message that the server takes, headers included, in bytes."""
        ...

    @property
    def connected(self) -> bool: ...

    @property
    def closed(self) -> asyncio.Future[str]:
        """Done, with the reason, once the connection is gone for good."""
        ...

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str]
    ) -> asyncio.Future[Stored]:
        """Send a message to the stream of its subject; the future is done when it is stored.

        Sending neither waits for the server nor raises: the future fails with ``PublishError``.
        """
        ...

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a message that nobody confirms: an acknowledgement, a stream chunk."""
        ...

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Ask, and wait for one answer; ``TransportError`` where there is none in time."""
        ...

    async def subscribe(
        self, subject: str, callback: Callable[[str, bytes, Mapping[str, str]], None]
    ) -> Callable[[], Awaitable[None]]:
        """Listen to a plain subject; returns what ends it."""
        ...

    async def history(
        self, run_id: str, *, since_ns: int = 0, after_sequence: int = 0, limit: int
    ) -> list[StoredEvent]:
        """The stored events of a run, oldest first."""
        ...

    async def newest(self, stream: str, subjects: Sequence[str]) -> Mapping[str, bytes]:
        """The newest message of each of these subjects that has one; one request for all."""
        ...

    def key_value(self, bucket: str) -> KeyValue: ...

    async def create_key_value(self, bucket: str, ttl: timedelta) -> None:
        """Create a bucket that does not exist; keys of it are kept for ``ttl``, zero for ever."""
        ...

    async def has_stream(self, stream: str) -> bool: ...

    async def open_source(self, spec: ConsumerSpec) -> Source:
        """Bind to the consumer, or create it; ``StartError`` where that cannot work."""
        ...

    @property
    def leases(self) -> Leases: ...

    async def flush(self) -> None: ...

    async def close(self) -> None: ...


def is_transport(connection: object) -> TypeIs[Transport]:
    """Whether a transport itself was handed over, and not a way to connect one."""
    return hasattr(connection, "open_source")
