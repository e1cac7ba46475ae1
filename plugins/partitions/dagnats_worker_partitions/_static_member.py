"""A member of a static group: pulls what is in its partitions until the group is deleted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from dagnats_worker.errors import TransportError
from dagnats_worker_partitions._api import ApiError, JetStreamApi
from dagnats_worker_partitions._errors import GroupConfigError, GroupError, GroupNotFoundError
from dagnats_worker_partitions._names import STATIC_BUCKET, key, static_consumer
from dagnats_worker_partitions._pinned import Arrival, PinnedPull
from dagnats_worker_partitions._priority import Timings, consumer_config, nanoseconds, timings_of
from dagnats_worker_partitions._static import StaticConfig, read_static_group

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

logger = logging.getLogger("dagnats_worker.partitions")

REJOIN_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class StaticMessage:
    """A message of a static group; whoever handles it acks it.

    Attributes:
        subject: Without the partition in front.
        deliveries: 1 for the first.
        sequence: In the source stream.
    """

    subject: str
    partition: int
    data: bytes
    headers: dict[str, str]
    deliveries: int
    sequence: int
    _ack_subject: str = field(repr=False)
    _nc: NatsClient = field(repr=False)

    async def ack(self) -> None:
        """It is done."""
        await self._nc.publish(self._ack_subject, b"+ACK")

    async def nak(self, delay: timedelta = timedelta(0)) -> None:
        """Let it come again, after a delay."""
        options = json.dumps({"delay": nanoseconds(delay.total_seconds())}) if delay else ""
        await self._nc.publish(self._ack_subject, f"-NAK {options}".rstrip().encode())

    async def in_progress(self) -> None:
        """It needs longer than AckWait: begin that anew."""
        await self._nc.publish(self._ack_subject, b"+WPI")


Handle = Callable[[StaticMessage], Awaitable[None]]


async def consume_static_group(
    nc: NatsClient,
    stream: str,
    group: str,
    member: str,
    handle: Handle,
    *,
    ack_wait: timedelta = timedelta(seconds=5),
    max_ack_pending: int = 1,
) -> None:
    """Handle the messages of a member's partitions, one at a time, until the group is deleted.

    Several processes may run the same member: one is served, and the others stand by. Cancel it to
    stop; the consumer stays for whoever comes next. A member beyond the number of partitions gets
    nothing.

    Args:
        handle: Called with each message, which it acks. What it raises is raised here.
        ack_wait: After this long without an ack a message comes again, and as long after the end of
            a process another one takes over.

    Raises:
        GroupNotFoundError: There is no such group.
        GroupConfigError: Its record was changed while it ran; the consumer was deleted.
        GroupError: It has no such member, or its consumer cannot be made.
    """
    config = await read_static_group(nc, stream, group)
    if member not in config.names:
        raise GroupError(
            f"static group {group!r} on stream {stream!r} has no member {member!r}; "
            f"its members are {', '.join(config.names) or 'none'}"
        )
    one = _Member(nc, stream, group, member, handle)
    watching = asyncio.create_task(one.until_changed(config, timings_of(ack_wait).tick))
    working = asyncio.create_task(one.work(config.filters_of(member), ack_wait, max_ack_pending))
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(watching, working)
    if not working.cancelled():
        working.result()
    if watching.exception() is None or isinstance(watching.exception(), GroupConfigError):
        await JetStreamApi(nc).delete_consumer(stream, one.consumer)
    watching.result()


class _Member:
    """One member in this process."""

    def __init__(
        self, nc: NatsClient, stream: str, group: str, member: str, handle: Handle
    ) -> None:
        self.consumer = static_consumer(group, member)
        self._nc = nc
        self._api = JetStreamApi(nc)
        self._stream = stream
        self._group = group
        self._handle = handle
        self._arrived: asyncio.Queue[Arrival] = asyncio.Queue()

    async def until_changed(self, config: StaticConfig, tick_s: float) -> None:
        """Return when the group was deleted; raise when its record is another one."""
        changed = asyncio.Event()

        async def wake(_: Any) -> None:
            changed.set()

        # Only a wake-up: what counts is read, also where a change was missed.
        subject = f"$KV.{STATIC_BUCKET}.{key(self._stream, self._group)}"
        subscription = await self._nc.subscribe(subject, cb=wake)
        try:
            while await self._same(config):
                alarm = asyncio.get_running_loop().call_later(tick_s, changed.set)
                await changed.wait()
                alarm.cancel()
                changed.clear()
        finally:
            await subscription.unsubscribe()

    async def _same(self, config: StaticConfig) -> bool:
        try:
            found = await read_static_group(self._nc, self._stream, self._group)
        except GroupNotFoundError:
            return False
        except TransportError as error:
            logger.warning("static group %s: %s", self._group, error)
            return True
        if found != config:
            raise GroupConfigError(
                f"static group {self._group!r} on stream {self._stream!r} was made anew with "
                "another configuration; start this member again"
            )
        return True

    async def work(self, filters: Sequence[str], ack_wait: timedelta, max_ack_pending: int) -> None:
        """Pull and handle, for ever."""
        if not filters:
            await asyncio.get_running_loop().create_future()
        timings = timings_of(ack_wait)
        wanted = consumer_config(self.consumer, filters, timings, max_ack_pending)
        await _first_of(self._pull(static_consumer_config(wanted), timings), self._handle_all())

    async def _pull(self, config: dict[str, Any], timings: Timings) -> None:
        await self._create(config)
        while True:
            lost = asyncio.Event()
            pull = PinnedPull(
                self._nc,
                self._stream,
                self.consumer,
                timings,
                take=self._arrived.put_nowait,
                lost=partial(self._on_lost, lost),
            )
            await pull.open()
            try:
                await lost.wait()
            finally:
                await pull.close()
            await self._rejoin(config)

    def _on_lost(self, lost: asyncio.Event, reason: str) -> None:
        logger.warning("consumer %s on %s: %s; made again", self.consumer, self._stream, reason)
        lost.set()

    async def _create(self, config: dict[str, Any]) -> None:
        body = {"stream_name": self._stream, "config": config, "action": "create"}
        try:
            await self._api.ask(f"CONSUMER.CREATE.{self._stream}.{self.consumer}", body)
        except ApiError as error:
            raise GroupError(
                f"consumer {self.consumer!r} of static group {self._group!r} cannot be made: "
                f"{error.description}; delete the consumer that is in its way"
            ) from error

    async def _rejoin(self, config: dict[str, Any]) -> None:
        while True:
            await asyncio.sleep(REJOIN_AFTER_S)
            try:
                await self._create(config)
            except TransportError as error:
                logger.warning("static group %s: %s", self._group, error)
            else:
                return

    async def _handle_all(self) -> None:
        while True:
            arrival = await self._arrived.get()
            partition, _, subject = arrival.subject.partition(".")
            message = StaticMessage(
                subject,
                int(partition),
                arrival.data,
                arrival.headers,
                arrival.meta.deliveries,
                arrival.meta.sequence,
                arrival.ack_subject,
                self._nc,
            )
            await self._handle(message)


def static_consumer_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same for a static member: durable, and never dropped for want of a reader."""
    named = {"durable_name": config["name"]}
    return named | {
        name: value for name, value in config.items() if name not in ("name", "inactive_threshold")
    }


async def _first_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Run side by side until one ends, which only an error does."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(*tasks)
    for task in done:
        task.result()


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
