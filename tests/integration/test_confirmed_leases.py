"""A lease that is not confirmed is lost, unless the message has come again meanwhile.

Method: one request of the renewal, on a real connection, to a subject on which somebody listens and
never answers. Fake: the message and its source.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import Client
from support import unique

from dagnats_worker import Delivery, WorkerConfig
from dagnats_worker._inflight import Ending, InFlight
from dagnats_worker._jetstream.leases import Leases

LEASE = timedelta(seconds=0.3)


def held(ack_subject: str, *, confirmed: bool = True) -> InFlight:
    delivery = Delivery(
        "task.a.r",
        b"",
        {},
        ack_subject=ack_subject,
        stream="S",
        deliveries=1,
        sequence=1,
        timestamp_ns=0,
    )
    source: Any = SimpleNamespace(ack_wait=LEASE, confirm_leases=confirmed)
    return InFlight(delivery, source, timeout_s=60)


@pytest.mark.parametrize(
    ("comes_again", "ending"), [(False, Ending.LEASE_LOST), (True, None)], ids=str
)
async def test_only_the_newest_lease_of_a_message_counts(
    nc: Client, *, comes_again: bool, ending: Ending | None
) -> None:
    silent = unique("silent")
    asked = asyncio.Event()

    async def listen(_message: Any) -> None:
        asked.set()

    await nc.subscribe(f"{silent}.*", cb=listen)
    inflight = held(f"{silent}.1")
    inflight.renewed_at -= LEASE.total_seconds()
    leases = Leases(WorkerConfig())
    leases.hold(inflight)
    await leases.renew_due(nc)
    await asked.wait()
    if comes_again:
        inflight.ack_subject = f"{silent}.2"
    await asyncio.gather(*leases._requests)
    await asyncio.sleep(0)  # it is told through the loop
    assert inflight.ending is ending


@pytest.mark.parametrize(("confirmed", "ending"), [(True, Ending.LEASE_LOST), (False, None)])
async def test_who_is_cut_off_gives_up_what_it_cannot_confirm(
    *, confirmed: bool, ending: Ending | None
) -> None:
    cut_off: Any = SimpleNamespace(is_connected=False)
    inflight = held("nobody", confirmed=confirmed)
    leases = Leases(WorkerConfig())
    leases.hold(inflight)
    await leases.renew_due(cut_off)
    await asyncio.sleep(0)
    assert inflight.ending is None
    inflight.confirmed_at -= LEASE.total_seconds() * 1.1
    await leases.renew_due(cut_off)
    await asyncio.sleep(0)
    assert inflight.ending is ending


async def test_answer_counts_from_when_it_was_asked_for(nc: Client) -> None:
    subject = unique("answers")

    async def answer(message: Any) -> None:
        await message.respond(b"")

    await nc.subscribe(subject, cb=answer)
    inflight = held(subject)
    before = inflight.confirmed_at
    inflight.renewed_at -= LEASE.total_seconds()
    leases = Leases(WorkerConfig())
    leases.hold(inflight)
    await leases.renew_due(nc)
    await asyncio.gather(*leases._requests)
    assert before < inflight.confirmed_at
    assert inflight.ending is None
