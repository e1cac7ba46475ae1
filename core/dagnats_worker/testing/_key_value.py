"""Key-value buckets of the in-memory server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dagnats_worker._key_value import Entry
from dagnats_worker._naming import filters_overlap
from dagnats_worker.errors import KeyValueError, PublishError, TransportError
from dagnats_worker.testing._stream import (
    EXPECTED_SEQUENCE,
    WRONG_LAST_SEQUENCE,
    StoredMessage,
    Stream,
)

if TYPE_CHECKING:
    from dagnats_worker.testing._transport import MemoryTransport

OPERATION = "KV-Operation"

_key = re.compile(r"[-/_=.a-zA-Z0-9]+")


class MemoryBucket:
    """One bucket, over one connection."""

    def __init__(self, transport: MemoryTransport, name: str) -> None:
        self._transport = transport
        self._prefix = f"$KV.{name}."
        self.name = name

    async def get(self, key: str, *, deleted: bool = False) -> Entry | None:
        entry = self._newest(key)
        return None if entry is None or (entry.deleted and not deleted) else entry

    def _newest(self, key: str) -> Entry | None:
        found = self._stream().newest(self._subject(key))
        return self._entry(found[0]) if found else None

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> int:
        subject = self._subject(key)
        self._stream()
        sent = dict(headers or {})
        if expected_revision is not None:
            sent[EXPECTED_SEQUENCE] = str(expected_revision)
        try:
            stored = await (await self._transport.publish(subject, value, sent))
        except PublishError as error:
            if error.code == WRONG_LAST_SEQUENCE:
                newest = self._newest(key) if expected_revision == 0 else None
                if newest is not None and newest.deleted:  # the marker has a revision too
                    return await self.put(
                        key, value, headers=headers, expected_revision=newest.revision
                    )
                text = f"bucket {self.name!r}: {key!r} is not at revision {expected_revision}"
                raise KeyValueError(text, conflict=True) from error
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
        entries = [self._entry(message) for message in self._stream().messages()]
        return [entry.key for entry in entries if not entry.deleted]

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        async with self.follow(key) as changes:
            async for change in changes:
                yield change

    @asynccontextmanager
    async def follow(
        self, key: str, *, existing: bool = True, values: bool = True
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        async with self._changes(key, existing=existing) as changes:
            yield self._entries(changes, key, values=values)

    async def _entries(
        self, changes: asyncio.Queue[StoredMessage | None], key: str, *, values: bool
    ) -> AsyncIterator[Entry]:
        while (change := await changes.get()) is not None:
            entry = self._entry(change)
            yield entry if values else replace(entry, value=b"")
        raise KeyValueError(f"bucket {self.name!r}: the changes of {key!r} ended")

    @asynccontextmanager
    async def _changes(
        self, key: str, *, existing: bool
    ) -> AsyncIterator[asyncio.Queue[StoredMessage | None]]:
        stream = self._stream()
        pattern = f"{self._prefix}{key}"
        changes: asyncio.Queue[StoredMessage | None] = asyncio.Queue()
        for message in stream.newest(pattern) if existing else ():
            changes.put_nowait(message)

        def on_stored(message: StoredMessage) -> None:
            if filters_overlap(pattern, message.subject):
                changes.put_nowait(message)

        end_listening = stream.listen(on_stored)
        end_waiting = self._transport.on_close(lambda: changes.put_nowait(None))
        try:
            yield changes
        finally:
            end_listening()
            end_waiting()

    def _entry(self, message: StoredMessage) -> Entry:
        return Entry(
            message.subject.removeprefix(self._prefix),
            message.data,
            message.sequence,
            message.headers,
            deleted=message.headers.get(OPERATION) in ("DEL", "PURGE"),
            timestamp_ns=message.timestamp_ns,
        )

    def _stream(self) -> Stream:
        """The stream below the bucket.

        Raises:
            KeyValueError: There is none, or the server cannot be asked.
        """
        try:
            stream = self._transport.read(f"KV_{self.name}")
        except TransportError as error:
            raise KeyValueError(f"bucket {self.name!r}: {error}") from error
        if stream is None:
            raise KeyValueError(
                f"bucket {self.name!r} not found; start the engine, "
                "or create the buckets with `dagnats-worker setup`",
                missing=True,
            )
        return stream

    def _subject(self, key: str) -> str:
        if not _key.fullmatch(key) or key.startswith(".") or key.endswith("."):
            raise KeyValueError(
                f"bucket {self.name!r}: {key!r} is not a key; letters, digits and -/_=. are allowed"
            )
        return f"{self._prefix}{key}"
