"""A slot before a pull: how many tasks a worker takes, holds and gives back.

Method: a real server and real workers in this process, whose handlers wait for events of the test;
what the server thinks is read from CONSUMER.INFO while they run. Nothing is fake.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fleet_support import BOUND_S, Log, completed, consumer_info, quick_worker, seconds
from nats.js import JetStreamContext
from support import eventually, publish_task, unique

from dagnats_worker import EmbeddedServer, TaskContext


async def publish_many(js: JetStreamContext, task_type: str, count: int) -> list[str]:
    """Dispatch so many runs of one task type, and return their ids in order."""
    runs = [unique(f"run{number}") for number in range(count)]
    for run_id in runs:
        await publish_task(js, task_type, run_id)
    return runs


class Sampler:
    """Asks for a durable's state again and again, and keeps the highest numbers."""

    def __init__(self, js: JetStreamContext, task_type: str) -> None:
        self._js = js
        self._task_type = task_type
        self.unacked = 0
        self.pulls = 0
        self.samples = 0
        self._over = False

    async def __aenter__(self) -> Sampler:
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True  # not cancelled: a request of nats-py may swallow that
        await self._task

    async def _sample(self) -> None:
        while not self._over:
            info = await consumer_info(self._js, self._task_type)
            self.unacked = max(self.unacked, info.get("num_ack_pending", 0))
            self.pulls = max(self.pulls, info.get("num_waiting", 0))
            self.samples += 1


async def test_three_slots_never_run_or_hold_more_than_three_of_a_hundred_tasks(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    turns = asyncio.Semaphore(0)
    worker = quick_worker(shared_server.url)

    @worker.task(kind, concurrency=3)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await turns.acquire()

    runs = await publish_many(js, kind, 100)
    async with worker:
        for ended in range(0, 30, 3):
            await eventually(lambda: log.running == 3, BOUND_S)
            await settled_down(js, kind, unacked=3)
            for _ in range(3):
                turns.release()
            await eventually(lambda ended=ended: len(log.ended) == ended + 3, BOUND_S)
        async with Sampler(js, kind) as sampler:
            for _ in range(70):
                turns.release()
            await eventually(lambda: len(log.ended) == 100, BOUND_S)
    assert sorted(log.started) == sorted(runs)
    assert log.peak == 3
    assert sampler.samples > 2
    assert sampler.unacked <= 3 + 1 + 3, "an ack may be on its way when the next task is delivered"
    assert sampler.pulls <= 2


async def settled_down(js: JetStreamContext, task_type: str, *, unacked: int) -> None:
    """Wait until every ack has arrived, and see that nothing else is delivered then."""

    async def right() -> bool:
        return (await consumer_info(js, task_type))["num_ack_pending"] == unacked

    await eventually(right, BOUND_S)
    for _ in range(5):
        assert await right()


async def test_max_tasks_bounds_the_sum_over_task_types(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kinds, log = [unique() for _ in range(4)], Log()
    worker = quick_worker(shared_server.url, max_tasks=3)

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.task_type):
            await asyncio.sleep(0.005)

    for kind in kinds:
        worker.handle(kind, handle)
        await publish_many(js, kind, 20)
    async with worker:
        await eventually(lambda: len(log.ended) == 80, BOUND_S)
    assert log.peak == 3
    assert set(Counter(log.started).values()) == {20}


async def test_two_backlogs_share_one_slot_turn_by_turn(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    first, second, log = unique("first"), unique("second"), Log()
    worker = quick_worker(shared_server.url, max_tasks=1)

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.task_type):
            pass

    for kind in (first, second):
        worker.handle(kind, handle)
        await publish_many(js, kind, 40)
    async with worker:
        await eventually(lambda: len(log.ended) == 80, BOUND_S)
    early = Counter(log.started[:40])
    assert min(early[first], early[second]) >= 15


async def test_idle_task_type_gets_a_slot_while_another_has_a_deep_backlog(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    busy, idle, log = unique("busy"), unique("idle"), Log()
    worker = quick_worker(shared_server.url, max_tasks=2)

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.task_type):
            await asyncio.sleep(0.005)

    worker.handle(busy, handle)
    worker.handle(idle, handle)
    await publish_many(js, busy, 200)
    async with worker:
        await eventually(lambda: len(log.ended) > 20, BOUND_S)
        await publish_task(js, idle, unique())
        seen = len(log.started)
        await eventually(lambda: idle in log.started, BOUND_S)
        assert log.started.index(idle) - seen < 20
        await eventually(lambda: len(log.ended) == 201, BOUND_S)


async def test_task_without_a_slot_is_given_back_and_another_worker_runs_it(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    long, short, log = unique("long"), unique("short"), Log()
    release = asyncio.Event()
    full = quick_worker(shared_server.url, max_tasks=1, config={"waiting_max": seconds(0.2)})
    other = quick_worker(shared_server.url)

    async def hold(ctx: TaskContext) -> None:
        async with log.running_task("long"):
            await release.wait()

    async def handle(ctx: TaskContext) -> str:
        return ctx.worker_id

    full.handle(long, hold)
    full.handle(short, handle)
    other.handle(short, handle)
    run_id = unique()
    async with full:
        await eventually(lambda: consumer_waits(js, short), BOUND_S)
        await publish_task(js, long, unique())
        await eventually(lambda: log.running == 1, BOUND_S)
        await publish_task(js, short, run_id)

        async def given_back() -> bool:
            info = await consumer_info(js, short)
            return bool(info["delivered"]["consumer_seq"]) and not info["num_waiting"]

        await eventually(given_back, BOUND_S)
        async with other:
            await completed(js, run_id)
        assert other.stats().completed == 1
        assert other.stats().redelivered == 1
        release.set()
    assert full.stats().completed == 1


async def consumer_waits(js: JetStreamContext, task_type: str) -> bool:
    """Whether a worker has a pull open for the task type."""
    return bool((await consumer_info(js, task_type)).get("num_waiting"))


async def test_idle_worker_keeps_at_most_two_pulls_open_per_task_type(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    workers = [quick_worker(shared_server.url) for _ in range(3)]

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            pass

    for worker in workers:
        worker.handle(kind, handle, concurrency=50)
    async with workers[0], workers[1], workers[2], Sampler(js, kind) as sampler:
        for _ in range(20):
            await publish_many(js, kind, 10)
        await eventually(lambda: len(log.ended) == 200, BOUND_S)
    assert sampler.samples > 10
    assert 1 <= sampler.pulls <= 2 * len(workers)
    assert not log.doubled()


@pytest.mark.parametrize("rounds", [10])
async def test_one_slot_serves_five_task_types_without_deadlock_or_starvation(
    shared_server: EmbeddedServer, js: JetStreamContext, rounds: int
) -> None:
    kinds, log = [unique() for _ in range(5)], Log()
    worker = quick_worker(shared_server.url, max_tasks=1, config={"waiting_max": seconds(0.05)})

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.task_type):
            await asyncio.sleep(0.01)

    for kind in kinds:
        worker.handle(kind, handle)
    async with worker:
        await eventually(lambda: consumer_waits(js, kinds[-1]), BOUND_S)
        for _ in range(rounds):  # all five arrive at idle pulls, while there is one slot
            for kind in kinds:
                await publish_task(js, kind, unique())
        await eventually(lambda: len(log.ended) == 5 * rounds, BOUND_S)
    assert log.peak == 1
    half = Counter(log.started[: 5 * rounds // 2])
    assert all(half[kind] for kind in kinds), half


async def test_one_slot_of_a_type_keeps_the_order_of_its_tasks(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(shared_server.url)

    @worker.task(kind, concurrency=1)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            pass

    async with worker:
        runs = await publish_many(js, kind, 100)
        await eventually(lambda: len(log.ended) == 100, BOUND_S)
    assert log.started == runs


async def test_two_workers_share_one_durable_evenly_and_double_nothing(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    workers = [quick_worker(shared_server.url) for _ in range(2)]

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await asyncio.sleep(0.01)

    for worker in workers:
        worker.handle(kind, handle, concurrency=4)
    runs = await publish_many(js, kind, 200)
    async with workers[0], workers[1]:
        await eventually(lambda: len(log.ended) == 200, BOUND_S)
    shares = [worker.stats().completed for worker in workers]
    assert sorted(log.started) == sorted(runs)
    assert sum(shares) == 200
    assert min(shares) >= 50
