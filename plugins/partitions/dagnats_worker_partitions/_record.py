"""The records of groups in their bucket, changed by compare-and-set only.

Every process of every worker writes here, Go's too. A write names the revision that it was made
from, and whoever comes second reads again; so no name is lost that somebody else has added.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry
from dagnats_worker_partitions._config import (
    GroupConfig,
    Mapping,
    check_config,
    check_members,
    decode_config,
    encode_new,
    with_mappings,
    with_members,
)
from dagnats_worker_partitions._errors import GroupConfigError, GroupError, GroupNotFoundError
from dagnats_worker_partitions._names import check_member, key

WRITE_ATTEMPTS_MAX = 100
WAIT_FIRST_S = 0.005
WAIT_MAX_S = 0.25

Change = Callable[["Record"], bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a group at one moment.

    Attributes:
        config: What it says.
        data: Its bytes; a change starts from them.
        revision: Of its key.
    """

    config: GroupConfig
    data: bytes
    revision: int


class RecordBucket(Protocol):
    """What is used of a bucket: of one that is ``worker.kv(...)``, and of this package's own."""

    async def get(self, key: str) -> Entry | None: ...

    async def put(self, key: str, value: bytes, *, expected_revision: int | None = None) -> int: ...

    async def delete(self, key: str, *, expected_revision: int | None = None) -> None: ...

    async def keys(self) -> list[str]: ...

    def watch(self, key: str) -> AsyncIterator[Entry]: ...


class GroupRecords:
    """The records of all elastic groups.

    Args:
        kv: Their bucket.
    """

    def __init__(self, kv: RecordBucket) -> None:
        self._kv = kv

    async def read(self, stream: str, group: str) -> Record | None:
        """The record of a group; None where there is none, or it was deleted.

        Raises:
            GroupConfigError: It is not valid.
            KeyValueError: The bucket is missing, or the server did not answer.
        """
        entry = await self._kv.get(key(stream, group))
        return None if entry is None else _record(stream, group, entry)

    async def write_new(self, stream: str, group: str, config: GroupConfig) -> Record:
        """Write the record of a group that has none.

        Raises:
            GroupConfigError: It would not be valid.
            KeyValueError: With ``conflict``, somebody else has written one meanwhile.
        """
        check_config(config)
        data = encode_new(config)
        revision = await self._kv.put(key(stream, group), data, expected_revision=0)
        return Record(config, data, revision)

    async def delete(self, stream: str, group: str, *, revision: int | None = None) -> None:
        """Leave a delete marker; running members stop on it.

        Never a purge: members in Go take its marker for a broken record.

        Args:
            revision: Only where the record still is at this one.
        """
        await self._kv.delete(key(stream, group), expected_revision=revision)

    async def groups(self) -> list[tuple[str, str]]:
        """Stream and name of each group that has a record."""
        keys = [one.split(".", 1) for one in await self._kv.keys()]
        return sorted((parts[0], parts[1]) for parts in keys if len(parts) > 1)

    async def add_members(self, stream: str, group: str, names: Collection[str]) -> Record:
        """Add members; those that are there already are left, and empty names are skipped.

        Raises:
            GroupError: The group has mappings, or a name cannot be a member's.
            GroupNotFoundError: There is no such group.
        """
        wanted = [name for name in dict.fromkeys(names) if name]
        for name in wanted:
            check_member(name)

        def change(record: Record) -> bytes:
            if record.config.mappings:
                raise GroupError(
                    f"group {group!r} on stream {stream!r} has mappings, so members cannot be "
                    "added; delete the mappings first"
                )
            present = record.config.members
            added = [name for name in wanted if name not in present]
            return with_members(record.data, [*present, *added]) if added else record.data

        changed = await self._change(stream, group, change)
        if changed is None:
            raise not_found(stream, group)
        return changed

    async def drop_members(self, stream: str, group: str, names: Collection[str]) -> Record | None:
        """Drop members, and return the record after that; None where there is no such group.

        Raises:
            GroupError: The group has mappings.
        """

        def change(record: Record) -> bytes:
            if record.config.mappings:
                raise GroupError(
                    f"group {group!r} on stream {stream!r} has mappings, so members cannot be "
                    "dropped; change the mappings"
                )
            kept = [name for name in record.config.members if name not in names]
            if len(kept) == len(record.config.members):
                return record.data
            return with_members(record.data, kept)

        return await self._change(stream, group, change)

    async def set_mappings(self, stream: str, group: str, mappings: Sequence[Mapping]) -> Record:
        """Say who has which partition; members are cleared. No mappings: nobody has any.

        Raises:
            GroupError: The group has more than one filter, and Go cannot join it then.
            GroupConfigError: The mappings are not one owner for each partition.
            GroupNotFoundError: There is no such group.
        """

        def change(record: Record) -> bytes:
            if mappings and len(record.config.filters) > 1:
                raise GroupError(
                    f"group {group!r} on stream {stream!r} has {len(record.config.filters)} "
                    "filters, and a group with mappings can have one: members in Go could never "
                    "join; use members, or a group for each filter"
                )
            check_members(record.config.partitions, (), mappings)
            if record.config.mappings == tuple(mappings) and not record.config.members:
                return record.data
            return with_mappings(record.data, mappings)

        for one in mappings:
            check_member(one.member)
        changed = await self._change(stream, group, change)
        if changed is None:
            raise not_found(stream, group)
        return changed

    async def delete_mappings(self, stream: str, group: str) -> Record:
        """Take the mappings away; the group has no members then.

        Raises:
            GroupNotFoundError: There is no such group.
        """

        def change(record: Record) -> bytes:
            return with_mappings(record.data, ()) if record.config.mappings else record.data

        changed = await self._change(stream, group, change)
        if changed is None:
            raise not_found(stream, group)
        return changed

    async def watch(self, stream: str, group: str) -> AsyncIterator[Record | None]:
        """The record of a group now, and then after each change; None while there is none.

        Raises:
            GroupConfigError: The record is not valid.
            KeyValueError: The watch has ended, with the connection.
        """
        last = await self.read(stream, group)
        yield last
        # A watch begins with the newest entry, so what was written since the read is not missed.
        async for entry in self._kv.watch(key(stream, group)):
            if entry.deleted:
                if last is not None and entry.revision > last.revision:
                    last = None
                    yield last
            elif last is None or entry.revision > last.revision:
                last = _record(stream, group, entry)
                yield last

    async def _change(self, stream: str, group: str, change: Change) -> Record | None:
        """Write what ``change`` makes of the record, again and again until nobody came between."""
        wait_s = WAIT_FIRST_S
        for _ in range(WRITE_ATTEMPTS_MAX):
            record = await self.read(stream, group)
            if record is None:
                return None
            data = change(record)
            if data == record.data:
                return record
            try:
                revision = await self._kv.put(
                    key(stream, group), data, expected_revision=record.revision
                )
            except KeyValueError as error:
                if not error.conflict:
                    raise
            else:
                return Record(decode_config(data), data, revision)
            await asyncio.sleep(random.uniform(0, wait_s))  # noqa: S311 - only to part the writers
            wait_s = min(wait_s * 2, WAIT_MAX_S)
        raise GroupError(
            f"group {group!r} on stream {stream!r}: others have changed its record "
            f"{WRITE_ATTEMPTS_MAX} times in a row before this change; try again"
        )


def _record(stream: str, group: str, entry: Entry) -> Record:
    try:
        return Record(decode_config(entry.value), entry.value, entry.revision)
    except GroupConfigError as error:
        raise GroupConfigError(f"group {group!r} on stream {stream!r}: {error}") from error


def not_found(stream: str, group: str) -> GroupNotFoundError:
    """There is no such group."""
    return GroupNotFoundError(
        f"there is no group {group!r} on stream {stream!r}; "
        "`dagnats-worker groups list` shows those that there are"
    )
