"""Readers of a bucket: they read all there is, go on after an outage, and leave nothing behind.

Method: the transport's buckets on a real server, whose consumers an administrator counts; the
server is killed and restarted. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from fleet_support import BOUND_S, QUICK
from nats.js import JetStreamContext
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer
from dagnats_worker._jetstream.transport import JetStreamTransport, connect
from dagnats_worker._key_value import Entry
from dagnats_worker.errors import KeyValueError

SEED = 20261124
CANCELLED_AFTER_S = 0.006
"""A read takes about as long, so that cancellations meet each part of it."""


@pytest.fixture
async def transport(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamTransport]:
    """A connection that comes back within a fraction of a second."""
    transport = await connect(nats_server.url, QUICK, name="readers")
    yield transport
    await transport.close()


@pytest.fixture
async def bucket(transport: JetStreamTransport) -> str:
    """A bucket of the test's own."""
    name = unique("readers")
    await transport.create_key_value(name, timedelta(0))
    return name


@pytest.fixture
async def admin(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    """JetStream over another connection."""
    async with connected(nats_server.url, reconnect_time_wait=0.05) as client:
        yield client.jetstream(timeout=5)


async def readers(admin: JetStreamContext, bucket: str) -> int:
    return (await admin.stream_info(f"KV_{bucket}")).state.consumer_count


async def all_gone(admin: JetStreamContext, bucket: str) -> None:
    """Wait until the bucket has no consumer; a forgotten one goes after seconds without a pull."""

    async def gone() -> bool:
        return not await readers(admin, bucket)

    await eventually(gone, BOUND_S, what="no consumer is left")


async def taken(changes: AsyncIterator[Entry], count: int) -> list[Entry]:
    entries: list[Entry] = []
    async with asyncio.timeout(BOUND_S):
        while len(entries) < count:
            entries.append(await anext(changes))
    return entries


async def test_keys_read_many_times_leave_no_consumer(
    transport: JetStreamTransport, admin: JetStreamContext, bucket: str
) -> None:
    kv, subscriptions = transport.key_value(bucket), len(transport.nats._subs)
    assert await kv.keys() == []
    await kv.put("one", b"1")
    for _ in range(200):
        assert await kv.keys() == ["one"]
    assert await readers(admin, bucket) < 10, "each is deleted at its end"
    assert len(transport.nats._subs) == subscriptions
    await all_gone(admin, bucket)


async def test_keys_of_a_large_bucket_are_complete_without_those_deleted(
    transport: JetStreamTransport, bucket: str
) -> None:
    kv, count = transport.key_value(bucket), 5000
    names = [f"key.{number}" for number in range(count)]
    for start in range(0, count, 500):
        await asyncio.gather(*(kv.put(name, b"x" * 100) for name in names[start : start + 500]))
    await asyncio.gather(*(kv.delete(name) for name in names[::10]))
    left = set(names) - set(names[::10])
    assert set(await kv.keys()) == left


async def test_keys_that_are_written_again_and_again_are_found_each_time(
    nats_server: EmbeddedServer, transport: JetStreamTransport, bucket: str
) -> None:
    names = {f"key.{number}" for number in range(20)}
    writer = await connect(nats_server.url, QUICK, name="writer")

    async def rewrite(name: str) -> None:
        while True:
            await writer.key_value(bucket).put(name, b"value")

    await asyncio.gather(*(transport.key_value(bucket).put(name, b"value") for name in names))
    writing = [asyncio.create_task(rewrite(name)) for name in names]
    for _ in range(300):
        found = await transport.key_value(bucket).keys()
        assert len(found) == len(names)
        assert set(found) == names
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    await writer.close()


async def test_reader_that_is_cancelled_at_any_moment_leaves_nothing(
    transport: JetStreamTransport, admin: JetStreamContext, bucket: str
) -> None:
    kv, subscriptions = transport.key_value(bucket), len(transport.nats._subs)
    for number in range(50):
        await kv.put(f"key.{number}", b"value")

    async def watch() -> None:
        async for _ in kv.watch(">"):
            pass

    async def follow() -> None:
        async with kv.follow(">", existing=False) as changes:
            await anext(changes)

    chance, cancelled = random.Random(SEED), 0  # noqa: S311 - only moments
    reads: list[Callable[[], Awaitable[object]]] = [kv.keys, watch, follow]
    for number in range(300):
        task = asyncio.ensure_future(reads[number % 3]())
        if number % 2:
            await asyncio.sleep(chance.random() * CANCELLED_AFTER_S)
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(BOUND_S):
            with suppress(asyncio.CancelledError):
                await task
        cancelled += task.cancelled()
        assert task.cancelled() or reads[number % 3] == kv.keys, "the cancellation was lost"
    assert cancelled >= 200
    assert len(transport.nats._subs) == subscriptions
    await all_gone(admin, bucket)


async def test_changes_go_on_after_the_server_was_killed(
    nats_server: EmbeddedServer, transport: JetStreamTransport, bucket: str
) -> None:
    kv = transport.key_value(bucket)
    await kv.put("old", b"0")
    async with kv.follow(">", existing=False) as new, kv.follow(">") as every:
        assert [entry.key for entry in await taken(every, 1)] == ["old"]
        for number in range(3):
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.restart)
            await put_when_it_is_back(transport, bucket, f"new.{number}")
            for changes in (new, every):
                (entry,) = await taken(changes, 1)
                assert (entry.key, entry.value) == (f"new.{number}", b"value")


async def put_when_it_is_back(transport: JetStreamTransport, bucket: str, key: str) -> None:
    """Write once the server takes it."""

    async def put() -> int:
        try:
            return await transport.key_value(bucket).put(key, b"value")
        except KeyValueError:
            return 0

    await eventually(put, BOUND_S)


async def test_changes_go_on_when_the_consumer_is_gone(
    transport: JetStreamTransport, admin: JetStreamContext, bucket: str
) -> None:
    kv = transport.key_value(bucket)
    async with kv.follow(">") as changes:
        await kv.put("a", b"1")
        await kv.put("b", b"2")
        await taken(changes, 1)
        (info,) = await admin.consumers_info(f"KV_{bucket}")
        await admin.delete_consumer(f"KV_{bucket}", info.name)
        await kv.put("c", b"3")
        assert [entry.key for entry in await taken(changes, 2)] == ["b", "c"]


async def test_more_changes_than_are_asked_for_at_once_arrive_in_order(
    transport: JetStreamTransport, bucket: str
) -> None:
    kv, count = transport.key_value(bucket), 300
    async with kv.follow(">", existing=False) as changes:
        written = [await kv.put(f"key.{number}", b"") for number in range(count)]
        entries = await taken(changes, count)
    assert [entry.revision for entry in entries] == written


async def test_changes_of_a_bucket_that_is_deleted_end(
    transport: JetStreamTransport, admin: JetStreamContext, bucket: str
) -> None:
    async with transport.key_value(bucket).follow(">") as changes:
        await admin.delete_stream(f"KV_{bucket}")
        with pytest.raises(KeyValueError, match=f"bucket '{bucket}'.* ended") as ended:
            await taken(changes, 1)
    assert ended.value.missing


@pytest.mark.parametrize("handed_over", [False, True], ids=["own", "handed over"])
async def test_changes_end_with_the_connection(
    nats_server: EmbeddedServer, bucket: str, *, handed_over: bool
) -> None:
    async with connected(nats_server.url) as nc:
        transport = await connect(nc if handed_over else nats_server.url, QUICK, name="closed")
        async with transport.key_value(bucket).follow(">") as changes:
            reading = asyncio.ensure_future(taken(changes, 1))
            await asyncio.sleep(0)
            await transport.close()
            with pytest.raises(KeyValueError, match=f"bucket '{bucket}': the changes of '>' ended"):
                await reading


async def test_keys_of_a_server_that_is_away_are_refused(
    nats_server: EmbeddedServer, transport: JetStreamTransport, bucket: str
) -> None:
    await asyncio.to_thread(nats_server.kill)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(KeyValueError, match=f"bucket '{bucket}'"):
            await transport.key_value(bucket).keys()
