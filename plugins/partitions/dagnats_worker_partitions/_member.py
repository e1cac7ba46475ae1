"""One member of a group: its name in the record, and its consumer while it has partitions.

Two consumers of a work queue may not overlap, so whoever has a consumer owns its partitions. A
member that is to have others lets go first: it stops pulling, waits for its handlers while their
leases are renewed, and only then deletes its consumer. Until that moment nobody else can be given a
message of these partitions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dagnats_worker.errors import TransportError
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._consumer import MemberConsumer
from dagnats_worker_partitions._errors import GroupConfigError, GroupNotFoundError
from dagnats_worker_partitions._groups import records_of
from dagnats_worker_partitions._names import ELASTIC_BUCKET, group_stream, key
from dagnats_worker_partitions._pinned import Arrival, Listen
from dagnats_worker_partitions._priority import Joining, Timings
from dagnats_worker_partitions._record import Record
from dagnats_worker_partitions._rules import filters_of

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

logger = logging.getLogger("dagnats_worker.partitions")

RETRIES_S = (0.1, 0.2, 0.4, 0.8)
"""Pauses after somebody else still had a partition; then it is the tick's turn."""
FAILED_PAUSE_S = 0.5
LOOK_AGAIN_S = 1.0
"""Where another process of the same member is in the way."""
STANDBY_PAUSE_S = (0.4, 0.5)
"""The process that is served goes first; as Go does it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group that a member is in.

    Attributes:
        stream: That it divides.
        config: As it was when the member started; only who its members are may change.
    """

    stream: str
    name: str
    config: GroupConfig

    @property
    def own_stream(self) -> str:
        """Where its messages are, with the partition in front of their subjects."""
        return group_stream(self.stream, self.name)

    @property
    def key(self) -> str:
        """Of its record, and of all that belongs to it."""
        return key(self.stream, self.name)

    def __str__(self) -> str:
        return f"group {self.name!r} on stream {self.stream!r}"


class Holder(Protocol):
    """Who is given a member's messages."""

    def take(self, arrival: Arrival) -> None:
        """A message has come."""
        ...

    async def give_back(self) -> None:
        """What has not started is to be delivered to somebody else."""
        ...

    async def wait_idle(self) -> None:
        """Return when no handler runs any more."""
        ...

    def forget(self, last_sequence: int) -> None:
        """A new consumer begins: what waits comes again, and up to here others may have had it."""
        ...


class Member:
    """Keeps a name in a group, and a consumer that fits to what the record says.

    Args:
        slots: The server delivers no more than so many messages that are not acked.
        ordered: Messages come in the order of their stream.
        listen: How to subscribe; None for as nats-py does it.
    """

    def __init__(
        self,
        nc: NatsClient,
        group: Group,
        name: str,
        holder: Holder,
        *,
        timings: Timings,
        slots: int,
        ordered: bool = False,
        listen: Listen | None = None,
    ) -> None:
        self.group = group
        self.name = name
        self.timings = timings
        self._nc = nc
        self._api = JetStreamApi(nc)
        self._records = records_of(nc)
        self._holder = holder
        self._consumer = MemberConsumer(
            nc,
            group.own_stream,
            name,
            timings=timings,
            slots=slots,
            ordered=ordered,
            take=holder.take,
            lost=self._on_lost,
            listen=listen,
        )
        self._news = asyncio.Event()
        self._watch: Any = None
        self._refusals = 0
        self._complaint = ""
        self.record: Record | None = None
        self.trouble = ""

    async def enter(self) -> None:
        """Put the name into the record, and listen to its changes.

        Raises:
            GroupError: There is no such group, or it has mappings and not this name.
            TransportError: The server did not answer.
        """
        # Changes are listened to before the first read, so that none is missed between the two.
        subject = f"$KV.{ELASTIC_BUCKET}.{self.group.key}"
        self._watch = await self._nc.subscribe(subject, cb=self._on_change)
        self.record = await self._read()

    async def _on_change(self, _message: Any) -> None:
        # Writes that are refused pass here too, so this only says that it is time to look.
        self._news.set()

    def wake(self) -> None:
        """Look at everything again now."""
        self._news.set()

    async def run(self) -> None:
        """Follow the record, for ever.

        Raises:
            GroupError: The group was deleted, or is another one now.
        """
        while True:
            self._news.clear()
            try:
                pause_s = await self._advance()
                self._complaint = self.trouble = ""
            except TransportError as error:
                pause_s = FAILED_PAUSE_S
                self._complain(str(error))
            alarm = asyncio.get_running_loop().call_later(pause_s, self._news.set)
            await self._news.wait()
            alarm.cancel()

    def _complain(self, text: str) -> None:
        """Warn once of what may last long."""
        level = logging.DEBUG if text == self._complaint else logging.WARNING
        self._complaint = text
        self.trouble = f"{self.group}: {text}"
        logger.log(level, "member %s of %s: %s; trying again", self.name, self.group, text)

    async def _advance(self) -> float:
        """One look at the record and the consumer; returns after which pause the next is due."""
        consumer = self._consumer
        if consumer.is_lost:
            await consumer.replace()
        record = self.record = await self._read()
        wanted = tuple(filters_of(record.config, self.name))
        if consumer.is_ours:
            if wanted == consumer.filters:
                return self.timings.tick
            logger.info("member %s of %s changes its partitions", self.name, self.group)
            await self._let_go()
            record = self.record = await self._read()
            wanted = tuple(filters_of(record.config, self.name))
        if not wanted:
            return self.timings.tick
        return await self._join(wanted)

    async def _read(self) -> Record:
        """The record, with this member in it."""
        group = self.group
        record = await self._records.read(group.stream, group.name)
        if record is None:
            raise GroupNotFoundError(
                f"{group} was deleted; start the worker again to make it anew, or leave its tasks "
                "to others"
            )
        if not record.config.same_group(group.config):
            raise GroupConfigError(
                f"{group} has another configuration than when this member started; start the "
                "worker again"
            )
        if record.config.mappings or self.name in record.config.members:
            return record
        if self.record is not None:
            logger.warning("member %s was taken out of %s; coming back", self.name, group)
        return await self._records.add_members(group.stream, group.name, [self.name])

    # ------------------------------------------------------------------ the consumer

    async def _join(self, wanted: tuple[str, ...]) -> float:
        consumer = self._consumer
        answer = await consumer.make(wanted)
        if answer is not Joining.JOINED:
            return self._refused(answer)
        self._refusals = 0
        info = await self._api.stream(consumer.stream)
        self._holder.forget(int(info["state"]["last_seq"]) if info is not None else 0)
        await consumer.read()
        logger.info("member %s of %s has %s", self.name, self.group, ", ".join(wanted))
        return self.timings.tick

    def _refused(self, answer: Joining) -> float:
        """Somebody has not let go yet: ask soon again, then wait for the tick."""
        logger.debug("member %s of %s waits: %s", self.name, self.group, answer.value)
        if answer is Joining.IN_USE:
            return LOOK_AGAIN_S
        pauses = (*RETRIES_S, self.timings.tick)
        pause_s = pauses[min(self._refusals, len(pauses) - 1)]
        self._refusals += 1
        return pause_s

    def _on_lost(self, reason: str) -> None:
        logger.warning("member %s of %s needs a new consumer: %s", self.name, self.group, reason)
        self._news.set()

    async def stop_pulling(self) -> None:
        """Take no more messages, and give back what waits; the partitions are still ours."""
        await self._consumer.stop_reading()
        await self._holder.give_back()

    async def _let_go(self) -> None:
        """Give the partitions away, after the last handler."""
        await self.stop_pulling()
        await self._holder.wait_idle()
        if not await self._consumer.give_up():
            await asyncio.sleep(random.uniform(*STANDBY_PAUSE_S))  # noqa: S311 - only to part processes

    async def leave(self) -> bool:
        """Give everything away: the consumer, and then the name.

        Returns:
            Whether it is gone; false where another process of the same member goes on.
        """
        if self._watch is not None:
            await self._watch.unsubscribe()
        group, consumer = self.group, self._consumer
        if await consumer.is_needed() or not await consumer.give_up():
            logger.info("member %s stays in %s with another process", self.name, group)
            return False
        record = await self._records.read(group.stream, group.name)
        if record is not None and not record.config.mappings:
            await self._records.drop_members(group.stream, group.name, [self.name])
        logger.info("member %s has left %s", self.name, group)
        return True
