"""What tests of a running worker share: short times, and what the server then has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from support import eventually
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import Retry, Worker, WorkerConfig

BOUND_S = 20
LEASE = timedelta(seconds=1)
QUICK = WorkerConfig(
    redeliver_after=timedelta(seconds=0.2),
    publish_timeout=timedelta(seconds=1),
    publish_attempts=2,
    request_timeout=timedelta(seconds=2),
    cancel_watch_after=timedelta(seconds=0.1),
    cancel_poll_every=timedelta(seconds=0.2),
)
"""The default configuration with short waits."""

MANAGED = {"workflow_name": "hello"}
"""What makes a task one of a run that an engine manages."""


def quick_retry(attempts: int = 3, wait_s: float = 0.05, **more: Any) -> Retry:
    """A policy that does not keep a test waiting."""
    return Retry(stop=stop_after_attempt(attempts), wait=wait_fixed(wait_s), **more)


@asynccontextmanager
async def serving(
    url: str,
    task_type: str,
    handler: Callable[..., Any],
    *,
    config: WorkerConfig = QUICK,
    plugins: Any = (),
    worker_id: str | None = None,
    max_tasks: int = 64,
    **options: Any,
) -> AsyncIterator[Worker]:
    """A worker in this process that serves one task type."""
    worker = Worker(url, config=config, plugins=plugins, worker_id=worker_id, max_tasks=max_tasks)
    worker.handle(task_type, handler, **options)
    async with worker:
        yield worker


def configured(**changes: Any) -> WorkerConfig:
    """The quick configuration with some values of the test's own."""
    return replace(QUICK, **changes)


# ------------------------------------------------------------------------- what the server has


@dataclass(frozen=True)
class Found:
    """A stored message."""

    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def message_id(self) -> str:
        return self.headers.get("Nats-Msg-Id", "")

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.data)
        return body

    @property
    def type(self) -> str:
        return str(self.body["type"])

    @property
    def failure(self) -> tuple[str, str]:
        return self.body["payload"]["failure_type"], self.body["payload"]["error"]


async def stored(js: JetStreamContext, stream: str, subject: str) -> list[Found]:
    """Everything that a stream holds on a subject, oldest first."""
    found: list[Found] = []
    sequence = 1
    while True:
        try:
            message = await js.get_msg(stream, sequence, subject=subject, next=True)
        except NotFoundError:
            return found
        found.append(Found(message.subject or "", message.headers or {}, message.data or b""))
        sequence = (message.seq or 0) + 1


async def history(js: JetStreamContext, run_id: str) -> list[Found]:
    """The events of a run, with their headers."""
    return await stored(js, "WORKFLOW_HISTORY", f"history.{run_id}")


async def event_types(js: JetStreamContext, run_id: str) -> list[str]:
    """The types of a run's events, in stored order."""
    return [event.type for event in await history(js, run_id)]


async def dead_letters(js: JetStreamContext, task_type: str) -> list[Found]:
    """The dead letters of a task type."""
    return await stored(js, "DEAD_LETTERS", f"dead.{task_type}.>")


async def queued(js: JetStreamContext, task_type: str) -> list[Found]:
    """The tasks of a type that nobody has acked."""
    return await stored(js, "TASK_QUEUES", f"task.{task_type}.>")


async def settled(js: JetStreamContext, task_type: str, within_s: float = BOUND_S) -> None:
    """Wait until every task of a type is acked or terminated."""

    async def empty() -> bool:
        return not await queued(js, task_type)

    await eventually(empty, within_s, what=f"no task of {task_type} left")


async def outcome(js: JetStreamContext, task_type: str, run_id: str) -> Found:
    """Wait for the ack of a run's only task; its events are a start and this outcome."""
    await settled(js, task_type)
    events = await history(js, run_id)
    assert [event.type for event in events[:-1]] == ["step.started"]
    return events[-1]


async def put_snapshot(js: JetStreamContext, run_id: str, status: str, **more: Any) -> None:
    """Write the snapshot of a run as the engine does."""
    body = {"run_id": run_id, "workflow_id": "hello", "status": status, "steps": {}, **more}
    await js.publish(f"$KV.workflow_runs.run.{run_id}", json.dumps(body).encode())


async def publish_cancel(js: JetStreamContext, run_id: str) -> None:
    """Ask for the cancellation of a run, as a client does."""
    body = {"type": "workflow.cancelled", "run_id": run_id, "timestamp": "2026-08-06T12:00:00Z"}
    await js.publish(
        f"history.{run_id}",
        json.dumps(body).encode(),
        headers={"Nats-Msg-Id": f"{run_id}.workflow.cancelled"},
    )


class AckWatch:
    """Every acknowledgement that workers send for one task type, in order."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    @property
    def verdicts(self) -> list[bytes]:
        """Without renewals."""
        return [frame for frame in self.frames if frame != b"+WPI"]


@asynccontextmanager
async def watching_acks(nc: Client, task_type: str) -> AsyncIterator[AckWatch]:
    """Listen to the acks of an ungrouped durable."""
    watch = AckWatch()

    async def note(message: Msg) -> None:
        watch.frames.append(message.data)

    subscription = await nc.subscribe(f"$JS.ACK.TASK_QUEUES.workers-{task_type}.>", cb=note)
    await nc.flush()
    yield watch
    await subscription.unsubscribe()


class OtherWorker:
    """A worker written by hand, for what ours would not do at the moment a test needs it."""

    def __init__(
        self, js: JetStreamContext, subscription: JetStreamContext.PullSubscription
    ) -> None:
        self._js = js
        self._subscription = subscription

    @classmethod
    async def bound(cls, js: JetStreamContext, task_type: str) -> OtherWorker:
        """Share the durable of a task type with the workers of the test."""
        subject, durable = f"task.{task_type}.>", f"workers-{task_type}"
        return cls(js, await js.pull_subscribe(subject, durable, stream="TASK_QUEUES"))

    async def take(self) -> Msg:
        """Have the next task delivered."""
        (message,) = await self._subscription.fetch(1, timeout=BOUND_S)
        return message

    async def take_and_publish(self, *events: str) -> Msg:
        """Have the next task delivered, and publish these events of it.

        Args:
            events: Types; of ``step.released`` the reason follows, after a space.
        """
        message = await self.take()
        for number, event in enumerate(events):
            event_type, _, reason = event.partition(" ")
            more = {"payload": {"reason": reason}} if reason else {}
            await self.publish(message, event_type, attempt_number=number, **more)
        return message

    async def publish(self, message: Msg, event_type: str, **fields: Any) -> None:
        """Publish an event of a task."""
        task = json.loads(message.data)
        parts = (task["step_id"], event_type, fields.get("attempt_number"), task.get("iteration"))
        message_id = ".".join(str(part) for part in (task["run_id"], *parts, "other"))
        body = {
            "type": event_type,
            "run_id": task["run_id"],
            "step_id": task["step_id"],
            "timestamp": "2026-08-06T12:00:00Z",
            "worker_id": "other",
            **fields,
        }
        await self._js.publish(
            f"history.{task['run_id']}",
            json.dumps(body).encode(),
            headers={"Nats-Msg-Id": message_id},
        )
