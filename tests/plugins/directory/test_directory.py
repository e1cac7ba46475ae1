"""Listing workers, and following them, through whatever happens to the bucket and its server.

Method: a directory whose bucket is written to, deleted and made anew by a client of the test, on
both kinds of buckets that it can be opened on. Real: the server. Fake: nothing, but for the
in-memory server of one test.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig
from support import connected, eventually

from dagnats_worker import EmbeddedServer, Plugin, TaskContext, Worker, hookimpl
from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry, WorkerFacade
from dagnats_worker.testing import MemoryServer, MemoryTransport
from dagnats_worker_directory import Change, Directory, Joined, Left, Updated, WorkerRegistration
from dagnats_worker_directory import _following as following

BOUND_S = 30
WORKER = WorkerRegistration("w-1", ("greet",), max_tasks=4, hostname="box")
OTHER = replace(WORKER, worker_id="w-2")


class Facade(Plugin[None]):
    """Lends out what a plugin gets of its worker."""

    name = "lends"
    worker: WorkerFacade

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        self.worker = worker
        yield


async def nothing(ctx: TaskContext) -> None:
    """A handler."""


@asynccontextmanager
async def bucket_of_a_worker(connection: Any) -> AsyncIterator[Any]:
    lends = Facade()
    worker = Worker(connection, plugins=[lends])
    worker.handle("nothing", nothing)
    async with worker:
        yield lends.worker.kv("workers")


@asynccontextmanager
async def jetstream(url: str) -> AsyncIterator[JetStreamContext]:
    """A client of the test's own that survives the server's absence."""
    async with connected(url, max_reconnect_attempts=-1, reconnect_time_wait=0.05) as nc:
        yield nc.jetstream()


@pytest.fixture(params=["jetstream", "kv of a worker"])
async def opened(
    request: pytest.FixtureRequest, nats_server: EmbeddedServer
) -> AsyncIterator[tuple[JetStreamContext, Callable[..., Directory]]]:
    """JetStream of the test, and what opens a directory on either kind of bucket."""
    async with jetstream(nats_server.url) as js:
        if request.param == "jetstream":
            yield js, lambda **options: Directory.open(js, **options)
        else:
            async with bucket_of_a_worker(nats_server.url) as kv:
                yield js, lambda **options: Directory.open(kv, **options)


class Watched:
    """What a watch has told, in the background."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    @property
    def told(self) -> list[str]:
        return [
            f"{type(one).__name__.lower()} {one.worker.worker_id}"
            + (" (expired)" if isinstance(one, Left) and one.expired else "")
            for one in self.changes
        ]

    async def wait_for(self, *told: str) -> None:
        await eventually(lambda: self.told == list(told), BOUND_S, what=f"{told}, not {self.told}")


@asynccontextmanager
async def watching(directory: Directory, **options: Any) -> AsyncIterator[Watched]:
    watched = Watched()

    async def watch() -> None:
        async for change in directory.watch(**options):
            watched.changes.append(change)

    task = asyncio.create_task(watch())
    try:
        yield watched
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError), results


Opened = tuple[JetStreamContext, Callable[..., Directory]]


# ------------------------------------------------------------------------- listing


async def test_registered_worker_is_listed_until_it_is_deregistered(opened: Opened) -> None:
    _, open_directory = opened
    directory = open_directory()
    assert await directory.list() == []
    await directory.register(OTHER)
    await directory.register(WORKER)
    listed = await directory.list()
    assert [replace(one, last_seen=WORKER.last_seen) for one in listed] == [WORKER, OTHER]
    assert listed[0].last_seen > "2026"
    await directory.deregister("w-1")
    await directory.deregister("nobody")
    assert [one.worker_id for one in await directory.list()] == ["w-2"]


async def test_entry_that_cannot_be_read_is_left_out_and_told_once(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    js, open_directory = opened
    directory = open_directory()
    await directory.register(WORKER)
    await js.publish("$KV.workers.broken", b'{"pid":"x"}')
    with caplog.at_level(logging.WARNING, "dagnats_worker_directory"):
        for _ in range(2):
            assert [one.worker_id for one in await directory.list()] == ["w-1"]
    assert list(directory.unreadable) == ["broken"]
    assert "pid is not an integer: 'x'" in directory.unreadable["broken"]
    assert caplog.text.count("entry 'broken' is left out") == 1
    await directory.deregister("broken")
    await directory.list()
    assert not directory.unreadable


async def test_stale_entry_is_left_out_by_the_time_at_which_it_was_stored(opened: Opened) -> None:
    js, open_directory = opened
    wrong_clock = replace(WORKER, last_seen="2001-01-01T00:00:00Z")
    await js.publish("$KV.workers.w-1", wrong_clock.encode())
    assert await open_directory().list() == [wrong_clock]
    brief = open_directory(stale_after=timedelta(milliseconds=200))

    async def gone() -> bool:
        return await brief.list() == []

    await eventually(gone, BOUND_S)
    assert len(await open_directory().list()) == 1


async def test_missing_bucket_is_an_error_that_names_the_command(
    empty_server: EmbeddedServer,
) -> None:
    async with jetstream(empty_server.url) as js:
        directory = Directory.open(js)
        for call in (
            directory.list,
            lambda: directory.register(WORKER),
            lambda: anext(directory.watch()),
        ):
            with pytest.raises(KeyValueError, match="`dagnats-worker setup`"):
                await call()


async def test_id_that_is_no_key_is_an_error(opened: Opened) -> None:
    with pytest.raises(KeyValueError):
        await opened[1]().register(replace(WORKER, worker_id="no key"))


async def test_in_memory_server_serves_as_well() -> None:
    server = MemoryServer()
    async with bucket_of_a_worker(MemoryTransport(server)) as kv:
        directory = Directory.open(kv)
        await directory.register(WORKER)
        assert [one.worker_id for one in await directory.list()] == ["w-1"]
        async with watching(directory) as watched:
            await watched.wait_for("joined w-1")
            await directory.deregister("w-1")
            await watched.wait_for("joined w-1", "left w-1")


def test_staleness_is_longer_than_zero() -> None:
    with pytest.raises(ValueError, match="stale_after is longer than zero"):
        Directory.open(object(), stale_after=timedelta(0))  # type: ignore[arg-type]  # not reached


# ------------------------------------------------------------------------- following


async def test_watch_tells_who_joins_changes_and_leaves(opened: Opened) -> None:
    directory = opened[1]()
    await directory.register(WORKER)
    async with watching(directory) as watched:
        await watched.wait_for("joined w-1")
        await directory.register(OTHER)
        await watched.wait_for("joined w-1", "joined w-2")
        await directory.register(WORKER)
        await directory.register(replace(WORKER, max_tasks=8))
        await watched.wait_for("joined w-1", "joined w-2", "updated w-1")
        await directory.deregister("w-2")
        await watched.wait_for("joined w-1", "joined w-2", "updated w-1", "left w-2")
    updated = watched.changes[2]
    assert isinstance(updated, Updated)
    assert (updated.previous.max_tasks, updated.worker.max_tasks) == (4, 8)


async def test_watch_tells_of_heartbeats_where_it_is_asked_to(opened: Opened) -> None:
    directory = opened[1]()
    async with watching(directory, heartbeats=True) as watched:
        await directory.register(WORKER)
        await watched.wait_for("joined w-1")
        await directory.register(WORKER)
        await watched.wait_for("joined w-1", "updated w-1")


async def test_watch_tells_that_a_silent_worker_has_left_though_its_entry_is_there(
    opened: Opened,
) -> None:
    js, open_directory = opened
    directory = open_directory(stale_after=timedelta(seconds=1))
    async with watching(directory) as watched:
        await directory.register(WORKER)
        await watched.wait_for("joined w-1", "left w-1 (expired)")
        assert (await (await js.key_value("workers")).get("w-1")).value
        await directory.register(WORKER)
        await eventually(lambda: watched.told[2:3] == ["joined w-1"], BOUND_S)


async def test_reading_anew_tells_what_was_missed_and_repeats_nothing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "READ_AGAIN_MAX_S", 0.2)
    js, open_directory = opened
    directory = open_directory()
    await directory.register(WORKER)
    await directory.register(OTHER)
    async with watching(directory) as watched:
        await watched.wait_for("joined w-1", "joined w-2")
        await js.purge_stream("KV_workers", subject="$KV.workers.w-1")  # as the TTL does it
        await watched.wait_for("joined w-1", "joined w-2", "left w-1 (expired)")
        await directory.register(WORKER)
        await watched.wait_for("joined w-1", "joined w-2", "left w-1 (expired)", "joined w-1")


class CountedBucket:
    """A bucket with one entry that is nearly stale, and no changes."""

    def __init__(self, age_s: float) -> None:
        self._stored_ns = time.time_ns() - int(age_s * 1e9)
        self.reads = 0

    async def entries(self) -> list[Entry]:
        self.reads += 1
        return [Entry("w-1", WORKER.encode(), 1, {}, timestamp_ns=self._stored_ns)]

    async def changes(self) -> AsyncGenerator[Entry, None]:
        await asyncio.Event().wait()
        yield Entry("never", b"", 2, {})


async def test_watch_tells_of_an_entry_that_ends_when_it_does_and_not_when_it_reads_anew() -> None:
    bucket: Any = CountedBucket(age_s=9.5)
    async with watching(Directory(bucket, stale_after=timedelta(seconds=10))) as watched:
        await watched.wait_for("joined w-1", "left w-1 (expired)")
        assert bucket.reads == 1, "that is half of the time after which an entry is stale"


async def test_unreadable_entry_changes_nothing_for_who_follows(opened: Opened) -> None:
    js, open_directory = opened
    directory = open_directory()
    async with watching(directory) as watched:
        await directory.register(WORKER)
        await js.publish("$KV.workers.broken", b"{")
        await eventually(lambda: directory.unreadable, BOUND_S)
        await directory.register(OTHER)
        await watched.wait_for("joined w-1", "joined w-2")


async def test_watch_outlasts_a_restart_of_the_server(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "READ_AGAIN_MAX_S", 0.5)
    async with jetstream(nats_server.url) as js:
        directory = Directory.open(js)
        await directory.register(WORKER)
        async with watching(directory) as watched:
            await watched.wait_for("joined w-1")
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.restart)

            async def registered() -> bool:
                try:
                    await directory.register(OTHER)
                except KeyValueError:
                    return False
                return True

            await eventually(registered, BOUND_S)
            await watched.wait_for("joined w-1", "joined w-2")


async def test_watch_outlasts_a_bucket_that_is_made_anew(
    nats_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(following, "READ_AGAIN_MAX_S", 0.2)
    monkeypatch.setattr(following, "RETRY_S", 0.05)
    async with jetstream(nats_server.url) as js:
        directory = Directory.open(js)
        for _ in range(5):
            await directory.register(WORKER)
        async with watching(directory) as watched:
            await watched.wait_for("joined w-1")
            await js.delete_key_value("workers")
            await eventually(lambda: "cannot be followed" in caplog.text, BOUND_S)
            assert watched.told == ["joined w-1"]
            await js.create_key_value(KeyValueConfig("workers", ttl=60))
            await directory.register(replace(WORKER, max_tasks=8))
            await watched.wait_for("joined w-1", "updated w-1")
        assert caplog.text.count("cannot be followed") == 1


async def test_watch_that_is_left_leaves_nothing_behind(nats_server: EmbeddedServer) -> None:
    async with jetstream(nats_server.url) as js:
        directory = Directory.open(js)
        await directory.register(WORKER)
        before = asyncio.all_tasks()
        changes = directory.watch()
        assert isinstance(await anext(changes), Joined)
        await changes.aclose()

        async def alone() -> bool:
            return (await js.stream_info("KV_workers")).state.consumer_count == 0

        await eventually(alone, BOUND_S)
        await eventually(lambda: asyncio.all_tasks() <= before, BOUND_S)
