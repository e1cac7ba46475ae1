"""Takes dead members out of a group, so that their partitions get another owner.

A member that crashes leaves its name in the record. Its partitions then belong to nobody that runs,
and once the group's stream is full of their messages, nobody is given anything any more. Members in
Go only see a name disappear, as if its worker had left.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from dagnats_worker.errors import TransportError
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._errors import GroupError
from dagnats_worker_partitions._groups import records_of
from dagnats_worker_partitions._overlaps import consumer_filters
from dagnats_worker_partitions._rules import effective_members, filters_of

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

    from dagnats_worker_partitions._leases import MemberLease
    from dagnats_worker_partitions._member import Member

logger = logging.getLogger("dagnats_worker.partitions")

LOOKS_PER_LEASE = 5
GRACE_MIN_S = 12.0
TICKS_PER_GRACE = 2
TICK_LATER_S = 0.5
GRACE_LATER_S = 1.0
LEASE_ENDED = "its lease has ended"


class Judge:
    """Who is dead, by what was seen of it. Does no I/O."""

    def __init__(self) -> None:
        self._keepers: set[str] = set()
        self._uncovered_since: dict[str, float] = {}

    def saw_leases(self, present: Collection[str]) -> None:
        """These have a lease now, so from now on they are judged by it alone."""
        self._keepers.update(present)
        for name in present:
            self._uncovered_since.pop(name, None)

    def without_lease(self, names: Collection[str], present: Collection[str]) -> set[str]:
        """Those that are dead: they kept a lease, and it has ended."""
        return {name for name in names if name in self._keepers and name not in present}

    def keeps_leases(self, name: str) -> bool:
        return name in self._keepers

    def uncovered(self, names: Collection[str], covered: Collection[str], now: float) -> None:
        """Of those that never had a lease, these have no consumer on any of their partitions."""
        for name in set(self._uncovered_since) - set(names):
            del self._uncovered_since[name]
        for name in names:
            if name in covered:
                self._uncovered_since.pop(name, None)
            else:
                self._uncovered_since.setdefault(name, now)

    def uncovered_for(self, grace_s: float, now: float) -> dict[str, float]:
        """Those that had none for so long, and for how long."""
        return {
            name: now - since
            for name, since in self._uncovered_since.items()
            if now - since >= grace_s
        }

    def keep_only(self, names: Collection[str]) -> None:
        """Others are in the group no more; if they come back they begin anew."""
        self._keepers.intersection_update(names)

    def disturbed(self) -> None:
        """The server was away: nothing that was seen up to now goes on."""
        self._uncovered_since.clear()

    def forget(self, names: Collection[str]) -> None:
        """These were taken out; if they come back they begin anew."""
        self._keepers.difference_update(names)
        for name in names:
            self._uncovered_since.pop(name, None)


def covered_members(config: GroupConfig, names: Collection[str], held: Collection[str]) -> set[str]:
    """Those members of whose partitions at least one is read, by whomever."""
    taken = set(held)
    return {name for name in names if taken.intersection(filters_of(config, name))}


def grace_s(ack_waits_s: Collection[float]) -> float:
    """How long a member that keeps no lease may be without a consumer: two looks of its own."""
    tick_s = max(ack_waits_s, default=0.0) + TICK_LATER_S
    return max(GRACE_MIN_S, TICKS_PER_GRACE * tick_s + GRACE_LATER_S)


class Reaper:
    """Looks after the other members of one group."""

    def __init__(self, nc: NatsClient, member: Member, lease: MemberLease) -> None:
        self._nc = nc
        self._api = JetStreamApi(nc)
        self._records = records_of(nc)
        self._member = member
        self._lease = lease
        self._judge = Judge()
        self._reconnects = nc.stats["reconnects"]
        self._quiet_until = 0.0

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            every_s = self._lease.length_s / LOOKS_PER_LEASE
            await asyncio.sleep(every_s * random.uniform(0.6, 1.0))  # noqa: S311 - only to part the members
            try:
                await self.look()
            except (TransportError, GroupError) as error:
                logger.debug("looking after %s: %s", self._member.group, error)

    async def look(self) -> None:
        """Take out who is dead by now."""
        record = self._member.record
        if record is None or record.config.mappings:
            return
        now = time.monotonic()
        config = record.config
        others = set(config.members) - {self._member.name}
        self._judge.keep_only(others)
        if not others:
            return
        present = await self._lease.present(others)
        self._judge.saw_leases(present)
        if self._is_disturbed(now):
            return
        used = set(effective_members(config)) - {self._member.name}
        dead = dict.fromkeys(self._judge.without_lease(used, present), LEASE_ENDED)
        silent = {name for name in used - present if not self._judge.keeps_leases(name)}
        if silent:
            dead.update(await self._silent_dead(config, silent, now))
        if dead:
            dead.update(await self._beyond(others - used, present))
            await self._take_out(dead)

    def _is_disturbed(self, now: float) -> bool:
        """After an outage the leases of live members are gone too, until they have written them."""
        reconnects = self._nc.stats["reconnects"]
        late = self._lease.age_s > self._lease.length_s / 2
        if reconnects != self._reconnects or late:
            self._reconnects = reconnects
            self._quiet_until = now + self._lease.length_s
            self._judge.disturbed()
        return now < self._quiet_until

    async def _silent_dead(
        self, config: GroupConfig, silent: Collection[str], now: float
    ) -> dict[str, str]:
        """Members that keep no lease, as those in Go, and of which nothing else is seen either."""
        consumers = await self._api.consumers(self._member.group.own_stream)
        held = [one for consumer in consumers for one in consumer_filters(consumer["config"])]
        self._judge.uncovered(silent, covered_members(config, silent, held), now)
        waits_s = [int(one["config"].get("ack_wait", 0)) / 1e9 for one in consumers]
        suspects = self._judge.uncovered_for(
            grace_s([*waits_s, self._member.timings.ack_wait]), now
        )
        if not suspects:
            return {}
        listed = await self._lease.in_directory(suspects) or set()
        return {
            name: f"it had no consumer for {age_s:.0f} s, and keeps no lease"
            for name, age_s in suspects.items()
            if name not in listed
        }

    async def _beyond(self, names: Collection[str], present: Collection[str]) -> dict[str, str]:
        """Those that have no partition have no consumer either, so only other signs tell."""
        unseen = {name for name in names if name not in present}
        listed = await self._lease.in_directory(unseen) if unseen else None
        return {
            name: "it waits without a lease, and is in no directory"
            for name in unseen
            if (self._judge.keeps_leases(name) and name not in (listed or ()))
            or (listed is not None and name not in listed)
        }

    async def _take_out(self, dead: Mapping[str, str]) -> None:
        group = self._member.group
        await self._records.drop_members(group.stream, group.name, set(dead))
        for name, reason in sorted(dead.items()):
            logger.warning("took member %s out of %s: %s", name, group, reason)
            # A member in Go whose consumer is deleted never takes a message again, even if it is
            # alive after all; one that kept leases was ours, and joins again.
            if self._judge.keeps_leases(name):
                await self._api.delete_consumer(group.own_stream, name)
        self._judge.forget(dead)
        self._member.wake()
