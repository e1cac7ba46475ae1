"""A worker that was held up between taking a task and starting it, while another one had the task.

Method: a real server and two real workers; what holds one of them up is a plugin that waits before
the start, with a lease that is not renewed. Fake: the engine.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import eventually, publish_task, unique
from worker_support import (
    MANAGED,
    OtherWorker,
    event_types,
    history,
    queued,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, Plugin, TaskContext, hookimpl

SHORT = timedelta(seconds=0.3)


class HeldUp(Plugin[None]):
    """Waits before the start until it is let go."""

    name = "held-up"

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()
        self.let_go = asyncio.Event()

    @hookimpl
    async def pre_handle(self) -> None:
        self.arrived.set()
        await self.let_go.wait()


@pytest.mark.parametrize("first_to_end", ["the late one", "the other one"])
async def test_task_that_another_worker_took_before_we_started_it_ends_once_and_by_that_one(
    shared_server: EmbeddedServer, js: JetStreamContext, first_to_end: str
) -> None:
    task_type, run_id = unique(), unique()
    held_up, other_started, other_may_end = HeldUp(), asyncio.Event(), asyncio.Event()
    late_ran = asyncio.Event()

    async def late(ctx: TaskContext) -> str:
        late_ran.set()
        return "late"

    async def other(ctx: TaskContext) -> str:
        other_started.set()
        await other_may_end.wait()
        return "other"

    async with serving(
        shared_server.url, task_type, late, plugins=[held_up], ack_wait=SHORT, heartbeat=False
    ) as late_worker:
        await publish_task(js, task_type, run_id, **MANAGED)
        await held_up.arrived.wait()
        async with serving(shared_server.url, task_type, other, ack_wait=SHORT):
            await other_started.wait()
            if first_to_end == "the other one":
                other_may_end.set()
                await settled(js, task_type)
            held_up.let_go.set()
            await late_ran.wait()
            await eventually(lambda: late_worker.stats().slots_in_use == 0)
            other_may_end.set()
            await settled(js, task_type)
    events = await history(js, run_id)
    (end,) = (event for event in events if event.type != "step.started")
    assert (end.type, end.body["payload"]) == ("step.completed", "other")


@pytest.mark.parametrize("end", ["step.completed", "step.continue", "step.failed"])
async def test_outcome_that_was_stored_just_before_our_start_is_the_only_one(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext, end: str
) -> None:
    task_type, run_id = unique(), unique()
    held_up = HeldUp()
    zombie = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id, **MANAGED)
    message = await zombie.take_and_publish("step.started")

    async def handler(ctx: TaskContext) -> None:
        """Completes."""

    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, handler, plugins=[held_up], ack_wait=SHORT) as worker,
    ):
        await message.nak()
        await held_up.arrived.wait()  # the history has been read by now
        await zombie.publish(message, end, attempt_number=1)
        held_up.let_go.set()
        await eventually(lambda: worker.stats().redelivered == 1)
        await settled(js, task_type)
        assert b"+ACK" in acks.verdicts
    assert await event_types(js, run_id) == ["step.started", end, "step.started"]
    assert await queued(js, task_type) == []
