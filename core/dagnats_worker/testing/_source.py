"""Tasks from a consumer of the in-memory server."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker._protocol import NAK
from dagnats_worker._slots import Slots
from dagnats_worker._transport import ConsumerSpec, Delivery
from dagnats_worker.errors import DagnatsError
from dagnats_worker.testing._consumer import Consumer, Pull

if TYPE_CHECKING:
    from dagnats_worker.testing._transport import MemoryTransport

logger = logging.getLogger("dagnats_worker.testing")

RECOVER_WAIT_S = 0.05


class MemorySource:
    """The tasks of one consumer, for one connection."""

    confirm_leases = False
    fenced = False

    def __init__(self, transport: MemoryTransport, spec: ConsumerSpec) -> None:
        self._transport = transport
        self._spec = spec
        self._slots: Slots | None = None
        self._arrived: deque[Delivery] = deque()
        self._idle: Pull | None = None
        self._stopping = False
        self._consumer: Consumer | None = None
        self._doubtful_up_to = 0
        self.name = spec.name
        self.ack_wait = timedelta(0)

    async def bind(self) -> None:
        """Find or create the consumer; ``StartError`` where another one is in the way."""
        self.name, self.ack_wait = await self._transport.consumer_binding.bind(self._spec)
        self._consumer = self._transport.server.consumers[self._spec.stream, self.name]

    # ------------------------------------------------------------------ what the worker calls

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        self._slots = slots
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self._stopping:
                return
            slots.changed.clear()
            if self._transport.connected:
                await self._pull(slots)
            if not self._arrived:
                await slots.changed.wait()

    def settled(self, delivery: Delivery) -> None:
        pass

    async def stop(self) -> None:
        self._stopping = True
        self.forget_pull()
        while self._arrived:
            await self._transport.send(self._arrived.popleft().ack_subject, NAK)
            assert self._slots is not None, "what has arrived was asked for"
            self._slots.settled()
        self.wake()

    async def close(self) -> None:
        pass

    # ------------------------------------------------------------------ pulling

    async def _pull(self, slots: Slots) -> None:
        consumer = await self._living(slots)
        if consumer is None or self._stopping:
            return
        for delivery in consumer.take(slots.free()):
            slots.ask(1)
            slots.arrived(asked=True)
            self._keep(delivery)
        idles = slots.only_idle or not (self._arrived or consumer.has_more)
        if idles and self._idle is None and slots.may_idle():
            slots.ask_idle()
            self._idle = Pull(self._on_message, self._on_ended)
            consumer.wait(self._idle)
        slots.want()

    async def _living(self, slots: Slots) -> Consumer | None:
        """The consumer; where it was deleted, it is made again."""
        if self._consumer is None or self._consumer.deleted:
            try:
                await self.bind()
                self._doubt()
            except DagnatsError as error:
                logger.warning("consumer %s: %s; trying again", self.name, error)
                asyncio.get_running_loop().call_later(RECOVER_WAIT_S, slots.changed.set)
                return None
        return self._consumer

    def _on_message(self, delivery: Delivery) -> None:
        assert self._slots is not None, "only deliveries() waits for messages"
        self._idle = None
        self._slots.arrived(asked=True, idle=True)
        self._keep(delivery)
        self.wake()

    def _keep(self, delivery: Delivery) -> None:
        delivery.doubtful = delivery.sequence <= self._doubtful_up_to
        self._arrived.append(delivery)

    def _doubt(self) -> None:
        """What is queued now may have been delivered before, whatever its count says."""
        self._doubtful_up_to = self._transport.server.streams[self._spec.stream].last_sequence

    def _on_ended(self, reason: str) -> None:
        logger.info("pull from %s ended: %s", self.name, reason)
        self.forget_pull()
        self.wake()

    def forget_pull(self) -> None:
        """Nothing arrives any more on what is open."""
        pull, self._idle = self._idle, None
        if pull is None:
            return
        if self._consumer is not None:
            self._consumer.leave(pull)
        if self._slots is not None:
            self._slots.take_back(1, idle=True)

    def come_back(self) -> None:
        """The connection is there again."""
        self._doubt()
        self.wake()

    def wake(self) -> None:
        """Look again at what may be asked for."""
        if self._slots is not None:
            self._slots.changed.set()
