"""Events whose message id the history has seen already: they are stored all the same.

Method: a real server with its real dedup window. Fake: the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from nats.js import JetStreamContext
from support import publish_task, unique
from worker_support import (
    MANAGED,
    configured,
    history,
    serving,
    settled,
)

from dagnats_worker import (
    EmbeddedServer,
    TaskContext,
)


def failing(*errors: Exception) -> Callable[[TaskContext], Any]:
    """Fails with each error in turn, then completes with the number of the attempt."""

    async def handler(ctx: TaskContext) -> int:
        assert ctx.retry_count == ctx.attempt - 1
        if ctx.attempt <= len(errors):
            raise errors[ctx.attempt - 1]
        return ctx.attempt

    return handler


@pytest.mark.parametrize("ids", ["own", "Go's"])
async def test_failures_of_two_iterations_within_the_dedup_window_are_both_stored(
    shared_server: EmbeddedServer, js: JetStreamContext, ids: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        if ctx.iteration == 0 and ctx.attempt == 2:
            ctx.continue_()
        else:
            raise OSError(f"no {ctx.iteration}")

    dispatches: list[dict[str, Any]] = [{}, {"attempt": 2}, {"iteration": 1}]
    config = configured(go_ids=ids != "own")
    async with serving(shared_server.url, task_type, handler, config=config):
        for number, fields in enumerate(dispatches):
            message_id = f"{run_id}.{number}"
            await publish_task(js, task_type, run_id, message_id=message_id, **MANAGED, **fields)
            await settled(js, task_type)
    events = await history(js, run_id)
    assert [event.type for event in events] == [
        *["step.started", "step.failed"],
        *["step.started", "step.continue"],
        *["step.started", "step.failed"],
    ]
    assert [event.failure[1] for event in events if event.type == "step.failed"] == ["no 0", "no 1"]


@pytest.mark.parametrize("taken", ["step.started.1", "step.completed.1"])
async def test_event_whose_id_is_taken_is_stored_beside_with_another_id(
    shared_server: EmbeddedServer, js: JetStreamContext, taken: str
) -> None:
    task_type, run_id = unique(), unique()
    headers = {"Nats-Msg-Id": f"{run_id}.step.{taken}"}
    body = {"type": "somebody.elses", "run_id": run_id, "timestamp": "2026-08-06T12:00:00Z"}
    await js.publish(f"history.{run_id}", json.dumps(body).encode(), headers=headers)
    async with serving(shared_server.url, task_type, failing()):
        await publish_task(js, task_type, run_id)
        await settled(js, task_type)
    events = await history(js, run_id)
    assert [event.type for event in events][1:] == ["step.started", "step.completed"]
    assert len({event.message_id for event in events}) == 3
