"""Who takes over when the holder dies, stops, hangs or is cut off, and what a zombie cannot do.

Method: workers in processes of their own, which are killed and frozen by signals, or whose network
is taken away by a proxy. What the handlers did stands in a diary, what was recorded in the history
and in the bucket of checkpoints. Everything is real; ``GoMember`` stands in for a worker in Go.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from fleet_support import Proxy
from nats.aio.client import Client as NatsClient
from partitions_support import (
    ACK_WAIT,
    BOUND_S,
    LEASE,
    GoMember,
    empty,
    entries,
    noted,
    publish,
)
from singleton_support import in_charge, outcomes, process, standby
from support import connected, eventually, stored_events, unique

from dagnats_worker import EmbeddedServer, SyncTaskContext, TaskContext

pytestmark = [pytest.mark.server]

LEASE_S = LEASE.total_seconds()
ACK_WAIT_S = ACK_WAIT.total_seconds()
SLOW = "await asyncio.sleep(60 if ctx.worker_id == 'w1' else 0)"


@pytest.fixture
async def nc(nats_server: EmbeddedServer) -> AsyncIterator[NatsClient]:
    async with connected(nats_server.url) as client:
        yield client


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def most_at_once(diary: Path) -> int:
    """How many handlers ran at the same time, at worst."""
    running, most = 0, 0
    for one in entries(diary):
        running += 1 if one.what == "begin" else -1
        most = max(most, running)
    return most


async def test_killed_holder_is_replaced_within_the_lease_and_five_seconds(
    nats_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id, url = unique("one"), unique("r"), nats_server.url
    with (
        process(url, kind, diary, "w1", body=SLOW) as first,
        process(url, kind, diary, "w2", body=SLOW),
    ):
        await in_charge(nc, kind, "w1", "w2", owner="w1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: noted(diary, "begin", member="w1"), BOUND_S)
        first.signal(signal.SIGKILL)
        killed = time.monotonic()
        await eventually(lambda: noted(diary, "begin", member="w2"), BOUND_S)
        assert time.monotonic() - killed < LEASE_S + 5, "the goal of this plugin"
        await empty(nc, kind)
    assert await outcomes(nc, run_id) == [("step.completed", "w2")]


async def test_hanging_handler_makes_room_at_its_timeout(
    nats_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, stuck, next_one = unique("one"), unique("r"), unique("r")
    body = f"await asyncio.sleep(60 if ctx.run_id == {stuck!r} and ctx.deliveries == 1 else 0)"
    with process(nats_server.url, kind, diary, "w1", body=body, timeout_s=1):
        await in_charge(nc, kind, "w1", owner="w1")
        await publish(nc, kind, [stuck])
        await eventually(lambda: noted(diary, "begin", run_id=stuck), BOUND_S)
        await publish(nc, kind, [next_one])
        await eventually(lambda: noted(diary, "CancelledError", run_id=stuck), BOUND_S)
        await eventually(lambda: noted(diary, "end", run_id=next_one), BOUND_S)
    assert most_at_once(diary) == 1


async def test_thread_that_outlives_its_time_keeps_the_place(
    nats_server: EmbeddedServer, nc: NatsClient
) -> None:
    """Two at once would break the promise; a thread cannot be ended, so the others wait for it."""
    kind, stuck, next_one = unique("one"), unique("r"), unique("r")
    release, running, peak = threading.Event(), [], []

    def blocking(ctx: object) -> str:
        running.append(1)
        peak.append(len(running))
        if len(peak) == 1:
            release.wait(30)
        running.pop()
        return "done"

    async with standby(nats_server.url, kind, blocking, "w1", timeout=timedelta(seconds=0.5)):
        await in_charge(nc, kind, "w1", owner="w1")
        await publish(nc, kind, [stuck, next_one])

        async def is_given_up() -> bool:
            types = {one["type"] for one in await stored_events(nc, stuck)}
            return bool(types & {"step.failed", "step.released"})

        await eventually(is_given_up, BOUND_S, what="the timeout is recorded")
        await asyncio.sleep(ACK_WAIT_S)
        assert len(peak) == 1, "nobody else was started"
        release.set()
        await empty(nc, kind)
    assert max(peak) == 1


async def test_stop_does_not_hand_over_beside_a_thread_that_outlives_its_time(
    nats_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id = unique("one"), unique("r")
    release, timed_out, running, peak = threading.Event(), timedelta(seconds=0.5), [], []

    def blocking(ctx: SyncTaskContext) -> str:
        running.append(ctx.worker_id)
        peak.append(len(running))
        if ctx.worker_id == "w1":
            release.wait(30)
        running.remove(ctx.worker_id)
        return ctx.worker_id

    async with (
        standby(nats_server.url, kind, blocking, "w1", timeout=timed_out) as first,
        standby(nats_server.url, kind, blocking, "w2", timeout=timed_out),
    ):
        await in_charge(nc, kind, "w1", "w2", owner="w1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: first.stats().abandoned == 1, BOUND_S)
        await first.stop()
        assert running == ["w1"], "nobody else was started"
        release.set()
        await empty(nc, kind)
    assert max(peak) == 1
    assert await outcomes(nc, run_id) == [("step.completed", "w2")]


async def test_holder_that_blocks_its_loop_and_was_frozen_cannot_complete(
    nats_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    """It has no chance to be told before it returns; the fence refuses its outcome."""
    kind, run_id, url = unique("one"), unique("r"), nats_server.url
    go_on = diary.with_name("go-on")
    body = (
        "if ctx.worker_id == 'w1':\n"
        f"            while not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
        "        else: await asyncio.sleep(0)"
    )
    with (
        process(url, kind, diary, "w1", body=body) as first,
        process(url, kind, diary, "w2", body=body),
    ):
        await in_charge(nc, kind, "w1", "w2", owner="w1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: noted(diary, "begin", member="w1"), BOUND_S)
        first.signal(signal.SIGSTOP)
        await eventually(lambda: noted(diary, "end", member="w2"), BOUND_S)
        go_on.touch()
        first.signal(signal.SIGCONT)
        await eventually(lambda: noted(diary, "end", member="w1"), BOUND_S)
        first.signal(signal.SIGTERM)
        await first.ended()
    assert await outcomes(nc, run_id) == [("step.completed", "w2")]


async def test_holder_that_is_cut_off_from_the_server_is_replaced_and_ends(
    nats_server: EmbeddedServer, nc: NatsClient, diary: Path
) -> None:
    kind, run_id = unique("one"), unique("r")
    started: list[str] = []
    gone = asyncio.Event()

    async def settle(ctx: TaskContext) -> str:
        started.append(ctx.worker_id)
        if ctx.worker_id == "w1":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gone.set()
                raise
        return ctx.worker_id

    async with (
        Proxy(nats_server.url) as network,
        standby(network.url, kind, settle, "w1") as first,
        standby(nats_server.url, kind, settle, "w2"),
    ):
        await in_charge(nc, kind, "w1", "w2", owner="w1")
        await publish(nc, kind, [run_id])
        await eventually(lambda: started, BOUND_S)
        network.swallow = True
        async with asyncio.timeout(BOUND_S):
            await gone.wait()
        await eventually(lambda: "w2" in started, BOUND_S, what="the other one takes over")
        await empty(nc, kind)
        network.swallow = False
        assert first.state == "running"
    assert await outcomes(nc, run_id) == [("step.completed", "w2")]


async def test_place_of_a_dead_worker_in_go_is_taken_over(
    nats_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id = unique("one"), unique("r")

    async def settle(ctx: TaskContext) -> str:
        return ctx.worker_id

    async with standby(nats_server.url, kind, settle, "w2"):
        await in_charge(nc, kind, "w2", owner="w2")
        dead = GoMember(nc, kind, "a-dead-go-worker")
        await dead.list_itself()
        await publish(nc, kind, [run_id])
        await empty(nc, kind, within_s=90)
    assert await outcomes(nc, run_id) == [("step.completed", "w2")]


async def test_living_worker_in_go_is_left_in_charge(
    nats_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, runs = unique("one"), [unique("r") for _ in range(2)]
    started: list[str] = []

    async def settle(ctx: TaskContext) -> None:
        started.append(ctx.run_id)

    async with standby(nats_server.url, kind, settle, "w2"):
        await in_charge(nc, kind, "w2", owner="w2")
        go = GoMember(nc, kind, "a-go-worker")
        await go.list_itself()
        await eventually(go.join, BOUND_S, what="ours lets go")
        await publish(nc, kind, runs)
        await eventually(lambda: go.handled, BOUND_S)
        await asyncio.sleep(LEASE_S)
    assert started == []
