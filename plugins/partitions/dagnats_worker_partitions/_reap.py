"""Finding the dead members of a group from outside, for fleets in which no member does.

A worker with this plugin looks after the other members all the time. A fleet of workers in Go has
nobody who does, so that a crash stops a partition until somebody drops the name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._bucket import Bucket
from dagnats_worker_partitions._errors import GroupError
from dagnats_worker_partitions._groups import records_of
from dagnats_worker_partitions._leases import LEASE_BUCKET
from dagnats_worker_partitions._names import check_group, group_stream, key
from dagnats_worker_partitions._overlaps import consumer_filters
from dagnats_worker_partitions._reaper import Judge, covered_members, grace_s
from dagnats_worker_partitions._record import Record, not_found
from dagnats_worker_partitions._rules import effective_members

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

LOOK_EVERY_S = 0.5
GRACES_MAX = 5
DIRECTORY_BUCKET = "workers"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a group once.

    Attributes:
        silent: Members that should read, and of which there is no sign of life.
        listed: Those whose partitions nobody reads either, but which are listed as workers.
        waits_s: The AckWaits of the group's consumers.
    """

    record: Record
    silent: frozenset[str]
    listed: frozenset[str]
    waits_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """Who is dead.

    Attributes:
        dead: Names, and for how many seconds nothing was seen of them.
        doubtful: Nobody reads their partitions, but they are listed as workers; a worker that has
            died is so for up to a minute.
    """

    dead: Mapping[str, float] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()


async def find_dead(
    nc: NatsClient, stream: str, group: str, *, grace: timedelta | None = None
) -> Findings:
    """Find the dead members of a group: look at it until everybody has been seen, or is dead.

    Dead is a member with partitions that keeps no lease, is not listed as a worker, and whose
    partitions nobody has read for all of ``grace``. A live one that waits for another to let go of
    a partition has no consumer either, but the partition is read.

    Args:
        grace: None for what is long enough for the members of this group, at least 12 seconds.

    Raises:
        GroupNotFoundError: There is no such group.
        GroupError: It has mappings, so nobody can be dropped.
    """
    check_group(stream, group)
    judge, began = Judge(), time.monotonic()
    while True:
        look = await _look(nc, stream, group)
        now = time.monotonic()
        needed_s = grace.total_seconds() if grace is not None else grace_s(look.waits_s)
        covered = set(effective_members(look.record.config)) - look.silent
        judge.uncovered(look.silent, covered, now)
        dead = judge.uncovered_for(needed_s, now)
        elapsed_s = now - began
        decided = look.silent <= dead.keys() and elapsed_s >= needed_s
        if decided or elapsed_s > GRACES_MAX * needed_s:
            return Findings(dead, look.listed)
        await asyncio.sleep(LOOK_EVERY_S)


async def drop_dead(
    nc: NatsClient, stream: str, group: str, names: Collection[str]
) -> frozenset[str]:
    """Drop members that were found dead and still give no sign of life; returns who was dropped."""
    look = await _look(nc, stream, group)
    dead = frozenset(names) & look.silent
    if dead:
        await records_of(nc).drop_members(stream, group, dead)
    return dead


async def reap(
    nc: NatsClient, stream: str, group: str, *, grace: timedelta | None = None
) -> list[str]:
    """Find the dead members of a group, and drop them; their partitions go to the others.

    See ``find_dead`` for who is dead, and what is raised.

    Returns:
        Who was dropped.
    """
    found = await find_dead(nc, stream, group, grace=grace)
    return sorted(await drop_dead(nc, stream, group, found.dead))


async def _look(nc: NatsClient, stream: str, group: str) -> Look:
    record = await records_of(nc).read(stream, group)
    if record is None:
        raise not_found(stream, group)
    if record.config.mappings:
        raise GroupError(
            f"group {group!r} on stream {stream!r} has mappings, and nobody can be dropped from "
            "those; change the mappings"
        )
    api = JetStreamApi(nc)
    consumers = await api.consumers(group_stream(stream, group))
    held = [one for consumer in consumers for one in consumer_filters(consumer["config"])]
    members = effective_members(record.config)
    unread = set(members) - covered_members(record.config, members, held)
    leases = Bucket(api, LEASE_BUCKET)
    unleased = [one for one in unread if not await leases.get(f"{key(stream, group)}.{one}")]
    directory = Bucket(api, DIRECTORY_BUCKET)
    listed = frozenset([one for one in unleased if await directory.get(one)])
    waits_s = tuple(int(one["config"].get("ack_wait", 0)) / 1e9 for one in consumers)
    return Look(record, frozenset(unleased) - listed, listed, waits_s)
