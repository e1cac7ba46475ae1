"""Answers from the server: one inbox, one map of futures, one sweeper for those that never come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dagnats_worker._jetstream.direct import subscribe
from dagnats_worker._transport import Stored, message_size
from dagnats_worker.errors import PublishError, TransportError, describe

SWEEP_EVERY_S = 0.25
TOO_LARGE = 10054  # what a stream says of a message that is larger than it takes

CLOSED = "the connection was closed on this side"


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PublishAck(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_decode_ack = msgspec.json.Decoder(_PublishAck).decode


class Pending:
    """Something that was sent and is to be answered."""

    __slots__ = ("deadline", "future", "gathered", "many", "subject")

    def __init__(
        self, subject: str, future: asyncio.Future[Any], deadline: float, *, many: bool = False
    ) -> None:
        self.subject = subject
        self.future = future
        self.deadline = deadline
        self.many = many
        self.gathered: list[Msg] = []


class Replies:
    """Publishes to streams and asks the API over one connection."""

    def __init__(self, client: NatsClient, *, publish_timeout_s: float, request_timeout_s: float):
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._inbox = client.new_inbox()
        self._prefix = len(self._inbox) + 1
        self._count = 0
        self._publishes: dict[str, Pending] = {}
        self._requests: dict[str, Pending] = {}
        self._publish_timeout_s = publish_timeout_s
        self._request_timeout_s = request_timeout_s
        self._sweep_due = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None
        self._on_lost: dict[object, Callable[[], None]] = {}
        self._ended = False

    @property
    def closed(self) -> bool:
        """Nothing can be asked any more."""
        return self._ended or self._client.is_closed

    async def open(self) -> None:
        self._subscription = await subscribe(self._client, f"{self._inbox}.*", self._on_reply)
        self._sweep()

    async def close(self) -> None:
        self._ended = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.fail_all("the worker is closing its connection")
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str]
    ) -> asyncio.Future[Stored]:
        """Send to a stream; the future is done when the server has answered."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        if (too_large := refused_by(self._client, subject, data, headers)) is not None:
            _reject(future, too_large)
            return future
        if self._ended:
            _reject(future, PublishError(f"{subject}: {CLOSED}"))
            return future
        self._count += 1
        token = f"p{self._count}"
        self._publishes[token] = Pending(
            subject, future, self._loop.time() + self._publish_timeout_s
        )
        try:
            reply = f"{self._inbox}.{token}"
            await self._client.publish(subject, data, reply, headers or None)
        except (nats.errors.Error, OSError) as error:
            del self._publishes[token]
            _reject(future, PublishError(f"{subject}: {describe(error)}"))
        return future

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Ask, and wait for the one answer."""
        answers = await self._ask(subject, data, headers, many=False)
        return answers[0]

    async def request_many(self, subject: str, data: bytes) -> list[Msg]:
        """Ask, and wait for all answers up to the one with a status header."""
        return await self._ask(subject, data, None, many=True)

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream's API; an ``error`` in the answer is left for the caller."""
        data = b"" if body is None else json.dumps(body).encode()
        message = await self.request(f"$JS.API.{subject}", data)
        if not message.data:
            raise TransportError(
                f"JetStream does not answer on {subject}; is it enabled on the server?"
            )
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    async def _ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, *, many: bool
    ) -> list[Msg]:
        if self._ended:
            raise TransportError(f"{subject}: {CLOSED}")
        future: asyncio.Future[list[Msg]] = self._loop.create_future()
        self._count += 1
        token = f"r{self._count}"
        self._requests[token] = Pending(
            subject, future, self._loop.time() + self._request_timeout_s, many=many
        )
        try:
            reply = f"{self._inbox}.{token}"
            await self._client.publish(subject, data, reply, dict(headers) if headers else None)
            return await future
        except (nats.errors.Error, OSError) as error:
            raise TransportError(f"{subject}: {describe(error)}") from error
        finally:
            self._requests.pop(token, None)

    def _on_reply(self, message: Msg) -> None:
        token = message.subject[self._prefix :]
        if token[:1] == "p":
            pending = self._publishes.pop(token, None)
            if pending is not None and not pending.future.done():
                self._stored(pending, message)
            return
        pending = self._requests.get(token)
        if pending is None or pending.future.done():
            return
        pending.gathered.append(message)
        if not pending.many or (message.headers and "Status" in message.headers):
            pending.future.set_result(pending.gathered)

    def _stored(self, pending: Pending, message: Msg) -> None:
        future = pending.future
        if not message.data:
            text = "no stream takes this subject; create the streams with `dagnats-worker setup`"
            _reject(future, PublishError(f"{pending.subject}: {text}"))
            return
        try:
            ack = _decode_ack(message.data)
        except ValueError as error:
            _reject(future, PublishError(f"{pending.subject}: {error}"))
            return
        if ack.error is not None:
            text = f"{pending.subject}: {ack.error.description}"
            _reject(future, PublishError(text, ack.error.err_code))
        else:
            future.set_result(Stored(ack.seq, ack.duplicate))

    def fail_all(self, reason: str) -> None:
        """Nothing that is under way will be answered any more."""
        for pending in [*self._publishes.values(), *self._requests.values()]:
            self._fail(pending, reason)
        self._publishes.clear()
        for callback in list(self._on_lost.values()):
            callback()

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Be told whenever all that is under way is lost; returns what ends that."""
        key = object()
        self._on_lost[key] = callback

        def forget() -> None:
            self._on_lost.pop(key, None)

        return forget

    def _fail(self, pending: Pending, reason: str) -> None:
        if not pending.future.done():
            kind = TransportError if pending.subject.startswith("$JS.") else PublishError
            _reject(pending.future, kind(f"{pending.subject}: {reason}"))

    def _sweep(self) -> None:
        # Where a handler has blocked the loop, answers wait to be read: this looks at how things
        # were when it was due.
        now = min(self._loop.time(), self._sweep_due)
        for waiting in (self._publishes, self._requests):
            late = []
            for token, pending in waiting.items():
                if pending.deadline > now:
                    break  # in the order of sending, so of their deadlines
                late.append(token)
            for token in late:
                pending = waiting.pop(token)
                self._fail(pending, "the server did not answer in time")
        self._sweep_due = self._loop.time() + SWEEP_EVERY_S
        self._sweeper = self._loop.call_at(self._sweep_due, self._sweep)


def refused_by(
    client: NatsClient, subject: str, data: bytes, headers: Mapping[str, str] | None
) -> PublishError | None:
    """Why a message must not be sent: the server closes the connection that sends a larger one."""
    if len(data) <= client.max_payload // 2:
        return None
    size = message_size(data, headers)
    if size <= client.max_payload:
        return None
    text = f"{size} bytes with headers are more than the server's max_payload, {client.max_payload}"
    return PublishError(f"{subject}: {text}", TOO_LARGE)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # read here: whoever asked may have been cancelled meanwhile
