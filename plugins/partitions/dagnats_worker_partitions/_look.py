"""What a group looks like: who has which partition, who reads it, and what waits there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._names import (
    ELASTIC_BUCKET,
    PRIORITY_GROUP,
    check_group,
    group_stream,
)
from dagnats_worker_partitions._record import GroupRecords, Record, not_found
from dagnats_worker_partitions._rules import assignment

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A member of a group, and its consumer.

    Attributes:
        listed: It is in the record; a consumer that is not is of somebody who left.
        partitions: Which it has by the record.
        active: It has a consumer. A process that has died has one for some seconds more.
        pinned: Which of its processes is served; empty where none is yet.
        pinned_since: When that began, in the server's words.
        pending: Messages that it has not been given yet.
        ack_pending: Messages that it has been given, and has not acked.
    """

    name: str
    listed: bool
    partitions: tuple[int, ...]
    active: bool
    pinned: str = ""
    pinned_since: str = ""
    pending: int = 0
    ack_pending: int = 0


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """A partition of a group.

    Attributes:
        member: Its owner; None where the group has no members.
        read: Its owner has a consumer.
        messages: In the stream, with those that are being handled.
    """

    number: int
    member: str | None
    read: bool
    messages: int


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group at one moment.

    Attributes:
        messages: In its stream; None where the stream is missing.
        limit: Of its stream, in messages; 0 for none.
        partitions: In order.
        members: Those with partitions first, in sort order.
    """

    stream: str
    group: str
    record: Record
    messages: int | None
    limit: int
    partitions: tuple[PartitionInfo, ...]
    members: tuple[MemberInfo, ...]


async def group_info(nc: NatsClient, stream: str, group: str) -> GroupInfo:
    """What a group looks like now.

    Raises:
        GroupNotFoundError: There is no such group.
        GroupConfigError: Its record is not valid.
    """
    api, name = JetStreamApi(nc), group_stream(stream, group)
    record = await _read(api, stream, group)
    info = await api.stream(name)
    members = await _members(api, name, record.config)
    depths: Counter[str] = Counter()
    for subject, count in (await api.subjects(name, ">")).items():
        depths[subject.partition(".")[0]] += count
    active = {one.name for one in members if one.active}
    return GroupInfo(
        stream,
        group,
        record,
        None if info is None else int(info["state"]["messages"]),
        max(record.config.max_buffered_messages, 0),
        tuple(
            PartitionInfo(number, owner, owner in active, depths[str(number)])
            for number, owner in enumerate(assignment(record.config))
        ),
        tuple(members),
    )


async def members_info(nc: NatsClient, stream: str, group: str) -> list[MemberInfo]:
    """The members of a group, and which of them have a consumer.

    Raises:
        GroupNotFoundError: There is no such group.
    """
    api = JetStreamApi(nc)
    record = await _read(api, stream, group)
    return await _members(api, group_stream(stream, group), record.config)


async def _read(api: JetStreamApi, stream: str, group: str) -> Record:
    check_group(stream, group)
    record = await GroupRecords(Bucket(api, ELASTIC_BUCKET)).read(stream, group)
    if record is None:
        raise not_found(stream, group)
    return record


async def _members(api: JetStreamApi, stream: str, config: GroupConfig) -> list[MemberInfo]:
    consumers = {str(one["name"]): one for one in await api.consumers(stream)}
    owned: dict[str, list[int]] = {}
    for number, owner in enumerate(assignment(config)):
        if owner is not None:
            owned.setdefault(owner, []).append(number)
    listed = set(config.members) | {one.member for one in config.mappings}
    names = [*sorted(owned), *sorted((listed | set(consumers)) - set(owned))]
    return [
        _member(name, owned.get(name, []), consumers.get(name), listed=name in listed)
        for name in names
    ]


def _member(
    name: str, partitions: Sequence[int], consumer: dict[str, Any] | None, *, listed: bool
) -> MemberInfo:
    if consumer is None:
        return MemberInfo(name, listed, tuple(partitions), active=False)
    pins = [
        one for one in consumer.get("priority_groups") or () if one.get("group") == PRIORITY_GROUP
    ]
    pin = pins[0] if pins else {}
    return MemberInfo(
        name,
        listed,
        tuple(partitions),
        active=True,
        pinned=pin.get("pinned_client_id") or "",
        pinned_since=pin.get("pinned_ts") or "",
        pending=int(consumer.get("num_pending", 0)),
        ack_pending=int(consumer.get("num_ack_pending", 0)),
    )
