"""Who else takes the messages of a group.

A message that two take is handled twice: the group's stream sources from the work queue beside
every other consumer, and the server sees no conflict in that. So it is looked for by hand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import TaskType, WorkerFacade
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._errors import GroupConfigError, GroupOverlapError, or_no_start
from dagnats_worker_partitions._names import ELASTIC_BUCKET, TASK_STREAM, durable, task_filter
from dagnats_worker_partitions._record import GroupRecords
from dagnats_worker_partitions._rules import ALL, overlap

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

SOURCE_PREFIX = "JS_SRC_"


async def check_overlaps(
    api: JetStreamApi, records: GroupRecords, stream: str, group: str, config: GroupConfig
) -> None:
    """Refuse a group whose messages a plain consumer or another group takes too.

    Only for a stream with work queue retention: from any other one each consumer is meant to have a
    copy of every message.

    Raises:
        GroupOverlapError: Names both, and what overlaps.
    """
    info = await api.stream(stream)
    if info is None or info["config"]["retention"] != "workqueue":
        return
    ours = group_filters(config)
    for consumer in await api.consumers(stream):
        if _sources(consumer["config"], str(consumer["name"])):
            continue
        if (pair := _pair(ours, consumer_filters(consumer["config"]))) is not None:
            raise GroupOverlapError(
                f"group {group!r} and consumer {consumer['name']!r} of stream {stream!r} take the "
                f"same tasks ({pair}), so each would be handled twice; stop the workers of one "
                f"of them: to keep the group, let the consumer run empty and delete it; to keep "
                f"the consumer, `dagnats-worker groups delete {group}`"
            )
    await _check_groups(records, stream, group, ours)


async def _check_groups(
    records: GroupRecords, stream: str, group: str, ours: Sequence[str]
) -> None:
    async for other, theirs in _filters(records, stream):
        if other == group:
            continue
        if (pair := _pair(ours, theirs)) is not None:
            raise GroupOverlapError(
                f"groups {group!r} and {other!r} on stream {stream!r} take the same tasks "
                f"({pair}), so each would be handled twice; stop the workers of one of them, let "
                f"it run empty, and delete it: `dagnats-worker groups delete {other}`"
            )


@or_no_start
async def check_plain_task(worker: WorkerFacade, task: TaskType) -> None:
    """Refuse a task type that is not partitioned, where a group takes its tasks too.

    Raises:
        StartError: Names the consumer and the group.
    """
    try:
        nc = worker.nats
    except UsageError:
        return  # in memory there are no groups
    await check_plain(nc, TASK_STREAM, task.name, task.group)


async def check_plain(
    nc: NatsClient, stream: str, task_type: str, group: str | None = None
) -> None:
    """The same without a worker.

    Raises:
        GroupOverlapError: Names the consumer and the group.
    """
    api = JetStreamApi(nc)
    records = GroupRecords(Bucket(api, ELASTIC_BUCKET))
    filter_ = task_filter(task_type, group)
    found = await _group_over(records, stream, filter_)
    if found is not None:
        raise GroupOverlapError(
            f"consumer {durable(task_type, group)!r} of stream {stream!r} takes {filter_}, and so "
            f"does group {found!r}: each task would be handled twice; give this worker partitions "
            "too, or stop the workers of the group, let it run empty, and delete it: "
            f"`dagnats-worker groups delete {found}`"
        )


async def _group_over(records: GroupRecords, stream: str, filter_: str) -> str | None:
    async for other, filters in _filters(records, stream):
        if _pair([filter_], filters) is not None:
            return other
    return None


async def _filters(records: GroupRecords, stream: str) -> AsyncIterator[tuple[str, Sequence[str]]]:
    """The groups of a stream, with what each takes."""
    for of, group in await records.groups():
        if of != stream:
            continue
        try:
            record = await records.read(stream, group)
        except GroupConfigError:
            continue  # no member of it can run
        if record is not None:
            yield group, group_filters(record.config)


def group_filters(config: GroupConfig) -> list[str]:
    """What a group takes; ``>`` where it has no filters."""
    return [one.filter for one in config.filters] or [ALL]


def consumer_filters(config: dict[str, Any]) -> list[str]:
    """The filters of a consumer; ``>`` where it has none."""
    several = config.get("filter_subjects") or [config.get("filter_subject") or ALL]
    return [str(one) for one in several]


def _sources(config: dict[str, Any], name: str) -> bool:
    """Whether a consumer is the server's own, for a stream that sources from this one."""
    return bool(config.get("sourcing") or config.get("direct") or name.startswith(SOURCE_PREFIX))


def _pair(ours: Iterable[str], theirs: Sequence[str]) -> str | None:
    for left in ours:
        for right in theirs:
            if overlap(left, right):
                return left if left == right else f"{left} and {right}"
    return None
