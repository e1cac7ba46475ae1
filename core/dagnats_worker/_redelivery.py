"""A message that was delivered before: what happened to it is in the history of its run."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from dagnats_worker._outcome import Failed
from dagnats_worker._protocol import (
    STEP_COMPLETED,
    STEP_CONTINUE,
    STEP_FAILED,
    STEP_RELEASED,
    STEP_STARTED,
    WORKFLOW_CANCELLED,
    Event,
    decode_event,
    deliveries_of,
    parse_failure,
)
from dagnats_worker._transport import StoredEvent
from dagnats_worker._wire_text import parse_time
from dagnats_worker.errors import DecodeError

RESOLUTIONS = frozenset({STEP_COMPLETED, STEP_FAILED, STEP_CONTINUE})
"""Every event type that ends a dispatch."""

FREE_REASONS = frozenset({"pause", "delay", "drain"})
"""Released for one of these, a start does not count as an attempt."""

NO_FAILURE = Failed("", "retriable")


class _Release(msgspec.Struct):
    reason: str = ""
    delay_ms: int = 0
    kept: str = ""


NO_RELEASE = _Release()


@dataclass(slots=True)
class Past:
    """What the history says of one dispatch of one step.

    Attributes:
        outcome: Type of the event that ended it; None while it is open.
        failure: What a ``step.failed`` said.
        started_again: The step was started after that, for the next turn of a loop.
        cancelled: The run was cancelled meanwhile.
        starts: How often a handler was started.
        free_starts: Those that were given back for a reason that is no attempt.
        crashes: Starts in a row, up to now, of which nothing was heard again.
        kept: The messages of the step that were acked, because somebody keeps their task.
        rests_until_ns: It was given back with a delay, which ends then; 0 where it was not.
        last_delivery: The highest number of deliveries that a start tells of.
        last_sequence: Of the newest event of the run that was read.
    """

    outcome: str | None = None
    failure: Failed = NO_FAILURE
    started_again: bool = False
    cancelled: bool = False
    starts: int = 0
    free_starts: int = 0
    crashes: int = 0
    kept: set[str] = field(default_factory=set)
    rests_until_ns: int = 0
    last_delivery: int = 0
    last_sequence: int = 0

    @property
    def attempt(self) -> int:
        """The attempt that the next start would be."""
        return self.starts - self.free_starts + 1


def read_past(events: list[StoredEvent], step_id: str) -> Past:
    """Walk over the events of a run since the task was dispatched, oldest first."""
    past = Past()
    for stored in events:
        past.last_sequence = stored.sequence
        try:
            event = decode_event(stored.data)
        except DecodeError:
            continue  # somebody else's event; the engine sorts those out
        if event.type == WORKFLOW_CANCELLED:
            past.cancelled = True
        elif event.step_id == step_id:
            _add(past, event, stored.message_id)
    return past


def _add(past: Past, event: Event, message_id: str) -> None:
    if past.outcome is not None:  # what comes after it belongs to the next turn of a loop
        past.started_again = past.started_again or event.type == STEP_STARTED
    elif event.type in RESOLUTIONS:
        past.outcome = event.type
        past.crashes = 0
        if event.type == STEP_FAILED:
            past.failure = parse_failure(bytes(event.payload))
    elif event.type == STEP_STARTED:
        past.starts += 1
        past.crashes += 1
        past.rests_until_ns = 0
        past.last_delivery = max(past.last_delivery, deliveries_of(message_id))
    elif event.type == STEP_RELEASED:
        past.crashes = 0
        release = _release(event)
        past.rests_until_ns = _rests_until_ns(event, release)
        if release.kept:
            past.kept.add(release.kept)
        if release.kept or release.reason in FREE_REASONS:
            past.free_starts += 1


def _release(event: Event) -> _Release:
    try:
        return msgspec.json.decode(event.payload, type=_Release)
    except ValueError:
        return NO_RELEASE


def _rests_until_ns(event: Event, release: _Release) -> int:
    try:
        return parse_time(event.timestamp) + release.delay_ms * 1_000_000
    except DecodeError:
        return 0
