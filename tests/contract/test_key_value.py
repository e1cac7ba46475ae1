"""What a plugin may rely on when it writes to buckets, on either server.

Method: the ``Transport`` itself, and what the bucket holds afterwards. Real: the nats-server of the
``server`` variant. Fake: the in-memory server of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from seams import BOUND_S, Seam
from support import unique

from dagnats_worker._key_value import Entry
from dagnats_worker.errors import KeyValueError


async def test_bucket_of_a_plugins_own_is_created_once(seam: Seam) -> None:
    transport = await seam.connect()
    bucket = unique("own")
    await transport.create_key_value(bucket, timedelta(0))
    kept = transport.key_value(bucket)
    await kept.put("key", b"value")
    await transport.create_key_value(bucket, timedelta(hours=1))
    entry = await kept.get("key")
    assert entry is not None
    assert entry.value == b"value"


async def test_key_of_a_bucket_with_a_ttl_goes_by_itself(seam: Seam) -> None:
    transport = await seam.connect()
    bucket = unique("own")
    await transport.create_key_value(bucket, timedelta(milliseconds=200))
    kept = transport.key_value(bucket)
    await kept.put("key", b"value")

    async def gone() -> bool:
        return await kept.get("key") is None

    await seam.eventually(gone, "the key is gone")


async def test_key_that_was_deleted_can_be_created_again_by_one_writer(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    await bucket.put(key, b"first", expected_revision=0)
    await bucket.delete(key)
    await bucket.put(key, b"second", expected_revision=0)
    with pytest.raises(KeyValueError) as refused:
        await bucket.put(key, b"third", expected_revision=0)
    assert refused.value.conflict
    entry = await bucket.get(key)
    assert entry is not None
    assert entry.value == b"second"


async def test_changes_are_followed_from_the_moment_on(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    await bucket.put(f"{key}.old", b"before")
    async with bucket.follow(f"{key}.*", existing=False) as changes:
        revision = await bucket.put(f"{key}.new", b"after", headers={"Colour": "red"})
        await bucket.delete(f"{key}.old")
        first, second = await taken(changes, 2)
    assert (first.key, first.value, first.revision) == (f"{key}.new", b"after", revision)
    assert first.headers["Colour"] == "red"
    assert (second.key, second.deleted) == (f"{key}.old", True)


async def test_changes_without_values_begin_with_what_is_there(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    await bucket.put(f"{key}.old", b"before", headers={"Colour": "red"})
    async with bucket.follow(f"{key}.*", values=False) as changes:
        await bucket.put(f"{key}.new", b"after")
        first, second = await taken(changes, 2)
    assert (first.key, first.value, first.headers["Colour"]) == (f"{key}.old", b"", "red")
    assert (second.key, second.value) == (f"{key}.new", b"")


async def test_changes_of_a_missing_bucket_are_refused_at_once(seam: Seam) -> None:
    transport = await seam.connect()
    with pytest.raises(KeyValueError, match="`dagnats-worker setup`") as refused:
        async with transport.key_value(unique("none")).follow(">"):
            pass
    assert refused.value.missing


async def taken(changes: AsyncIterator[Entry], count: int) -> list[Entry]:
    entries = []
    async with asyncio.timeout(BOUND_S):
        async for entry in changes:
            entries.append(entry)
            if len(entries) == count:
                break
    return entries


async def test_delete_marker_says_who_left_it_to_those_who_ask(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    assert await bucket.get(key, deleted=True) is None
    revision = await bucket.put(key, b"value")
    await bucket.delete(key, headers={"Left-By": "me"}, expected_revision=revision)
    assert await bucket.get(key) is None
    marker = await bucket.get(key, deleted=True)
    assert marker is not None
    assert (marker.deleted, marker.value, marker.headers["Left-By"]) == (True, b"", "me")
    assert marker.revision > revision


async def test_bucket_that_is_missing_is_told_from_one_that_does_not_answer(seam: Seam) -> None:
    nowhere = (await seam.connect()).key_value("no_such_bucket")
    for call in (nowhere.get("key"), nowhere.put("key", b""), nowhere.delete("key")):
        with pytest.raises(KeyValueError, match="dagnats-worker setup") as error:
            await call
        assert error.value.missing
        assert not error.value.conflict


async def test_entry_has_the_time_at_which_it_was_stored(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    await bucket.put(key, b"first")
    first = await bucket.get(key)
    await bucket.put(key, b"second")
    second = await bucket.get(key)
    watched = await anext(bucket.watch(key))
    assert first is not None
    assert second is not None
    assert 0 < first.timestamp_ns < second.timestamp_ns
    assert watched.timestamp_ns == pytest.approx(second.timestamp_ns, abs=10_000)
