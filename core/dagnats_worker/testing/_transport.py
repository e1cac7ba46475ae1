"""A connection to the in-memory server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from dagnats_worker import _json
from dagnats_worker._jetstream.consumers import Consumers
from dagnats_worker._protocol import history_subject
from dagnats_worker._transport import ConsumerSpec, Stored, StoredEvent, message_size
from dagnats_worker.errors import PublishError, TransportError
from dagnats_worker.testing._consumer_api import answer
from dagnats_worker.testing._key_value import MemoryBucket
from dagnats_worker.testing._leases import MemoryLeases
from dagnats_worker.testing._server import MemoryServer
from dagnats_worker.testing._source import MemorySource
from dagnats_worker.testing._stream import Stream

HISTORY = "WORKFLOW_HISTORY"
MESSAGE_ID = "Nats-Msg-Id"
ACK_PREFIX = "$JS.ACK."
TOO_LARGE = 10054
"""Source: nats-server, errors.json."""


class MemoryTransport:
    """Connects a ``Worker`` or a ``Client`` to a server that exists in memory only.

    What a worker does with it is what it does with a real server. A worker closes it when it stops,
    so give each its own.

    Example:
        ```python
        transport = MemoryTransport()
        worker = Worker(transport)
        worker.handle("shout", shout)
        async with worker, Client(MemoryTransport(transport.server)) as client:
            run = await client.submit("shout", "hello")
            assert await run.result() == "HELLO"
        ```

    Args:
        server: The server; one of its own when not given.
    """

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()
        self.consumer_binding = Consumers(self)
        self._leases = MemoryLeases(self, self.server.clock)
        self._sources: list[MemorySource] = []
        self._unsent: list[tuple[str, bytes, dict[str, str]]] = []
        self._dropped = False
        self._end_reason = ""
        self._closed: asyncio.Future[str] | None = None
        self._on_close: dict[object, Callable[[], None]] = {}

    # ------------------------------------------------------------------ breaking it

    def drop(self) -> None:
        """Cut the connection: publishes and reads fail, pulls end, acks wait to be sent."""
        self._dropped = True
        for source in self._sources:
            source.forget_pull()

    def restore(self) -> None:
        """Bring the connection back; what waited is sent now."""
        self._dropped = False
        unsent, self._unsent = self._unsent, []
        for subject, data, headers in unsent:
            self._send_now(subject, data, headers)
        for source in self._sources:
            source.come_back()

    def end(self, reason: str = "the server closed the connection for good") -> None:
        """Close the connection for good, from the other side."""
        if self._end_reason:
            return
        self._end_reason = reason
        for source in self._sources:
            source.forget_pull()
        self._leases.close()
        for callback in list(self._on_close.values()):
            callback()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(reason)

    # ------------------------------------------------------------------ the connection

    @property
    def max_payload(self) -> int:
        return self.server.max_payload

    @property
    def connected(self) -> bool:
        return not self._dropped and not self._end_reason

    @property
    def closed(self) -> asyncio.Future[str]:
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
            if self._end_reason:
                self._closed.set_result(self._end_reason)
        return self._closed

    @property
    def leases(self) -> MemoryLeases:
        return self._leases

    async def flush(self) -> None:
        await asyncio.sleep(0)  # what listeners are to be told is told by then

    async def close(self) -> None:
        self.end("the connection was closed")

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call something at the end of the connection; returns what takes that back."""
        key = object()
        self._on_close[key] = callback

        def forget() -> None:
            self._on_close.pop(key, None)

        return forget

    # ------------------------------------------------------------------ sending

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str]
    ) -> asyncio.Future[Stored]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Stored] = loop.create_future()
        try:
            stored = self._publish(subject, data, headers)
        except PublishError as error:
            loop.call_soon(_reject, future, error)
            return future
        delay = self.server.faults.delay_of(subject)
        if delay:
            self.server.clock.call_later(delay, lambda: _resolve(future, stored))
        else:
            loop.call_soon(_resolve, future, stored)
        return future

    def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> Stored:
        if not self.connected:
            reason = self._end_reason or "the connection was lost before the server answered"
            raise PublishError(f"{subject}: {reason}")
        self._check_size(subject, data, headers)
        failing = self.server.faults.failing_publish(subject)
        if failing is None:
            return self.server.publish(subject, data, headers)
        if failing.stored:
            self.server.publish(subject, data, headers)
        raise failing.error(subject)

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        if self._end_reason:
            raise TransportError(f"{subject}: {self._end_reason}")
        self._check_size(subject, data, headers)
        if self._dropped:
            self._unsent.append((subject, data, headers or {}))
        else:
            self._send_now(subject, data, headers or {})

    def _check_size(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        size = message_size(data, headers)
        if size > self.max_payload:
            text = f"{size} bytes with headers are more than the server's max_payload"
            raise PublishError(f"{subject}: {text}, {self.max_payload}", TOO_LARGE)

    def _send_now(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        if subject.startswith(ACK_PREFIX):
            self.server.acknowledge(subject, data)
        else:
            self.server.send(subject, data, headers)

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        self._check(subject)
        answered = self.ask(subject, data, headers)
        if answered is None:
            raise TransportError(f"{subject}: nobody answers there")
        return answered

    def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes | None:
        """The answer to a request; None where nobody answers."""
        if subject.startswith(ACK_PREFIX):
            return b"" if self.server.acknowledge(subject, data) else None
        answered = self.server.ask(subject, data)
        if answered is None and self.server.takes(subject):
            return self._stored(subject, data, headers or {})
        return answered

    def _stored(self, subject: str, data: bytes, headers: Mapping[str, str]) -> bytes:
        """A stream answers a request as it does any other publish."""
        try:
            stored = self._publish(subject, data, dict(headers))
        except PublishError as error:
            return _json.encode({"error": {"err_code": error.code, "description": str(error)}})
        return _json.encode({"seq": stored.sequence, "duplicate": stored.duplicate})

    async def subscribe(
        self, subject: str, callback: Callable[[str, bytes, Mapping[str, str]], None]
    ) -> Callable[[], Awaitable[None]]:
        def on_message(subject: str, data: bytes, headers: Mapping[str, str]) -> None:
            if self.connected:
                callback(subject, data, headers)

        end_listening = self.server.listen(subject, on_message)

        async def end() -> None:
            end_listening()

        return end

    # ------------------------------------------------------------------ reading

    async def history(
        self, run_id: str, *, since_ns: int = 0, after_sequence: int = 0, limit: int
    ) -> list[StoredEvent]:
        stream = self.read(HISTORY)
        if stream is None:
            return []
        events = [
            StoredEvent(message.sequence, message.data, message.headers.get(MESSAGE_ID, ""))
            for message in stream.messages(history_subject(run_id))
            if message.sequence > after_sequence
            and (after_sequence or message.timestamp_ns >= since_ns)
        ]
        return events[:limit]

    async def newest(self, stream: str, subjects: Sequence[str]) -> Mapping[str, bytes]:
        found = self.read(stream)
        if found is None:
            return {}
        return {
            message.subject: message.data
            for subject in subjects
            for message in found.newest(subject)
        }

    def key_value(self, bucket: str) -> MemoryBucket:
        return MemoryBucket(self, bucket)

    async def create_key_value(self, bucket: str, ttl: timedelta) -> None:
        if self.read(f"KV_{bucket}") is None:
            self.server.add_bucket(bucket, ttl)

    async def has_stream(self, stream: str) -> bool:
        return self.read(stream) is not None

    async def open_source(self, spec: ConsumerSpec) -> MemorySource:
        source = MemorySource(self, spec)
        await source.bind()
        self._sources.append(source)
        return source

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream's API for consumers."""
        self._check(f"$JS.API.{subject}")
        return answer(self.server, subject, body)

    def read(self, stream: str) -> Stream | None:
        """The stream that is to be read, where there is one.

        Raises:
            TransportError: The server cannot be asked.
        """
        self._check(stream)
        return self.server.streams.get(stream)

    def _check(self, what: str) -> None:
        if not self.connected:
            raise TransportError(f"{what}: {self._end_reason or 'the connection is lost'}")
        if self.server.faults.read_fails():
            raise TransportError(f"{what}: the server did not answer in time")


def _resolve(future: asyncio.Future[Stored], stored: Stored) -> None:
    if not future.done():
        future.set_result(stored)


def _reject(future: asyncio.Future[Stored], error: PublishError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # read here: whoever asked may have been cancelled meanwhile
