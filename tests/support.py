"""What tests share beside fixtures: names, bounded waiting, and the wire written by hand.

Nothing here uses the project's own encoders, so a test that passes does not agree with itself.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import NotFoundError

POLL_INTERVAL_S = 0.02


def unique(prefix: str = "t") -> str:
    """A name that no other test uses; fits a task type, a run id and a KV key."""
    return f"{prefix}-{secrets.token_hex(6)}"


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def eventually(
    predicate: Callable[[], Awaitable[Any] | Any], within_s: float = 10, *, what: str = ""
) -> Any:
    """Wait until the predicate is true and return its value; fail the test after ``within_s``.

    For what announces itself by no event. The only place in the tests that sleeps.

    Args:
        predicate: A function or a coroutine function; its last value is part of the failure.
        within_s: The bound, in seconds; generous, because it is only waited out by a failure.
        what: What was waited for, for the failure's message.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {within_s} s: {what or predicate}; last: {value!r}")
        await asyncio.sleep(POLL_INTERVAL_S)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    """A nats-py client of its own, closed at the end."""
    client = await nats.connect(url, **options)
    try:
        yield client
    finally:
        await client.close()


async def stored_events(source: JetStreamContext | Client, run_id: str) -> list[dict[str, Any]]:
    """All events of a run, in stored order, as plain JSON."""
    js = source.jetstream() if isinstance(source, Client) else source
    events: list[dict[str, Any]] = []
    sequence = 1
    while True:
        try:
            message = await js.get_msg(
                "WORKFLOW_HISTORY", sequence, subject=f"history.{run_id}", next=True
            )
        except NotFoundError:
            return events
        events.append(json.loads(message.data or b""))
        sequence = (message.seq or 0) + 1


async def publish_task(
    js: JetStreamContext,
    task_type: str,
    run_id: str,
    step_id: str = "step",
    *,
    group: str | None = None,
    message_id: str | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> PubAck:
    """Dispatch a task as the engine does.

    Args:
        js: Of the server that has TASK_QUEUES.
        task_type: Goes into the subject as it is.
        run_id: Use ``unique()``: streams of the shared server are shared.
        step_id: Together with the run id the task's identity.
        group: Makes it the first dispatch of a step with a worker group.
        message_id: The default is that of a first dispatch; give another one to dispatch again.
        headers: More headers.
        **fields: More fields of the body: ``input``, ``attempt``, ``workflow_name`` ...
    """
    subject = ".".join(filter(None, ("task", task_type, group, run_id)))
    body = {"task_id": f"{run_id}.{step_id}", "run_id": run_id, "step_id": step_id, **fields}
    return await js.publish(
        subject,
        json.dumps(body, separators=(",", ":")).encode(),
        stream="TASK_QUEUES",
        headers={"Nats-Msg-Id": message_id or f"{run_id}.{step_id}.queued", **(headers or {})},
    )
