"""The record of a group: read, changed by compare-and-set, watched.

Method: the same tests on three buckets: the in-memory one, that of a worker, and the one that
commands use. Real: the record store, and for two of three the server. Fake: the in-memory bucket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import connected, unique

from dagnats_worker import EmbeddedServer, WorkerConfig
from dagnats_worker._open import open_transport
from dagnats_worker.errors import KeyValueError
from dagnats_worker.testing import MemoryServer, MemoryTransport
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._config import (
    GroupConfig,
    Mapping,
    PartitionFilter,
    decode_config,
    with_members,
)
from dagnats_worker_partitions._errors import (
    GroupConfigError,
    GroupError,
    GroupNotFoundError,
)
from dagnats_worker_partitions._names import ELASTIC_BUCKET
from dagnats_worker_partitions._record import GroupRecords, Record, RecordBucket
from dagnats_worker_partitions._streams import ensure_bucket

BOUND_S = 30
STREAM = "ORDERS"
CONFIG = GroupConfig(4, (PartitionFilter("task.a.>"),), max_buffered_messages=1024)


@pytest.fixture(params=["memory", "worker", "command"])
async def kv(
    request: pytest.FixtureRequest, shared_server: EmbeddedServer
) -> AsyncIterator[RecordBucket]:
    """The bucket of groups, three times."""
    if request.param == "memory":
        server = MemoryServer()
        server.add_bucket(ELASTIC_BUCKET)
        yield MemoryTransport(server).key_value(ELASTIC_BUCKET)
        return
    async with connected(shared_server.url) as nc:
        api = JetStreamApi(nc)
        await ensure_bucket(api, ELASTIC_BUCKET, 1)
        if request.param == "command":
            yield Bucket(api, ELASTIC_BUCKET)
            return
        transport = await open_transport(nc, WorkerConfig(), name="t", with_leases=False)
        try:
            yield transport.key_value(ELASTIC_BUCKET)
        finally:
            await transport.close()


@pytest.fixture
def records(kv: RecordBucket) -> GroupRecords:
    return GroupRecords(kv)


@pytest.fixture
def group() -> str:
    return unique("workers")


def key_of(group: str) -> str:
    return f"{STREAM}.{group}"


# ------------------------------------------------------------------------------- reading, writing


async def test_record_that_was_written_is_read(records: GroupRecords, group: str) -> None:
    assert await records.read(STREAM, group) is None
    written = await records.write_new(STREAM, group, CONFIG)
    assert await records.read(STREAM, group) == written
    assert written.config == CONFIG
    assert (STREAM, group) in await records.groups()


async def test_second_writer_of_a_new_record_is_told(records: GroupRecords, group: str) -> None:
    await records.write_new(STREAM, group, CONFIG)
    with pytest.raises(KeyValueError) as told:
        await records.write_new(STREAM, group, CONFIG)
    assert told.value.conflict


async def test_record_can_be_written_again_after_it_was_deleted(
    records: GroupRecords, group: str
) -> None:
    first = await records.write_new(STREAM, group, CONFIG)
    await records.delete(STREAM, group)
    assert await records.read(STREAM, group) is None
    assert (STREAM, group) not in await records.groups()
    again = await records.write_new(STREAM, group, CONFIG)
    assert again.revision > first.revision


async def test_record_that_was_changed_meanwhile_is_not_deleted(
    records: GroupRecords, group: str
) -> None:
    first = await records.write_new(STREAM, group, CONFIG)
    await records.add_members(STREAM, group, ["w1"])
    with pytest.raises(KeyValueError):
        await records.delete(STREAM, group, revision=first.revision)
    assert await records.read(STREAM, group) is not None


@pytest.mark.parametrize("data", [b"{", b"[]", b"null", b'{"max_members":"4"}', b"{}", b"\xff"])
async def test_record_that_is_not_valid_is_an_error_that_names_the_group(
    kv: RecordBucket, records: GroupRecords, group: str, data: bytes
) -> None:
    await kv.put(key_of(group), data)
    with pytest.raises(GroupConfigError, match=f"group '{group}' on stream '{STREAM}'"):
        await records.read(STREAM, group)
    with pytest.raises(GroupConfigError):
        await records.add_members(STREAM, group, ["w1"])


# ------------------------------------------------------------------------------------- members


async def test_members_are_added_and_dropped(records: GroupRecords, group: str) -> None:
    await records.write_new(STREAM, group, CONFIG)
    added = await records.add_members(STREAM, group, ["w2", "w1", "", "w2"])
    assert added.config.members == ("w2", "w1")
    assert await records.read(STREAM, group) == added
    dropped = await records.drop_members(STREAM, group, ["w2", "unknown"])
    assert dropped is not None
    assert dropped.config.members == ("w1",)


async def test_change_that_changes_nothing_writes_nothing(
    records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    first = await records.add_members(STREAM, group, ["w1"])
    assert await records.add_members(STREAM, group, ["w1", ""]) == first
    assert await records.drop_members(STREAM, group, ["w2"]) == first


async def test_name_that_was_added_twice_by_others_is_dropped_twice(
    kv: RecordBucket, records: GroupRecords, group: str
) -> None:
    await kv.put(key_of(group), b'{"max_members":2,"members":["w1","w2","w1"]}')
    dropped = await records.drop_members(STREAM, group, ["w1"])
    assert dropped is not None
    assert dropped.data == b'{"max_members":2,"members":["w2"]}'


async def test_group_that_does_not_exist_has_nobody_to_drop_and_takes_nobody(
    records: GroupRecords, group: str
) -> None:
    assert await records.drop_members(STREAM, group, ["w1"]) is None
    with pytest.raises(GroupNotFoundError, match=group):
        await records.add_members(STREAM, group, ["w1"])


async def test_member_that_no_consumer_can_be_called_is_refused(
    records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    with pytest.raises(GroupError, match=r"member 'a\.b' contains"):
        await records.add_members(STREAM, group, ["a.b"])


async def test_of_many_who_add_themselves_at_once_nobody_is_lost(
    records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    names = [f"w{number:02}" for number in range(24)]
    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*(records.add_members(STREAM, group, [name]) for name in names))
        found = await records.read(STREAM, group)
        assert found is not None
        assert sorted(found.config.members) == names
        await asyncio.gather(*(records.drop_members(STREAM, group, [name]) for name in names[::2]))
    found = await records.read(STREAM, group)
    assert found is not None
    assert sorted(found.config.members) == names[1::2]


# ----------------------------------------------------------------- what others have written stays


OF_OTHERS: list[tuple[str, str]] = [
    ("null", '{"max_members":2,"partitioning_filters":null}'),
    ("an empty list", '{"max_members":2,"partitioning_filters":[]}'),
    (
        "null wildcards",
        '{"max_members":2,"partitioning_filters":[{"filter":"t.>","partitioning_wildcards":null}]}',
    ),
    (
        "no wildcards",
        '{"max_members":2,"partitioning_filters":[{"filter":"t.>","partitioning_wildcards":[]}]}',
    ),
    ("absent wildcards", '{"max_members":2,"partitioning_filters":[{"filter":"t.>"}]}'),
    ("unknown fields", '{"x":{"y":[1.50,null,"\\u003e"]},"max_members":2,"z":null}'),
    ("nulls of another kind", '{"max_members":2,"max_buffered_msg":null,"member_mappings":null}'),
    ("limits of none", '{"max_members":2,"max_buffered_msg":-1,"max_buffered_bytes":-1}'),
]


@pytest.mark.parametrize("data", [one[1] for one in OF_OTHERS], ids=[one[0] for one in OF_OTHERS])
async def test_record_of_others_keeps_its_bytes_when_members_come_and_go(
    kv: RecordBucket, records: GroupRecords, group: str, data: str
) -> None:
    await kv.put(key_of(group), data.encode())
    added = await records.add_members(STREAM, group, ["w1"])
    assert added.data.decode() == f'{data[:-1]},"members":["w1"]}}'
    dropped = await records.drop_members(STREAM, group, ["w1"])
    assert dropped is not None
    assert dropped.data.decode() == data


def test_list_of_members_that_is_there_is_changed_in_its_place() -> None:
    data = b'{"max_members":2,"members":null,"later":1}'
    assert with_members(data, ["b", "a"]) == b'{"max_members":2,"members":["b","a"],"later":1}'
    assert with_members(data, []) == b'{"max_members":2,"later":1}'


def test_absent_and_null_and_empty_are_the_same_group() -> None:
    shapes: list[dict[str, Any]] = [{}, {"partitioning_wildcards": None}]
    shapes.append({"partitioning_wildcards": []})
    configs = [
        decode_config(
            json.dumps(
                {"max_members": 2, "partitioning_filters": [{"filter": "t.>", **shape}]}
            ).encode()
        )
        for shape in shapes
    ]
    assert configs[0] == configs[1] == configs[2]


@pytest.mark.parametrize(
    "change",
    [
        {"partitions": 5},
        {"filters": (PartitionFilter("task.b.>"),)},
        {"max_buffered_messages": 1},
        {"max_buffered_bytes": 1},
    ],
)
def test_group_with_another_configuration_is_another_group(change: dict[str, Any]) -> None:
    values = {"partitions": 4, "filters": CONFIG.filters, "max_buffered_messages": 1024}
    assert CONFIG.same_group(GroupConfig(**values, members=("w1",)))  # type: ignore[arg-type]  # a mixed dict
    assert CONFIG.same_group(GroupConfig(**values, max_buffered_bytes=-1))  # type: ignore[arg-type]  # as above
    assert not CONFIG.same_group(GroupConfig(**{**values, **change}))  # type: ignore[arg-type]  # as above


# ------------------------------------------------------------------------------------ mappings


async def test_mappings_take_the_place_of_members_and_go_again(
    records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    await records.add_members(STREAM, group, ["w1"])
    mappings = (Mapping("a", (0, 2)), Mapping("b", (1, 3)))
    mapped = await records.set_mappings(STREAM, group, mappings)
    assert (mapped.config.members, mapped.config.mappings) == ((), mappings)
    assert json.loads(mapped.data)["member_mappings"][0] == {"member": "a", "partitions": [0, 2]}
    assert await records.set_mappings(STREAM, group, mappings) == mapped
    for change in (records.add_members, records.drop_members):
        with pytest.raises(GroupError, match="has mappings"):
            await change(STREAM, group, ["a"])
    unmapped = await records.delete_mappings(STREAM, group)
    assert unmapped.config == CONFIG
    assert await records.delete_mappings(STREAM, group) == unmapped


async def test_mappings_that_are_not_one_owner_for_each_partition_are_refused(
    records: GroupRecords, group: str
) -> None:
    first = await records.write_new(STREAM, group, CONFIG)
    with pytest.raises(GroupConfigError, match="partition 3 is mapped to nobody"):
        await records.set_mappings(STREAM, group, [Mapping("a", (0, 1, 2))])
    assert await records.read(STREAM, group) == first


async def test_mappings_on_several_filters_are_refused_because_go_could_not_join(
    records: GroupRecords, group: str
) -> None:
    filters = (PartitionFilter("a.>"), PartitionFilter("b.>"))
    await records.write_new(STREAM, group, GroupConfig(1, filters))
    with pytest.raises(GroupError, match="has 2 filters"):
        await records.set_mappings(STREAM, group, [Mapping("a", (0,))])


async def test_mappings_need_a_group(records: GroupRecords, group: str) -> None:
    with pytest.raises(GroupNotFoundError):
        await records.set_mappings(STREAM, group, [])
    with pytest.raises(GroupNotFoundError):
        await records.delete_mappings(STREAM, group)


# ------------------------------------------------------------------------------------ watching


@asynccontextmanager
async def watching(records: GroupRecords, group: str) -> AsyncIterator[AsyncIterator[Any]]:
    watch: Any = records.watch(STREAM, group)
    try:
        yield watch
    finally:
        await watch.aclose()


async def next_of(watch: AsyncIterator[Record | None]) -> Record | None:
    async with asyncio.timeout(BOUND_S):
        return await anext(watch)


async def test_watch_begins_with_the_record_and_tells_each_change(
    records: GroupRecords, group: str
) -> None:
    written = await records.write_new(STREAM, group, CONFIG)
    async with watching(records, group) as watch:
        assert await next_of(watch) == written
        added = await records.add_members(STREAM, group, ["w1"])
        assert await next_of(watch) == added
        await records.delete(STREAM, group)
        assert await next_of(watch) is None
        again = await records.write_new(STREAM, group, CONFIG)
        assert await next_of(watch) == again


async def test_watch_of_a_group_that_is_not_there_begins_with_nothing(
    records: GroupRecords, group: str
) -> None:
    async with watching(records, group) as watch:
        assert await next_of(watch) is None
        written = await records.write_new(STREAM, group, CONFIG)
        assert await next_of(watch) == written


async def test_change_between_the_look_and_the_watch_is_not_missed(
    records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    async with watching(records, group) as watch:
        await next_of(watch)  # it has read, and has not begun to listen
        added = await records.add_members(STREAM, group, ["w1"])
        assert await next_of(watch) == added


async def test_watch_tells_each_change_once(records: GroupRecords, group: str) -> None:
    written = await records.write_new(STREAM, group, CONFIG)
    async with watching(records, group) as watch:
        assert await next_of(watch) == written
        change = asyncio.create_task(next_of(watch))
        for _ in range(10):  # meanwhile it begins to listen, and is told of what it has read
            await records.read(STREAM, group)
            await asyncio.sleep(0)
        assert not change.done()
        added = await records.add_members(STREAM, group, ["w1"])
        assert await change == added


async def test_record_that_becomes_invalid_ends_the_watch_with_an_error(
    kv: RecordBucket, records: GroupRecords, group: str
) -> None:
    await records.write_new(STREAM, group, CONFIG)
    async with watching(records, group) as watch:
        await next_of(watch)
        await kv.put(key_of(group), b'{"max_members":0}')
        with pytest.raises(GroupConfigError, match="number of partitions"):
            await next_of(watch)


async def test_purge_marker_of_others_means_that_the_group_is_gone(
    shared_server: EmbeddedServer, group: str
) -> None:
    async with connected(shared_server.url) as nc:
        api = JetStreamApi(nc)
        await ensure_bucket(api, ELASTIC_BUCKET, 1)
        records = GroupRecords(Bucket(api, ELASTIC_BUCKET))
        await records.write_new(STREAM, group, CONFIG)
        async with watching(records, group) as watch:
            await next_of(watch)
            await (await nc.jetstream().key_value(ELASTIC_BUCKET)).purge(key_of(group))
            assert await next_of(watch) is None
            assert await records.read(STREAM, group) is None
            again = await records.write_new(STREAM, group, CONFIG)
            assert await next_of(watch) == again


async def test_delete_leaves_the_marker_that_members_in_go_understand(
    shared_server: EmbeddedServer, group: str
) -> None:
    async with connected(shared_server.url) as nc:
        api = JetStreamApi(nc)
        await ensure_bucket(api, ELASTIC_BUCKET, 1)
        records = GroupRecords(Bucket(api, ELASTIC_BUCKET))
        await records.write_new(STREAM, group, CONFIG)
        heard = await nc.subscribe(f"$KV.{ELASTIC_BUCKET}.{key_of(group)}")
        await records.add_members(STREAM, group, ["w1"])
        await records.delete(STREAM, group)
        added, deleted = [await heard.next_msg(timeout=BOUND_S) for _ in range(2)]
        assert set(added.headers or {}) == {"Nats-Expected-Last-Subject-Sequence"}
        assert (deleted.headers, deleted.data) == ({"KV-Operation": "DEL"}, b"")
