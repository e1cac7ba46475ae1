"""A cancelled run stops: queued tasks are skipped, running handlers end, nothing is published.

Method: a real server; the engine is played by the test, which writes the snapshots and events that
an engine or a client would write. One test turns the worker's clock back.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import process_handlers
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_support import (
    MANAGED,
    configured,
    event_types,
    publish_cancel,
    put_snapshot,
    quick_retry,
    serving,
    settled,
    stored,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, SyncTaskContext, TaskContext, provision

OLD_AT_ONCE = configured(fresh_for=timedelta(microseconds=1))
"""No task is too young to be looked up."""


async def never(ctx: TaskContext) -> None:
    """Fails the test that runs it."""
    raise AssertionError(f"{ctx.task_id} is to be skipped")


async def cancel(js: JetStreamContext, run_id: str, by: str) -> None:
    """Cancel a run as an engine does it, or as a client where there is none."""
    if by == "engine":
        await put_snapshot(js, run_id, "cancelled")
    else:
        await publish_cancel(js, run_id)


# ------------------------------------------------------------------------- queued tasks


@pytest.mark.parametrize(
    ("by", "fields"), [("engine", {}), ("engine", MANAGED), ("client", {})], ids=str
)
async def test_queued_task_of_a_cancelled_run_is_acked_without_a_word(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext, by: str, fields: Any
) -> None:
    task_type, run_id = unique(), unique()
    await cancel(js, run_id, by)
    before = await event_types(js, run_id)
    await publish_task(js, task_type, run_id, **fields)
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, never, config=OLD_AT_ONCE) as worker,
    ):
        await settled(js, task_type)
        assert worker.stats().skipped == 1
        subject = f"$KV.worker_status.{worker.worker_id}"
        (status,) = await eventually(lambda: stored(js, "KV_worker_status", subject))
        assert status.body == {"worker_id": worker.worker_id, "cancelled_tasks_skipped": 1}
    assert acks.verdicts == [b"+ACK"]
    assert await event_types(js, run_id) == before


async def test_queued_task_is_skipped_where_no_engine_has_ever_been(
    nats_server: EmbeddedServer,
) -> None:
    task_type, run_id = unique(), unique()
    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        await js.delete_key_value("workflow_runs")
        await publish_cancel(js, run_id)
        await publish_task(js, task_type, run_id)
        async with serving(nats_server.url, task_type, never, config=OLD_AT_ONCE):
            await settled(js, task_type)
        assert await event_types(js, run_id) == ["workflow.cancelled"]


@pytest.mark.parametrize("status", ["running", "failed", "completed", "broken", ""])
async def test_queued_task_of_any_other_run_is_executed(
    shared_server: EmbeddedServer, js: JetStreamContext, status: str
) -> None:
    task_type, run_id = unique(), unique()
    if status == "broken":
        await js.publish(f"$KV.workflow_runs.run.{run_id}", b'{"status": 7')
    elif status:
        await put_snapshot(js, run_id, status)
    await publish_task(js, task_type, run_id)
    async with serving(shared_server.url, task_type, succeed, config=OLD_AT_ONCE):
        await settled(js, task_type)
    assert await event_types(js, run_id) == ["step.started", "step.completed"]


NO_SNAPSHOTS = """
authorization {
  users: [
    {user: engine, password: x}
    {user: worker, password: x, permissions: {publish: {deny: [
      "$JS.API.DIRECT.GET.KV_workflow_runs", "$JS.API.STREAM.MSG.GET.KV_workflow_runs"]}}}
  ]
}
"""


async def test_queued_task_is_executed_when_nobody_can_say_whether_its_run_is_cancelled(
    server_installed: None,
) -> None:
    task_type, run_id = unique(), unique()
    config = configured(fresh_for=OLD_AT_ONCE.fresh_for, request_timeout=timedelta(seconds=0.5))
    async with (
        EmbeddedServer(config=NO_SNAPSHOTS) as server,
        connected(server.url, user="engine", password="x") as nc,  # noqa: S106 - of this test
    ):
        js = nc.jetstream()
        await provision(js)
        await put_snapshot(js, run_id, "cancelled")
        await publish_task(js, task_type, run_id, **MANAGED)
        url = server.url.replace("//", "//worker:x@")
        async with serving(url, task_type, succeed, config=config):
            await settled(js, task_type)
        assert await event_types(js, run_id) == ["step.started", "step.completed"]


@pytest.mark.parametrize("clock", ["right", "an hour slow"])
async def test_task_is_young_only_if_its_age_is_not_negative(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    monkeypatch: pytest.MonkeyPatch,
    clock: str,
) -> None:
    if clock != "right":
        slow = SimpleNamespace(time_ns=lambda: time.time_ns() - 3600 * 10**9)
        monkeypatch.setattr("dagnats_worker._cancellation.time", slow)
    task_type, run_id = unique(), unique()
    await put_snapshot(js, run_id, "cancelled")
    config = configured(fresh_for=timedelta(seconds=60))
    async with serving(shared_server.url, task_type, succeed, config=config):
        await publish_task(js, task_type, run_id)
        await settled(js, task_type)
    runs = clock == "right"
    assert await event_types(js, run_id) == ["step.started", "step.completed"] * runs


async def test_task_that_waits_to_be_tried_again_is_skipped_when_its_run_is_cancelled(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    runs: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)
        raise RuntimeError("again")

    async with serving(shared_server.url, task_type, handler, retry=quick_retry(wait_s=0.5)):
        await publish_task(js, task_type, run_id)
        await eventually(lambda: event_types(js, run_id), what="the first attempt")
        await publish_cancel(js, run_id)
        await settled(js, task_type)
    assert runs == [1]
    assert await event_types(js, run_id) == ["step.started", "step.released", "workflow.cancelled"]


# ------------------------------------------------------------------------- running handlers


class Watched:
    """An async handler that runs until it is cancelled."""

    def __init__(self, *, ends: str) -> None:
        self.started: list[str] = []
        self.told: list[tuple[str, bool]] = []
        self._ends = ends

    async def __call__(self, ctx: TaskContext) -> str:
        self.started.append(ctx.run_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told.append((ctx.run_id, ctx.cancelled.is_set()))
            if self._ends == "by the cancellation":
                raise
            if self._ends == "with an error":
                raise RuntimeError("interrupted") from None
        return "done all the same"


@pytest.mark.parametrize("by", ["engine", "client"])
@pytest.mark.parametrize("ends", ["by the cancellation", "with an error", "with an output"])
async def test_running_handler_is_cancelled_and_nothing_is_published(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext, by: str, ends: str
) -> None:
    task_type, run_id, other_run = unique(), unique(), unique()
    watched = Watched(ends=ends)
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, as_handler(watched)) as worker,
    ):
        for step in ("a", "b"):
            await publish_task(js, task_type, run_id, step)
        await publish_task(js, task_type, other_run)
        await eventually(lambda: len(watched.started) == 3)
        await cancel(js, run_id, by)
        await eventually(lambda: len(acks.verdicts) == 2)
        assert watched.told == [(run_id, True)] * 2
        assert acks.verdicts == [b"+ACK"] * 2
        await eventually(lambda: worker.stats().slots_in_use == 1)
        await cancel(js, other_run, by)
        await settled(js, task_type)
    own = [kind for kind in await event_types(js, run_id) if kind.startswith("step.")]
    assert own == ["step.started", "step.started"]


async def test_cancel_that_comes_before_anybody_listens_is_seen_all_the_same(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    watched = Watched(ends="by the cancellation")
    config = configured(cancel_watch_after=timedelta(seconds=0.4))
    async with serving(shared_server.url, task_type, as_handler(watched), config=config):
        await publish_task(js, task_type, run_id)
        await eventually(lambda: watched.started)
        await publish_cancel(js, run_id)
        await settled(js, task_type)
    assert await event_types(js, run_id) == ["step.started", "workflow.cancelled"]


@pytest.mark.parametrize("by", ["engine", "client"])
async def test_blocking_handler_is_told_and_what_it_returns_is_not_published(
    shared_server: EmbeddedServer, js: JetStreamContext, by: str
) -> None:
    task_type, run_id = unique(), unique()
    told: list[bool] = []
    started: list[bool] = []

    def handler(ctx: SyncTaskContext) -> str:
        started.append(True)
        told.append(ctx.cancelled.wait(15))
        return "done all the same"

    async with serving(shared_server.url, task_type, handler) as worker:
        await publish_task(js, task_type, run_id)
        await eventually(lambda: started)
        await cancel(js, run_id, by)
        await settled(js, task_type)
        assert worker.stats().abandoned == 0
    assert told == [True]
    own = [kind for kind in await event_types(js, run_id) if kind.startswith("step.")]
    assert own == ["step.started"]


async def test_process_handler_is_killed(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    task_type, run_id = unique(), unique()
    async with serving(
        shared_server.url, task_type, process_handlers.process_id_later, executor="process"
    ):
        await publish_task(js, task_type, run_id, input=60)
        await eventually(lambda: event_types(js, run_id))
        await publish_cancel(js, run_id)
        await settled(js, task_type)
    assert await event_types(js, run_id) == ["step.started", "workflow.cancelled"]


def as_handler(watched: Watched) -> Any:
    async def handler(ctx: TaskContext) -> str:
        return await watched(ctx)

    return handler


async def succeed(ctx: TaskContext) -> None:
    """Completes with JSON's null."""
