"""The consumer of a member: while it exists, the partitions in its filters are the member's.

Several processes may run under one name. The consumer is theirs together, and it is taken away only
by who was served, or while nobody is and nobody holds a message of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._pinned import Arrival, Listen, PinnedPull
from dagnats_worker_partitions._priority import (
    Joining,
    Status,
    Timings,
    consumer_config,
    create_consumer,
    reader_of,
)

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

logger = logging.getLogger("dagnats_worker.partitions")

LEASES_IN_THE_WAY = 3
"""So long a consumer with messages and without a reader is left to a process that finishes them."""


class MemberConsumer:
    """Makes, reads and deletes the consumer of one member.

    Args:
        stream: That of the group.
        slots: The server delivers no more than so many messages that are not acked.
        ordered: Messages come in the order of their stream.
        take: Called with each message.
        lost: Called when the consumer is of no use any more, with the reason.
        listen: How to subscribe; None for as nats-py does it.
    """

    def __init__(
        self,
        nc: NatsClient,
        stream: str,
        name: str,
        *,
        timings: Timings,
        slots: int,
        ordered: bool,
        take: Callable[[Arrival], None],
        lost: Callable[[str], None],
        listen: Listen | None = None,
    ) -> None:
        self.name = name
        self.stream = stream
        self._nc = nc
        self._api = JetStreamApi(nc)
        self._timings = timings
        self._slots = slots
        self._ordered = ordered
        self._take = take
        self._lost = lost
        self._listen = listen
        self._pull: PinnedPull | None = None
        self._unread_since: float | None = None
        self.filters: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """This process pulls from it, or could."""
        return self._pull is not None

    @property
    def is_lost(self) -> bool:
        return self._pull is not None and self._pull.loss is not None

    async def make(self, filters: tuple[str, ...]) -> Joining:
        """Create it, or join those who read from it; ``read`` then begins.

        Raises:
            TransportError: The server refused it for another reason, or did not answer.
        """
        config = consumer_config(self.name, filters, self._timings, self._slots)
        answer = Joining.DIFFERS
        if not self._ordered:  # who keeps an order begins with a consumer of its own
            answer = await create_consumer(self._api, self.stream, config)
        if answer is Joining.DIFFERS:
            if not await self._make_room():
                return Joining.IN_USE
            answer = await create_consumer(self._api, self.stream, config)
        if answer is Joining.JOINED:
            self.filters = filters
        return answer

    async def _make_room(self) -> bool:
        """Delete a consumer of this name that is in the way; false while a process may need it.

        Who is served has a pin, and who is next in line a pull. Who has neither and has messages
        finishes them before it ends; or it is dead, and then they would lie there.
        """
        reader = await reader_of(self._api, self.stream, self.name)
        if reader is None:
            return True
        if reader.pin or reader.waiting:
            self._unread_since = None
            return False
        now = time.monotonic()
        if reader.unacked:
            self._unread_since = self._unread_since or now
            if now - self._unread_since < self._timings.ack_wait * LEASES_IN_THE_WAY:
                return False
        self._unread_since = None
        logger.info("consumer %s of %s is made anew", self.name, self.stream)
        await self._api.delete_consumer(self.stream, self.name)
        return True

    async def read(self) -> None:
        """Begin to pull."""
        self._pull = PinnedPull(
            self._nc,
            self.stream,
            self.name,
            self._timings,
            take=self._take,
            lost=self._lost,
            strict=self._ordered,
            listen=self._listen,
        )
        await self._pull.open()

    async def stop_reading(self) -> None:
        """Pull no more; the partitions are still ours."""
        if self._pull is not None:
            await self._pull.close()

    async def replace(self) -> None:
        """It is of no use any more: be ready for the next one.

        Handlers run on. Nobody else is to have these partitions, and what runs here comes again
        from the next consumer, with a newer lease.
        """
        pull = self._pull
        if pull is None:
            return
        await pull.close()
        if pull.loss is Status.UNFIT:
            await self._api.delete_consumer(self.stream, self.name)
        elif pull.loss is Status.STALE:
            await self._delete()
        self._pull, self.filters = None, ()

    async def give_up(self) -> bool:
        """Delete it, after ``stop_reading`` and the last handler; false where others need it."""
        deleted = not self.filters or await self._delete()
        self._pull, self.filters = None, ()
        return deleted

    async def _delete(self) -> bool:
        reader = await reader_of(self._api, self.stream, self.name)
        if reader is not None:
            pin = self._pull.pin if self._pull is not None else ""
            was_pinned = self._pull is not None and self._pull.was_pinned
            if not reader.is_of(pin, self.filters, was_pinned=was_pinned):
                return False
            await self._api.delete_consumer(self.stream, self.name)
        return True

    async def is_needed(self) -> bool:
        """Whether another process of this member reads from it, or finishes what it has."""
        reader = await reader_of(self._api, self.stream, self.name)
        if reader is None:
            return False
        if self._pull is None and (reader.pin or reader.unacked):
            return True
        return bool(reader.waiting)
