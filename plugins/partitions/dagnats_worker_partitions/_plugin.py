"""The plugin: task types that are split into partitions, each of which one worker serves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker import Plugin, hookimpl
from dagnats_worker.errors import StartError, UsageError
from dagnats_worker.hookspecs import Source, TaskType, WorkerFacade
from dagnats_worker_partitions._config import PartitionFilter
from dagnats_worker_partitions._errors import GroupError, or_no_start
from dagnats_worker_partitions._groups import create_group
from dagnats_worker_partitions._leases import MemberLease
from dagnats_worker_partitions._member import Group
from dagnats_worker_partitions._names import (
    TASK_STREAM,
    check_member,
    check_task_type,
    group_name,
    task_filter,
)
from dagnats_worker_partitions._overlaps import check_plain_task
from dagnats_worker_partitions._priority import timings_of
from dagnats_worker_partitions._source import GroupSource

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

logger = logging.getLogger("dagnats_worker.partitions")

PARTITIONS_MAX = 256
LEASE_MIN = timedelta(seconds=3)
ACK_WAIT_MIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class PartitionsSettings:
    """How the members of this worker behave.

    Attributes:
        ack_wait: The lease of a task, for task types that have none of their own; at least a
            second.
        lease: After this long without a sign of life a member is taken out of its groups. The
            first worker of a fleet decides; it is that of the bucket.
        max_buffered_messages: Limit of a group's stream; every worker of a group has the same, and
            workers in Go have 1024.
    """

    ack_wait: timedelta = timedelta(seconds=5)
    lease: timedelta = timedelta(seconds=15)
    max_buffered_messages: int = 1024

    def __post_init__(self) -> None:
        if self.ack_wait < ACK_WAIT_MIN:
            raise ValueError(f"ack_wait is at least {ACK_WAIT_MIN}, got {self.ack_wait}")
        if self.lease < LEASE_MIN:
            raise ValueError(f"lease is at least {LEASE_MIN}, got {self.lease}")
        if self.max_buffered_messages < 0:
            raise ValueError(
                "max_buffered_messages is at least 1, or 0 for no limit, got "
                f"{self.max_buffered_messages}"
            )


@dataclass(frozen=True, slots=True)
class PartitionsOptions:
    """What ``@worker.task`` takes on top.

    Attributes:
        partitions: For this task type; None for what the worker says, 0 for not split.
        ordered: The tasks of one run go one by one, in the order in which they were published.
    """

    partitions: int | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.partitions is not None and not 0 <= self.partitions <= PARTITIONS_MAX:
            raise ValueError(
                f"partitions is at most {PARTITIONS_MAX}, and not negative; got {self.partitions}"
            )


class PartitionsPlugin(Plugin[PartitionsSettings]):
    """Serves task types as a member of their groups."""

    name = "partitions"
    settings_type = PartitionsSettings
    task_options = PartitionsOptions

    @hookimpl
    async def open_source(self, worker: WorkerFacade, task: TaskType) -> Source | None:
        options: PartitionsOptions = task.options(PartitionsPlugin)
        partitions = worker.partitions if options.partitions is None else options.partitions
        if not partitions:
            if options.ordered:
                raise StartError(
                    f"task type {task.name!r} is ordered and not partitioned, and nobody keeps an "
                    "order between workers that share a queue; add partitions=..."
                )
            await check_plain_task(worker, task)
            return None
        return await open_member(
            worker, task, partitions=partitions, ordered=options.ordered, settings=self.settings
        )


@or_no_start
async def open_member(
    worker: WorkerFacade,
    task: TaskType,
    *,
    partitions: int,
    ordered: bool = False,
    serial: bool = False,
    fenced: bool = False,
    settings: PartitionsSettings | None = None,
) -> Source | None:
    """Make a worker a member of the group of a task type; for the ``open_source`` of a plugin.

    The group is made where there is none. The member is called as the worker. It joins once tasks
    are asked for, and leaves when the source is closed.

    Args:
        partitions: Into how many the tasks are split; every worker of the group says the same.
        ordered: The tasks of one run go one by one, in order.
        serial: One task at a time over all partitions of this member.
        fenced: Every outcome is published only if nobody has started the step again meanwhile.
        settings: None for the defaults.

    Returns:
        None on the in-memory transport, where there are no groups: the tasks come from their queue.

    Raises:
        StartError: The names do not fit, somebody else takes the same tasks, the group has another
            configuration, the server is too old, or did not answer.
    """
    settings = settings or PartitionsSettings()
    ack_wait = task.ack_wait or settings.ack_wait
    if ack_wait < ACK_WAIT_MIN:
        raise GroupError(
            f"task type {task.name!r} has ack_wait {ack_wait}; with partitions it is at least "
            f"{ACK_WAIT_MIN}"
        )
    check_task_type(task.name, task.group)
    check_member(worker.worker_id)
    try:
        nc = worker.nats
    except UsageError as error:
        logger.debug("task type %r is served from its queue: %s", task.name, error)
        return None
    group = await _group_of(nc, task, partitions, settings)
    source = GroupSource(
        nc,
        group,
        worker.worker_id,
        timings=timings_of(ack_wait),
        slots=1 if serial else task.concurrency,
        ordered=ordered,
        fenced=fenced,
        lease=MemberLease(worker, group.key, worker.worker_id, settings.lease),
        listen=worker.listen,
    )
    await source.open()
    return source


async def _group_of(
    nc: NatsClient, task: TaskType, partitions: int, settings: PartitionsSettings
) -> Group:
    """The group of a task type, which is made where there is none."""
    name = group_name(task.name, task.group)
    record = await create_group(
        nc,
        TASK_STREAM,
        name,
        partitions,
        [PartitionFilter(task_filter(task.name, task.group))],
        max_buffered_messages=settings.max_buffered_messages,
    )
    return Group(TASK_STREAM, name, record.config)
