"""Groups, and tasks that are bound to one worker.

Method: a real server; the tasks are dispatched as the engine does it, by hand. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fleet_support import (
    BOUND_S,
    Log,
    completed,
    consumer_info,
    event_types,
    quick_worker,
    raw_consumer_info,
    seconds,
)
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker._jetstream.provision import provision


def recording(worker: Worker, kind: str, log: Log, **options: Any) -> None:
    """Register a handler that notes what it is given."""

    async def handle(ctx: TaskContext) -> str:
        async with log.running_task(ctx.run_id):
            return ctx.worker_id

    worker.handle(kind, handle, **options)


async def publish_sticky(js: JetStreamContext, kind: str, worker_id: str, run_id: str) -> None:
    """Dispatch a task to one worker, as the engine does for a sticky run."""
    body = {"task_id": f"{run_id}.step", "run_id": run_id, "step_id": "step"}
    await js.publish(
        f"sticky.{kind}.{worker_id}.{run_id}",
        json.dumps(body).encode(),
        stream="STICKY_TASKS",
        headers={"Nats-Msg-Id": f"{run_id}.step.queued.sticky"},
    )


async def test_worker_of_a_group_gets_the_tasks_of_its_group_only(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, logs = unique(), {group: Log() for group in ("eu", "us")}
    workers = {group: quick_worker(shared_server.url, groups=[group]) for group in logs}
    runs: dict[str, list[str]] = {group: [unique(group) for _ in range(5)] for group in logs}
    for group, worker in workers.items():
        recording(worker, kind, logs[group])
    async with workers["eu"], workers["us"]:
        plain = unique("plain")
        await publish_task(js, kind, plain)
        for group, mine in runs.items():
            for run_id in mine:
                await publish_task(js, kind, run_id, group=group)
        for run_id in (*runs["eu"], *runs["us"]):
            await completed(js, run_id)
    assert sorted(logs["eu"].started) == sorted(runs["eu"])
    assert sorted(logs["us"].started) == sorted(runs["us"])
    assert await event_types(js, plain) == []


async def test_worker_of_two_groups_serves_both_within_one_bound(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(shared_server.url, groups=["eu", "us"], max_tasks=1)
    recording(worker, kind, log)
    runs = [(unique(), group) for group in ("eu", "us") for _ in range(10)]
    for run_id, group in runs:
        await publish_task(js, kind, run_id, group=group)
    async with worker:
        for run_id, _ in runs:
            await completed(js, run_id)
    assert log.peak == 1
    assert sorted(log.started) == sorted(run_id for run_id, _ in runs)


async def test_worker_without_groups_gets_the_tasks_of_all_groups(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(shared_server.url)
    recording(worker, kind, log)
    async with worker:
        for group in (None, "eu", "us"):
            run_id = unique()
            await publish_task(js, kind, run_id, group=group)
            await completed(js, run_id)
    assert len(log.started) == 3


async def test_sticky_tasks_run_at_their_worker_and_nowhere_else(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, logs, ids = unique(), [Log(), Log()], [unique("worker"), unique("worker")]
    workers = [quick_worker(shared_server.url, worker_id=one) for one in ids]
    for worker, log in zip(workers, logs, strict=True):
        recording(worker, kind, log)
    async with workers[0], workers[1]:
        runs: list[list[str]] = [[unique() for _ in range(10)] for _ in ids]
        for worker_id, mine in zip(ids, runs, strict=True):
            for run_id in mine:
                await publish_sticky(js, kind, worker_id, run_id)
        for run_id in (*runs[0], *runs[1]):
            await completed(js, run_id)
    assert [sorted(log.started) for log in logs] == [sorted(mine) for mine in runs]


async def test_sticky_tasks_share_the_slots_of_their_task_type(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log, worker_id = unique(), Log(), unique("worker")
    worker = quick_worker(shared_server.url, worker_id=worker_id)

    @worker.task(kind, concurrency=2)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await asyncio.sleep(0.01)

    runs = [unique() for _ in range(40)]
    for number, run_id in enumerate(runs):
        if number % 2:
            await publish_task(js, kind, run_id)
    async with worker:
        for number, run_id in enumerate(runs):
            if not number % 2:
                await publish_sticky(js, kind, worker_id, run_id)
        for run_id in runs:
            await completed(js, run_id)
    assert log.peak == 2
    assert not log.doubled()


@pytest.mark.parametrize("consumer", ["is still there", "has expired"])
async def test_sticky_tasks_do_not_run_again_after_a_restart(
    shared_server: EmbeddedServer, js: JetStreamContext, consumer: str
) -> None:
    kind, log, worker_id = unique(), Log(), unique("worker")
    done, waiting = [unique() for _ in range(5)], unique()
    for number in range(2):
        worker = quick_worker(shared_server.url, worker_id=worker_id)
        recording(worker, kind, log)
        async with worker:
            for run_id in () if number else done:
                await publish_sticky(js, kind, worker_id, run_id)
            for run_id in (waiting,) if number else done:
                await completed(js, run_id)
            if number:
                continue
        await publish_sticky(js, kind, worker_id, waiting)
        if consumer == "has expired":
            await js.delete_consumer("STICKY_TASKS", f"workers-{kind}-workers-{worker_id}")
    assert sorted(log.started) == sorted([*done, waiting])


async def test_sticky_consumer_outlives_a_short_absence_and_has_the_lease_of_the_task(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, worker_id = unique(), unique("worker")
    worker = quick_worker(shared_server.url, worker_id=worker_id)
    recording(worker, kind, Log(), ack_wait=seconds(17))
    async with worker:
        pass
    name = f"workers-{kind}-workers-{worker_id}"
    config = (await raw_consumer_info(js, "STICKY_TASKS", name))["config"]
    assert "durable_name" not in config
    assert config["ack_wait"] == 17 * 10**9
    assert config["inactive_threshold"] >= 60 * 10**9
    assert config["filter_subject"] == f"sticky.{kind}.{worker_id}.>"


async def test_worker_of_a_group_has_no_sticky_consumer(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, worker_id = unique(), unique("worker")
    worker = quick_worker(shared_server.url, worker_id=worker_id, groups=["eu"])
    recording(worker, kind, Log())
    async with worker:
        name = f"workers-{kind}-workers-{worker_id}"
        assert not await raw_consumer_info(js, "STICKY_TASKS", name)
        assert await consumer_info(js, kind, "eu")


async def test_sticky_tasks_are_taken_again_after_the_server_was_gone(
    nats_server: EmbeddedServer,
) -> None:
    kind, log, worker_id = unique(), Log(), unique("worker")
    worker = quick_worker(nats_server.url, worker_id=worker_id)
    recording(worker, kind, log)
    async with connected(nats_server.url, reconnect_time_wait=0.05) as client:
        js = client.jetstream()
        async with worker:
            await asyncio.to_thread(nats_server.restart)
            await eventually(lambda: client.is_connected, BOUND_S)
            await provision(js)  # it was in memory, and its engine makes it again
            runs = [unique() for _ in range(3)]
            for run_id in runs:
                await publish_sticky(js, kind, worker_id, run_id)
            for run_id in runs:
                await completed(js, run_id)
    assert sorted(log.started) == sorted(runs)


async def test_worker_runs_without_a_stream_of_sticky_tasks(nats_server: EmbeddedServer) -> None:
    kind, log, run_id = unique(), Log(), unique()
    async with connected(nats_server.url) as client:
        js = client.jetstream()
        await js.delete_stream("STICKY_TASKS")
        worker = quick_worker(nats_server.url)
        recording(worker, kind, log)
        async with worker:
            await publish_task(js, kind, run_id)
            await completed(js, run_id)
    assert log.started == [run_id]
