"""Making, deleting and looking at elastic groups.

Method: each test has groups of its own on a real nats-server. Real: the server, and a member of a
group that pulls by hand, as one in Go does. Fake: an old server, which is nobody but its answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker.errors import DagnatsError
from dagnats_worker_partitions import (
    GroupConfigError,
    GroupError,
    GroupExistsError,
    GroupNotFoundError,
    GroupOverlapError,
    Mapping,
    PartitionFilter,
    PartitionsPlugin,
    ServerTooOldError,
    add_members,
    create_group,
    delete_group,
    delete_mappings,
    drop_members,
    group_info,
    list_groups,
    members_info,
    set_mappings,
    step_down,
)
from dagnats_worker_partitions._api import ApiError, JetStreamApi
from dagnats_worker_partitions._groups import records_of
from dagnats_worker_partitions._names import ELASTIC_BUCKET, group_name, group_stream, task_filter
from dagnats_worker_partitions._overlaps import check_plain
from dagnats_worker_partitions._record import Record
from dagnats_worker_partitions._rules import filters_of
from dagnats_worker_partitions._streams import check_server

BOUND_S = 30
STREAM = "TASK_QUEUES"
VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "partitions.json").read_text("utf-8")
)["wire_examples"]


@pytest.fixture
def task_type() -> str:
    return unique("a")


@pytest.fixture
def group(task_type: str) -> str:
    return group_name(task_type)


async def made(nc: Client, task_type: str, partitions: int = 4, **options: Any) -> Record:
    filters = [PartitionFilter(task_filter(task_type))]
    options = {"max_buffered_messages": 1024, **options}
    return await create_group(nc, STREAM, group_name(task_type), partitions, filters, **options)


async def stream_info(nc: Client, name: str) -> dict[str, Any]:
    answer = await nc.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=BOUND_S)
    info: dict[str, Any] = json.loads(answer.data)
    return info


async def publish(js: JetStreamContext, task_type: str, count: int) -> None:
    for number in range(count):
        await js.publish(f"task.{task_type}.{number}", b"x")


async def sourced(nc: Client, group: str, count: int) -> None:
    async def messages() -> bool:
        info = await stream_info(nc, group_stream(STREAM, group))
        found: int = info["state"]["messages"]
        return found == count

    await eventually(messages, BOUND_S, what=f"{count} messages in {group}")


# ------------------------------------------------------------------- the bytes that Go would send


class Raw:
    """A connection that knows nothing of what it carries: the protocol, written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def request(self, subject: str, body: bytes) -> dict[str, Any]:
        command = f"SUB raw.reply 1\r\nUNSUB 1 1\r\nPUB {subject} raw.reply {len(body)}\r\n"
        self._writer.write(command.encode() + body + b"\r\n")
        async with asyncio.timeout(BOUND_S):
            while not (line := await self._reader.readline()).startswith(b"MSG raw.reply"):
                assert not line.startswith(b"-ERR"), line
                if line.startswith(b"PING"):
                    self._writer.write(b"PONG\r\n")
            answer: dict[str, Any] = json.loads(
                await self._reader.readexactly(int(line.split()[-1]))
            )
            return answer


@pytest.fixture
async def raw(nats_server: EmbeddedServer) -> AsyncIterator[Raw]:
    host, _, port = nats_server.url.removeprefix("nats://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    yield Raw(reader, writer)
    writer.close()
    await writer.wait_closed()


async def test_group_stream_is_the_one_that_go_makes(nats_server: EmbeddedServer, raw: Raw) -> None:
    example = VECTORS["group_stream_create"]
    name = example["body"]["name"]
    body = json.dumps(example["body"], separators=(",", ":")).encode()
    async with connected(nats_server.url) as nc:
        heard = await nc.subscribe(example["subject"])
        await made(nc, "email")
        sent = await heard.next_msg(timeout=BOUND_S)
        assert json.loads(sent.data) == example["body"]
        assert list(json.loads(sent.data)) == list(example["body"])
    ours = (await raw.request(f"$JS.API.STREAM.INFO.{name}", b""))["config"]
    again = await raw.request(example["subject"], body)
    assert "error" not in again, "the server takes Go's request for the same stream"
    assert (await raw.request(f"$JS.API.STREAM.DELETE.{name}", b""))["success"]
    theirs = (await raw.request(example["subject"], body))["config"]
    assert ours == theirs
    async with connected(nats_server.url) as nc:
        await made(nc, "email")  # and ours for the same as Go's


async def test_bucket_is_the_one_that_go_makes(nats_server: EmbeddedServer, raw: Raw) -> None:
    example = VECTORS["kv_bucket_stream"]
    async with connected(nats_server.url) as nc:
        await made(nc, "email")
        js = nc.jetstream()
        assert await (await js.key_value(ELASTIC_BUCKET)).keys() == ["TASK_QUEUES.workers-email"]
    found = (await raw.request(f"$JS.API.STREAM.INFO.{example['name']}", b""))["config"]
    assert {name: found.get(name, "absent") for name in example} == example


# --------------------------------------------------------------------------------------- create


async def test_group_that_is_made_twice_keeps_its_members(nc: Client, task_type: str) -> None:
    first = await made(nc, task_type)
    assert first.config.members == ()
    added = await add_members(nc, STREAM, group_name(task_type), ["w1"])
    assert await made(nc, task_type) == added


async def test_group_whose_stream_is_missing_is_repaired(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    await js.delete_stream(group_stream(STREAM, group))
    await made(nc, task_type)
    assert (await stream_info(nc, group_stream(STREAM, group)))["config"]["max_msgs"] == 1024


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partitions": 5}, "partitions 4, wanted 5"),
        ({"max_buffered_messages": 7}, "max_buffered_messages 1024, wanted 7"),
        ({"max_buffered_bytes": 7}, "max_buffered_bytes 0, wanted 7"),
    ],
)
async def test_group_that_exists_otherwise_is_refused_and_says_what_differs(
    nc: Client, task_type: str, group: str, options: dict[str, Any], says: str
) -> None:
    first = await made(nc, task_type)
    with pytest.raises(GroupExistsError, match=says) as told:
        await made(nc, task_type, **options)
    assert f"dagnats-worker groups delete {group}" in str(told.value)
    assert await records_of(nc).read(STREAM, group) == first


async def test_group_with_another_filter_is_refused(nc: Client, task_type: str, group: str) -> None:
    await made(nc, task_type)
    other = [PartitionFilter(f"task.{task_type}.*", (1,))]
    with pytest.raises(GroupExistsError, match=r"filters task\..*\.> \[\], wanted task\..*\.\*"):
        await create_group(nc, STREAM, group, 4, other, max_buffered_messages=1024)


async def test_limit_of_none_is_the_same_however_it_is_written(nc: Client, task_type: str) -> None:
    first = await made(nc, task_type, max_buffered_messages=-1)
    assert await made(nc, task_type, max_buffered_messages=0) == first


async def test_stream_in_the_way_is_named_and_no_record_is_left(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    name = group_stream(STREAM, group)
    await js.add_stream(name=name, subjects=[f"{name}.x"], retention=RetentionPolicy.LIMITS)
    with pytest.raises(GroupExistsError, match=f"its stream '{name}' exists .*retention is limits"):
        await made(nc, task_type)
    assert await records_of(nc).read(STREAM, group) is None


async def test_group_of_a_stream_that_is_not_there_is_refused(nc: Client) -> None:
    with pytest.raises(GroupNotFoundError, match="no stream 'NOWHERE'"):
        await create_group(nc, "NOWHERE", "g", 1)


async def test_configuration_that_is_not_valid_reaches_no_server(nc: Client) -> None:
    await nc.close()
    with pytest.raises(GroupConfigError):
        await create_group(nc, STREAM, "g", 0)
    with pytest.raises(GroupError, match=r"group 'a\.b'"):
        await create_group(nc, STREAM, "a.b", 1)


async def test_of_many_who_make_a_group_at_once_none_wipes_the_members_of_another(
    nc: Client, shared_server: EmbeddedServer, task_type: str, group: str
) -> None:
    async def start(number: int) -> None:
        async with connected(shared_server.url) as client:
            await made(client, task_type)
            await add_members(client, STREAM, group, [f"w{number}"])

    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*(start(number) for number in range(12)))
    record = await records_of(nc).read(STREAM, group)
    assert record is not None
    assert set(record.config.members) == {f"w{number}" for number in range(12)}


async def test_of_two_who_want_different_groups_at_once_one_is_refused(
    nc: Client, task_type: str
) -> None:
    done = await asyncio.gather(
        *(made(nc, task_type, partitions) for partitions in (2, 3)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["GroupExistsError", "Record"]


async def test_members_and_mappings_of_a_group_are_set(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type, 2)
    await add_members(nc, STREAM, group, ["w1", "w2"])
    assert (await drop_members(nc, STREAM, group, ["w1"])).config.members == ("w2",)
    mappings = [Mapping("a", (1,)), Mapping("b", (0,))]
    assert (await set_mappings(nc, STREAM, group, mappings)).config.mappings == tuple(mappings)
    assert [one.member for one in (await group_info(nc, STREAM, group)).partitions] == ["b", "a"]
    assert (await delete_mappings(nc, STREAM, group)).config.mappings == ()
    with pytest.raises(GroupNotFoundError):
        await drop_members(nc, STREAM, unique("g"), ["w1"])


class OldServer:
    """The answer of an older server, to whoever asks how old it is."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info

    async def request(self, subject: str, *_: Any, **__: Any) -> Any:
        assert subject == "$JS.API.INFO"
        answer = type("Answer", (), {})()
        answer.data = json.dumps(self.info).encode()
        return answer


@pytest.mark.parametrize(("level", "says"), [({"level": 3}, "has 3"), ({}, "has 0")])
async def test_server_that_loses_messages_is_refused_with_the_reason(
    level: dict[str, int], says: str
) -> None:
    api = JetStreamApi(OldServer({"api": level}))  # type: ignore[arg-type]  # all that is asked of it
    with pytest.raises(
        ServerTooOldError, match=rf"need nats-server 2\.14 .* {says}.*lose messages"
    ):
        await check_server(api)


async def test_server_that_is_new_enough_is_taken(nc: Client) -> None:
    await check_server(JetStreamApi(nc))


# ------------------------------------------------------------------------- who takes the same tasks


async def plain_consumer(js: JetStreamContext, name: str, *filters: str) -> None:
    config = ConsumerConfig(
        durable_name=name, filter_subjects=list(filters), ack_policy=AckPolicy.EXPLICIT
    )
    await js.add_consumer(STREAM, config)


async def test_plain_consumer_of_the_same_tasks_is_named(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await plain_consumer(js, f"plain-{task_type}", f"task.x-{task_type}.>", f"task.{task_type}.*")
    with pytest.raises(GroupOverlapError) as told:
        await made(nc, task_type)
    assert f"group '{group}' and consumer 'plain-{task_type}'" in str(told.value)
    assert await records_of(nc).read(STREAM, group) is None


async def test_plain_consumer_of_other_tasks_is_no_obstacle(
    nc: Client, js: JetStreamContext, task_type: str
) -> None:
    await plain_consumer(js, f"plain-{task_type}", f"task.x-{task_type}.>")
    await made(nc, task_type)


async def test_consumer_that_came_later_is_found_when_the_group_is_used_again(
    nc: Client, js: JetStreamContext, task_type: str
) -> None:
    await made(nc, task_type)
    await plain_consumer(js, f"plain-{task_type}", task_filter(task_type))
    with pytest.raises(GroupOverlapError):
        await made(nc, task_type)


async def test_consumer_with_which_the_group_itself_sources_is_no_obstacle(
    nc: Client, task_type: str
) -> None:
    first = await made(nc, task_type)

    async def sourcing() -> bool:
        consumers = await JetStreamApi(nc).consumers(STREAM)
        return task_filter(task_type) in [one["config"].get("filter_subject") for one in consumers]

    await eventually(sourcing, BOUND_S)
    assert await made(nc, task_type) == first


async def test_group_of_a_part_of_the_tasks_is_named(nc: Client, task_type: str) -> None:
    await made(nc, task_type)
    filters = [PartitionFilter(task_filter(task_type, "gpu"))]
    name = group_name(task_type, "gpu")
    with pytest.raises(GroupOverlapError) as told:
        await create_group(nc, STREAM, name, 1, filters)
    assert f"groups '{name}' and '{group_name(task_type)}'" in str(told.value)


async def test_groups_beside_each_other_are_no_obstacle(nc: Client, task_type: str) -> None:
    for group in ("gpu", "cpu"):
        filters = [PartitionFilter(task_filter(task_type, group))]
        await create_group(nc, STREAM, group_name(task_type, group), 1, filters)


async def test_stream_that_is_no_work_queue_gives_a_copy_to_each(
    nc: Client, js: JetStreamContext
) -> None:
    stream = unique("S")
    await js.add_stream(name=stream, subjects=[f"{stream}.>"])
    config = ConsumerConfig(durable_name="plain", ack_policy=AckPolicy.EXPLICIT)
    await js.add_consumer(stream, config)
    for group in ("a", "b"):
        await create_group(nc, stream, group, 2)
    assert await list_groups(nc, stream) == [(stream, "a"), (stream, "b")]


async def test_plain_consumer_is_refused_where_a_group_takes_its_tasks(
    nc: Client, task_type: str
) -> None:
    filters = [PartitionFilter(task_filter(task_type, "gpu"))]
    group = group_name(task_type, "gpu")
    await check_plain(nc, STREAM, task_type)
    await create_group(nc, STREAM, group, 1, filters)
    await check_plain(nc, STREAM, task_type, "cpu")
    with pytest.raises(GroupOverlapError) as told:
        await check_plain(nc, STREAM, task_type)
    assert f"consumer 'workers-{task_type}'" in str(told.value)
    assert f"does group '{group}'" in str(told.value)


@pytest.mark.parametrize("plugins", [[PartitionsPlugin()], None], ids=["required", "optional"])
@pytest.mark.parametrize("partitions", [0, 4])
async def test_worker_does_not_start_where_others_take_its_tasks(
    nc: Client,
    shared_server: EmbeddedServer,
    task_type: str,
    partitions: int,
    plugins: list[PartitionsPlugin] | None,
) -> None:
    filters = [PartitionFilter(task_filter(task_type, "gpu"))]
    await create_group(nc, STREAM, group_name(task_type, "gpu"), 1, filters)
    worker = Worker(shared_server.url, plugins=plugins, partitions=partitions)

    @worker.task(task_type)
    async def handle(ctx: TaskContext) -> None:
        """Is never called."""

    with pytest.raises(DagnatsError, match=r"each .*would be handled twice"):
        await worker.start()
    names = [one["name"] for one in await JetStreamApi(nc).consumers(STREAM)]
    assert f"workers-{task_type}" not in names
    assert (STREAM, group_name(task_type)) not in await list_groups(nc)


# --------------------------------------------------------------------------------------- delete


async def test_group_without_messages_is_deleted_and_can_be_made_anew(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    assert await delete_group(nc, STREAM, group) == 0
    assert await records_of(nc).read(STREAM, group) is None
    assert "error" in await stream_info(nc, group_stream(STREAM, group))
    with pytest.raises(GroupNotFoundError):
        await delete_group(nc, STREAM, group)
    assert (await made(nc, task_type, 2)).config.partitions == 2


async def test_marker_is_there_before_the_stream_goes(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    heard: list[str] = []

    async def note(message: Msg) -> None:
        heard.append(message.subject)

    for subject in (
        f"$KV.*.{STREAM}.{group}",
        f"$JS.API.STREAM.DELETE.{group_stream(STREAM, group)}",
    ):
        await nc.subscribe(subject, cb=note)
    await delete_group(nc, STREAM, group)
    await eventually(lambda: len(heard) == 2, BOUND_S)
    assert [one.partition(".")[0] for one in heard] == ["$KV", "$JS"]


async def test_group_with_messages_is_deleted_only_by_force(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    await publish(js, task_type, 3)
    await sourced(nc, group, 3)
    with pytest.raises(GroupError, match="has 3 messages, which would be lost"):
        await delete_group(nc, STREAM, group)
    assert await records_of(nc).read(STREAM, group) is not None
    assert await delete_group(nc, STREAM, group, force=True) == 3


async def test_group_whose_record_cannot_be_read_can_be_deleted(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    await (await js.key_value(ELASTIC_BUCKET)).put(f"{STREAM}.{group}", b"{")
    await delete_group(nc, STREAM, group)
    assert await records_of(nc).read(STREAM, group) is None


async def test_stream_that_was_left_behind_is_deleted(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    await records_of(nc).delete(STREAM, group)
    await delete_group(nc, STREAM, group)
    assert "error" in await stream_info(nc, group_stream(STREAM, group))


# ------------------------------------------------------------------------------------ looking


async def join(nc: Client, record: Record, group: str, member: str) -> None:
    """What a member in Go sends first."""
    config = {
        **VECTORS["elastic_consumer_create"]["body"]["config"],
        "name": member,
        "filter_subjects": filters_of(record.config, member),
        "inactive_threshold": 60 * 10**9,
        "priority_timeout": 60 * 10**9,
    }
    stream = group_stream(STREAM, group)
    body = {"stream_name": stream, "config": config, "action": "create"}
    await JetStreamApi(nc).ask(f"CONSUMER.CREATE.{stream}.{member}", body)


async def pull_one(nc: Client, group: str, member: str) -> str:
    """What it sends next; returns the pin."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{group_stream(STREAM, group)}.{member}"
    body = {**VECTORS["pull_first"]["body"], "batch": 1, "expires": BOUND_S * 10**9}
    await nc.publish(subject, json.dumps(body).encode(), reply=inbox)
    while True:
        message = await answers.next_msg(timeout=BOUND_S)
        if "Nats-Pin-Id" in (message.headers or {}):
            return str((message.headers or {})["Nats-Pin-Id"])


async def test_group_shows_who_has_which_partition_and_who_reads(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await made(nc, task_type)
    record = await add_members(nc, STREAM, group, ["w1", "w2", "w3", "w4", "w5"])
    record = await drop_members(nc, STREAM, group, ["w3", "w4"])
    await publish(js, task_type, 12)
    await sourced(nc, group, 12)
    await join(nc, record, group, "w1")
    pin = await pull_one(nc, group, "w1")
    info = await group_info(nc, STREAM, group)
    assert [one.member for one in info.partitions] == ["w1", "w2", "w5", "w1"]
    assert [one.read for one in info.partitions] == [True, False, False, True]
    assert sum(one.messages for one in info.partitions) == info.messages == 12
    assert (info.limit, info.record) == (1024, record)
    first, second, third = info.members
    mine = sum(one.messages for one in info.partitions if one.member == "w1")
    assert (first.name, first.partitions, first.active) == ("w1", (0, 3), True)
    assert (first.pinned, first.ack_pending, first.pending) == (pin, 1, mine - 1)
    assert first.pinned_since
    assert {second.active, third.active} == {False}


async def test_active_is_said_of_the_member_that_was_asked_for(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type, 1)
    record = await add_members(nc, STREAM, group, ["w1", "w2"])
    await join(nc, record, group, "w1")
    found = {
        one.name: (one.active, one.partitions) for one in await members_info(nc, STREAM, group)
    }
    assert found == {"w1": (True, (0,)), "w2": (False, ())}


async def test_consumer_of_somebody_who_is_no_member_is_shown(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type, 1)
    await join(nc, await add_members(nc, STREAM, group, ["w1"]), group, "w1")
    await drop_members(nc, STREAM, group, ["w1"])
    [found] = await members_info(nc, STREAM, group)
    assert (found.name, found.listed, found.active) == ("w1", False, True)


async def test_member_that_steps_down_makes_room_for_its_next_process(
    nc: Client, js: JetStreamContext, task_type: str, group: str
) -> None:
    await made(nc, task_type, 1)
    await publish(js, task_type, 2)
    await join(nc, await add_members(nc, STREAM, group, ["w1"]), group, "w1")
    await sourced(nc, group, 2)
    await pull_one(nc, group, "w1")
    [before] = await members_info(nc, STREAM, group)
    assert before.pinned
    await step_down(nc, STREAM, group, "w1")
    [after] = await members_info(nc, STREAM, group)
    assert not after.pinned


async def test_member_without_a_consumer_cannot_step_down(
    nc: Client, task_type: str, group: str
) -> None:
    await made(nc, task_type, 1)
    await add_members(nc, STREAM, group, ["w1"])
    with pytest.raises(GroupNotFoundError, match="member 'w1' has no consumer"):
        await step_down(nc, STREAM, group, "w1")
    stream = group_stream(STREAM, group)
    config = {"name": "plain", "ack_policy": "explicit", "inactive_threshold": 60 * 10**9}
    body = {"stream_name": stream, "config": config}
    await JetStreamApi(nc).ask(f"CONSUMER.CREATE.{stream}.plain", body)
    with pytest.raises(GroupError, match="was not made by a member"):
        await step_down(nc, STREAM, group, "plain")


async def test_group_that_is_not_there_cannot_be_looked_at(nc: Client) -> None:
    for look in (group_info, members_info):
        with pytest.raises(GroupNotFoundError):
            await look(nc, STREAM, unique("g"))


async def test_account_without_any_group_has_an_empty_list(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as nc:
        assert await list_groups(nc) == []


async def test_listing_goes_on_to_the_last_page_of_the_server(
    nc: Client, js: JetStreamContext
) -> None:
    stream = unique("S")
    await js.add_stream(name=stream, subjects=[f"{stream}.>"])
    for number in range(300):
        config = ConsumerConfig(name=f"c{number}", ack_policy=AckPolicy.EXPLICIT)
        await js.add_consumer(stream, config, inactive_threshold=60.0)
    found = await JetStreamApi(nc).consumers(stream)
    assert {one["name"] for one in found} == {f"c{number}" for number in range(300)}


async def test_refusal_of_the_server_has_its_code(nc: Client) -> None:
    with pytest.raises(ApiError, match=r"STREAM\.INFO\.NOWHERE: stream not found") as told:
        await JetStreamApi(nc).ask("STREAM.INFO.NOWHERE")
    assert told.value.code == 10059
