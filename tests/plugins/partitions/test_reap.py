"""Finding dead members from outside, and dropping them.

Method: groups on a real nats-server, whose members are names in a record, consumers, leases and
entries of the directory, made by hand. Real: the server, the command. Fake: the members; the time
that is long enough to be sure is shortened, except for the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from cli_support import one_error_line, run_command
from nats.aio.client import Client
from support import connected

from dagnats_worker import EmbeddedServer
from dagnats_worker_partitions import (
    GroupError,
    GroupNotFoundError,
    Mapping,
    PartitionFilter,
    add_members,
    create_group,
    find_dead,
    group_info,
    reap,
    set_mappings,
)
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._leases import LEASE_BUCKET
from dagnats_worker_partitions._names import group_stream
from dagnats_worker_partitions._reap import drop_dead
from dagnats_worker_partitions._streams import ensure_bucket

STREAM, GROUP = "TASK_QUEUES", "workers-email"
SHORT = timedelta(seconds=1)
BOUND_S = 30


@pytest.fixture
async def admin(nats_server: EmbeddedServer) -> AsyncIterator[Client]:
    async with connected(nats_server.url) as nc:
        await create_group(nc, STREAM, GROUP, 4, [PartitionFilter("task.email.>")])
        yield nc


async def read(nc: Client, member: str, *partitions: int, ack_wait_s: int = 5) -> None:
    """Give a member a consumer on some partitions."""
    stream = group_stream(STREAM, GROUP)
    config = {
        "name": member,
        "ack_policy": "explicit",
        "ack_wait": ack_wait_s * 10**9,
        "inactive_threshold": 60 * 10**9,
        "filter_subjects": [f"{number}.task.email.>" for number in partitions],
    }
    await JetStreamApi(nc).ask(
        f"CONSUMER.CREATE.{stream}.{member}", {"stream_name": stream, "config": config}
    )


async def owners(nc: Client) -> list[str | None]:
    return [one.member for one in (await group_info(nc, STREAM, GROUP)).partitions]


async def test_dead_member_is_dropped_and_its_partitions_go_to_the_others(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await read(admin, "w2", 2, 3)
    async with asyncio.timeout(BOUND_S):
        assert await reap(admin, STREAM, GROUP, grace=SHORT) == ["w1"]
    assert await owners(admin) == ["w2"] * 4


async def test_group_in_which_everybody_reads_has_no_dead_members(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await read(admin, "w1", 0, 1)
    await read(admin, "w2", 2, 3)
    async with asyncio.timeout(BOUND_S):
        assert await reap(admin, STREAM, GROUP, grace=SHORT) == []


async def test_member_that_waits_for_another_to_let_go_is_not_dead(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await read(admin, "w1", 0, 1, 2)  # of before, when there were three partitions for it
    async with asyncio.timeout(BOUND_S):
        found = await find_dead(admin, STREAM, GROUP, grace=SHORT)
    assert not found.dead


async def test_member_that_keeps_a_lease_is_not_dead(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await ensure_bucket(JetStreamApi(admin), LEASE_BUCKET, 1)
    await (await admin.jetstream().key_value(LEASE_BUCKET)).put(f"{STREAM}.{GROUP}.w1", b"{}")
    async with asyncio.timeout(BOUND_S):
        assert await reap(admin, STREAM, GROUP, grace=SHORT) == ["w2"]
    assert await owners(admin) == ["w1"] * 4


async def test_member_that_is_listed_as_a_worker_is_doubtful(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await (await admin.jetstream().key_value("workers")).put("w1", b"{}")
    async with asyncio.timeout(BOUND_S):
        found = await find_dead(admin, STREAM, GROUP, grace=SHORT)
    assert set(found.dead) == {"w2"}
    assert found.doubtful == {"w1"}


async def test_member_that_came_back_meanwhile_is_left(admin: Client) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    async with asyncio.timeout(BOUND_S):
        found = await find_dead(admin, STREAM, GROUP, grace=SHORT)
    assert set(found.dead) == {"w1", "w2"}
    await read(admin, "w1", 0, 1)
    assert await drop_dead(admin, STREAM, GROUP, found.dead) == {"w2"}
    assert await owners(admin) == ["w1"] * 4


async def test_member_without_partitions_is_never_judged(admin: Client) -> None:
    names = [f"w{number}" for number in range(5)]
    await add_members(admin, STREAM, GROUP, names)
    async with asyncio.timeout(BOUND_S):
        assert await reap(admin, STREAM, GROUP, grace=SHORT) == names[:4]
    assert await owners(admin) == ["w4"] * 4


async def test_group_with_mappings_or_without_a_record_is_refused(admin: Client) -> None:
    with pytest.raises(GroupNotFoundError):
        await find_dead(admin, STREAM, "workers-other")
    await set_mappings(admin, STREAM, GROUP, [Mapping("a", (0, 1, 2, 3))])
    with pytest.raises(GroupError, match="has mappings"):
        await reap(admin, STREAM, GROUP)


async def test_command_drops_who_is_dead(admin: Client, nats_server: EmbeddedServer) -> None:
    await add_members(admin, STREAM, GROUP, ["w1", "w2"])
    await read(admin, "w2", 2, 3)
    arguments = ("groups", "reap", GROUP)
    done = await asyncio.to_thread(run_command, *arguments, NATS_URL=nats_server.url)
    assert done.returncode == 2
    assert "there is nobody to ask; say --yes" in one_error_line(done)
    done = await asyncio.to_thread(run_command, *arguments, "--yes", NATS_URL=nats_server.url)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("w1 is dead: nobody has read its partitions for 1")
    assert second == "dropped w1"
    assert await owners(admin) == ["w2"] * 4
