"""The bucket of the directory, as the directory wants it, and over a worker's ``KeyValue``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from dagnats_worker.hookspecs import Entry, KeyValue

BUCKET = "workers"


class Bucket(Protocol):
    """What raises, raises ``KeyValueError``: there is no such bucket, or nobody answers."""

    async def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        ...

    async def delete(self, key: str) -> None:
        """Leave a delete marker for a key."""
        ...

    async def entries(self) -> list[Entry]:
        """The newest entry of every key; deleted ones may be among them."""
        ...

    def changes(self) -> AsyncGenerator[Entry, None]:
        """The newest entry of every key, and then every change."""
        ...


class KeyValueBucket:
    """The bucket over what a plugin gets of its worker."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    async def put(self, key: str, value: bytes) -> None:
        await self._kv.put(key, value)

    async def delete(self, key: str) -> None:
        await self._kv.delete(key)

    async def entries(self) -> list[Entry]:
        found = [await self._kv.get(key) for key in await self._kv.keys()]
        return [entry for entry in found if entry is not None]

    async def changes(self) -> AsyncGenerator[Entry, None]:
        async with self._kv.follow(">") as changes:
            async for entry in changes:
                yield entry
