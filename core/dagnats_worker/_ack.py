"""The verdict on a delivery, and the one place where it is sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

from dagnats_worker._inflight import InFlight
from dagnats_worker._protocol import ACK, nak_frame, term_frame
from dagnats_worker._transport import Transport
from dagnats_worker.errors import TransportError

logger = logging.getLogger("dagnats_worker.dispatcher")

AT_ONCE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Ack:
    """The task is done with; the message is removed from the work queue."""


@dataclass(frozen=True, slots=True)
class Nak:
    """The task is given back and is delivered again after ``delay``."""

    delay: timedelta = AT_ONCE


@dataclass(frozen=True, slots=True)
class Term:
    """The message can never be run; it is removed, and its copy lies in the dead letters."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Somebody else has the task now; nothing is said about it."""

    reason: str


Verdict = Ack | Nak | Term | Drop

ACKED = Ack()


def frame(verdict: Ack | Nak | Term) -> bytes:
    """What the server understands of a verdict."""
    match verdict:
        case Ack():
            return ACK
        case Nak(delay):
            return nak_frame(delay)
        case Term(reason):
            return term_frame(reason)


async def settle(transport: Transport, inflight: InFlight, verdict: Verdict) -> None:
    """Send the verdict; a message whose verdict is lost comes back when its lease has run out."""
    delivery = inflight.delivery
    if isinstance(verdict, Drop):
        delivery.settlement = "lost"
        logger.warning("%s dropped: %s", delivery, verdict.reason)
        return
    inflight.settled = True
    try:
        if inflight.source.confirm_leases and not _is_sure(inflight, verdict):
            await transport.request(inflight.ack_subject, frame(verdict))
        else:
            await transport.send(inflight.ack_subject, frame(verdict))
    except TransportError as error:
        delivery.settlement = "lost"
        logger.warning("%s: %s is lost, it will come again: %s", delivery, verdict, error)
    else:
        delivery.settlement = "given back" if isinstance(verdict, Nak) else "done"


def _is_sure(inflight: InFlight, verdict: Ack | Nak | Term) -> bool:
    """Whether nobody else can have been given the message, so that no answer would tell more.

    Waiting for one holds a slot, and costs as much as a fifth of a small task.
    """
    delivery, execution = inflight.delivery, inflight.execution
    begun_by_us = execution is not None and execution.opens_run
    once = delivery.deliveries == 1 and (begun_by_us or not delivery.doubtful)
    is_ack = isinstance(verdict, Ack)
    return is_ack and once and not inflight.source.fenced and not inflight.lease_may_have_lapsed
