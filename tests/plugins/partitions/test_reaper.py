"""Who is taken for dead, and who never is.

Method: the judge alone, with times made by hand; then members on a real server, some of which fall
silent. Fake: members in Go, by what they do on the wire; the directory of workers, by its keys.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.js.errors import NoKeysError
from partitions_support import BOUND_S, LEASE, GoMember, covered, empty, info_of, member, publish
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer, TaskContext
from dagnats_worker_partitions import GroupConfig, PartitionFilter, PartitionsSettings, add_members
from dagnats_worker_partitions import _reaper as reaper
from dagnats_worker_partitions._leases import LEASE_BUCKET
from dagnats_worker_partitions._names import TASK_STREAM, group_name
from dagnats_worker_partitions._reaper import Judge, covered_members, grace_s

LEASE_S = LEASE.total_seconds()


# ------------------------------------------------------------------------- evidence


def test_who_kept_a_lease_is_dead_when_it_has_ended() -> None:
    judge = Judge()
    judge.saw_leases({"a", "b"})
    assert judge.without_lease({"a", "b", "c"}, {"b"}) == {"a"}


def test_who_never_had_a_lease_is_not_judged_by_it() -> None:
    assert Judge().without_lease({"go"}, set()) == set()


def test_uncovered_time_must_be_without_a_gap() -> None:
    judge = Judge()
    judge.uncovered({"go"}, set(), 0.0)
    judge.uncovered({"go"}, {"go"}, 8.0)
    judge.uncovered({"go"}, set(), 10.0)
    assert judge.uncovered_for(12.0, 20.0) == {}
    assert judge.uncovered_for(12.0, 22.0) == {"go": 12.0}


def test_who_shows_a_lease_is_judged_by_it_from_then_on() -> None:
    judge = Judge()
    judge.uncovered({"new"}, set(), 0.0)
    judge.saw_leases({"new"})
    assert judge.uncovered_for(1.0, 100.0) == {}


def test_outage_makes_everything_begin_anew() -> None:
    judge = Judge()
    judge.uncovered({"go"}, set(), 0.0)
    judge.disturbed()
    judge.uncovered({"go"}, set(), 20.0)
    assert judge.uncovered_for(12.0, 25.0) == {}


def test_who_was_taken_out_begins_anew() -> None:
    judge = Judge()
    judge.saw_leases({"a"})
    judge.forget({"a"})
    assert judge.without_lease({"a"}, set()) == set()
    assert not judge.keeps_leases("a")


def test_member_counts_as_seen_while_anybody_reads_one_of_its_partitions() -> None:
    config = GroupConfig(4, (PartitionFilter("f.>"),), members=("a", "b"))
    assert covered_members(config, {"a", "b"}, ["2.f.>"]) == {"b"}
    assert covered_members(config, {"a", "b"}, ["1.f.>", "3.f.>"]) == {"a", "b"}
    assert covered_members(config, {"a", "b"}, []) == set()


@pytest.mark.parametrize(("waits_s", "grace"), [([], 12.0), ([5.0], 12.0), ([5, 30.0], 62.0)])
def test_grace_grows_with_the_slowest_member(waits_s: list[float], grace: float) -> None:
    assert grace_s(waits_s) == grace


@pytest.mark.parametrize("sign", ["a reconnect", "a lease of its own that is late"])
def test_nobody_is_judged_until_all_had_time_to_write_a_lease(sign: str) -> None:
    nc: Any = SimpleNamespace(stats={"reconnects": 0}, jetstream=None)
    lease: Any = SimpleNamespace(length_s=15.0, age_s=1.0)
    watching = reaper.Reaper(nc, SimpleNamespace(), lease)  # type: ignore[arg-type]  # not asked
    assert not watching._is_disturbed(100.0)
    if sign == "a reconnect":
        nc.stats["reconnects"] = 1
    else:
        lease.age_s = 8.0
    assert watching._is_disturbed(101.0)
    lease.age_s = 1.0
    assert watching._is_disturbed(115.9)
    assert not watching._is_disturbed(116.1)


# ------------------------------------------------------------------------- on a server


async def handler(ctx: TaskContext) -> None: ...


@asynccontextmanager
async def alone(url: str, kind: str, name: str = "m1", **more: Any) -> AsyncIterator[Any]:
    async with member(url, kind, handler, name, **more) as worker:
        yield worker


async def members_of(nc: NatsClient, kind: str) -> set[str]:
    return set((await info_of(nc, kind)).record.config.members)


async def test_lease_stands_beside_the_group_and_ends_with_its_member(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind = unique()
    key = f"{TASK_STREAM}.{group_name(kind)}.m1"
    bucket: Any = None
    async with alone(shared_server.url, kind):
        bucket = await nc.jetstream().key_value(LEASE_BUCKET)
        told = json.loads((await bucket.get(key)).value)
        assert set(told) == {"worker_id", "host", "pid", "since"}
        assert told["worker_id"] == "m1"
        status = await nc.jetstream().stream_info(f"KV_{LEASE_BUCKET}")
        assert status.config.max_age == LEASE_S
    assert key not in await _keys(bucket)


async def _keys(bucket: Any) -> list[str]:
    try:
        found: list[str] = await bucket.keys()
    except NoKeysError:
        return []
    return found


async def test_live_members_are_never_taken_out(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, url = unique(), shared_server.url
    async with alone(url, kind, "m1"), alone(url, kind, "m2"), alone(url, kind, "m3"):
        await covered(nc, kind, "m1", "m2", "m3")
        revision = (await info_of(nc, kind)).record.revision
        await asyncio.sleep(2.5 * LEASE_S)
        assert (await info_of(nc, kind)).record.revision == revision


async def test_silent_member_without_lease_is_taken_out_after_the_grace(
    shared_server: EmbeddedServer, nc: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE_MIN_S", 2.0)
    monkeypatch.setattr(reaper, "TICKS_PER_GRACE", 1)
    kind = unique()
    async with alone(shared_server.url, kind):
        await GoMember(nc, kind, "a-dead").list_itself()

        async def only_ours() -> bool:
            return await members_of(nc, kind) == {"m1"}

        assert not await only_ours()
        await eventually(only_ours, BOUND_S)
        await covered(nc, kind, "m1")
        await publish(nc, kind, [unique("r") for _ in range(5)])
        await empty(nc, kind)


async def test_member_in_go_that_reads_is_not_taken_out(
    shared_server: EmbeddedServer, nc: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE_MIN_S", 1.0)
    monkeypatch.setattr(reaper, "TICKS_PER_GRACE", 0)
    kind, go = unique(), None
    async with alone(shared_server.url, kind):
        go = GoMember(nc, kind, "a-go")
        await go.list_itself()
        await eventually(go.join, BOUND_S)
        await asyncio.sleep(4.0)  # its consumer lasts five seconds without a pull
        assert await members_of(nc, kind) == {"a-go", "m1"}


async def test_member_in_the_directory_is_not_taken_out(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE_MIN_S", 1.0)
    monkeypatch.setattr(reaper, "TICKS_PER_GRACE", 0)
    kind = unique()
    async with connected(nats_server.url) as nc:
        bucket = await nc.jetstream().key_value("workers")
        for name in ("m1", "a-go"):
            await bucket.put(name, b"{}")
        async with alone(nats_server.url, kind):
            go = GoMember(nc, kind, "a-go")
            await go.list_itself()
            await asyncio.sleep(2 * LEASE_S)
            assert await members_of(nc, kind) == {"a-go", "m1"}
            await bucket.delete("a-go")

            async def only_ours() -> bool:
                return await members_of(nc, kind) == {"m1"}

            await eventually(only_ours, BOUND_S)


async def test_dead_names_beyond_the_partitions_go_with_an_effective_one(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE_MIN_S", 1.0)
    monkeypatch.setattr(reaper, "TICKS_PER_GRACE", 0)
    kind = unique()
    async with connected(nats_server.url) as nc:
        await (await nc.jetstream().key_value("workers")).put("z1", b"{}")
        async with alone(nats_server.url, kind, "z1", partitions=1):
            await add_members(nc, TASK_STREAM, group_name(kind), ["a1", "a2", "a3"])
            record = (await info_of(nc, kind)).record
            await covered(nc, kind, "z1")
            assert (await info_of(nc, kind)).record.revision == record.revision + 1, "one write"


async def test_outage_of_the_server_kills_no_member(nats_server: EmbeddedServer) -> None:
    kind = unique()
    url = nats_server.url
    async with (
        connected(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc,
        alone(url, kind, "m1"),
        alone(url, kind, "m2"),
    ):
        await covered(nc, kind, "m1", "m2")
        revision = (await info_of(nc, kind)).record.revision
        await asyncio.to_thread(nats_server.kill)
        await asyncio.sleep(LEASE_S * 1.5)  # all leases have ended meanwhile
        await asyncio.to_thread(nats_server.restart)
        await eventually(lambda: nc.is_connected, BOUND_S)
        await covered(nc, kind, "m1", "m2")
        await asyncio.sleep(LEASE_S * 1.5)
        assert (await info_of(nc, kind)).record.revision == revision
        await publish(nc, kind, [unique("r") for _ in range(5)])
        await empty(nc, kind)


async def test_length_of_the_bucket_decides(shared_server: EmbeddedServer, nc: NatsClient) -> None:
    kind = unique()
    settings = PartitionsSettings(lease=timedelta(minutes=5), ack_wait=timedelta(seconds=2))
    async with (
        alone(shared_server.url, unique()),
        alone(shared_server.url, kind, settings=settings),
    ):
        bucket = await nc.jetstream().key_value(LEASE_BUCKET)
        key = f"{TASK_STREAM}.{group_name(kind)}.m1"
        first = (await bucket.get(key)).revision or 0

        async def renewed() -> bool:
            return ((await bucket.get(key)).revision or 0) > first

        await eventually(renewed, BOUND_S)
