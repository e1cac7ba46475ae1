"""Tasks that the engine sends again, and what they leave out.

Method: a real server; the snapshots are those that an engine would have written. Fake: the engine.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.js import JetStreamContext
from support import publish_task, unique
from worker_support import MANAGED, event_types, history, put_snapshot, serving, settled

from dagnats_worker import EmbeddedServer, TaskContext

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LOOP_STARTED = "2026-08-06T12:00:00Z"


async def succeed(ctx: TaskContext) -> int:
    """Completes with the iteration."""
    return ctx.iteration


def step(status: str, **more: Any) -> dict[str, Any]:
    return {"step": {"status": status, "attempts": 1, "loop_started_at": LOOP_STARTED, **more}}


@pytest.mark.parametrize("status", ["completed", "running", "queued", "failed"])
async def test_sticky_task_that_is_sent_once_more_runs_only_if_its_step_is_not_completed(
    shared_server: EmbeddedServer, js: JetStreamContext, status: str
) -> None:
    task_type, run_id = unique(), unique()
    await put_snapshot(js, run_id, "running", steps=step(status))
    message_id = f"{run_id}.step.rate_retry"
    async with serving(shared_server.url, task_type, succeed):
        await publish_task(js, task_type, run_id, message_id=message_id, **MANAGED)
        await settled(js, task_type)
    runs = status != "completed"
    assert await event_types(js, run_id) == ["step.started", "step.completed"] * runs


async def test_completed_step_does_not_stop_an_ordinary_dispatch(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await put_snapshot(js, run_id, "running", steps=step("completed"))
    async with serving(shared_server.url, task_type, succeed):
        await publish_task(js, task_type, run_id, **MANAGED)
        await settled(js, task_type)
    assert await event_types(js, run_id) == ["step.started", "step.completed"]


@pytest.mark.parametrize("snapshot", ["of a loop", "of no loop", "broken", "none"])
async def test_iteration_that_is_tried_again_knows_its_number_and_its_trace(
    shared_server: EmbeddedServer, js: JetStreamContext, snapshot: str
) -> None:
    task_type, run_id = unique(), unique()
    steps = step("running", **({"iterations": 3} if snapshot == "of a loop" else {}))
    if snapshot == "broken":
        await js.publish(f"$KV.workflow_runs.run.{run_id}", b'{"steps": 7')
    elif snapshot != "none":
        await put_snapshot(js, run_id, "running", steps=steps, trace_parent=PARENT)
    async with serving(shared_server.url, task_type, succeed):
        message_id = f"{run_id}.step.retry_backoff.1"
        await publish_task(js, task_type, run_id, message_id=message_id, attempt=2, **MANAGED)
        await settled(js, task_type)
    events = await history(js, run_id)
    assert json.loads(events[-1].data)["payload"] == (3 if snapshot == "of a loop" else 0)
    expected = PARENT if snapshot.startswith("of") else None
    assert [event.headers.get("traceparent") for event in events] == [expected] * 2
    assert [event.body.get("trace_parent") for event in events] == [expected] * 2
