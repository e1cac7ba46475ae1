"""Static groups, as a library: the members are named once, when the group is made.

A static group has no stream of its own. The subjects of the source stream begin with the partition,
usually because the stream maps them to ``{{partition(n,...)}}.>`` itself. Workers do not use them;
they are here for programs that share one with members written in Go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from dagnats_worker.errors import KeyValueError
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._config import (
    Mapping,
    check_members,
    check_partitions,
    encode,
    mappings_as_json,
)
from dagnats_worker_partitions._errors import (
    GroupConfigError,
    GroupExistsError,
    GroupNotFoundError,
)
from dagnats_worker_partitions._groups import unpin
from dagnats_worker_partitions._names import (
    STATIC_BUCKET,
    check_group,
    check_member,
    key,
    static_consumer,
)
from dagnats_worker_partitions._rules import member_filters
from dagnats_worker_partitions._streams import ensure_bucket, source_stream

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """The configuration of a static group; it is never changed.

    Attributes:
        partitions: How many the subjects of the stream are divided into.
        filters: Without the partition in front; none for all of the stream.
        members: Between them the partitions are divided evenly.
        mappings: Instead of members, who has which partition.
    """

    partitions: int
    filters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    mappings: tuple[Mapping, ...] = ()

    @property
    def names(self) -> list[str]:
        """Whoever is named, in sort order."""
        return sorted({*self.members, *(one.member for one in self.mappings)})

    def filters_of(self, member: str) -> list[str]:
        """The filters of a member's consumer; empty where it has no partition."""
        return member_filters(self.partitions, self.members, self.mappings, self.filters, member)


class _Mapping(msgspec.Struct):
    member: str | None = None
    partitions: list[int] | None = None


class _Record(msgspec.Struct):
    max_members: int | None = None
    filters: list[str] | None = None
    members: list[str] | None = None
    member_mappings: list[_Mapping] | None = None


_decode = msgspec.json.Decoder(_Record).decode


def decode_static(data: bytes) -> StaticConfig:
    """Read the record of a static group.

    Raises:
        GroupConfigError: Not JSON, or not valid; names what is wrong.
    """
    try:
        record = _decode(data)
    except (ValueError, RecursionError) as error:
        raise GroupConfigError(f"the record of the group cannot be read: {error}") from error
    config = StaticConfig(
        record.max_members or 0,
        tuple(record.filters or ()),
        tuple(record.members or ()),
        tuple(
            Mapping(one.member or "", tuple(one.partitions or ()))
            for one in record.member_mappings or ()
        ),
    )
    check_static(config)
    return config


def check_static(config: StaticConfig) -> None:
    """Refuse what a static group cannot work with.

    Raises:
        GroupConfigError: Names what is wrong.
    """
    check_partitions(config.partitions)
    check_members(config.partitions, config.members, config.mappings)


def encode_static(config: StaticConfig) -> bytes:
    """The record, with the fields and the order of Go's; empty lists are left out."""
    record: dict[str, Any] = {"max_members": config.partitions}
    if config.filters:
        record["filters"] = list(config.filters)
    if config.members:
        record["members"] = list(config.members)
    if config.mappings:
        record["member_mappings"] = mappings_as_json(config.mappings)
    return encode(record)


async def create_static_group(
    nc: NatsClient, stream: str, group: str, config: StaticConfig
) -> StaticConfig:
    """Make a static group; doing it twice is harmless.

    Raises:
        GroupConfigError: The configuration is not valid.
        GroupExistsError: The group is there, with another configuration.
        GroupNotFoundError: There is no such stream.
    """
    check_group(stream, group)
    check_static(config)
    for name in config.names:
        check_member(name)
    api = JetStreamApi(nc)
    source = await source_stream(api, stream)
    await ensure_bucket(api, STATIC_BUCKET, int(source["num_replicas"]))
    bucket = Bucket(api, STATIC_BUCKET)
    try:
        if await bucket.get(key(stream, group)) is None:
            await bucket.put(key(stream, group), encode_static(config), expected_revision=0)
    except KeyValueError as error:
        if not error.conflict:
            raise
    found = await read_static_group(nc, stream, group)
    if found != config:
        raise GroupExistsError(
            f"static group {group!r} on stream {stream!r} exists with another configuration "
            f"({found}); it cannot be changed: delete it first, or take another name"
        )
    return found


async def read_static_group(nc: NatsClient, stream: str, group: str) -> StaticConfig:
    """The configuration of a static group.

    Raises:
        GroupNotFoundError: There is no such group.
        GroupConfigError: Its record is not valid.
    """
    entry = await Bucket(JetStreamApi(nc), STATIC_BUCKET).get(key(stream, group))
    if entry is None:
        raise _not_found(stream, group)
    try:
        return decode_static(entry.value)
    except GroupConfigError as error:
        raise GroupConfigError(f"static group {group!r} on {stream!r}: {error}") from error


async def list_static_groups(nc: NatsClient, stream: str | None = None) -> list[tuple[str, str]]:
    """Stream and name of each static group; of one stream, or of all."""
    keys = [one.split(".", 1) for one in await Bucket(JetStreamApi(nc), STATIC_BUCKET).keys()]
    return [(one[0], one[1]) for one in keys if len(one) > 1 and stream in (None, one[0])]


async def delete_static_group(nc: NatsClient, stream: str, group: str) -> None:
    """Delete a static group and the consumers of its members; its messages stay.

    Only the consumers of members that the record names are deleted. Go deletes whatever begins with
    the group's name and a dash, those of a group ``a-b`` with those of ``a``, too.

    Raises:
        GroupNotFoundError: There is no such group.
    """
    config = await read_static_group(nc, stream, group)
    api = JetStreamApi(nc)
    await Bucket(api, STATIC_BUCKET).delete(key(stream, group))
    for name in config.names:
        await api.delete_consumer(stream, static_consumer(group, name))


async def active_static_members(nc: NatsClient, stream: str, group: str) -> list[str]:
    """The members of a static group that ask for messages at this moment."""
    config = await read_static_group(nc, stream, group)
    api = JetStreamApi(nc)
    active = []
    for name in config.names:
        consumer = await api.consumer(stream, static_consumer(group, name))
        if consumer is not None and int(consumer.get("num_waiting", 0)) > 0:
            active.append(name)
    return active


async def step_down_static(nc: NatsClient, stream: str, group: str, member: str) -> None:
    """Let another process of the same member take over.

    Raises:
        GroupNotFoundError: The member has no consumer.
    """
    await unpin(
        JetStreamApi(nc), stream, static_consumer(group, member), f"static member {member!r}"
    )


def _not_found(stream: str, group: str) -> GroupNotFoundError:
    return GroupNotFoundError(f"there is no static group {group!r} on stream {stream!r}")
