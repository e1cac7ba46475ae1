"""First deliveries that somebody else may have had: what they ask before and after they start.

Method: a real server and a worker whose transport, a real one, doubts every delivery, and notes
which histories it reads. Fake: the engine, and whoever else had the task.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nats.js import JetStreamContext
from support import eventually, publish_task, unique
from worker_support import MANAGED, QUICK, event_types, history, settled

from dagnats_worker import Delivery, EmbeddedServer, Plugin, Slots, TaskContext, Worker, hookimpl
from dagnats_worker._jetstream.pull import PullSource
from dagnats_worker._jetstream.transport import JetStreamTransport, connect
from dagnats_worker._transport import ConsumerSpec
from dagnats_worker.errors import TransportError

COMPLETED_ONCE = ["step.started", "step.completed"]
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
MANY = 200


class HeldUp(Plugin[None]):
    """Waits between the look at the history and the start."""

    name = "held-up"

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()
        self.let_go = asyncio.Event()

    @hookimpl
    async def pre_handle(self) -> None:
        self.arrived.set()
        await self.let_go.wait()


@asynccontextmanager
async def doubting(
    server: EmbeddedServer, task_type: str, *plugins: Plugin[Any]
) -> AsyncIterator[tuple[Worker, JetStreamTransport, list[str]]]:
    """A worker, not started, its transport, and the runs whose histories it has read."""
    transport = await connect(server.url, QUICK, name="doubting")
    open_source, read = transport.open_source, transport.history
    reads: list[str] = []

    async def open_doubting(spec: ConsumerSpec) -> PullSource:
        source = await open_source(spec)
        deliveries = source.deliveries

        async def doubted(slots: Slots) -> AsyncIterator[Delivery]:
            async for delivery in deliveries(slots):
                delivery.doubtful = True
                yield delivery

        source.deliveries = doubted  # type: ignore[method-assign]  # as after a lost consumer
        return source

    async def noted(run_id: str, **options: Any) -> Any:
        reads.append(run_id)
        return await read(run_id, **options)

    transport.open_source = open_doubting  # type: ignore[method-assign]  # see above
    transport.history = noted  # type: ignore[method-assign]  # it reads, and notes that it did
    worker = Worker(transport, plugins=list(plugins), config=QUICK)

    @worker.task(task_type)
    async def handler(ctx: TaskContext) -> None:
        """Completes."""

    yield worker, transport, reads


async def publish_event(js: JetStreamContext, run_id: str, kind: str, step_id: str) -> None:
    """An event of somebody else."""
    body = {
        "type": kind,
        "run_id": run_id,
        "step_id": step_id,
        "timestamp": "2026-08-06T12:00:00Z",
        "worker_id": "other",
    }
    await js.publish(
        f"history.{run_id}",
        json.dumps(body).encode(),
        headers={"Nats-Msg-Id": f"{run_id}.{step_id}.{kind}.other"},
    )


async def test_runs_without_a_history_are_asked_for_together_and_none_is_read(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type = unique()
    run_ids = [unique() for _ in range(MANY)]
    for run_id in run_ids:
        await publish_task(js, task_type, run_id)
    async with doubting(shared_server, task_type) as (worker, _, reads), worker:
        await settled(js, task_type)
    assert reads == []
    for run_id in run_ids:
        start, end = await history(js, run_id)
        assert [start.type, end.type] == COMPLETED_ONCE
        assert start.headers[EXPECTED] == "0"
        assert int(end.headers[EXPECTED]) > 0  # that of its start


async def test_history_of_another_step_is_read_and_the_task_is_run(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await publish_task(js, task_type, run_id)
    await publish_event(js, run_id, "step.started", "another")
    async with doubting(shared_server, task_type) as (worker, _, reads), worker:
        await settled(js, task_type)
    assert run_id in reads
    assert await event_types(js, run_id) == ["step.started", *COMPLETED_ONCE]


async def test_event_of_another_step_that_comes_before_our_start_does_not_stop_us(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    held_up = HeldUp()
    await publish_task(js, task_type, run_id)
    async with doubting(shared_server, task_type, held_up) as (worker, _, reads), worker:
        await held_up.arrived.wait()
        await publish_event(js, run_id, "step.started", "another")
        held_up.let_go.set()
        await settled(js, task_type)
    assert reads == [run_id]  # whether somebody else has taken the task
    assert await event_types(js, run_id) == ["step.started", *COMPLETED_ONCE]


async def test_outcome_that_comes_before_our_start_is_the_only_one(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    held_up = HeldUp()
    await publish_task(js, task_type, run_id, **MANAGED)
    async with doubting(shared_server, task_type, held_up) as (worker, _, _reads), worker:
        await held_up.arrived.wait()
        await publish_event(js, run_id, "step.completed", "step")
        held_up.let_go.set()
        await eventually(lambda: worker.stats().slots_in_use == 0)
    assert await event_types(js, run_id) == ["step.completed", "step.started"]


async def test_task_that_nobody_can_tell_about_is_given_back(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await publish_task(js, task_type, run_id, **MANAGED)
    async with doubting(shared_server, task_type) as (worker, transport, _):
        newest = transport.newest
        lost: list[str] = []

        async def lose_the_first(stream: str, subjects: Any) -> Any:
            if stream == "WORKFLOW_HISTORY" and not lost:
                lost.append(stream)
                raise TransportError("the server did not answer in time")
            return await newest(stream, subjects)

        transport.newest = lose_the_first  # type: ignore[method-assign]  # a fault
        async with worker:
            await settled(js, task_type)
            assert worker.stats().redelivered == 1
    assert lost
    assert await event_types(js, run_id) == COMPLETED_ONCE
