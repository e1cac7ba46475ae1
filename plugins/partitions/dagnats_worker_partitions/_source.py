"""The tasks of a member, as the core's ``Source``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagnats_worker.hookspecs import Delivery, Slots
from dagnats_worker_partitions._lanes import Lanes
from dagnats_worker_partitions._leases import MemberLease
from dagnats_worker_partitions._member import Group, Member
from dagnats_worker_partitions._pinned import Arrival, Listen
from dagnats_worker_partitions._priority import Timings
from dagnats_worker_partitions._reaper import Reaper

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

logger = logging.getLogger("dagnats_worker.partitions")

HEADER_SOURCE = "Nats-Stream-Source"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"
RENEWALS_PER_LEASE = 3
LOST_LEASES_MAX = 2
"""How many leases a lane waits for a message of which nobody knows whether it was acked."""
ORIGINS_MAX = 20_000


CANCEL_AGAIN_S = 0.1


async def end_tasks(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their end.

    Again and again: a request of nats-py that is answered in the moment in which it is cancelled
    goes on as if it had not been, on Python 3.11.
    """
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)


class Origins:
    """When messages of the source stream came to us for the first time.

    A server that crashes may source again what it has sourced before. Such a message has a new
    sequence and a new time, and its history began at the old one.
    """

    def __init__(self) -> None:
        self._first: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def first(self, arrival: Arrival) -> int | None:
        """The time of an earlier message with the same origin; None for a new one."""
        header = arrival.headers.get(HEADER_SOURCE, "")
        origin = header.split(" ", 2)[1] if header.count(" ") > 1 else ""
        if not origin:
            return None
        meta = arrival.meta
        sequence, timestamp_ns = self._first.setdefault(origin, (meta.sequence, meta.timestamp_ns))
        if len(self._first) > ORIGINS_MAX:
            self._first.popitem(last=False)
        return timestamp_ns if sequence != meta.sequence else None


class GroupSource:
    """The tasks of one member; what it has been given and what not is its own to remember."""

    confirm_leases = True

    def __init__(
        self,
        nc: NatsClient,
        group: Group,
        name: str,
        *,
        timings: Timings,
        slots: int,
        ordered: bool,
        fenced: bool,
        lease: MemberLease,
        listen: Listen | None = None,
    ) -> None:
        self.fenced = fenced
        self.ack_wait = timedelta(seconds=timings.ack_wait)
        self.member = Member(
            nc,
            group,
            name,
            self,
            timings=timings,
            slots=slots,
            ordered=ordered,
            listen=listen,
        )
        self.lease = lease
        self.reaper = Reaper(nc, self.member, lease)
        self._nc = nc
        self._lanes = Lanes(ordered=ordered, lost_for_s=LOST_LEASES_MAX * timings.ack_wait)
        self._origins = Origins()
        self._slots: Slots | None = None
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._doubtful_up_to = 0
        self._failure: BaseException | None = None
        self._stopping = False
        self._left = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Become a member: first the lease, so that nobody takes the name for a dead one's.

        Raises:
            GroupError, TransportError: It cannot become one.
        """
        await self.lease.begin()
        # Who is cut off must have given up its tasks before its partitions are given to others: the
        # lease of a member that is seen no more has two thirds of its time left at least.
        self.ack_wait = min(self.ack_wait, timedelta(seconds=self.lease.length_s / 2))
        await self.member.enter()

    @property
    def trouble(self) -> str:
        """For ``/readyz``: why no tasks can come."""
        return self.member.trouble

    # ------------------------------------------------------------------ what the worker calls

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        self._slots = slots
        self._news = slots.changed
        for work in (self.member.run(), self._keep_waiting(), self.reaper.run()):
            task = asyncio.create_task(work, name=f"{self.member.group.name} {self.member.name}")
            task.add_done_callback(self._ended)
            self._tasks.add(task)
        while not self._stopping:
            slots.changed.clear()
            while (delivery := self._next(slots)) is not None:
                yield delivery
            if self._failure is not None:
                raise self._failure
            if self._lanes.is_ready:
                slots.want()
            await slots.changed.wait()

    def _next(self, slots: Slots) -> Delivery | None:
        """What the worker is to be given now, with its slot counted."""
        copy = self._lanes.copy()
        if copy is not None:
            slots.arrived(asked=False)
            return copy
        if self._stopping or not self._lanes.is_ready or not slots.free():
            return None
        delivery = self._lanes.next()
        if delivery is not None:
            slots.ask(1)
            slots.arrived(asked=True)
            self._idle.clear()
        return delivery

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A member that follows its group no more must not sit there silently."""
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._news.set()

    def settled(self, delivery: Delivery) -> None:
        self._lanes.settled(delivery, time.monotonic())
        if not self._lanes.running:
            self._idle.set()
        if self._lanes.is_ready:
            self._news.set()

    async def stop(self) -> None:
        """Take no more. The partitions stay ours while handlers run."""
        self._stopping = True
        await end_tasks(self._tasks)
        self._news.set()
        await self.member.stop_pulling()
        await asyncio.gather(*self._errands, return_exceptions=True)

    async def close(self) -> None:
        """Hand the partitions over, at once."""
        if self._left:
            return
        self._left = True
        if await self.member.leave():
            await self.lease.end()
        else:
            self.lease.abandon()

    # ------------------------------------------------------------------ what the member calls

    def take(self, arrival: Arrival) -> None:
        """See the protocol ``Holder``."""
        now = time.monotonic()
        if self._stopping or not arrival.sent_after or self._is_late(arrival.sent_after, now):
            # It may have lain in our socket longer than its lease lasts; it comes with a new one.
            self._lanes.refuse(self._delivery(arrival))
            self._later(self._send([arrival.ack_subject]))
            return
        self._lanes.add(self._delivery(arrival), now)
        self._news.set()

    def _is_late(self, since: float, now: float) -> bool:
        return now - since > self.member.timings.ack_wait

    def _delivery(self, arrival: Arrival) -> Delivery:
        meta = arrival.meta
        first_ns = self._origins.first(arrival)
        return Delivery(
            arrival.subject.partition(".")[2],
            arrival.data,
            arrival.headers,
            ack_subject=arrival.ack_subject,
            stream=meta.stream,
            deliveries=meta.deliveries,
            sequence=meta.sequence,
            timestamp_ns=meta.timestamp_ns if first_ns is None else first_ns,
            doubtful=meta.sequence <= self._doubtful_up_to or first_ns is not None,
            sent_after=arrival.sent_after,
            relayed=True,
        )

    async def give_back(self) -> None:
        """See the protocol ``Holder``."""
        await self._send(one.ack_subject for one in self._lanes.clear())

    async def wait_idle(self) -> None:
        """See the protocol ``Holder``."""
        await self._idle.wait()

    def forget(self, last_sequence: int) -> None:
        """See the protocol ``Holder``."""
        self._lanes.clear()
        self._doubtful_up_to = last_sequence

    # ------------------------------------------------------------------ what waits

    async def _keep_waiting(self) -> None:
        """Renew the leases of what waits for a slot or for its turn."""
        timings = self.member.timings
        every_s = timings.ack_wait / RENEWALS_PER_LEASE
        while True:
            await asyncio.sleep(every_s / 2)
            now = time.monotonic()
            self._lanes.look(now)
            for waiting in self._lanes.due(now, every_s / 2):
                if self._is_late(waiting.delivery.sent_after, now):
                    self._lanes.drop(waiting)
                    await self._send([waiting.delivery.ack_subject])
                    continue
                waiting.renewed_at = now
                self._later(self._renew(waiting.delivery))
            if self._lanes.is_ready:
                self._news.set()

    async def _renew(self, delivery: Delivery) -> None:
        """Whoever is given it counts its lease from the last renewal that the server confirmed."""
        asked_at = time.monotonic()
        with contextlib.suppress(Exception):  # without an answer it is late soon
            await self._nc.request(
                delivery.ack_subject, IN_PROGRESS, timeout=self.member.timings.ack_wait
            )
            delivery.sent_after = asked_at

    def _later(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _send(self, subjects: Iterable[str]) -> None:
        for subject in subjects:
            with contextlib.suppress(Exception):  # it comes after its lease
                await self._nc.publish(subject, NAK)
