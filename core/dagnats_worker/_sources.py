"""Which consumers a task type is served from."""

from __future__ import annotations

from datetime import timedelta

from dagnats_worker._config import ACK_WAIT_DEFAULT
from dagnats_worker._naming import (
    check_worker_id,
    durable_name,
    elastic_group_name,
    filter_subject,
)
from dagnats_worker._protocol import sticky_subject_filter
from dagnats_worker._registry import Registration
from dagnats_worker._transport import ConsumerSpec, Source, Transport
from dagnats_worker.errors import StartError

TASKS_STREAM = "TASK_QUEUES"
STICKY_STREAM = "STICKY_TASKS"
REQUIRED_STREAMS = (TASKS_STREAM, "WORKFLOW_HISTORY", "DEAD_LETTERS")

STICKY_GONE_AFTER = timedelta(minutes=10)
"""A worker that is away for less than this finds its sticky tasks where it left off."""


async def open_tasks(transport: Transport, registration: Registration, group: str | None) -> Source:
    """The durable that all workers of a task type share.

    Raises:
        StartError: Another consumer, or an elastic group, would run the same tasks too.
    """
    task_type = registration.task_type
    elastic = f"{TASKS_STREAM}-{elastic_group_name(task_type, group)}"
    if "." not in elastic and await transport.has_stream(elastic):
        raise StartError(
            f"task type {task_type!r} is served by the elastic group {elastic!r}; a plain consumer "
            "beside it would run every task twice. Use partitions, or delete the group"
        )
    spec = ConsumerSpec(
        TASKS_STREAM,
        durable_name(task_type, group),
        filter_subject(task_type, group),
        registration.ack_wait,
    )
    return await transport.open_source(spec)


async def open_sticky(transport: Transport, registration: Registration, worker_id: str) -> Source:
    """The consumer of the tasks that are bound to this very worker."""
    check_worker_id(worker_id)
    spec = ConsumerSpec(
        STICKY_STREAM,
        f"{durable_name(registration.task_type)}-{durable_name(worker_id)}",
        sticky_subject_filter(registration.task_type, worker_id),
        registration.ack_wait or ACK_WAIT_DEFAULT,
        inactive_threshold=STICKY_GONE_AFTER,
    )
    return await transport.open_source(spec)
