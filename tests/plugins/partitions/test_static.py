"""Static groups: made, consumed, deleted.

Method: a stream that maps its subjects to partitions by itself, on a real nats-server, and members
of this process. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, SubjectTransform
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer
from dagnats_worker_partitions import (
    GroupConfigError,
    GroupError,
    GroupExistsError,
    GroupNotFoundError,
    Mapping,
    StaticConfig,
    StaticMessage,
    active_static_members,
    consume_static_group,
    create_static_group,
    delete_static_group,
    list_static_groups,
    read_static_group,
    step_down_static,
)
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._names import STATIC_BUCKET
from dagnats_worker_partitions._rules import partition_of
from dagnats_worker_partitions._static import decode_static

BOUND_S = 30
QUICK = timedelta(seconds=1)
PARTITIONS = 4
CONFIG = StaticConfig(PARTITIONS, ("o.*",), ("m1", "m2"))
EXAMPLE = json.loads((Path(__file__).parents[2] / "vectors" / "partitions.json").read_text("utf-8"))


@pytest.fixture
async def stream(js: JetStreamContext) -> AsyncIterator[str]:
    """A stream of ``<partition>.o.<key>``; what is published to ``o.<key>`` is mapped to it."""
    name = unique("S")
    transform = SubjectTransform(
        src=f"{name}.*", dest=f"{{{{partition({PARTITIONS},1)}}}}.o.{{{{wildcard(1)}}}}"
    )
    await js.add_stream(name=name, subjects=[f"{name}.*"], subject_transform=transform)
    yield name
    await js.delete_stream(name)


class Member:
    """A member that notes what it is given, and acks it."""

    def __init__(self) -> None:
        self.seen: list[StaticMessage] = []
        self.may_ack = asyncio.Event()
        self.may_ack.set()

    async def handle(self, message: StaticMessage) -> None:
        self.seen.append(message)
        await self.may_ack.wait()
        await message.ack()

    @asynccontextmanager
    async def consuming(
        self, nc: Client, stream: str, group: str, member: str
    ) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(
            consume_static_group(nc, stream, group, member, self.handle, ack_wait=QUICK)
        )
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def saw(self, count: int) -> None:
        await eventually(lambda: len(self.seen) >= count, BOUND_S, what=f"{count} messages")


async def ended(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(BOUND_S):
        await task


async def publish(js: JetStreamContext, stream: str, count: int) -> None:
    for number in range(count):
        await js.publish(f"{stream}.k{number}", str(number).encode())


# ------------------------------------------------------------------------------ make, read, delete


async def test_group_that_is_made_twice_is_the_same_group(nc: Client, stream: str) -> None:
    assert await create_static_group(nc, stream, "g", CONFIG) == CONFIG
    assert await create_static_group(nc, stream, "g", CONFIG) == CONFIG
    assert await read_static_group(nc, stream, "g") == CONFIG
    assert await list_static_groups(nc, stream) == [(stream, "g")]


async def test_record_has_the_bytes_of_go(nc: Client, js: JetStreamContext, stream: str) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    stored = await (await js.key_value(STATIC_BUCKET)).get(f"{stream}.g")
    [vector] = [
        one
        for one in EXAMPLE["config_examples"]
        if one["key"] == "orders.cg" and one["kind"] == "static"
    ]
    assert stored.value == vector["json"].encode()


@pytest.mark.parametrize(
    "other",
    [
        StaticConfig(2, ("o.*",), ("m1", "m2")),
        StaticConfig(PARTITIONS, (), ("m1", "m2")),
        StaticConfig(PARTITIONS, ("o.*",), ("m1",)),
        StaticConfig(PARTITIONS, ("o.*",), (), (Mapping("m1", (0, 1, 2, 3)),)),
    ],
)
async def test_group_that_exists_otherwise_is_refused(
    nc: Client, stream: str, other: StaticConfig
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    with pytest.raises(GroupExistsError, match="cannot be changed"):
        await create_static_group(nc, stream, "g", other)


async def test_group_that_is_not_there_is_an_error(nc: Client, stream: str) -> None:
    with pytest.raises(GroupNotFoundError):
        await read_static_group(nc, stream, "g")
    with pytest.raises(GroupNotFoundError):
        await delete_static_group(nc, stream, "g")
    with pytest.raises(GroupNotFoundError, match="no stream 'NOWHERE'"):
        await create_static_group(nc, "NOWHERE", "g", CONFIG)


async def test_configuration_that_is_not_valid_is_refused(nc: Client, stream: str) -> None:
    with pytest.raises(GroupConfigError, match="has both"):
        await create_static_group(
            nc, stream, "g", StaticConfig(1, (), ("a",), (Mapping("a", (0,)),))
        )
    with pytest.raises(GroupError, match="member"):
        await create_static_group(nc, stream, "g", StaticConfig(1, (), ("a b",)))
    with pytest.raises(GroupConfigError, match="cannot be read"):
        decode_static(b"{")


async def test_group_can_be_made_anew_after_it_was_deleted(nc: Client, stream: str) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    await delete_static_group(nc, stream, "g")
    assert await list_static_groups(nc, stream) == []
    other = StaticConfig(2)
    assert await create_static_group(nc, stream, "g", other) == other


async def test_delete_takes_the_consumers_of_members_and_no_others(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    for name in ("g-m1", "g-b-m1", "g-m3"):
        config = ConsumerConfig(durable_name=name, ack_policy="explicit")  # type: ignore[arg-type]  # nats-py takes the text
        await js.add_consumer(stream, config)
    await delete_static_group(nc, stream, "g")
    left = await JetStreamApi(nc).consumers(stream)
    assert {one["name"] for one in left} == {"g-b-m1", "g-m3"}


# ------------------------------------------------------------------------------------ consume


async def test_members_share_the_messages_by_partition(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    first, second = Member(), Member()
    async with (
        first.consuming(nc, stream, "g", "m1"),
        second.consuming(nc, stream, "g", "m2"),
    ):
        await publish(js, stream, 40)
        await eventually(lambda: len(first.seen) + len(second.seen) == 40, BOUND_S)
        assert await active_static_members(nc, stream, "g") == ["m1", "m2"]
    for member, owned in ((first, {0, 1}), (second, {2, 3})):
        assert {one.partition for one in member.seen} == owned
        for one in member.seen:
            assert one.subject.startswith("o.k")
            key = one.subject.removeprefix("o.")
            assert one.partition == partition_of(f"x.{key}", PARTITIONS, "x.*", (1,))
            assert one.data.decode() == key.removeprefix("k")


async def test_consumer_is_asked_for_as_go_asks(nc: Client, stream: str) -> None:
    example = EXAMPLE["wire_examples"]["static_consumer_create"]["body"]
    await create_static_group(nc, stream, "cg", CONFIG)
    heard = await nc.subscribe(f"$JS.API.CONSUMER.CREATE.{stream}.cg-m1")
    member = Member()
    task = asyncio.create_task(consume_static_group(nc, stream, "cg", "m1", member.handle))
    sent = json.loads((await heard.next_msg(timeout=BOUND_S)).data)
    assert sent == {**example, "stream_name": stream}
    assert list(sent["config"]) == list(example["config"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_member_beyond_the_partitions_gets_nothing_and_is_no_error(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", StaticConfig(1, ("o.*",), ("m1", "m2")))
    late, member = Member(), Member()
    async with (
        late.consuming(nc, stream, "g", "m2") as task,
        member.consuming(nc, stream, "g", "m1"),
    ):
        await publish(js, stream, 20)
        await member.saw(1)
        assert not task.done()
    assert not late.seen
    assert [one["name"] for one in await JetStreamApi(nc).consumers(stream)] == ["g-m1"]


async def test_member_that_is_not_in_the_record_is_refused(nc: Client, stream: str) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    with pytest.raises(GroupError, match="no member 'm3'; its members are m1, m2"):
        await consume_static_group(nc, stream, "g", "m3", Member().handle)


async def test_consumer_in_the_way_is_an_error(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    await js.add_consumer(stream, ConsumerConfig(durable_name="g-m1", ack_policy="none"))  # type: ignore[arg-type]  # nats-py takes the text
    with pytest.raises(GroupError, match=r"consumer 'g-m1' .* cannot be made"):
        await consume_static_group(nc, stream, "g", "m1", Member().handle)


async def test_deleting_the_group_ends_its_members(nc: Client, stream: str) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    async with Member().consuming(nc, stream, "g", "m1") as task:
        await until_waiting(nc, stream, "g", "m1")
        await delete_static_group(nc, stream, "g")
        await ended(task)
    assert await JetStreamApi(nc).consumers(stream) == []


@pytest.mark.parametrize("data", [b"{", b'{"max_members":9,"members":["m1"]}'])
async def test_record_that_changes_ends_a_member_with_an_error(
    nc: Client, js: JetStreamContext, stream: str, data: bytes
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    async with Member().consuming(nc, stream, "g", "m1") as task:
        await until_waiting(nc, stream, "g", "m1")
        await (await js.key_value(STATIC_BUCKET)).put(f"{stream}.g", data)
        with pytest.raises(GroupConfigError):
            await ended(task)
    assert await JetStreamApi(nc).consumers(stream) == []


async def test_record_that_is_written_again_without_a_change_is_no_matter(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", CONFIG)
    member = Member()
    async with member.consuming(nc, stream, "g", "m1"), Member().consuming(nc, stream, "g", "m2"):
        await until_waiting(nc, stream, "g", "m1")
        again = b'{"max_members":4,"members":["m1","m2"],"filters":["o.*"],"member_mappings":[]}'
        await (await js.key_value(STATIC_BUCKET)).put(f"{stream}.g", again)
        await publish(js, stream, 20)
        await member.saw(1)


async def test_member_that_stops_leaves_its_consumer_to_the_next(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", StaticConfig(PARTITIONS, ("o.*",), ("m1",)))
    await publish(js, stream, 10)
    first, second = Member(), Member()
    async with first.consuming(nc, stream, "g", "m1"):
        await first.saw(10)
        await eventually(lambda: unacked(nc, stream, "g-m1", 0), BOUND_S)
    await publish(js, stream, 5)
    async with second.consuming(nc, stream, "g", "m1"):
        await second.saw(5)
    assert len(first.seen) == 10
    assert len(second.seen) == 5


async def test_standby_process_takes_over_when_the_other_steps_down(
    nc: Client, js: JetStreamContext, stream: str, shared_server: EmbeddedServer
) -> None:
    await create_static_group(nc, stream, "g", StaticConfig(PARTITIONS, ("o.*",), ("m1",)))
    await publish(js, stream, 1)
    first, second = Member(), Member()
    async with connected(shared_server.url) as other, first.consuming(nc, stream, "g", "m1"):
        await first.saw(1)
        async with second.consuming(other, stream, "g", "m1"):
            await eventually(lambda: waiting(nc, stream, "g-m1", 2), BOUND_S)
            await publish(js, stream, 5)
            await first.saw(6)
            assert not second.seen
            await step_down_static(nc, stream, "g", "m1")
            await eventually(lambda: _publish_and_look(js, stream, second), BOUND_S)


async def _publish_and_look(js: JetStreamContext, stream: str, member: Member) -> bool:
    await js.publish(f"{stream}.k0", b"0")
    return bool(member.seen)


async def test_what_a_handler_raises_ends_the_member(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", StaticConfig(PARTITIONS, (), ("m1",)))
    await publish(js, stream, 1)

    async def broken(message: StaticMessage) -> None:
        await message.nak(timedelta(milliseconds=1))
        raise RuntimeError(f"broken at {message.deliveries}")

    for delivery in (1, 2):
        with pytest.raises(RuntimeError, match=f"broken at {delivery}"):
            async with asyncio.timeout(BOUND_S):
                await consume_static_group(nc, stream, "g", "m1", broken, ack_wait=QUICK)


async def test_consumer_that_was_deleted_by_hand_is_made_again(
    nc: Client, js: JetStreamContext, stream: str
) -> None:
    await create_static_group(nc, stream, "g", StaticConfig(PARTITIONS, (), ("m1",)))
    member = Member()
    async with member.consuming(nc, stream, "g", "m1"):
        await until_waiting(nc, stream, "g", "m1")
        await js.delete_consumer(stream, "g-m1")
        await publish(js, stream, 3)
        await member.saw(3)


async def until_waiting(nc: Client, stream: str, group: str, member: str) -> None:
    await eventually(lambda: waiting(nc, stream, f"{group}-{member}", 1), BOUND_S)


async def waiting(nc: Client, stream: str, consumer: str, count: int) -> bool:
    info = await JetStreamApi(nc).consumer(stream, consumer)
    return info is not None and int(info["num_waiting"]) >= count


async def unacked(nc: Client, stream: str, consumer: str, count: int) -> bool:
    info: Any = await JetStreamApi(nc).consumer(stream, consumer)
    return bool(info["num_ack_pending"] == count)
