"""A task that a plugin keeps is acked, and goes on with another message as if nothing had been.

Method: a handler keeps its task, and the test publishes what it has kept, once or more often, when
the message is acked. Real: the server and the worker. Fake: the plugin, which is the handler.
"""

from __future__ import annotations

from typing import Any

import pytest
from nats.js import JetStreamContext
from support import eventually, publish_task, unique
from worker_support import (
    OtherWorker,
    dead_letters,
    event_types,
    history,
    publish_cancel,
    quick_retry,
    serving,
    settled,
)

from dagnats_worker import EmbeddedServer, Outcome, Plugin, Released, TaskContext, hookimpl
from dagnats_worker.hookspecs import KeptTask

pytestmark = pytest.mark.server

KEPT = Released("kept for a test", kept=True)
GOES_ON = ["step.started", "step.released", "step.started", "step.completed"]


class Keeper:
    """A handler that keeps its task the first ``times``."""

    def __init__(self, times: int = 1) -> None:
        self.kept: list[KeptTask] = []
        self.seen: list[tuple[int, int]] = []
        self._times = times

    async def __call__(self, ctx: TaskContext) -> str:
        self.seen.append((ctx.attempt, ctx.deliveries))
        if len(self.seen) <= self._times:
            self.kept.append(ctx.kept_task())
            ctx.record(KEPT)
            return ""
        return await self.work(ctx)

    async def work(self, ctx: TaskContext) -> str:
        return "done"


async def go_on(js: JetStreamContext, kept: KeptTask, **headers: str) -> None:
    await js.publish(kept.subject, kept.data, headers={**kept.headers, **headers})


async def kept_by(js: JetStreamContext, task_type: str, keeper: Keeper, times: int = 1) -> KeptTask:
    """What a worker keeps whose message is acked."""
    await eventually(lambda: len(keeper.kept) >= times)
    await settled(js, task_type)
    return keeper.kept[times - 1]


async def completed(js: JetStreamContext, run_id: str) -> None:
    async def is_completed() -> bool:
        return "step.completed" in await event_types(js, run_id)

    await eventually(is_completed)


async def test_kept_task_is_acked_and_goes_on_with_another_message(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, keeper = unique(), unique(), Keeper(times=2)
    async with serving(shared_server.url, task_type, keeper):
        await publish_task(js, task_type, run_id, input={"x": 1})
        for times in (1, 2):
            await go_on(js, await kept_by(js, task_type, keeper, times))
        await completed(js, run_id)
        await settled(js, task_type)
    assert keeper.seen == [(1, 1)] * 3
    events = await history(js, run_id)
    assert [event.type for event in events] == [*GOES_ON[:2], *GOES_ON]
    assert events[1].body["payload"]["kept"] == keeper.kept[0].message
    assert events[3].body["payload"]["kept"] == keeper.kept[1].message != keeper.kept[0].message
    assert [event.body.get("attempt_number") for event in events] == [1] * 6


async def test_kept_task_of_a_managed_run_keeps_its_attempt(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, keeper = unique(), unique(), Keeper()
    async with serving(shared_server.url, task_type, keeper):
        await publish_task(js, task_type, run_id, attempt=3, workflow_name="hello")
        await go_on(js, await kept_by(js, task_type, keeper))
        await completed(js, run_id)
    assert [attempt for attempt, _ in keeper.seen] == [3, 3]


async def test_attempts_go_on_counting(shared_server: EmbeddedServer, js: JetStreamContext) -> None:
    task_type, run_id = unique(), unique()

    class Failing(Keeper):
        async def work(self, ctx: TaskContext) -> str:
            raise RuntimeError("busy")

    keeper = Failing()
    async with serving(shared_server.url, task_type, keeper, retry=quick_retry(3)):
        await publish_task(js, task_type, run_id)
        await go_on(js, await kept_by(js, task_type, keeper))
        await eventually(lambda: dead_letters(js, task_type))
    assert [attempt for attempt, _ in keeper.seen] == [1, 1, 2, 3]


async def test_message_of_a_kept_task_is_acked_when_it_comes_again(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, keeper = unique(), unique(), Keeper()
    async with serving(shared_server.url, task_type, keeper):
        pass  # makes the durable
    published = await publish_task(js, task_type, run_id)
    other = await OtherWorker.bound(js, task_type)
    message = await other.take_and_publish("step.started")
    payload = {"reason": "parked", "kept": f"TASK_QUEUES.{published.seq}"}
    await other.publish(message, "step.released", payload=payload)
    await message.nak()
    async with serving(shared_server.url, task_type, keeper):
        await settled(js, task_type)
    assert keeper.seen == []


async def test_task_that_was_sent_twice_is_left_to_the_message_that_was_started(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, keeper = unique(), unique(), Keeper(times=2)
    async with serving(shared_server.url, task_type, keeper):
        await publish_task(js, task_type, run_id)
        first = await kept_by(js, task_type, keeper)
        await go_on(js, first)
        second = await kept_by(js, task_type, keeper, 2)
        await go_on(js, first, **{"Nats-Msg-Id": unique()})
        await settled(js, task_type)
        assert len(keeper.seen) == 2, "the second message of the first park is not run"
        await go_on(js, second)
        await completed(js, run_id)
        await go_on(js, second, **{"Nats-Msg-Id": unique()})
        await settled(js, task_type)
    assert len(keeper.seen) == 3
    assert (await event_types(js, run_id)).count("step.completed") == 1


async def test_late_start_of_a_zombie_does_not_stop_the_task(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    """A worker that was frozen before it sent its start sends it when others have kept the task."""
    task_type, run_id, keeper = unique(), unique(), Keeper()
    async with serving(shared_server.url, task_type, keeper):
        await publish_task(js, task_type, run_id)
        kept = await kept_by(js, task_type, keeper)
        start = (await history(js, run_id))[0]
        headers = {"Nats-Msg-Id": f"{start.message_id}.x1"}
        await js.publish(f"history.{run_id}", start.data, headers=headers)
        await go_on(js, kept)
        await completed(js, run_id)


async def test_kept_task_whose_run_was_cancelled_is_not_run_again(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, keeper = unique(), unique(), Keeper()
    async with serving(shared_server.url, task_type, keeper):
        await publish_task(js, task_type, run_id)
        kept = await kept_by(js, task_type, keeper)
        await publish_cancel(js, run_id)
        await go_on(js, kept)
        await settled(js, task_type)
    assert len(keeper.seen) == 1


async def test_kept_task_is_not_complete(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    told: list[Any] = []

    class Told(Plugin[None]):
        name = "told"

        @hookimpl
        async def on_complete(self, ctx: TaskContext, outcome: Outcome) -> None:
            told.append(outcome)

    task_type, run_id, keeper = unique(), unique(), Keeper()
    async with serving(shared_server.url, task_type, keeper, plugins=[Told()]) as worker:
        await publish_task(js, task_type, run_id)
        await kept_by(js, task_type, keeper)
        assert worker is not None
    assert told == []
