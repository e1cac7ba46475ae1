"""Crashes, pauses and outages: who goes on, when, and what a member that wakes up late may do.

Method: members in processes of their own, which are killed and frozen by signals; the server is
killed and started again. What the handlers did stands in a diary, what was recorded in the history.
Everything is real.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from fleet_support import Proxy
from nats.aio.client import Client as NatsClient
from partitions_support import (
    ACK_WAIT,
    BOUND_S,
    LEASE,
    covered,
    empty,
    entries,
    history_of,
    in_order,
    info_of,
    noted,
    overlaps,
    process,
    publish,
    served,
)
from support import connected, eventually, stored_events, unique

from dagnats_worker import EmbeddedServer

LEASE_S = LEASE.total_seconds()
ACK_WAIT_S = ACK_WAIT.total_seconds()


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


async def members_are(nc: NatsClient, kind: str, *names: str) -> bool:
    return set((await info_of(nc, kind)).record.config.members) == set(names)


async def types_of(nc: NatsClient, run_id: str) -> list[tuple[str, str]]:
    return [(one["type"], one["worker_id"]) for one in await stored_events(nc, run_id)]


@pytest.mark.parametrize("busy", [False, True])
async def test_partitions_of_a_killed_member_go_to_another_within_the_lease_and_five_seconds(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path, *, busy: bool
) -> None:
    kind, run_id, later = unique(), unique("r"), [unique("r") for _ in range(8)]
    url = shared_server.url
    handler_s = 60.0 if busy else 0.005
    with (
        process(url, kind, diary, "m1", handler_s=handler_s) as first,
        process(url, kind, diary, "m2") as second,
    ):
        await served(nc, kind, "m1", "m2")
        runs = [run_id, *later] if busy else [run_id]
        await publish(nc, kind, runs)
        if busy:
            await eventually(lambda: noted(diary, "begin", member="m1"), BOUND_S)
        else:
            await empty(nc, kind)
        first.signal(signal.SIGKILL)
        killed = time.monotonic()
        await publish(nc, kind, later, steps=2)
        await covered(nc, kind, "m2")
        took_s = time.monotonic() - killed
        await empty(nc, kind)
        assert took_s < LEASE_S + 5, "the goal of this plugin"
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
    history = await history_of(nc, later)
    assert all(in_order(history[one], 2) for one in later)


async def test_process_of_the_same_name_takes_over_when_the_other_is_killed(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, runs = unique(), [unique("r") for _ in range(10)]
    url = shared_server.url
    with process(url, kind, diary, "m1") as first, process(url, kind, diary, "m1") as second:
        await served(nc, kind, "m1")
        await publish(nc, kind, runs[:5])
        await empty(nc, kind)
        first.signal(signal.SIGKILL)
        await publish(nc, kind, runs[5:])
        await empty(nc, kind)
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
    ends = noted(diary, "end")
    assert sorted(one.run_id for one in ends) == sorted(runs)


async def test_process_of_the_same_name_stays_when_the_other_stops(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, runs = unique(), [unique("r") for _ in range(10)]
    url = shared_server.url
    with process(url, kind, diary, "m1") as first, process(url, kind, diary, "m1") as second:
        await served(nc, kind, "m1")

        await publish(nc, kind, runs[:5])
        await empty(nc, kind)
        for one in (first, second):
            one.signal(signal.SIGTERM)
            await one.ended()
            if one is first:
                await publish(nc, kind, runs[5:])
                await empty(nc, kind)
    assert sorted(one.run_id for one in noted(diary, "end")) == sorted(runs)


async def test_two_processes_of_one_member_follow_their_group(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, runs = unique(), [unique("r") for _ in range(60)]
    url = shared_server.url
    with process(url, kind, diary, "m1"), process(url, kind, diary, "m1"):
        await served(nc, kind, "m1")
        await publish(nc, kind, runs[:20], steps=2)
        with process(url, kind, diary, "m2") as other:
            await covered(nc, kind, "m1", "m2")
            await publish(nc, kind, runs[20:40], steps=2)
            await empty(nc, kind)
            other.signal(signal.SIGTERM)
            assert await other.ended() == 0
        await publish(nc, kind, runs[40:], steps=2)
        await covered(nc, kind, "m1")
        await empty(nc, kind)
    assert overlaps(diary) == 0
    history = await history_of(nc, runs)
    assert all(in_order(history[run_id], 2) for run_id in runs)
    assert len(noted(diary, "begin")) == 2 * len(runs)


async def test_worker_that_starts_again_under_its_name_goes_on_where_it_was(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique(), unique("r")
    url = shared_server.url
    with process(url, kind, diary, "m1", handler_s=60) as first:
        await served(nc, kind, "m1")
        await publish(nc, kind, [run_id], steps=2)
        await eventually(lambda: noted(diary, "begin"), BOUND_S)
        first.signal(signal.SIGKILL)
        with process(url, kind, diary, "m1"):
            await empty(nc, kind)
    history = await history_of(nc, [run_id])
    assert in_order(history[run_id], 2)
    assert [one.step_id for one in noted(diary, "begin")] == ["s0", "s0", "s1"]


async def test_short_pause_of_a_process_costs_nothing(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique(), unique("r")
    with process(shared_server.url, kind, diary, "m1", handler_s=2 * ACK_WAIT_S) as worker:
        await served(nc, kind, "m1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: noted(diary, "begin"), BOUND_S)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(ACK_WAIT_S * 0.6)
        worker.signal(signal.SIGCONT)
        await empty(nc, kind)
    assert len(noted(diary, "begin")) == len(noted(diary, "end")) == 1


async def test_member_that_wakes_up_after_it_was_replaced_cannot_complete(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique(), unique("r")
    url = shared_server.url
    pause_s = LEASE_S + 4 * ACK_WAIT_S
    with process(url, kind, diary, "m1", partitions=1, handler_s=pause_s / 2) as paused:
        await served(nc, kind, "m1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: noted(diary, "begin", member="m1"), BOUND_S)
        with process(url, kind, diary, "m2", partitions=1, handler_s=1.0):
            paused.signal(signal.SIGSTOP)
            await eventually(lambda: noted(diary, "begin", member="m2"), BOUND_S)
            paused.signal(signal.SIGCONT)
            await empty(nc, kind)
            await eventually(lambda: noted(diary, "cancelled", member="m1"), BOUND_S)
            await eventually(lambda: noted(diary, "end", member="m2"), BOUND_S)
            # It is a member again, and its name sorts first, so it gets the partition back.
            await covered(nc, kind, "m1")
            await publish(nc, kind, [unique("r")])
            await empty(nc, kind)
    assert await types_of(nc, run_id) == [
        ("step.started", "m1"),
        ("step.started", "m2"),
        ("step.completed", "m2"),
    ]
    assert noted(diary, "end", member="m1", run_id=run_id) == []


async def test_member_that_is_cut_off_gives_its_task_up_before_another_begins_it(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique(), unique("r")
    async with Proxy(shared_server.url) as proxy:
        with process(proxy.url, kind, diary, "m1", partitions=1, handler_s=60):
            await served(nc, kind, "m1")
            await publish(nc, kind, [run_id])
            await eventually(lambda: noted(diary, "begin", member="m1"), BOUND_S)
            with process(shared_server.url, kind, diary, "m2", partitions=1):
                await eventually(lambda: members_are(nc, kind, "m1", "m2"), BOUND_S)
                proxy.swallow = True
                proxy.cut()
                await empty(nc, kind)
                assert overlaps(diary) == 0
    assert noted(diary, "cancelled", member="m1")
    assert await types_of(nc, run_id) == [
        ("step.started", "m1"),
        ("step.started", "m2"),
        ("step.completed", "m2"),
    ]


async def test_member_that_was_paused_for_longer_than_its_lease_alone_runs_the_task_again(
    shared_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique(), unique("r")
    with process(shared_server.url, kind, diary, "m1", handler_s=3 * ACK_WAIT_S) as worker:
        await served(nc, kind, "m1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: noted(diary, "begin"), BOUND_S)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(6 * ACK_WAIT_S)  # its consumer has timed out by then
        worker.signal(signal.SIGCONT)
        await empty(nc, kind)
    assert overlaps(diary) == 0
    completed = [one for one in await types_of(nc, run_id) if one[0] == "step.completed"]
    assert len(completed) == 1


async def test_server_that_crashes_loses_nothing(nats_server: EmbeddedServer, diary: Path) -> None:
    kind, runs = unique(), [unique("r") for _ in range(150)]
    url = nats_server.url
    async with connected(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc:
        with (
            process(url, kind, diary, "m1", handler_s=0.05, max_tasks=4),
            process(url, kind, diary, "m2", handler_s=0.05, max_tasks=4),
        ):
            await served(nc, kind, "m1", "m2")
            await publish(nc, kind, runs)
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.restart)
            await eventually(lambda: nc.is_connected, BOUND_S)
            await empty(nc, kind)
            await publish(nc, kind, last := [unique("r")])
            await empty(nc, kind)
        history = await history_of(nc, [*runs, *last])
    for run_id in [*runs, *last]:
        kinds = [event["type"] for event in history[run_id]]
        assert "step.completed" in kinds
    assert {one.member for one in entries(diary)} == {"m1", "m2"}
