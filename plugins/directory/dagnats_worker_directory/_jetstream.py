"""The bucket over nats-py; the only module here that speaks to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats.errors
from nats.js.api import DeliverPolicy
from nats.js.errors import NoStreamResponseError, NotFoundError

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry
from dagnats_worker_directory._bucket import BUCKET

if TYPE_CHECKING:
    from nats.js import JetStreamContext

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAM = f"KV_{BUCKET}"
PREFIX = f"$KV.{BUCKET}."
READS_AT_ONCE = 64
CONSUMER_HEARTBEAT_S = 2.0
CONSUMER_KEPT_S = 5.0  # nats-py leaves the consumer of a subscription to the server
DELETED = ("DEL", "PURGE")
EXPIRED_MARKER = "Nats-Marker-Reason"
MISSING = (
    f"bucket {BUCKET!r} not found; start the engine, or create the buckets with "
    "`dagnats-worker setup`"
)


class JetStreamBucket:
    """The bucket over a JetStream context."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._leaving: set[asyncio.Task[None]] = set()

    async def put(self, key: str, value: bytes) -> None:
        with _told():
            await (await self._js.key_value(BUCKET)).put(key, value)

    async def delete(self, key: str) -> None:
        with _told():
            await (await self._js.key_value(BUCKET)).delete(key)

    async def entries(self) -> list[Entry]:
        """Read key by key: a consumer would stay behind on the server for each time."""
        with _told():
            info = await self._js.stream_info(STREAM, subjects_filter=f"{PREFIX}>")
            subjects = list(info.state.subjects or {})
            found: list[Entry | None] = []
            for first in range(0, len(subjects), READS_AT_ONCE):
                some = subjects[first : first + READS_AT_ONCE]
                found += await asyncio.gather(*map(self._newest, some))
        return [entry for entry in found if entry is not None]

    async def _newest(self, subject: str) -> Entry | None:
        try:
            message = await self._js.get_last_msg(STREAM, subject)
        except NotFoundError:
            return None  # it has expired meanwhile
        assert message.time is not None, "the server tells when it has stored a message"
        return _entry(subject, message.data, message.seq or 0, message.headers, message.time)

    async def changes(self) -> AsyncGenerator[Entry, None]:
        # Not to be cancelled half-way: nats-py would leave the subscription behind.
        opening = asyncio.create_task(self._subscribe(), name="directory watch opens")
        try:
            await asyncio.wait([opening])
            with _told():
                subscription = opening.result()
                while True:
                    message = await subscription.next_msg(timeout=None)
                    at = message.metadata
                    revision, stored_at = at.sequence.stream, at.timestamp
                    yield _entry(
                        message.subject, message.data, revision, message.headers, stored_at
                    )
        finally:
            leaving = asyncio.create_task(_leave(opening), name="directory watch ends")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _subscribe(self) -> JetStreamContext.PushSubscription:
        return await self._js.subscribe(
            f"{PREFIX}>",
            stream=STREAM,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            idle_heartbeat=CONSUMER_HEARTBEAT_S,
            inactive_threshold=CONSUMER_KEPT_S,
        )


async def _leave(opening: asyncio.Task[JetStreamContext.PushSubscription]) -> None:
    """The server drops the consumer a little later, also where it cannot be told."""
    with suppress(nats.errors.Error, TimeoutError):
        await (await opening).unsubscribe()


def _entry(
    subject: str, data: bytes | None, revision: int, headers: dict[str, str] | None, at: datetime
) -> Entry:
    headers = headers or {}
    return Entry(
        subject.removeprefix(PREFIX),
        data or b"",
        revision,
        headers,
        deleted=headers.get("KV-Operation") in DELETED or EXPIRED_MARKER in headers,
        timestamp_ns=_unix_ns(at),
    )


def _unix_ns(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * 1000


@contextmanager
def _told() -> Iterator[None]:
    """Turn the errors of nats-py into ours."""
    try:
        yield
    except (NotFoundError, NoStreamResponseError) as error:
        raise KeyValueError(MISSING) from error
    except (nats.errors.Error, TimeoutError) as error:
        text = str(error) or type(error).__name__
        raise KeyValueError(f"bucket {BUCKET!r}: {text}") from error
