"""Pulling from one pinned consumer: always one request open, and the pin kept, until it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dagnats_worker_partitions._priority import (
    BATCH,
    HEADER_PIN,
    Meta,
    Status,
    Timings,
    meta_of,
    pull_request,
    pull_subject,
    status_of,
)

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient
    from nats.aio.msg import Msg

logger = logging.getLogger("dagnats_worker.partitions")

ACK_PREFIX = "$JS.ACK."
HEARTBEATS_MISSED_MAX = 2.0
PIN_USED_MAX = 0.7
"""Of the time that a pin lasts; then the next pull is sent although one is open."""
LOOK_EVERY_S = 0.25
PAUSE_S = 0.5
"""Before the next pull where the server was busy."""
DRAIN_MAX_S = 2.0


class Arrival(NamedTuple):
    """A message as it came in.

    Attributes:
        subject: With the partition in front.
        sent_after: On the monotonic clock: it was sent no earlier; 0 where that is not known.
    """

    meta: Meta
    subject: str
    data: bytes
    headers: dict[str, str]
    ack_subject: str
    sent_after: float


Listen = Callable[[str, Callable[["Msg"], None]], Awaitable[Any]]
"""Makes a subscription whose messages go to a plain function."""


def listening(nc: NatsClient) -> Listen:
    """Subscriptions as nats-py makes them; those of ``worker.listen`` are faster."""

    async def listen(subject: str, take: Callable[[Msg], None]) -> Any:
        async def on_message(message: Msg) -> None:
            take(message)

        return await nc.subscribe(subject, cb=on_message)

    return listen


class PinnedPull:
    """Pulls from a consumer while it exists; a new one is made for the next consumer.

    Args:
        nc: A connected nats-py client; it may lose its connection and come back.
        take: Called with each message.
        lost: Called once, when the consumer is gone, not fit or stale, with the reason.
        strict: Messages are to come in the order of their stream. After a reconnect the consumer is
            then stale: what was in the socket would come last.
        listen: How to subscribe; None for as nats-py does it.
    """

    def __init__(
        self,
        nc: NatsClient,
        stream: str,
        consumer: str,
        timings: Timings,
        *,
        take: Callable[[Arrival], None],
        lost: Callable[[str], None],
        strict: bool = False,
        listen: Listen | None = None,
    ) -> None:
        self._nc = nc
        self._stream = stream
        self._consumer = consumer
        self._timings = timings
        self._take = take
        self._lost = lost
        self._strict = strict
        self._listen = listen or listening(nc)
        self._loop = asyncio.get_running_loop()
        self._inbox = nc.new_inbox()
        self._subject = pull_subject(stream, consumer)
        self._subscription: Any = None
        self._task: asyncio.Task[None] | None = None
        self._draining: asyncio.Future[None] | None = None
        self._news = asyncio.Event()
        self._number = 0
        self._remaining = 0
        self._opened_at = 0.0
        self._sent_after = 0.0
        self._overdue_at = 0.0
        self._not_before = 0.0
        self._reconnects = 0
        self.pin = ""
        self.was_pinned = False
        self.loss: Status | None = None

    async def open(self) -> None:
        """Subscribe, and send the first request."""
        self._reconnects = self._nc.stats["reconnects"]
        self._subscription = await self._listen(f"{self._inbox}.*", self._on_message)
        self._task = asyncio.create_task(self._keep(), name=f"pull {self._consumer}")

    async def close(self) -> None:
        """Ask for nothing more, and take what the server has sent before it knew."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # Waited for and never cancelled: a cancelled drain leaves a future behind, and the answer
        # to it would end the reader of the whole connection.
        self._draining = draining = asyncio.ensure_future(self._subscription.drain())
        draining.add_done_callback(self._on_drained)
        await asyncio.wait({draining}, timeout=DRAIN_MAX_S)
        if not draining.done() or draining.exception() is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()

    def _on_drained(self, draining: asyncio.Future[None]) -> None:
        if not draining.cancelled() and (error := draining.exception()) is not None:
            logger.debug("ending the pulls from %s: %r", self._consumer, error)

    # ------------------------------------------------------------------ asking

    async def _keep(self) -> None:
        while self.loss is None:
            self._news.clear()
            self._look()
            may_ask = self.loss is None and self._loop.time() >= self._not_before
            if self._remaining <= 0 and may_ask:
                await self._ask()
            alarm = self._loop.call_later(LOOK_EVERY_S, self._news.set)
            await self._news.wait()
            alarm.cancel()

    def _look(self) -> None:
        """Give up a request that the server does not know of, or is silent about."""
        reconnects = self._nc.stats["reconnects"]
        if reconnects != self._reconnects:
            self._reconnects = reconnects
            self._remaining = 0
            if self._strict:
                self._end(Status.STALE, "the connection was lost")
        elif self._remaining > 0 and self._loop.time() > self._overdue_at:
            logger.debug("no heartbeat from %s; asking again", self._consumer)
            self._remaining = -1  # what it has sent may still lie in our socket
        elif self.pin and self._open_for_s > self._timings.pinned_ttl * PIN_USED_MAX:
            self._remaining = -1

    @property
    def _open_for_s(self) -> float:
        return time.monotonic() - self._opened_at

    async def _ask(self) -> None:
        if not self._nc.is_connected:
            return
        is_another_open = self._remaining < 0
        self._number += 1
        self._remaining = BATCH
        previous_at, self._opened_at = self._opened_at, time.monotonic()
        self._sent_after = previous_at if is_another_open else self._opened_at
        self._hear()
        request = pull_request(self._timings, self.pin)
        try:
            await self._nc.publish(self._subject, request, reply=f"{self._inbox}.{self._number}")
        except Exception as error:  # noqa: BLE001 - whatever nats-py makes of a dying connection
            logger.debug("pull from %s: %r", self._consumer, error)
            self._remaining = 0
            self._not_before = self._loop.time() + PAUSE_S

    def _hear(self) -> None:
        silence_s = self._timings.heartbeat * HEARTBEATS_MISSED_MAX
        self._overdue_at = self._loop.time() + silence_s

    # ------------------------------------------------------------------ what the server says

    def _on_message(self, message: Msg) -> None:
        reply = message.reply
        headers = message.headers or {}
        if not reply.startswith(ACK_PREFIX):
            self._on_status(message.subject, headers)
            return
        pin = headers.get(HEADER_PIN, "")
        if not pin:
            self._end(Status.UNFIT, "it delivers without a pin")
            return
        self.pin = pin
        self.was_pinned = True
        if self.loss is Status.STALE:
            return
        self._hear()
        sent_after = self._sent_after if self._remaining > 0 else 0.0
        self._remaining = max(0, self._remaining - 1)
        if not self._remaining:
            self._news.set()
        arrival = Arrival(meta_of(reply), message.subject, message.data, headers, reply, sent_after)
        self._take(arrival)

    def _on_status(self, subject: str, headers: dict[str, str]) -> None:
        description = headers.get("Description", "").strip()
        status = status_of(headers.get("Status", ""), description)
        if status in (Status.GONE, Status.UNFIT):
            self._end(status, description or status.value)
            return
        if status is Status.NOT_PINNED:
            self.pin = ""
        if int(subject.rpartition(".")[2]) != self._number:
            if status is not Status.ALIVE:
                self._sent_after = self._opened_at  # the older one is not open any more
            return
        if status is Status.ALIVE:
            self._sent_after = self._opened_at  # all that the older one has sent came before
            self._hear()
            return
        self._remaining = 0
        if status is Status.BUSY:
            logger.debug("pull from %s ended: %s", self._consumer, description)
            self._not_before = self._loop.time() + PAUSE_S
        self._news.set()

    def _end(self, status: Status, reason: str) -> None:
        if self.loss is None:
            self.loss = status
            self._news.set()
            self._lost(reason)
