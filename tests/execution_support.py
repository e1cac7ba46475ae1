"""One execution of a task without a worker around it, for unit tests of the core.

Real: the task message, the execution, its context. Fake: the transport, which notes what it is
asked, and the source, which has a lease and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from dagnats_worker import TaskContext
from dagnats_worker._context import BaseContext
from dagnats_worker._events import Events
from dagnats_worker._execution import Environment, Execution
from dagnats_worker._inflight import InFlight
from dagnats_worker._protocol import decode_task
from dagnats_worker._transport import Delivery, Source, Transport
from dagnats_worker.errors import TransportError
from dagnats_worker.hookspecs import Capability, TaskType

LEASE = timedelta(seconds=30)


class FakeTransport:
    """Answers ``newest`` from a dictionary.

    Attributes:
        snapshots: What the newest message of each subject is.
        asked: Every question, as stream and subjects.
        is_gone: No question is answered any more.
    """

    def __init__(self, *, max_payload: int = 1024 * 1024) -> None:
        self.max_payload = max_payload
        self.snapshots: dict[str, bytes] = {}
        self.asked: list[tuple[str, list[str]]] = []
        self.is_gone = False

    async def newest(self, stream: str, subjects: Sequence[str]) -> Mapping[str, bytes]:
        self.asked.append((stream, list(subjects)))
        if self.is_gone:
            raise TransportError(f"{stream}: the server did not answer in time")
        return {one: self.snapshots[one] for one in subjects if one in self.snapshots}


class FakeEvents:
    """Notes what is streamed and how often a lease is renewed."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.heartbeats = 0

    async def chunk(self, _execution: Execution, data: bytes) -> None:
        self.chunks.append(data)

    async def heartbeat(self, _execution: Execution) -> None:
        self.heartbeats += 1


def make_execution(
    transport: FakeTransport | None = None,
    *,
    events: FakeEvents | None = None,
    headers: Mapping[str, str] | None = None,
    deliveries: int = 1,
    age: timedelta = timedelta(0),
    loop: asyncio.AbstractEventLoop | None = None,
    capabilities: dict[Capability[Any], Callable[[BaseContext], Any]] | None = None,
    **fields: Any,
) -> Execution:
    """An execution of the task ``shout``, run ``run-1``, step ``step.one``.

    Args:
        age: How long ago the message was stored.
        fields: More fields of the task message, or others for those.
    """
    body = {"task_id": "run-1.step.one", "run_id": "run-1", "step_id": "step.one", **fields}
    delivery = Delivery(
        "task.shout.run-1",
        json.dumps(body).encode(),
        headers or {},
        ack_subject="$JS.ACK.TASK_QUEUES.workers-shout.1.7.7.0.0",
        stream="TASK_QUEUES",
        deliveries=deliveries,
        sequence=7,
        timestamp_ns=time.time_ns() - age // timedelta(microseconds=1) * 1000,
    )
    source = SimpleNamespace(ack_wait=LEASE, confirm_leases=False, fenced=False)
    environment = Environment(
        worker_id="worker-1",
        task_type=TaskType("shout", None, 4, None, timedelta(hours=1), {}),
        transport=cast(Transport, transport or FakeTransport()),
        events=cast(Events, events or FakeEvents()),
        loop=loop or cast(asyncio.AbstractEventLoop, None),
        capabilities=capabilities or {},
    )
    inflight = InFlight(delivery, cast(Source, source), timeout_s=3600)
    execution = Execution(decode_task(delivery.data), inflight, environment)
    execution.context = TaskContext(execution)
    return execution
