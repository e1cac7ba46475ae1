"""Tasks from a pull consumer: pulls of our own, never for more than there are slots.

At most two pulls are open. A task type that has tasks queued asks for exactly what is free, with
``no_wait``, so that the reservation ends as soon as the queue is empty. An idle one keeps a pull
for one message open, on which the server sends idle heartbeats. The server serves open pulls in
turn and a message does not say which one it answers, so each pull has a lane, with a subscription
of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import timedelta

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dagnats_worker._config import WorkerConfig
from dagnats_worker._jetstream.connection import Connection
from dagnats_worker._jetstream.consumers import Consumers
from dagnats_worker._jetstream.direct import subscribe
from dagnats_worker._protocol import NAK, parse_ack_subject
from dagnats_worker._slots import Slots
from dagnats_worker._transport import NO_HEADERS, ConsumerSpec, Delivery
from dagnats_worker.errors import DagnatsError

logger = logging.getLogger("dagnats_worker.source")

PULLS_OPEN_MAX = 2
HEARTBEATS_MISSED_MAX = 2.5
UNANSWERED_GRACE_S = 2.0
RECOVER_WAIT_FIRST_S = 0.1
LOOK_EVERY_S = 0.5

RECONNECTED = "the connection was lost"
LOST = ("Consumer Deleted", "Leadership Change", "Server Shutdown")
"""Descriptions of a pull's end after which the consumer is looked up, and made where it is gone."""


class Lane:
    """An inbox, and the one pull that may be open on it.

    Attributes:
        idle: For the pull of an idle task type.
        number: Of the newest pull; the last token of the subject that the server answers to.
        remaining: How many messages the open pull may still bring; 0 for none open.
        opened_at: On the monotonic clock, as ``overdue_at`` is on the loop's.
    """

    __slots__ = ("idle", "inbox", "number", "opened_at", "overdue_at", "remaining", "subscription")

    def __init__(self, *, idle: bool) -> None:
        self.idle = idle
        self.inbox = ""
        self.subscription: Subscription | None = None
        self.number = 0
        self.remaining = 0
        self.opened_at = 0.0
        self.overdue_at = 0.0


class PullSource:
    """The tasks of one consumer. One reader, long-lived inboxes, new ones after each reconnect."""

    confirm_leases = False
    fenced = False

    def __init__(
        self, connection: Connection, consumers: Consumers, spec: ConsumerSpec, config: WorkerConfig
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._consumers = consumers
        self._spec = spec
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._slots: Slots | None = None
        self._arrived: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._lanes = (Lane(idle=True), Lane(idle=False), Lane(idle=False))
        self._backlog = False
        self._stopping = False
        self._not_before = 0.0
        self._looked_at = 0.0
        self._consumer_lost = ""
        self._complaint = ""
        self._doubtful_up_to = 0
        self._failure: BaseException | None = None
        self._subscribed = False
        self._tasks: list[asyncio.Task[None]] = []
        self.name = spec.name
        self.ack_wait = timedelta(seconds=30)

    async def bind(self) -> None:
        """Find or create the consumer; ``StartError`` where another one is in the way."""
        self.name, self.ack_wait = await self._consumers.bind(self._spec)
        self._request_subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._spec.stream}.{self.name}"

    @property
    def trouble(self) -> str:
        """Why nothing comes; empty where all is well."""
        reason = self._complaint or self._consumer_lost
        return f"consumer {self.name}: {reason}" if reason else ""

    # ------------------------------------------------------------------ what the worker calls

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        self._slots = slots
        await self._subscribe()
        self._connection.listen(lost=self._connection_lost, back=self._connection_back)
        self._tasks = [
            asyncio.create_task(self._keep_pulling(slots), name=f"pull {self.name}"),
            asyncio.create_task(self._keep_informed(), name=f"consumer {self.name}"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        arrived, news = self._arrived, self._news
        while True:
            while arrived:
                yield arrived.popleft()
            if self._failure is not None:
                raise self._failure
            if self._stopping:
                return
            news.clear()
            await news.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A source that asks for nothing any more must not sit there silently."""
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._news.set()

    def settled(self, delivery: Delivery) -> None:
        pass

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client.is_connected:
            await self._end_subscriptions()
        self._subscribed = False
        while self._arrived:
            delivery = self._arrived.popleft()
            with contextlib.suppress(nats.errors.Error, OSError):  # it comes after its lease
                await self._client.publish(delivery.ack_subject, NAK)
            if self._slots is not None:
                self._slots.settled()
        self._forget_pulls()
        self._news.set()

    async def close(self) -> None:
        pass

    # ------------------------------------------------------------------ messages from the server

    def _on_message(self, lane: Lane, message: Msg) -> None:
        reply = message.reply
        if not reply.startswith("$JS.ACK."):
            self._on_status(lane, message)
            return
        info = parse_ack_subject(reply)
        delivery = Delivery(
            message.subject,
            message.data,
            message.headers or NO_HEADERS,
            ack_subject=reply,
            stream=info.stream,
            deliveries=info.deliveries,
            sequence=info.stream_sequence,
            timestamp_ns=info.timestamp_ns,
            doubtful=info.stream_sequence <= self._doubtful_up_to or self._may_be_late(lane),
            sent_after=lane.opened_at if lane.remaining else 0.0,
        )
        # The count of pending messages leaves out those that wait to be delivered again.
        self._backlog = info.pending > 0 or info.deliveries > 1
        self._count_arrival(lane)
        self._arrived.append(delivery)
        self._news.set()

    def _may_be_late(self, lane: Lane) -> bool:
        """Whether a message may have lain in the socket, while we were frozen, beyond its lease.

        It came after its pull was opened, so that is the longest it can have lain there.
        """
        if not lane.remaining:
            return True
        return time.monotonic() - lane.opened_at > self.ack_wait.total_seconds()

    def _count_arrival(self, lane: Lane) -> None:
        slots = self._slots
        assert slots is not None, "deliveries() is what subscribes"
        if lane.remaining:
            lane.remaining -= 1
            slots.arrived(asked=True, idle=lane.idle)
        else:
            slots.arrived(asked=False)
        slots.changed.set()

    def _on_status(self, lane: Lane, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        number = int(message.subject.rpartition(".")[2])
        if number != lane.number or not lane.remaining:
            return
        if status == "100":
            lane.overdue_at = self._loop.time() + self._heartbeats_s()
            return
        self._end_pull(lane)
        reason = headers.get("Description", "").strip()
        if status in ("404", "408"):
            self._backlog = self._backlog and lane.idle
        elif status == "503" or any(text in reason for text in LOST):
            self._consumer_lost = reason or "nobody answers for it"
        else:
            logger.warning("pull from %s ended: %s %s", self.name, status, reason)
            self._not_before = self._loop.time() + LOOK_EVERY_S

    def _heartbeats_s(self) -> float:
        return self._config.pull_heartbeat.total_seconds() * HEARTBEATS_MISSED_MAX

    def _end_pull(self, lane: Lane) -> None:
        remaining, lane.remaining = lane.remaining, 0
        if self._slots is not None:
            self._slots.take_back(remaining, idle=lane.idle)
            self._slots.changed.set()

    def _open(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.remaining]

    def _forget_pulls(self) -> None:
        for lane in self._open():
            self._end_pull(lane)

    # ------------------------------------------------------------------ pulling

    async def _keep_pulling(self, slots: Slots) -> None:
        self._looked_at = self._loop.time()
        while not self._stopping:
            slots.changed.clear()
            if self._may_ask:
                self._give_up_overdue()
                if self._consumer_lost:
                    await self._recover()
            if self._may_ask and not self._consumer_lost and self._loop.time() >= self._not_before:
                await self._pull(slots)
            alarm = self._loop.call_later(LOOK_EVERY_S, slots.changed.set)
            await slots.changed.wait()
            alarm.cancel()

    @property
    def _may_ask(self) -> bool:
        return self._client.is_connected and self._subscribed

    async def _pull(self, slots: Slots) -> None:
        idle, *draining = self._lanes
        while len(self._open()) < PULLS_OPEN_MAX:
            backlog = self._backlog and not slots.only_idle
            if backlog and (free := slots.free()):
                slots.ask(free)
                lane = next(lane for lane in draining if not lane.remaining)
                sent = await self._request(lane, free)
            elif not backlog and idle.remaining:
                return
            elif not backlog and slots.may_idle():
                slots.ask_idle()
                sent = await self._request(idle, 1)
            else:
                slots.want()
                return
            if not sent:
                return

    async def _request(self, lane: Lane, batch: int) -> bool:
        """Open a pull; False where the connection takes nothing at the moment."""
        config = self._config
        body: dict[str, int | bool] = {"batch": batch}
        if lane.idle:
            body["expires"] = _ns(config.pull_expires)
            body["idle_heartbeat"] = _ns(config.pull_heartbeat)
            overdue_s = self._heartbeats_s()
        else:
            body["expires"] = _ns(config.drain_pull_expires)
            body["no_wait"] = True
            overdue_s = config.drain_pull_expires.total_seconds() + UNANSWERED_GRACE_S
        lane.number += 1
        lane.remaining = batch
        lane.opened_at = time.monotonic()
        lane.overdue_at = self._loop.time() + overdue_s
        try:
            await self._client.publish(
                self._request_subject, json.dumps(body).encode(), f"{lane.inbox}.{lane.number}"
            )
        except (nats.errors.Error, OSError) as error:
            logger.debug("pull from %s: %r", self.name, error)
            self._not_before = self._loop.time() + LOOK_EVERY_S
            self._end_pull(lane)
            return False
        return True

    def _give_up_overdue(self) -> None:
        """Where the loop was blocked, answers wait to be read, so it counts only up to then."""
        last, self._looked_at = self._looked_at, self._loop.time()
        now = min(self._looked_at, last + LOOK_EVERY_S)
        for lane in self._open():
            if lane.overdue_at >= now:
                continue
            logger.warning("pull from %s was not answered; asking again", self.name)
            self._end_pull(lane)
            self._consumer_lost = "it does not answer"

    async def _recover(self) -> None:
        """Bring the consumer back, for as long as it takes, and say so."""
        self._forget_pulls()
        wait_s = RECOVER_WAIT_FIRST_S
        while self._consumer_lost and self._client.is_connected:
            try:
                await self.bind()
                self._doubtful_up_to = await self._consumers.last_sequence(self._spec.stream)
            except DagnatsError as error:
                self._complain(str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, self._config.recover_wait_max.total_seconds())
            else:
                logger.info("consumer %s is there again (%s)", self.name, self._consumer_lost)
                self._consumer_lost = self._complaint = ""

    def _complain(self, text: str) -> None:
        """Warn once of what may last long."""
        level = logging.DEBUG if text == self._complaint else logging.WARNING
        self._complaint = text
        logger.log(level, "consumer %s: %s; trying again", self.name, text)

    async def _keep_informed(self) -> None:
        """Another process may change the lease, and another one's messages fill the durable."""
        every_s = self._config.consumer_check_every.total_seconds()
        while True:
            await asyncio.sleep(every_s)
            try:
                self.ack_wait = await self._consumers.look(
                    self._spec.stream, self.name, self._config.ack_pending_warning
                )
            except DagnatsError as error:
                logger.debug("consumer %s: %s", self.name, error)

    # ------------------------------------------------------------------ the connection

    async def _subscribe(self) -> None:
        for lane in self._lanes:
            lane.inbox = self._client.new_inbox()
            take = functools.partial(self._on_message, lane)
            lane.subscription = await subscribe(self._client, f"{lane.inbox}.*", take)
        self._subscribed = True

    async def _connection_lost(self) -> None:
        """Old pulls must not deliver to us after the reconnect, so their inboxes are dropped."""
        self._subscribed = False
        if self._client.is_connected:
            await self._end_subscriptions()
        for lane in self._lanes:
            subscription, lane.subscription = lane.subscription, None
            if subscription is not None:
                with contextlib.suppress(nats.errors.Error):  # closed for good, it takes nothing
                    await subscription.unsubscribe()
        self._forget_pulls()

    async def _connection_back(self) -> None:
        if self._stopping:
            return
        await self._subscribe()
        self._consumer_lost = RECONNECTED
        self._backlog = True
        if self._slots is not None:
            self._slots.changed.set()

    async def _end_subscriptions(self) -> None:
        """Unsubscribe, and still take what the server has sent before it knew."""
        for lane in self._lanes:
            subscription, lane.subscription = lane.subscription, None
            if subscription is None:
                continue
            try:
                async with asyncio.timeout(self._config.request_timeout.total_seconds()):
                    await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py
            except (TimeoutError, Exception) as error:  # noqa: BLE001 - whatever nats-py makes of a dying connection
                logger.debug("ending a subscription of %s: %r", self.name, error)


def _ns(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1_000_000_000)
