"""What the tests of signals share: how long they wait, and what they wait for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from nats.js import JetStreamContext
from support import eventually
from worker_support import BOUND_S, event_types

from dagnats_worker import Client, TaskContext, Worker
from dagnats_worker.errors import KeyValueError

Serve = Callable[..., AbstractAsyncContextManager[Worker]]
SOON = timedelta(seconds=BOUND_S)
DAYS = timedelta(days=3)


class Messages:
    """A handler that parks, and the messages that brought its task."""

    def __init__(self) -> None:
        self.contexts: list[TaskContext] = []

    async def __call__(self, ctx: TaskContext) -> str:
        self.contexts.append(ctx)
        return (await ctx.wait_for_signal("go", DAYS, park=True)).decode()


async def started(client: Client, run_id: str) -> None:
    """Wait until the handler of a run runs."""

    async def is_running() -> bool:
        return (await client.status(run_id)).status == "running"

    await eventually(is_running, BOUND_S, what=f"{run_id} runs")


async def parked(js: JetStreamContext, run_id: str, times: int = 1) -> None:
    """Wait until a run is parked, and its message acked."""

    async def is_parked() -> bool:
        types = await event_types(js, run_id)
        return types.count("step.released") == times and not await is_queued(js, run_id)

    await eventually(is_parked, BOUND_S, what=f"{run_id} is parked")


async def completed(js: JetStreamContext, run_id: str) -> None:
    """Wait until a run has its outcome."""

    async def is_completed() -> bool:
        return "step.completed" in await event_types(js, run_id)

    await eventually(is_completed, BOUND_S, what=f"{run_id} is completed")


async def sent(client: Client, run_id: str) -> None:
    """Send ``yes`` to a run as soon as the server takes it."""

    async def is_sent() -> bool:
        try:
            await client.signal(run_id, "go", b"yes")
        except KeyValueError:
            return False
        return True

    await eventually(is_sent, BOUND_S, what=f"{run_id} has its signal")


async def is_queued(js: JetStreamContext, run_id: str) -> bool:
    """Whether the queue has a task of a run."""
    info = await js.stream_info("TASK_QUEUES", subjects_filter=">")
    return any(subject.endswith(f".{run_id}") for subject in info.state.subjects or {})


async def records(js: JetStreamContext) -> list[str]:
    """The keys of all tasks that are parked."""
    bucket = await js.key_value("parked_tasks")
    watcher = await bucket.watch(">", ignore_deletes=True, meta_only=True)
    keys = []
    async for entry in watcher:
        if entry is None:
            break
        keys.append(entry.key)
    await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py
    return keys
