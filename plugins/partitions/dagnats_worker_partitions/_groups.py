"""Making, deleting and looking at elastic groups.

Each function takes nats-py's client: ``worker.nats`` in a plugin, what ``connect()`` gives to a
command, or the user's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from dagnats_worker.errors import KeyValueError
from dagnats_worker_partitions._api import CONSUMER_NOT_FOUND, ApiError, JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._config import GroupConfig, Mapping, PartitionFilter, check_config
from dagnats_worker_partitions._errors import GroupError, GroupExistsError, GroupNotFoundError
from dagnats_worker_partitions._names import (
    ELASTIC_BUCKET,
    PRIORITY_GROUP,
    check_group,
    group_stream,
)
from dagnats_worker_partitions._overlaps import check_overlaps
from dagnats_worker_partitions._record import GroupRecords, Record, not_found
from dagnats_worker_partitions._streams import (
    check_server,
    create_group_stream,
    ensure_bucket,
    source_stream,
)

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

STREAM_NOT_FOUND = 10059
NO_SUCH_PRIORITY_GROUP = 10160
CREATE_ATTEMPTS_MAX = 10


def records_of(nc: NatsClient) -> GroupRecords:
    """The records of the elastic groups of an account."""
    return GroupRecords(Bucket(JetStreamApi(nc), ELASTIC_BUCKET))


async def create_group(
    nc: NatsClient,
    stream: str,
    group: str,
    partitions: int,
    filters: Sequence[PartitionFilter] = (),
    *,
    max_buffered_messages: int = 0,
    max_buffered_bytes: int = 0,
) -> Record:
    """Make a group; one that is there already keeps its members.

    A group is never changed: to have another number of partitions, delete it first. Doing this
    twice is harmless, and repairs a group whose stream is missing.

    Args:
        partitions: How many; at least 1. More members than that have nothing to do.
        filters: What of the stream is divided, and by which key; all of it without any.
        max_buffered_messages: Limit of the group's stream; 0 for none.
        max_buffered_bytes: Likewise.

    Raises:
        GroupConfigError: Something of this is not valid.
        GroupExistsError: The group is there, with another configuration.
        GroupOverlapError: A consumer or another group takes the same messages.
        GroupNotFoundError: There is no such stream.
        ServerTooOldError: The server is older than 2.14.
    """
    check_group(stream, group)
    config = GroupConfig(partitions, tuple(filters), max_buffered_messages, max_buffered_bytes)
    check_config(config)
    api = JetStreamApi(nc)
    await check_server(api)
    source = await source_stream(api, stream)
    records = GroupRecords(Bucket(api, ELASTIC_BUCKET))
    await ensure_bucket(api, ELASTIC_BUCKET, int(source["num_replicas"]))
    await check_overlaps(api, records, stream, group, config)
    record, written = await _find_or_write(records, stream, group, config)
    try:
        await create_group_stream(api, stream, group, record.config, source)
    except GroupExistsError:
        if written:  # a record without a stream would only mislead
            await records.delete(stream, group, revision=record.revision)
        raise
    return record


async def _find_or_write(
    records: GroupRecords, stream: str, group: str, config: GroupConfig
) -> tuple[Record, bool]:
    """The record of a group, and whether it is new."""
    for _ in range(CREATE_ATTEMPTS_MAX):
        record = await records.read(stream, group)
        if record is not None:
            _check_same(stream, group, record.config, config)
            return record, False
        try:
            return await records.write_new(stream, group, config), True
        except KeyValueError as error:
            if not error.conflict:
                raise
    raise GroupError(f"group {group!r} on stream {stream!r} is made and deleted again and again")


def _check_same(stream: str, group: str, found: GroupConfig, wanted: GroupConfig) -> None:
    if found.same_group(wanted):
        return
    names = ("partitions", "filters", "max_buffered_messages", "max_buffered_bytes")
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in names]
    differing = "; ".join(
        f"{name} {_told(there)}, wanted {_told(ours)}"
        for name, there, ours in pairs
        if there != ours
    )
    raise GroupExistsError(
        f"group {group!r} on stream {stream!r} exists with another configuration ({differing}); "
        "ask for what it has, or stop its workers, let it run empty, and "
        f"`dagnats-worker groups delete {group}`"
    )


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{one.filter} {list(one.wildcards)}" for one in value) or "none"
    return str(value)


async def delete_group(nc: NatsClient, stream: str, group: str, *, force: bool = False) -> int:
    """Delete a group, with what is in its stream; its members stop.

    Args:
        force: Also where messages are in its stream. They have left the source stream, or will in
            a moment, and are lost.

    Returns:
        How many messages were lost.

    Raises:
        GroupNotFoundError: There is neither a record nor a stream of it.
        GroupError: It has messages, and ``force`` was not said.
    """
    check_group(stream, group)
    api, name = JetStreamApi(nc), group_stream(stream, group)
    bucket = Bucket(api, ELASTIC_BUCKET)
    recorded = await bucket.get(f"{stream}.{group}") is not None  # one that is not valid, too
    messages = await _messages(api, name)
    if not recorded and messages is None:
        raise not_found(stream, group)
    if messages and not force:
        raise GroupError(
            f"group {group!r} on stream {stream!r} has {messages} messages, which would be lost; "
            "let its workers finish them first, or say that you mean it with --force"
        )
    if recorded:
        await GroupRecords(bucket).delete(stream, group)
    came = await _messages(api, name)
    if came and not force:
        raise GroupError(
            f"{came} messages came to group {group!r} on stream {stream!r} while it was deleted: "
            f"its record is gone, and stream {name!r} was left; start a worker to make the group "
            "again, or delete it with --force"
        )
    await api.found(f"STREAM.DELETE.{name}", STREAM_NOT_FOUND)
    return came or 0


async def _messages(api: JetStreamApi, stream: str) -> int | None:
    info = await api.stream(stream)
    return None if info is None else int(info["state"]["messages"])


async def list_groups(nc: NatsClient, stream: str | None = None) -> list[tuple[str, str]]:
    """Stream and name of each group; of one stream, or of all."""
    groups = await records_of(nc).groups()
    return [one for one in groups if stream in (None, one[0])]


async def add_members(nc: NatsClient, stream: str, group: str, names: Collection[str]) -> Record:
    """Add members to a group; see ``GroupRecords.add_members``."""
    return await records_of(nc).add_members(stream, group, names)


async def drop_members(nc: NatsClient, stream: str, group: str, names: Collection[str]) -> Record:
    """Take members out of a group; their partitions go to the others.

    Raises:
        GroupNotFoundError: There is no such group.
    """
    record = await records_of(nc).drop_members(stream, group, names)
    if record is None:
        raise not_found(stream, group)
    return record


async def set_mappings(
    nc: NatsClient, stream: str, group: str, mappings: Sequence[Mapping]
) -> Record:
    """Say who has which partition; see ``GroupRecords.set_mappings``."""
    return await records_of(nc).set_mappings(stream, group, mappings)


async def delete_mappings(nc: NatsClient, stream: str, group: str) -> Record:
    """Take the mappings of a group away; it has no members then."""
    return await records_of(nc).delete_mappings(stream, group)


async def step_down(nc: NatsClient, stream: str, group: str, member: str) -> None:
    """Let another process of the same member take over from the one that is served now.

    Raises:
        GroupNotFoundError: The member has no consumer, so nobody is served.
    """
    await unpin(JetStreamApi(nc), group_stream(stream, group), member, f"member {member!r}")


async def unpin(api: JetStreamApi, stream: str, consumer: str, what: str) -> None:
    """Take the pin of a consumer away.

    Raises:
        GroupNotFoundError: There is no such consumer, or it is not that of a group.
    """
    try:
        await api.ask(f"CONSUMER.UNPIN.{stream}.{consumer}", {"group": PRIORITY_GROUP})
    except ApiError as error:
        if error.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
            raise GroupNotFoundError(
                f"{what} has no consumer {consumer!r} on stream {stream!r}, so there is nobody to "
                "step down; `dagnats-worker groups show` shows who has one"
            ) from error
        if error.code == NO_SUCH_PRIORITY_GROUP:
            raise GroupError(
                f"consumer {consumer!r} on stream {stream!r} was not made by a member of a group"
            ) from error
        raise
