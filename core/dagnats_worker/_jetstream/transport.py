"""The transport on a real server: one connection, and a second one that keeps the leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from dagnats_worker._config import WorkerConfig
from dagnats_worker._jetstream.connection import (
    Connection,
    check_server,
    open_connection,
    without_secrets,
)
from dagnats_worker._jetstream.consumers import Consumers
from dagnats_worker._jetstream.direct import subscribe
from dagnats_worker._jetstream.key_value import Bucket
from dagnats_worker._jetstream.leases import Leases, LoopLeases, ThreadLeases
from dagnats_worker._jetstream.provision import create_bucket
from dagnats_worker._jetstream.pull import PullSource
from dagnats_worker._jetstream.replies import Replies, refused_by
from dagnats_worker._jetstream.streams import Streams
from dagnats_worker._transport import NO_HEADERS, ConsumerSpec, StoredEvent
from dagnats_worker.errors import ConnectError, TransportError, describe

logger = logging.getLogger("dagnats_worker.connection")

HANDED_OVER_LOOK_EVERY_S = 0.1

_url = re.compile(r"((nats|tls|wss?)://)?[^\s/]+(/(?!/)\S*)?")
"""As nats-py reads it: the scheme and the port may be left out."""


class JetStreamTransport:
    """NATS, as the core uses it; see the protocol ``Transport`` for what each method does."""

    def __init__(self, connection: Connection, config: WorkerConfig, leases: Leases | None) -> None:
        client = connection.client
        self._connection = connection
        self._client = client
        self._config = config
        self._replies = Replies(
            client,
            publish_timeout_s=config.publish_timeout.total_seconds(),
            request_timeout_s=config.request_timeout.total_seconds(),
        )
        self._streams = Streams(self._replies)
        self._consumers = Consumers(self._replies)
        self._leases = leases
        self.nats = client
        self.jetstream: JetStreamContext = client.jetstream()
        self.publish = self._replies.publish

    @property
    def leases(self) -> Leases:
        if self._leases is None:
            raise TransportError("this connection was opened for a client, which holds no leases")
        return self._leases

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def closed(self) -> asyncio.Future[str]:
        return self._connection.closed

    async def open(self) -> None:
        await self._replies.open()
        self._connection.listen(lost=self._on_lost)

    async def _on_lost(self) -> None:
        self._replies.fail_all("the connection was lost before the server answered")

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        if (too_large := refused_by(self._client, subject, data, headers)) is not None:
            raise too_large
        try:
            await self._client.publish(subject, data, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise TransportError(f"{subject}: {describe(error)}") from error

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        message = await self._replies.request(subject, data, headers)
        if message.headers and message.headers.get("Status") == "503":
            raise TransportError(f"{subject}: nobody answers there")
        answer: bytes = message.data
        return answer

    async def subscribe(
        self, subject: str, callback: Callable[[str, bytes, Mapping[str, str]], None]
    ) -> Callable[[], Awaitable[None]]:
        async def on_message(message: Msg) -> None:
            callback(message.subject, message.data, message.headers or NO_HEADERS)

        try:
            subscription = await self._client.subscribe(subject, cb=on_message)
        except (nats.errors.Error, OSError) as error:
            raise TransportError(f"{subject}: {describe(error)}") from error

        async def end() -> None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

        return end

    async def listen(self, subject: str, take: Callable[[Msg], None]) -> Subscription:
        """A subscription whose messages are handed on as they are read."""
        return await subscribe(self._client, subject, take)

    async def history(
        self, run_id: str, *, since_ns: int = 0, after_sequence: int = 0, limit: int
    ) -> list[StoredEvent]:
        return await self._streams.history(
            run_id, since_ns=since_ns, after_sequence=after_sequence, limit=limit
        )

    async def newest(self, stream: str, subjects: Sequence[str]) -> Mapping[str, bytes]:
        return await self._streams.newest(stream, subjects)

    def key_value(self, bucket: str) -> Bucket:
        return Bucket(self._replies, self._client, bucket)

    async def create_key_value(self, bucket: str, ttl: timedelta) -> None:
        await create_bucket(self.jetstream, bucket, ttl)

    async def has_stream(self, stream: str) -> bool:
        return await self._streams.exists(stream)

    async def open_source(self, spec: ConsumerSpec) -> PullSource:
        source = PullSource(self._connection, self._consumers, spec, self._config)
        await source.bind()
        return source

    async def flush(self) -> None:
        await self._connection.flush(self._config.request_timeout.total_seconds())

    async def close(self) -> None:
        if self._leases is not None:
            await self._leases.close()
        await self._replies.close()
        await self._connection.close()


async def connect(
    connection: str | Sequence[str] | NatsClient | None,
    config: WorkerConfig,
    *,
    name: str,
    with_leases: bool = True,
) -> JetStreamTransport:
    """Open a transport on URLs, on a client that the user has connected, or on the configured URL.

    Raises:
        ConnectError: No server, or one that is too old; says what to do.
    """
    if isinstance(connection, NatsClient):
        if not connection.is_connected:
            raise ConnectError("the client that was handed over is not connected")
        opened = Connection(connection, config, owned=False)
        opened.watch_handed_over(HANDED_OVER_LOOK_EVERY_S)
    else:
        opened = await open_connection(config, urls_of(connection, config), name)
    try:
        check_server(opened.client)
        leases = await _leases(opened, connection, config, name) if with_leases else None
    except BaseException:
        await opened.close()
        raise
    transport = JetStreamTransport(opened, config, leases)
    try:
        await transport.open()
    except BaseException:
        await transport.close()
        raise
    return transport


def urls_of(connection: str | Sequence[str] | None, config: WorkerConfig) -> list[str]:
    """The servers to try, in order.

    Raises:
        ConnectError: One of them cannot be a server; says how to write one.
    """
    if connection is None:
        connection = config.urls
    urls = connection.split(",") if isinstance(connection, str) else list(connection)
    found = [url.strip() for url in urls if url.strip()]
    for url in found:
        if not _url.fullmatch(url):
            raise ConnectError(
                f"{without_secrets(url)!r} is not the URL of a server; write for example "
                "nats://127.0.0.1:4222, in --url, in NATS_URL or in the code"
            )
    return found


async def _leases(
    opened: Connection,
    connection: str | Sequence[str] | NatsClient | None,
    config: WorkerConfig,
    name: str,
) -> Leases:
    if isinstance(connection, NatsClient):
        urls, config = _same_again(connection, config)
    else:
        urls = urls_of(connection, config)

    async def open_second() -> Connection:
        return await open_connection(config, urls, f"{name} leases", quiet=True)

    leases = ThreadLeases(config, open_second)
    try:
        await leases.start()
    except BaseException as error:
        await leases.close()
        if opened.owned or not isinstance(error, ConnectError | TimeoutError):
            raise
        logger.warning(
            "the client that was handed over cannot be opened a second time (%s); leases are "
            "renewed on the event loop, so a handler that blocks it may lose its task to another "
            "worker",
            error,
        )
        return LoopLeases(config, opened.client)
    return leases


def _same_again(client: NatsClient, config: WorkerConfig) -> tuple[list[str], WorkerConfig]:
    """What a client that was handed over tells of how it was opened."""
    known = client.options
    credentials = replace(
        config.credentials,
        **{
            key: known[key]
            for key in ("user", "password", "token", "tls")
            if known.get(key) is not None and not callable(known[key])
        },
    )
    urls = [url.geturl() for url in client.servers]
    return urls, replace(config, credentials=credentials)
