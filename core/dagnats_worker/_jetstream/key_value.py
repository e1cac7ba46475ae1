"""Key-value buckets, with what nats-py's own lack: headers, and compare-and-set on delete."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from nats.aio.client import Client as NatsClient

from dagnats_worker._jetstream.reading import (
    OPERATION,
    STREAM_NOT_FOUND,
    Reading,
    is_deletion,
    missing,
    reading,
)
from dagnats_worker._jetstream.replies import Replies
from dagnats_worker._key_value import Entry
from dagnats_worker._wire_text import parse_time
from dagnats_worker.errors import KeyValueError, PublishError, TransportError

logger = logging.getLogger("dagnats_worker.connection")

WRONG_LAST_SEQUENCE = (10071, 10164)
NO_MESSAGE = 10037
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
AGAIN_AFTER_S = 0.25

_key = re.compile(r"[-/_=.a-zA-Z0-9]+")


class Bucket:
    """One bucket, over the connection of the worker."""

    def __init__(self, replies: Replies, client: NatsClient, name: str) -> None:
        self._replies = replies
        self._client = client
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
        found: dict[str, None] = {}
        async with self._reading(">", existing=True, values=False) as entries:
            async for entry in entries.existing():
                found.pop(entry.key, None)  # written once more meanwhile, and perhaps deleted
                if not entry.deleted:
                    found[entry.key] = None
        return list(found)

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        async with self.follow(key) as changes:
            async for change in changes:
                yield change

    @asynccontextmanager
    async def follow(
        self, key: str, *, existing: bool = True, values: bool = True
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        async with self._reading(key, existing=existing, values=values) as entries:
            yield self._changes(entries, key)

    async def _changes(self, entries: Reading, key: str) -> AsyncIterator[Entry]:
        while True:
            try:
                entry = await entries.next()
            except KeyValueError as error:
                await self._begin_again(entries, key, error)
            else:
                yield entry

    async def _begin_again(self, entries: Reading, key: str, reason: KeyValueError) -> None:
        while not (self._replies.closed or reason.missing):
            logger.debug("%s; reading the changes of %r again", reason, key)
            await asyncio.sleep(AGAIN_AFTER_S)
            try:
                return await entries.begin()
            except KeyValueError as error:
                reason = error
        text = f"bucket {self.name!r}: the changes of {key!r} ended: {reason}"
        raise KeyValueError(text, missing=reason.missing) from reason

    def _reading(
        self, key: str, *, existing: bool, values: bool
    ) -> AbstractAsyncContextManager[Reading]:
        return reading(
            self._client, self._replies, self.name, key, existing=existing, values=values
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
                raise missing(self.name)
            raise KeyValueError(f"bucket {self.name!r}: {error_found.get('description')}")
        message = answer["message"]
        headers = _headers(base64.b64decode(message.get("hdrs", "")).decode(errors="replace"))
        return Entry(
            key,
            base64.b64decode(message.get("data", "")),
            int(message["seq"]),
            headers,
            deleted=is_deletion(headers),
            timestamp_ns=parse_time(message["time"]),
        )


def _headers(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.split("\r\n")[1:] if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
