"""The in-memory server: streams, consumers and plain subjects of any number of connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from dagnats_worker._jetstream.provision import RESOURCES
from dagnats_worker._naming import filters_overlap
from dagnats_worker._protocol import parse_ack_subject
from dagnats_worker._transport import Stored
from dagnats_worker.errors import PublishError
from dagnats_worker.testing._clock import Clock, FakeClock, SystemClock
from dagnats_worker.testing._consumer import Consumer, Settlement
from dagnats_worker.testing._faults import Faults
from dagnats_worker.testing._stream import StoredMessage, Stream

MAX_PAYLOAD_DEFAULT = 1024 * 1024
"""Source: nats-server, MAX_PAYLOAD_SIZE."""

OnMessage = Callable[[str, bytes, Mapping[str, str]], None]
Responder = Callable[[str, bytes], bytes]


class MemoryServer:
    """What stands in for a NATS server in a test, without a process and without a port.

    It has the streams and buckets that `dagnats-worker setup` creates, and keeps the promises of
    JetStream that a worker relies on; the same tests hold for it and for a real server.

    Example:
        ```python
        server = MemoryServer(clock=FakeClock())
        worker = Worker(MemoryTransport(server))
        worker.handle("resize", resize)
        async with worker, Client(MemoryTransport(server)) as client:
            server.faults.lose_acks()
            run = await client.submit("resize", {"width": 1})
        ```

    Args:
        clock: A clock that the test moves; without one, time passes as it does.
        without: Names of streams and buckets that are to be missing.
        max_payload: The largest message that it takes, headers included, in bytes.

    Attributes:
        faults: What a test can break.
        streams: By name; a bucket's is called ``KV_<bucket>``.
        consumers: By stream and name.

    Raises:
        ValueError: There is nothing to leave out under that name.
    """

    def __init__(
        self,
        *,
        clock: FakeClock | None = None,
        without: Iterable[str] = (),
        max_payload: int = MAX_PAYLOAD_DEFAULT,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.max_payload = max_payload
        self.faults = Faults(self)
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self._listeners: dict[object, tuple[str, OnMessage]] = {}
        self._responders: dict[str, Responder] = {}
        self._settled: list[Callable[[Settlement], None]] = []
        self._stamped_ns = 0
        self._provide(set(without))

    def _provide(self, without: set[str]) -> None:
        for resource in RESOURCES:
            config = resource.config
            if resource.name in without:
                without.remove(resource.name)
                continue
            self.add_stream(
                str(config.name),
                *(config.subjects or ()),
                work_queue=config.retention == "workqueue",
                max_age=timedelta(seconds=config.max_age or 0),
                duplicate_window=timedelta(seconds=config.duplicate_window or 0),
                per_subject_max=max(0, config.max_msgs_per_subject),
            )
        if without:
            known = ", ".join(resource.name for resource in RESOURCES)
            raise ValueError(f"there is no {min(without)!r} to leave out; there are {known}")

    # ------------------------------------------------------------------ setting it up

    def add_stream(
        self,
        name: str,
        *subjects: str,
        work_queue: bool = False,
        max_age: timedelta = timedelta(0),
        duplicate_window: timedelta = timedelta(minutes=2),
        per_subject_max: int = 0,
    ) -> Stream:
        """Create a stream that the protocol does not name.

        Args:
            work_queue: A message is removed when it is acked.
            max_age: After this long a message is removed; zero for never.
            duplicate_window: For so long a message id is remembered.
            per_subject_max: How many messages of one subject are kept; 0 for all.
        """
        stream = Stream(
            name,
            list(subjects),
            clock=self.clock,
            stamp=self._stamp,
            work_queue=work_queue,
            max_age=max_age,
            duplicate_window=duplicate_window,
            per_subject_max=per_subject_max,
        )
        self.streams[name] = stream
        return stream

    def add_bucket(self, name: str, ttl: timedelta = timedelta(0)) -> Stream:
        """Create a bucket that the protocol does not name, for example one of a plugin's own."""
        return self.add_stream(f"KV_{name}", f"$KV.{name}.>", max_age=ttl, per_subject_max=1)

    def respond(self, subject: str, responder: Responder) -> None:
        """Answer requests to a subject, as an engine would; wildcards are allowed."""
        self._responders[subject] = responder

    def on_settled(self, callback: Callable[[Settlement], None]) -> Callable[[], None]:
        """Be told of each ack, nak and term that arrives; returns what ends it."""
        self._settled.append(callback)
        return lambda: self._settled.remove(callback)

    # ------------------------------------------------------------------ looking at it

    def messages(self, stream: str, subject: str = ">") -> list[StoredMessage]:
        """What a stream holds, oldest first; of a subject, with wildcards.

        Raises:
            KeyError: There is no such stream.
        """
        return list(self.streams[stream].messages(subject))

    @property
    def listeners(self) -> int:
        """How many plain subscriptions and watches of buckets are open."""
        told = sum(stream.listening for stream in self.streams.values())
        return len(self._listeners) + told - len(self.consumers)

    def consumers_of(self, stream: str) -> list[Consumer]:
        """The consumers of a stream."""
        return [found for (name, _), found in self.consumers.items() if name == stream]

    # ------------------------------------------------------------------ what connections call

    def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> Stored:
        """Store a message in the stream of its subject, and pass it to who listens there.

        Raises:
            PublishError: It is not stored.
        """
        headers = headers or {}
        for key, (own, _) in self._listeners.items():
            if filters_overlap(own, subject):
                loop = asyncio.get_running_loop()
                loop.call_soon(self._pass_on, key, subject, data, headers)
        stream = next((one for one in self.streams.values() if one.takes(subject)), None)
        if stream is None:
            text = "no stream takes this subject; create the streams with `dagnats-worker setup`"
            raise PublishError(f"{subject}: {text}")
        return stream.store(subject, data, headers)

    def takes(self, subject: str) -> bool:
        """Whether a stream takes this subject."""
        return any(stream.takes(subject) for stream in self.streams.values())

    def send(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Pass a message to who listens, and say nothing of whether it was stored."""
        with contextlib.suppress(PublishError):
            self.publish(subject, data, headers)

    def ask(self, subject: str, data: bytes) -> bytes | None:
        """The answer to a request; None where nobody answers."""
        for own, responder in self._responders.items():
            if filters_overlap(own, subject):
                return responder(subject, data)
        return None

    def listen(self, subject: str, callback: OnMessage) -> Callable[[], None]:
        """Pass on what is sent to a plain subject; returns what ends it."""
        key = object()
        self._listeners[key] = (subject, callback)

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def _pass_on(self, key: object, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        if key in self._listeners:
            self._listeners[key][1](subject, data, headers)

    def acknowledge(self, ack_subject: str, frame: bytes) -> bool:
        """Do what an acknowledgement says; False where it was lost on the way."""
        info = parse_ack_subject(ack_subject)
        consumer = self.consumers.get((info.stream, info.consumer))
        if consumer is None:
            return False
        pending = consumer.pending.get(info.stream_sequence)
        if pending is not None and self.faults.loses(pending.message.subject, frame):
            return False
        consumer.acknowledge(info.stream_sequence, frame)
        return True

    # ------------------------------------------------------------------ consumers

    def create_consumer(self, stream: str, config: dict[str, Any]) -> Consumer:
        """Create a pull consumer, as the server's API is asked to."""
        consumer = Consumer(self.streams[stream], config, self.clock, self._tell_settled)
        self.consumers[stream, consumer.name] = consumer
        return consumer

    def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer; its unacked messages stay in the stream.

        Raises:
            KeyError: There is no such consumer.
        """
        self.consumers.pop((stream, name)).delete()

    def _tell_settled(self, settlement: Settlement) -> None:
        for callback in list(self._settled):
            callback(settlement)

    def _stamp(self) -> int:
        """No two messages have the same time, so that their order can be told from it."""
        self._stamped_ns = max(self.clock.time_ns(), self._stamped_ns + 1)
        return self._stamped_ns
