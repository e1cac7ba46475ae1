"""The entries of a bucket in the order of their writes, by a consumer that goes with its reader.

The reader pulls: nothing is sent that it has not asked for, so a slow one fills nobody's memory,
and the server drops the consumer of one that is gone. Nothing is acked. What was lost shows as a
gap in the consumer's count, or as silence where heartbeats should be; a new consumer then begins
behind the last entry that was read.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dagnats_worker._jetstream.direct import subscribe
from dagnats_worker._jetstream.replies import Replies
from dagnats_worker._key_value import Entry
from dagnats_worker.errors import KeyValueError, TransportError, describe

STREAM_NOT_FOUND = 10059
OPERATION = "KV-Operation"
MARKER = "Nats-Marker-Reason"
"""On the marker that the server leaves for a key whose time has run out."""
PULL_EXPIRES_S = 30
HEARTBEAT_S = 1
SILENCE_MAX_S = 2.5
INACTIVE_S = 5
"""Without an open pull. Deleting is not enough: the server may do it before it has created."""
VALUES_AT_ONCE_MAX = 64
"""Of the largest messages that a server takes by default these are 64 MB."""
HEADERS_AT_ONCE_MAX = 1000
ARRIVED_MAX = 2 * HEADERS_AT_ONCE_MAX
PULL_ENDS = ("404", "408")
LOST_MESSAGE = "a message was lost on its way"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reading:
    """One reader of a bucket."""

    def __init__(
        self,
        client: NatsClient,
        replies: Replies,
        bucket: str,
        key: str,
        *,
        existing: bool,
        values: bool,
    ) -> None:
        self._client = client
        self._replies = replies
        self._bucket = bucket
        self._stream = f"KV_{bucket}"
        self._config = {
            "filter_subject": f"$KV.{bucket}.{key}",
            "ack_policy": "none",
            "replay_policy": "instant",
            "headers_only": not values,
            "inactive_threshold": _ns(INACTIVE_S),
            "mem_storage": True,
            "num_replicas": 1,
        }
        self._place: dict[str, Any] = {"deliver_policy": "last_per_subject" if existing else "new"}
        self._batch = VALUES_AT_ONCE_MAX if values else HEADERS_AT_ONCE_MAX
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._end_listening: Callable[[], None] = lambda: None
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue(ARRIVED_MAX)
        self._consumer = ""
        self._count = 0
        self._asked = 0
        self._pending = 0

    async def begin(self) -> None:
        """Begin to read; after an interruption, behind what was read.

        Raises:
            KeyValueError: There is no such bucket, or no answer.
        """
        if self._subscription is None:
            self._end_listening = self._replies.on_lost(lambda: self._take(None))
            with self._failures_named():
                self._subscription = await _kept(
                    subscribe(self._client, f"{self._inbox}.*", self._take)
                )
        await self._delete_consumer()
        await self._create_consumer()
        await self._ask()

    async def next(self) -> Entry:
        """The next entry, waited for as long as it takes.

        Raises:
            KeyValueError: The reading was interrupted; ``begin`` goes on with it.
        """
        while (entry := await self._step()) is None:
            pass
        return entry

    async def existing(self) -> AsyncIterator[Entry]:
        """The entries up to a moment at which there are no more.

        Raises:
            KeyValueError: The reading was interrupted.
        """
        count: int | None = None
        while count is None or self._count < count:
            if count is None and not self._pending:
                count = await self._count_of_all()
            elif (entry := await self._step()) is not None:
                yield entry

    async def end(self) -> None:
        """Leave nothing behind, on either side."""
        self._end_listening()
        if self._subscription is not None:
            with suppress(nats.errors.Error, OSError):  # what is closed has no subscriptions
                await self._subscription.unsubscribe()
        with suppress(KeyValueError):
            await self._delete_consumer()

    # ------------------------------------------------------------------ the consumer

    async def _create_consumer(self) -> None:
        name = f"reader-{secrets.token_hex(8)}"
        self._consumer, self._count, self._asked = name, 0, 0
        self._arrived = asyncio.Queue(ARRIVED_MAX)
        config = {"name": name, **self._config, **self._place}
        answer = await self._api(
            f"CONSUMER.CREATE.{self._stream}.{name}.{config['filter_subject']}",
            {"stream_name": self._stream, "config": config, "action": "create"},
        )
        self._pending = int(answer["num_pending"])
        if self._place["deliver_policy"] == "new":
            self._place = _behind(int(answer["delivered"]["stream_seq"]))

    async def _delete_consumer(self) -> None:
        """Nobody waits for the answer: what is not deleted is dropped as inactive."""
        if self._consumer:
            await self._send(f"CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")
            self._consumer = ""

    async def _ask(self) -> None:
        request = {
            "batch": self._batch,
            "expires": _ns(PULL_EXPIRES_S),
            "idle_heartbeat": _ns(HEARTBEAT_S),
        }
        await self._send(
            f"CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            json.dumps(request).encode(),
            f"{self._inbox}.{self._consumer}",
        )
        self._asked = self._batch

    async def _count_of_all(self) -> int | None:
        """How many entries there are to read, as soon as the server has sent each.

        What it says with an entry is not enough to know: it leaves out, for a moment, one that is
        being written once more.
        """
        answer = await self._api(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        self._pending = int(answer["num_pending"])
        return None if self._pending else int(answer["delivered"]["consumer_seq"])

    async def _api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._failures_named():
            answer = await self._replies.api(subject, body)
        if error := answer.get("error"):
            if error.get("err_code") == STREAM_NOT_FOUND:
                raise missing(self._bucket)
            raise self._error(str(error.get("description")))
        return answer

    async def _send(self, subject: str, data: bytes, reply: str = "") -> None:
        with self._failures_named():
            await self._client.publish(f"$JS.API.{subject}", data, reply)

    # ------------------------------------------------------------------ what arrives

    def _take(self, message: Msg | None) -> None:
        if not self._arrived.full():  # else it shows as a gap
            self._arrived.put_nowait(message)

    async def _step(self) -> Entry | None:
        if not self._asked:
            await self._ask()
        try:
            async with asyncio.timeout(SILENCE_MAX_S):
                message = await self._arrived.get()
        except TimeoutError as error:
            raise self._error("the server has fallen silent") from error
        if message is None:
            raise self._error("the connection was lost")
        if not message.reply.startswith("$JS.ACK."):
            self._on_status(message)
        elif message.metadata.consumer == self._consumer:
            return self._read(message)
        return None

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if message.subject != f"{self._inbox}.{self._consumer}":
            return
        if status == "100":  # the pull has brought nothing for a while
            self._pending = 0
            if int(headers.get("Nats-Last-Consumer", "0")) > self._count:
                raise self._error(LOST_MESSAGE)
        elif status in PULL_ENDS:
            self._asked = 0
        else:
            raise self._error(f"{status} {headers.get('Description', '').strip()}")

    def _read(self, message: Msg) -> Entry:
        metadata = message.metadata
        if metadata.sequence.consumer != self._count + 1:
            raise self._error(LOST_MESSAGE)
        self._count += 1
        self._asked -= 1
        self._pending = metadata.num_pending
        self._place = _behind(metadata.sequence.stream)
        headers = message.headers or {}
        return Entry(
            message.subject.removeprefix(f"$KV.{self._bucket}."),
            message.data,
            metadata.sequence.stream,
            headers,
            deleted=is_deletion(headers),
            timestamp_ns=(metadata.timestamp - EPOCH) // timedelta(microseconds=1) * 1000,
        )

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (TransportError, nats.errors.Error, OSError) as error:
            raise self._error(describe(error)) from error

    def _error(self, text: str) -> KeyValueError:
        return KeyValueError(f"bucket {self._bucket!r}: {text}")


@asynccontextmanager
async def reading(
    client: NatsClient, replies: Replies, bucket: str, key: str, *, existing: bool, values: bool
) -> AsyncIterator[Reading]:
    """Read a bucket for as long as the block lasts; no write after its beginning is missed."""
    one = Reading(client, replies, bucket, key, existing=existing, values=values)
    try:
        await one.begin()
        yield one
    finally:
        await one.end()


async def _kept(subscribing: Coroutine[Any, Any, Subscription]) -> Subscription:
    """The subscription; ended where this is cancelled, which nats-py may not let through.

    Source: nats-py 2.16, ``Client._flush_pending``.
    """
    task = asyncio.ensure_future(subscribing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await (await task).unsubscribe()
        raise


def is_deletion(headers: Mapping[str, str]) -> bool:
    """Whether a message says that its key is gone."""
    return headers.get(OPERATION) in ("DEL", "PURGE") or MARKER in headers


def missing(bucket: str) -> KeyValueError:
    """The error of a bucket that does not exist."""
    return KeyValueError(
        f"bucket {bucket!r} not found; start the engine, "
        "or create the buckets with `dagnats-worker setup`",
        missing=True,
    )


def _behind(sequence: int) -> dict[str, Any]:
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": sequence + 1}


def _ns(seconds: int) -> int:
    return seconds * 1_000_000_000
