"""The entries of the bucket: which of them can be read, and for how long they count."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

from dagnats_worker.errors import DecodeError, KeyValueError
from dagnats_worker.hookspecs import Entry
from dagnats_worker_directory._bucket import Bucket
from dagnats_worker_directory._registration import WorkerRegistration

logger = logging.getLogger("dagnats_worker_directory")

READ_MAX_S = 10.0
CANCEL_AGAIN_S = 0.1


class Entries:
    """Reads a bucket, and leaves out what says nothing.

    Attributes:
        unreadable: Keys of entries that could not be read, each with the reason.
    """

    def __init__(self, bucket: Bucket, stale_after: timedelta) -> None:
        self._bucket = bucket
        self.stale_after_s = stale_after.total_seconds()
        self.unreadable: dict[str, str] = {}

    async def all(self) -> list[Entry]:
        """The newest entry of every key.

        Raises:
            KeyValueError: There is no bucket, or it was not read in time.
        """
        found = await self._read()
        for key in self.unreadable.keys() - {entry.key for entry in found}:
            del self.unreadable[key]
        return found

    async def _read(self) -> list[Entry]:
        """In a task of its own: Python 3.11 can lose a cancellation in what nats-py waits with."""
        reading = asyncio.create_task(self._bucket.entries(), name="directory read")
        try:
            await asyncio.wait([reading], timeout=READ_MAX_S)
            if not reading.done():
                raise KeyValueError(f"the directory was not read within {READ_MAX_S:g} s")
            return reading.result()
        finally:
            await end(reading)

    def changes(self) -> AsyncGenerator[Entry, None]:
        """The newest entry of every key, and then every change."""
        return self._bucket.changes()

    def read(self, entry: Entry) -> WorkerRegistration | None:
        """What an entry says; None where it was deleted or cannot be read."""
        reason = self.unreadable.pop(entry.key, "")
        if entry.deleted:
            return None
        try:
            return WorkerRegistration.decode(entry.value)
        except DecodeError as error:
            self.unreadable[entry.key] = str(error)
            if str(error) != reason:
                logger.warning("entry %r is left out: %s", entry.key, error)
            return None

    def lasts_s(self, entry: Entry) -> float:
        """For how long an entry still counts; by the time at which the server stored it."""
        age_s = time.time() - entry.timestamp_ns / 1e9
        return self.stale_after_s - max(0.0, age_s)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended, because one cancellation may get lost."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()  # somebody has had it, or it is too late for it
