"""Whether an engine tries a failed task again, which the message says, or the run's snapshot.

Method: a real server; the acks that the worker sends are read along; a user without the right to
read snapshots. Fake: the engine, which is the snapshot and the marks that it would write.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_support import (
    configured,
    dead_letters,
    event_types,
    outcome,
    put_snapshot,
    quick_retry,
    serving,
    watching_acks,
)

from dagnats_worker import (
    EmbeddedServer,
    NonRetryableError,
    TaskContext,
    provision,
)


def nak(delay_s: float) -> bytes:
    return b'-NAK {"delay": %d}' % round(delay_s * 1e9)


def failing(*errors: Exception) -> Callable[[TaskContext], Any]:
    """Fails with each error in turn, then completes with the number of the attempt."""

    async def handler(ctx: TaskContext) -> int:
        assert ctx.retry_count == ctx.attempt - 1
        if ctx.attempt <= len(errors):
            raise errors[ctx.attempt - 1]
        return ctx.attempt

    return handler


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"workflow_name": "hello"}, {}),
        ({"dispatch_nonce": "5d41402abc4b2a76b9719d911017c592"}, {}),
        ({}, {"Dagnats-Dlq-Task-Subject": "task.x.r"}),
        ({}, {"Dagnats-Dlq-Attempts": "3"}),
    ],
    ids=str,
)
async def test_failure_of_a_marked_task_is_left_to_the_engine(
    shared_server: EmbeddedServer,
    nc: Client,
    js: JetStreamContext,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    task_type, run_id = unique(), unique()
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, failing(OSError("no")), retry=quick_retry()),
    ):
        await publish_task(js, task_type, run_id, headers=headers, **fields)
        event = await outcome(js, task_type, run_id)
    assert event.failure == ("retriable", "no")
    assert acks.verdicts == [b"+ACK"]
    assert await dead_letters(js, task_type) == []


async def test_failure_in_a_run_that_has_a_snapshot_is_left_to_the_engine(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await put_snapshot(js, run_id, "running")
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, failing(OSError("no")), retry=quick_retry()),
    ):
        await publish_task(js, task_type, run_id)
        event = await outcome(js, task_type, run_id)
    assert event.failure == ("retriable", "no")
    assert acks.verdicts == [b"+ACK"]


NO_SNAPSHOTS = """
authorization {
  users: [
    {user: engine, password: x}
    {user: worker, password: x, permissions: {publish: {deny: [
      "$JS.API.DIRECT.GET.KV_workflow_runs", "$JS.API.STREAM.MSG.GET.KV_workflow_runs"]}}}
  ]
}
"""


@pytest.mark.parametrize("ending", ["fails", "fails for good", "continues"])
async def test_task_is_given_back_when_nobody_can_say_whether_its_run_is_managed(
    server_installed: None, ending: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        if ending == "continues":
            ctx.continue_()
        else:
            raise OSError("no") if ending == "fails" else NonRetryableError("no")

    async with (
        EmbeddedServer(config=NO_SNAPSHOTS) as server,
        connected(server.url, user="engine", password="x") as nc,  # noqa: S106 - of this test
    ):
        js = nc.jetstream()
        await provision(js)
        url = server.url.replace("//", "//worker:x@")
        config = configured(request_timeout=timedelta(seconds=0.5))
        async with (
            watching_acks(nc, task_type) as acks,
            serving(url, task_type, handler, config=config),
        ):
            await publish_task(js, task_type, run_id)
            await eventually(lambda: len(acks.verdicts) == 2)
        assert acks.verdicts == [nak(0.2)] * 2
        assert set(await event_types(js, run_id)) == {"step.started"}
        assert await dead_letters(js, task_type) == []
