"""What the worker gets from a member, and what it gives back.

Method: workers in this process on one real server; consumers are deleted and changed by hand while
handlers run. For messages that a server repeats after a crash the source alone is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from partitions_support import (
    ACK_WAIT,
    BOUND_S,
    CONFIG,
    SETTINGS,
    covered,
    empty,
    history_of,
    in_order,
    member,
    publish,
)
from support import connected, eventually, stored_events, unique
from worker_support import publish_cancel, put_snapshot, quick_retry

from dagnats_worker import EmbeddedServer, Plugin, TaskContext, Worker, hookimpl
from dagnats_worker.hookspecs import Source, TaskType, WorkerFacade
from dagnats_worker_partitions import PartitionsPlugin, open_member, step_down
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._names import TASK_STREAM, group_name, group_stream
from dagnats_worker_partitions._pinned import Arrival
from dagnats_worker_partitions._priority import Meta
from dagnats_worker_partitions._source import ORIGINS_MAX, Origins

ACK_WAIT_S = ACK_WAIT.total_seconds()


def stream_of(kind: str) -> str:
    return group_stream(TASK_STREAM, group_name(kind))


async def consumer_of(nc: NatsClient, kind: str, name: str) -> dict[str, Any]:
    info = await JetStreamApi(nc).consumer(stream_of(kind), name)
    assert info is not None
    return info


async def types_of(nc: NatsClient, run_id: str) -> list[str]:
    return [one["type"] for one in await stored_events(nc, run_id)]


@pytest.mark.parametrize("ordered", [True, False])
async def test_consumer_deleted_under_a_handler_is_made_again_and_nothing_runs_twice(
    shared_server: EmbeddedServer, nc: NatsClient, *, ordered: bool
) -> None:
    kind, run_id, entered = unique(), unique("r"), list[int]()

    async def handler(ctx: TaskContext) -> None:
        entered.append(ctx.deliveries)
        await asyncio.sleep(3 * ACK_WAIT_S)

    async with member(shared_server.url, kind, handler, "m1", ordered=ordered):
        await publish(nc, kind, [run_id])
        await eventually(lambda: entered, BOUND_S)
        await JetStreamApi(nc).delete_consumer(stream_of(kind), "m1")
        await covered(nc, kind, "m1")
        await publish(nc, kind, [unique("r")])
        await empty(nc, kind)
    assert len(entered) == 2
    assert await types_of(nc, run_id) == ["step.started", "step.completed"]


async def test_consumer_that_somebody_made_otherwise_is_replaced(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind = unique()

    async def handler(ctx: TaskContext) -> None: ...

    async with member(shared_server.url, kind, handler, "m1", max_tasks=8):
        await covered(nc, kind, "m1")
        api = JetStreamApi(nc)
        config = (await consumer_of(nc, kind, "m1"))["config"]
        assert config["max_ack_pending"] == 8
    body = {"stream_name": stream_of(kind), "config": config, "action": "create"}
    await api.ask(f"CONSUMER.CREATE.{stream_of(kind)}.m1", body)
    async with member(shared_server.url, kind, handler, "m1", max_tasks=3):
        await covered(nc, kind, "m1")

        async def replaced() -> bool:
            found = await api.consumer(stream_of(kind), "m1")
            return found is not None and bool(found["config"]["max_ack_pending"] == 3)

        await eventually(replaced, BOUND_S)
        await publish(nc, kind, [unique("r")])
        await empty(nc, kind)


async def test_member_that_is_told_to_step_down_and_is_alone_goes_on(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, entered, runs = unique(), list[str](), [unique("r") for _ in range(4)]

    async def handler(ctx: TaskContext) -> None:
        entered.append(ctx.run_id)
        await asyncio.sleep(0.5)

    async with member(shared_server.url, kind, handler, "m1", ordered=True):
        await publish(nc, kind, runs[:2])
        await eventually(lambda: len(entered) == 2, BOUND_S)
        await step_down(nc, TASK_STREAM, group_name(kind), "m1")
        await publish(nc, kind, runs[2:])
        await empty(nc, kind)
    assert Counter(entered) == Counter(runs), "nothing was repeated"


async def test_other_runs_go_on_after_a_reconnect_while_a_long_handler_runs(
    nats_server: EmbeddedServer,
) -> None:
    kind, long, other = unique(), unique("r"), unique("r")
    begun, release = list[str](), asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        begun.append(ctx.run_id)
        if ctx.run_id == long:
            await release.wait()

    async with (
        connected(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc,
        member(nats_server.url, kind, handler, "m1", ordered=True),
    ):
        await publish(nc, kind, [long])
        await eventually(lambda: begun == [long], BOUND_S)
        await asyncio.to_thread(nats_server.restart)
        await eventually(lambda: nc.is_connected, BOUND_S)
        await covered(nc, kind, "m1")
        await publish(nc, kind, [other], steps=2)
        await eventually(lambda: begun == [long, other, other], BOUND_S)
        release.set()
        await empty(nc, kind)
        assert await types_of(nc, long) == ["step.started", "step.completed"]
    assert begun.count(long) == 1


async def test_no_more_arrives_than_there_are_slots(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, running, most, release = unique(), set[str](), list[int](), asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        running.add(ctx.run_id)
        most.append(len(running))
        await release.wait()
        running.discard(ctx.run_id)

    async with member(shared_server.url, kind, handler, "m1", max_tasks=3) as worker:
        await publish(nc, kind, [unique("r") for _ in range(9)])
        await eventually(lambda: len(running) == 3, BOUND_S)
        assert (await consumer_of(nc, kind, "m1"))["num_ack_pending"] == 3
        release.set()
        await empty(nc, kind)
        assert worker.stats().completed == 9
    assert max(most) == 3


async def test_task_types_share_the_slots_of_their_worker(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kinds, running, most = [unique(), unique()], 0, 0
    done: Counter[str] = Counter()

    async def handler(ctx: TaskContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done[ctx.task_type] += 1

    worker = Worker(
        shared_server.url,
        worker_id="m1",
        partitions=4,
        max_tasks=4,
        plugins=[PartitionsPlugin(SETTINGS)],
        config=CONFIG,
    )
    for kind in kinds:
        worker.handle(kind, handler)
    async with worker:
        for kind in kinds:
            await covered(nc, kind, "m1")
            await publish(nc, kind, [unique("r") for _ in range(40)])
        for kind in kinds:
            await empty(nc, kind)
        stats = worker.stats()
    assert most <= 4
    assert done == dict.fromkeys(kinds, 40)
    assert stats.redelivered == 0, "what waits for a slot is not given back"


async def test_what_waits_for_its_turn_keeps_its_lease(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, seen = unique(), unique("r"), list[tuple[str, int]]()

    async def handler(ctx: TaskContext) -> None:
        seen.append((ctx.step_id, ctx.deliveries))
        if ctx.step_id == "s0":
            await asyncio.sleep(3 * ACK_WAIT_S)

    async with member(shared_server.url, kind, handler, "m1", ordered=True):
        await publish(nc, kind, [run_id], steps=3)
        await empty(nc, kind)
    assert seen == [("s0", 1), ("s1", 1), ("s2", 1)]


async def test_task_that_has_waited_longer_than_its_lease_keeps_it(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, begun = unique(), unique("r"), []

    async def handler(ctx: TaskContext) -> None:
        begun.append(ctx.deliveries)
        await asyncio.sleep((2.5 if len(begun) == 1 else 0.7) * ACK_WAIT.total_seconds())

    async with member(shared_server.url, kind, handler, "m1", ordered=True):
        await publish(nc, kind, [run_id], steps=2)
        await empty(nc, kind)
    assert begun == [1, 1]


async def test_retry_keeps_its_run_waiting_and_no_other(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, runs, failed, order = unique(), [unique("a"), unique("b")], set[str](), list[str]()

    async def handler(ctx: TaskContext) -> None:
        if ctx.run_id == runs[0] and not failed:
            failed.add(ctx.step_id)
            raise ValueError("once")
        order.append(ctx.run_id)

    retry = quick_retry(wait_s=1.0)
    async with member(shared_server.url, kind, handler, "m1", ordered=True, retry=retry):
        await publish(nc, kind, runs, steps=2)
        await empty(nc, kind)
    assert order == [runs[1], runs[1], runs[0], runs[0]]
    history = await history_of(nc, runs)
    assert all(in_order(history[run_id], 2) for run_id in runs)


async def test_retry_waits_as_long_as_it_should_although_its_consumer_is_made_again(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, begun = unique(), unique("r"), list[float]()
    wait_s = 3.0

    async def handler(ctx: TaskContext) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            raise ValueError("once")

    retry = quick_retry(wait_s=wait_s)
    async with member(shared_server.url, kind, handler, "m1", ordered=True, retry=retry):
        await publish(nc, kind, [run_id], steps=2)

        async def released() -> bool:
            return "step.released" in await types_of(nc, run_id)

        await eventually(released, BOUND_S)
        await JetStreamApi(nc).delete_consumer(stream_of(kind), "m1")
        await empty(nc, kind)
    first, second, third = begun
    assert wait_s <= second - first + 0.1
    assert third >= second
    history = await history_of(nc, [run_id])
    assert in_order(history[run_id], 2)


async def test_stop_gives_back_what_waits_to_the_next_member(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, entered, done = unique(), unique("r"), asyncio.Event(), list[str]()

    async def handler(ctx: TaskContext) -> None:
        entered.set()
        await asyncio.sleep(0.3)
        done.append(f"{ctx.step_id} by {ctx.worker_id}")

    async with member(shared_server.url, kind, handler, "m1", ordered=True):
        await publish(nc, kind, [run_id], steps=3)
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
    async with member(shared_server.url, kind, handler, "m2", ordered=True):
        await empty(nc, kind)
    assert done == ["s0 by m1", "s1 by m2", "s2 by m2"]


async def test_task_of_a_run_that_was_cancelled_meanwhile_is_skipped(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, seen, release = unique(), unique("r"), list[str](), asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        seen.append(ctx.step_id)
        await release.wait()

    async with member(shared_server.url, kind, handler, "m1", ordered=True, max_tasks=1) as worker:
        await publish(nc, kind, [unique("r"), run_id])
        await eventually(lambda: seen, BOUND_S)
        await put_snapshot(nc.jetstream(), run_id, "cancelled")
        await publish_cancel(nc.jetstream(), run_id)
        release.set()
        await empty(nc, kind)
        assert worker.stats().skipped == 1
    assert seen == ["s0"]


class OneAtATime(Plugin[None]):
    """Another plugin that makes a member of its own."""

    name = "one-at-a-time"

    @hookimpl
    async def open_source(self, worker: WorkerFacade, task: TaskType) -> Source | None:
        return await open_member(
            worker, task, partitions=1, serial=True, fenced=True, settings=SETTINGS
        )


async def test_other_plugins_can_be_members(shared_server: EmbeddedServer, nc: NatsClient) -> None:
    kind, running, most = unique(), 0, 0

    async def handler(ctx: TaskContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    worker = Worker(shared_server.url, worker_id="m1", plugins=[OneAtATime()], config=CONFIG)
    worker.handle(kind, handler)
    async with worker:
        await publish(nc, kind, [unique("r") for _ in range(10)])
        await empty(nc, kind)
        assert worker.stats().completed == 10
    assert most == 1


async def test_lease_below_the_least_is_refused(shared_server: EmbeddedServer) -> None:
    worker = Worker(
        shared_server.url, partitions=2, plugins=[PartitionsPlugin(SETTINGS)], config=CONFIG
    )
    worker.handle(unique(), lambda text: None, ack_wait=timedelta(seconds=0.5))
    with pytest.raises(Exception, match="with partitions it is at least"):
        await worker.start()


# ------------------------------------------------------------------------- repeated by a server


def arrival(origin: int, sequence: int, timestamp_ns: int) -> Arrival:
    headers = {"Nats-Stream-Source": f"TASK_QUEUES {origin} task.a.> x task.a.r OuUcY0K7"}
    meta = Meta("S", "m1", 1, sequence, timestamp_ns)
    return Arrival(meta, "0.task.a.r", b"", headers, "ack", 0.0)


def test_message_that_is_sourced_again_has_the_time_of_the_first() -> None:
    origins = Origins()
    assert origins.first(arrival(7, 1, 100)) is None
    assert origins.first(arrival(7, 1, 100)) is None, "delivered again, and not sourced again"
    assert origins.first(arrival(7, 5, 900)) == 100
    assert origins.first(arrival(8, 6, 901)) is None


def test_messages_without_an_origin_are_all_new() -> None:
    without = Arrival(Meta("S", "m1", 1, 1, 5), "0.task.a.r", b"", {}, "ack", 0.0)
    assert Origins().first(without) is None


def test_origins_are_bounded() -> None:
    origins = Origins()
    for number in range(ORIGINS_MAX + 10):
        origins.first(arrival(number, number, number))
    assert len(origins._first) == ORIGINS_MAX
