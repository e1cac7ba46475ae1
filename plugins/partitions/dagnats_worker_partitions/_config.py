"""The record of a group: what is in it, whether it is valid, and how it is written.

Members in Go read and write the same record. Go keeps ``null`` and ``[]`` apart when it compares
two of them, and a running member stops when they differ. So a record that exists is changed in its
bytes: only the lists of members are replaced, and whatever else stands there stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dagnats_worker_partitions._errors import GroupConfigError

PARTITIONS_MAX = 65_536
"""More than anybody has use for, and few enough to be kept in a list."""


@dataclass(frozen=True, slots=True)
class PartitionFilter:
    """Subjects of the source stream that a group divides.

    Attributes:
        filter: Ends with ``>``, or has a token ``*``.
        wildcards: Which of its ``*``, counted from 1, make the key; none for the whole subject.
    """

    filter: str
    wildcards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mapping:
    """Partitions that a member is given by hand."""

    member: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """The configuration and the members of an elastic group.

    Attributes:
        partitions: How many there are, and so how many members can have something to do.
        max_buffered_messages: Limit of the group's stream; 0 or -1 for none.
        max_buffered_bytes: Likewise.
        members: Between them the partitions are divided evenly.
        mappings: Instead of members, who has which partition.
    """

    partitions: int
    filters: tuple[PartitionFilter, ...] = ()
    max_buffered_messages: int = 0
    max_buffered_bytes: int = 0
    members: tuple[str, ...] = ()
    mappings: tuple[Mapping, ...] = ()

    def same_group(self, other: GroupConfig) -> bool:
        """Whether both are of one group; who its members are may differ.

        Limits of 0 and -1 both mean none.
        """
        return self._fixed() == other._fixed()

    def _fixed(self) -> tuple[Any, ...]:
        limits = (max(self.max_buffered_messages, 0), max(self.max_buffered_bytes, 0))
        return (self.partitions, self.filters, *limits)


class _Filter(msgspec.Struct):
    filter: str | None = None
    partitioning_wildcards: list[int] | None = None


class _Mapping(msgspec.Struct):
    member: str | None = None
    partitions: list[int] | None = None


class _Record(msgspec.Struct):
    max_members: int | None = None
    partitioning_filters: list[_Filter] | None = None
    max_buffered_msg: int | None = None
    max_buffered_bytes: int | None = None
    members: list[str] | None = None
    member_mappings: list[_Mapping] | None = None


_ESCAPED = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}

_decode_record = msgspec.json.Decoder(_Record).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def decode_config(data: bytes) -> GroupConfig:
    """Read a record.

    Raises:
        GroupConfigError: Not JSON, or not the configuration of a group; names what is wrong.
    """
    try:
        record = _decode_record(data)
    except (ValueError, RecursionError) as error:
        raise GroupConfigError(f"the record of the group cannot be read: {error}") from error
    config = GroupConfig(
        partitions=record.max_members or 0,
        filters=tuple(
            PartitionFilter(one.filter or "", tuple(one.partitioning_wildcards or ()))
            for one in record.partitioning_filters or ()
        ),
        max_buffered_messages=record.max_buffered_msg or 0,
        max_buffered_bytes=record.max_buffered_bytes or 0,
        members=tuple(record.members or ()),
        mappings=tuple(
            Mapping(one.member or "", tuple(one.partitions or ()))
            for one in record.member_mappings or ()
        ),
    )
    check_config(config)
    return config


def encode_new(config: GroupConfig) -> bytes:
    """The record of a group that does not exist yet, with the fields, order and nulls of Go's."""
    filters = [
        {"filter": one.filter, "partitioning_wildcards": list(one.wildcards) or None}
        for one in config.filters
    ]
    record: dict[str, Any] = {
        "max_members": config.partitions,
        "partitioning_filters": filters or None,
    }
    if config.max_buffered_messages:
        record["max_buffered_msg"] = config.max_buffered_messages
    if config.max_buffered_bytes:
        record["max_buffered_bytes"] = config.max_buffered_bytes
    if config.members:
        record["members"] = list(config.members)
    if config.mappings:
        record["member_mappings"] = mappings_as_json(config.mappings)
    return encode(record)


def with_members(data: bytes, members: Sequence[str]) -> bytes:
    """The same record with other members; an empty list is left out, as Go does."""
    return changed(data, members=list(members))


def with_mappings(data: bytes, mappings: Sequence[Mapping]) -> bytes:
    """The same record with other mappings, and without members; no mappings are left out."""
    return changed(data, members=[], member_mappings=mappings_as_json(mappings))


def mappings_as_json(mappings: Iterable[Mapping]) -> list[dict[str, Any]]:
    """Mappings as they stand in a record."""
    return [{"member": one.member, "partitions": list(one.partitions)} for one in mappings]


def changed(data: bytes, **lists: list[Any]) -> bytes:
    """Replace some lists of a record; everything else keeps its bytes.

    Raises:
        GroupConfigError: Not a JSON object.
    """
    try:
        record = _decode_members(data)
    except (ValueError, RecursionError) as error:
        raise GroupConfigError(f"the record of the group cannot be read: {error}") from error
    for name, values in lists.items():
        if values:
            record[name] = msgspec.Raw(encode(values))
        else:
            record.pop(name, None)
    return msgspec.json.encode(record)


def encode(value: Any) -> bytes:
    """Compact JSON, with the characters of HTML escaped, as Go does."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.translate(_ESCAPED).encode()


# ----------------------------------------------------------------------- what is a valid record


def check_config(config: GroupConfig) -> None:
    """Refuse what a group cannot work with.

    Raises:
        GroupConfigError: Names what is wrong.
    """
    check_partitions(config.partitions)
    for one in config.filters:
        check_filter(one)
    check_members(config.partitions, config.members, config.mappings)


def check_partitions(partitions: int) -> None:
    """Refuse a number of partitions (``max_members`` in the record) that cannot be.

    Raises:
        GroupConfigError: Not between 1 and ``PARTITIONS_MAX``.
    """
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise GroupConfigError(
            f"the number of partitions (max_members) is {partitions}; "
            f"it is between 1 and {PARTITIONS_MAX}"
        )


def check_filter(one: PartitionFilter) -> None:
    """Refuse a filter that has nothing to divide by.

    Raises:
        GroupConfigError: Names the filter, and the position that it does not have.
    """
    tokens = one.filter.split(".")
    stars = tokens.count("*")
    if not stars and tokens[-1] != ">":
        raise GroupConfigError(
            f"filter {one.filter!r} has no wildcard, so there is nothing to divide; "
            "let it end with '>', or put '*' where the key is"
        )
    if len(set(one.wildcards)) != len(one.wildcards):
        raise GroupConfigError(f"filter {one.filter!r}: {list(one.wildcards)} names a '*' twice")
    for position in one.wildcards:
        if not 1 <= position <= stars:
            raise GroupConfigError(
                f"filter {one.filter!r} has no '*' number {position}; it has {stars}, "
                "counted from 1, and '>' does not count"
            )


def check_members(partitions: int, members: Sequence[str], mappings: Sequence[Mapping]) -> None:
    """Refuse mappings beside members, and mappings that are not one owner for each partition.

    Raises:
        GroupConfigError: Names the member or the partition.
    """
    if not mappings:
        return
    if members:
        raise GroupConfigError("a group has members or mappings, and this one has both")
    if len(mappings) > partitions:
        raise GroupConfigError(f"{len(mappings)} members are mapped to {partitions} partitions")
    names = [one.member for one in mappings]
    if twice := _repeated(names):
        raise GroupConfigError(f"member {twice[0]!r} is mapped twice")
    mapped = [partition for one in mappings for partition in one.partitions]
    if twice := _repeated(mapped):
        raise GroupConfigError(f"partition {twice[0]} is mapped twice")
    if beyond := [one for one in mapped if not 0 <= one < partitions]:
        raise GroupConfigError(f"partition {beyond[0]} is mapped; there are 0 to {partitions - 1}")
    if missing := set(range(partitions)) - set(mapped):
        raise GroupConfigError(f"partition {min(missing)} is mapped to nobody")


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value in set(values[:index])]
