"""Key-value buckets, with what nats-py's own lack: headers, and compare-and-set on delete."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy

from dagnats_worker._jetstream.replies import Replies
from dagnats_worker._key_value import Entry
from dagnats_worker._wire_text import parse_time
from dagnats_worker.errors import KeyValueError, PublishError, TransportError, describe

WRONG_LAST_SEQUENCE = (10071, 10164)
NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
OPERATION = "KV-Operation"
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
MARKER = "Nats-Marker-Reason"
FOLLOW_HEARTBEAT_S = 2.0
"""After two to four of these in silence the changes are asked for again."""
FOLLOW_INACTIVE_S = 30.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_key = re.compile(r"[-/_=.a-zA-Z0-9]+")


class Bucket:
    """One bucket, over the connection of the worker."""

    def __init__(self, replies: Replies, jetstream: JetStreamContext, name: str) -> None:
        self._replies = replies
        self._jetstream = jetstream
        self.name = name

    async def get(self, key: str, *, deleted: bool = False) -> Entry | None:
        entry = await self._newest(key)
        return None if entry is None or (entry.deleted and not deleted) else entry

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> int:
        sent = dict(headers or {})
        if expected_revision is not None:
            sent[EXPECTED_SEQUENCE] = str(expected_revision)
        try:
            stored = await (await self._replies.publish(self._subject(key), value, sent))
        except PublishError as error:
            if error.code in WRONG_LAST_SEQUENCE:
                newest = await self._newest(key) if expected_revision == 0 else None
                if newest is not None and newest.deleted:  # the marker has a revision too
                    return await self.put(
                        key, value, headers=headers, expected_revision=newest.revision
                    )
                text = f"bucket {self.name!r}: {key!r} is not at revision {expected_revision}"
                raise KeyValueError(text, conflict=True) from error
            if error.code == 0:  # nobody answers, or there is nobody to answer: the API knows which
                await self._newest(key)
            raise KeyValueError(f"bucket {self.name!r}: {error}") from error
        return stored.sequence

    async def delete(
        self,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> None:
        marked = {**(headers or {}), OPERATION: "DEL"}
        await self.put(key, b"", headers=marked, expected_revision=expected_revision)

    async def keys(self) -> list[str]:
        try:
            bucket = await self._jetstream.key_value(self.name)
            return await bucket.keys()
        except nats.js.errors.NoKeysError:
            return []
        except nats.js.errors.NotFoundError as error:
            raise self._missing() from error
        except (nats.errors.Error, TimeoutError) as error:
            raise KeyValueError(f"bucket {self.name!r}: {describe(error)}") from error

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        try:
            bucket = await self._jetstream.key_value(self.name)
            watcher = await bucket.watch(key)
        except nats.js.errors.NotFoundError as error:
            raise self._missing() from error
        except (nats.errors.Error, TimeoutError) as error:
            raise KeyValueError(f"bucket {self.name!r}: {describe(error)}") from error
        try:
            async for change in watcher:
                if change is not None:  # None says that the entries of before are all seen
                    deleted = change.operation in ("DEL", "PURGE")
                    yield Entry(
                        change.key,
                        change.value or b"",
                        change.revision or 0,
                        {},
                        deleted=deleted,
                        timestamp_ns=_unix_ns(change.created),
                    )
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py
        raise KeyValueError(f"bucket {self.name!r}: the watch of {key!r} ended")

    @asynccontextmanager
    async def follow(
        self, key: str, *, existing: bool = True, values: bool = True
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        try:
            subscription = await self._jetstream.subscribe(
                f"$KV.{self.name}.{key}",
                stream=f"KV_{self.name}",
                ordered_consumer=True,
                deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if existing else DeliverPolicy.NEW,
                headers_only=not values,
                idle_heartbeat=FOLLOW_HEARTBEAT_S,
                inactive_threshold=FOLLOW_INACTIVE_S,
            )
        except nats.js.errors.NotFoundError as error:
            raise self._missing() from error
        except (nats.errors.Error, TimeoutError) as error:
            raise KeyValueError(f"bucket {self.name!r}: {describe(error)}") from error
        try:
            yield self._entries(subscription, key)
        finally:
            with suppress(nats.errors.Error):  # a connection that is closed has no subscriptions
                await subscription.unsubscribe()

    async def _entries(
        self, subscription: JetStreamContext.PushSubscription, key: str
    ) -> AsyncIterator[Entry]:
        while True:
            try:
                message = await subscription.next_msg(timeout=None)
            except nats.errors.Error as error:
                text = f"bucket {self.name!r}: the changes of {key!r} ended: {describe(error)}"
                raise KeyValueError(text) from error
            headers = message.headers or {}
            metadata = message.metadata
            yield Entry(
                message.subject.removeprefix(f"$KV.{self.name}."),
                message.data,
                metadata.sequence.stream,
                headers,
                deleted=headers.get(OPERATION) in ("DEL", "PURGE") or MARKER in headers,
                timestamp_ns=_unix_ns(metadata.timestamp),
            )

    def _subject(self, key: str) -> str:
        if not _key.fullmatch(key) or key.startswith(".") or key.endswith("."):
            raise KeyValueError(
                f"bucket {self.name!r}: {key!r} is not a key; letters, digits and -/_=. are allowed"
            )
        return f"$KV.{self.name}.{key}"

    async def _newest(self, key: str) -> Entry | None:
        subject = self._subject(key)
        try:
            answer = await self._replies.api(
                f"STREAM.MSG.GET.KV_{self.name}", {"last_by_subj": subject}
            )
        except TransportError as error:
            raise KeyValueError(f"bucket {self.name!r}: {error}") from error
        error_found = answer.get("error")
        if error_found:
            if error_found.get("err_code") == NO_MESSAGE:
                return None
            if error_found.get("err_code") == STREAM_NOT_FOUND:
                raise self._missing()
            raise KeyValueError(f"bucket {self.name!r}: {error_found.get('description')}")
        message = answer["message"]
        headers = _headers(base64.b64decode(message.get("hdrs", "")).decode(errors="replace"))
        return Entry(
            key,
            base64.b64decode(message.get("data", "")),
            int(message["seq"]),
            headers,
            deleted=headers.get(OPERATION) in ("DEL", "PURGE"),
            timestamp_ns=parse_time(message["time"]),
        )

    def _missing(self) -> KeyValueError:
        return KeyValueError(
            f"bucket {self.name!r} not found; start the engine, "
            "or create the buckets with `dagnats-worker setup`",
            missing=True,
        )


def _unix_ns(created: object) -> int:
    # nats-py says int, and means the datetime that it takes from the message's metadata.
    assert isinstance(created, datetime), "every change has been stored some time"
    return (created - EPOCH) // timedelta(microseconds=1) * 1000


def _headers(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.split("\r\n")[1:] if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
