"""Following a directory: from entries of the bucket to workers that join, change and leave.

Nothing tells a reader that an entry has expired, and a watch may go silent when the server that it
was made on ends. So entries have an end here too, and everything is read anew now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from time import monotonic

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry
from dagnats_worker_directory._entries import Entries, end
from dagnats_worker_directory._registration import WorkerRegistration

logger = logging.getLogger("dagnats_worker_directory")

READ_AGAIN_MAX_S = 15.0
RETRY_S = 1.0
WAITING_ENTRIES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is listed that was not."""

    worker: WorkerRegistration


@dataclass(frozen=True, slots=True)
class Updated:
    """A worker has written its entry again."""

    worker: WorkerRegistration
    previous: WorkerRegistration


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is listed no more.

    Attributes:
        worker: What it wrote last.
        expired: It has not taken itself off the list; it was silent for too long.
    """

    worker: WorkerRegistration
    expired: bool


Change = Joined | Updated | Left


@dataclass(slots=True)
class _Known:
    worker: WorkerRegistration
    ends_at: float


class Following:
    """What one reader knows of the directory.

    Attributes:
        began: The directory was read once.
    """

    def __init__(self, entries: Entries, *, heartbeats: bool) -> None:
        self._entries = entries
        self._heartbeats = heartbeats
        self._known: dict[str, _Known] = {}
        self._revisions: dict[str, int] = {}
        self._complained = False
        self.began = False

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Everything that changes, for as long as it is iterated."""
        while True:
            try:
                async with aclosing(self._read_and_follow()) as changes:
                    async for change in changes:
                        yield change
            except KeyValueError as error:
                if not self.began:
                    raise
                if not self._complained:
                    logger.warning("the directory cannot be followed for now: %s", error)
                self._complained = True
                await asyncio.sleep(RETRY_S)

    async def _read_and_follow(self) -> AsyncGenerator[Change, None]:
        """What has changed since the last time, then what changes, until it is time to read anew.

        That is before any entry can end that is there now: a reader that has lost the server, and
        does not know it yet, must not take its own silence for that of the workers.
        """
        again_at = monotonic() + min(READ_AGAIN_MAX_S, self._entries.stale_after_s / 2)
        async with _queued(self._entries.changes()) as arrived:
            found = await self._entries.all()
            self.began, self._complained = True, False
            self._revisions.clear()
            for entry in found:
                for change in self._take(entry, self._entries.lasts_s(entry)):
                    yield change
            for change in self._ended({entry.key for entry in found}):
                yield change
            while (left_s := again_at - monotonic()) > 0:
                arrival = await _next(arrived, min(left_s, self._next_end_s()))
                for change in self._ended() if arrival is None else self._take(arrival):
                    yield change

    def _take(self, entry: Entry, lasts_s: float | None = None) -> Iterator[Change]:
        """What an entry changes; one that arrives now lasts its full time, whatever the clocks."""
        lasts_s = self._entries.stale_after_s if lasts_s is None else lasts_s
        if entry.revision <= self._revisions.get(entry.key, 0):
            return
        self._revisions[entry.key] = entry.revision
        known = self._known.get(entry.key)
        worker = self._entries.read(entry)
        if entry.deleted and known is not None:
            del self._known[entry.key]
            yield Left(known.worker, expired=False)
        if worker is None or lasts_s <= 0:
            return
        self._known[entry.key] = _Known(worker, monotonic() + lasts_s)
        if known is None:
            yield Joined(worker)
        elif worker == known.worker:
            return
        elif self._heartbeats or not _says_the_same(worker, known.worker):
            yield Updated(worker, known.worker)

    def _ended(self, found: set[str] | None = None) -> Iterator[Change]:
        """Who is silent for too long, or is not there any more where everything was read."""
        now = monotonic()
        for key, known in list(self._known.items()):
            if known.ends_at <= now or (found is not None and key not in found):
                del self._known[key]
                yield Left(known.worker, expired=True)

    def _next_end_s(self) -> float:
        now = monotonic()
        ends_at = min((known.ends_at for known in self._known.values()), default=now + 3600.0)
        return max(0.0, ends_at - now)


def _says_the_same(one: WorkerRegistration, other: WorkerRegistration) -> bool:
    return replace(one, last_seen="") == replace(other, last_seen="")


async def _next(arrived: asyncio.Queue[Entry | KeyValueError], within_s: float) -> Entry | None:
    """The next entry; None where there was none in time."""
    try:
        async with asyncio.timeout(within_s):
            arrival = await arrived.get()
    except TimeoutError:
        return None
    if isinstance(arrival, KeyValueError):
        raise arrival
    return arrival


@asynccontextmanager
async def _queued(
    entries: AsyncGenerator[Entry, None],
) -> AsyncIterator[asyncio.Queue[Entry | KeyValueError]]:
    """What arrives, in a queue: one can stop to wait for a queue without breaking what fills it."""
    arrived: asyncio.Queue[Entry | KeyValueError] = asyncio.Queue(WAITING_ENTRIES_MAX)

    async def fill() -> None:
        try:
            async with aclosing(entries):
                async for entry in entries:
                    await arrived.put(entry)
        except KeyValueError as error:
            await arrived.put(error)

    filling = asyncio.create_task(fill(), name="directory watch")
    try:
        yield arrived
    finally:
        await end(filling)
