"""The wire: what task messages, events and acks look like to the engine and to Go workers.

What is encoded has Go's fields in Go's order. What is decoded is taken as Go's decoder takes it.
Failures, subjects, ids and texts have modules of their own; all of the wire is imported from here.

Source: dagnats protocol/.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec

from dagnats_worker._failures import (
    DLQ_HEADER_PREFIX,
    ERROR_TEXT_BYTES_MAX,
    HEADER_ERROR_BYTES_MAX,
    HEADER_MSG_ID,
    dead_letter_headers,
    failure_payload,
    parse_failure,
)
from dagnats_worker._go_json import GoDecoder, Int64
from dagnats_worker._subjects import (
    AckInfo,
    continue_id,
    dead_subject,
    deliveries_of,
    event_id,
    go_event_id,
    history_subject,
    is_one_line,
    is_subject_token,
    next_iteration_id,
    parse_ack_subject,
    queued_id,
    sticky_subject_filter,
    stream_subject,
    task_subject,
)
from dagnats_worker._wire_text import clean_text, one_line, parse_time, time_text
from dagnats_worker.errors import DecodeError

__all__ = [
    "ACK",
    "DLQ_HEADER_PREFIX",
    "ERROR_TEXT_BYTES_MAX",
    "HEADER_MSG_ID",
    "IN_PROGRESS",
    "NAK",
    "STEP_COMPLETED",
    "STEP_CONTINUE",
    "STEP_FAILED",
    "STEP_QUEUED",
    "STEP_RELEASED",
    "STEP_STARTED",
    "TERM",
    "TRACE_HEADERS",
    "WORKFLOW_CANCELLED",
    "WORKFLOW_COMPLETED",
    "WORKFLOW_FAILED",
    "WORKFLOW_STARTED",
    "AckInfo",
    "Event",
    "TaskPayload",
    "clean_text",
    "continue_id",
    "dead_letter_headers",
    "dead_subject",
    "decode_event",
    "decode_task",
    "deliveries_of",
    "encode_event",
    "encode_task",
    "event_id",
    "failure_payload",
    "go_event_id",
    "history_subject",
    "is_one_line",
    "is_subject_token",
    "nak_frame",
    "next_iteration_id",
    "one_line",
    "parse_ack_subject",
    "parse_failure",
    "parse_time",
    "queued_id",
    "sticky_subject_filter",
    "stream_subject",
    "task_subject",
    "term_frame",
    "time_text",
]

STEP_QUEUED: Final = "step.queued"
STEP_STARTED: Final = "step.started"
STEP_COMPLETED: Final = "step.completed"
STEP_FAILED: Final = "step.failed"
STEP_CONTINUE: Final = "step.continue"
STEP_RELEASED: Final = "step.released"
"""Ours: a start that was given back on purpose. The engine ignores types that it does not know."""
WORKFLOW_STARTED: Final = "workflow.started"
WORKFLOW_COMPLETED: Final = "workflow.completed"
WORKFLOW_FAILED: Final = "workflow.failed"
WORKFLOW_CANCELLED: Final = "workflow.cancelled"

TRACE_HEADERS = ("traceparent", "tracestate", "baggage")

ACK = b"+ACK"
NAK = b"-NAK"
TERM = b"+TERM"
IN_PROGRESS = b"+WPI"

NAK_DELAY_MAX = timedelta(days=36_500)
"""A delay that the server cannot count in 63 bits of nanoseconds is none at all to it."""

RUN_ID_CHARS_MAX = 256
STEP_ID_CHARS_MAX = 1024

ABSENT = msgspec.Raw()


class TaskPayload(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The body of a task message.

    Attributes:
        iteration: Of an agent loop; 0 for the first one and for every other step.
        attempt: 0, unless the engine tries again after a failure; then 2 or more.
        input: JSON, or empty where the message has none; JSON's null is a value.
        dispatch_nonce: Shows the control plane which dispatch is asking.
    """

    task_id: str
    run_id: str
    step_id: str
    iteration: Int64 = 0
    attempt: Int64 = 0
    input: msgspec.Raw = ABSENT
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    required_capabilities: list[str] = msgspec.field(default_factory=list)
    dispatch_nonce: str = ""
    workflow_name: str = ""
    traceparent: str = ""
    tracestate: str = ""


class Event(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One entry of a run's history.

    Attributes:
        step_id: Empty for an event of the whole run.
        timestamp: As :func:`time_text` writes it.
        payload: JSON, or empty for none.
        worker_id: The engine binds sticky runs to it.
        attempt_number: 0 where the event carries none.
    """

    type: str
    run_id: str
    step_id: str = ""
    timestamp: str = ""
    payload: msgspec.Raw = ABSENT
    trace_parent: str = ""
    trace_state: str = ""
    worker_id: str = ""
    attempt_number: Int64 = 0


_encode = msgspec.json.Encoder().encode
_tasks = GoDecoder(TaskPayload, "task message", raw="input", zero=("task_id",))
_events = GoDecoder(Event, "event", raw="payload", zero=("type", "run_id"))


def decode_task(data: bytes) -> TaskPayload:
    """Read a task message.

    Raises:
        DecodeError: Not what the protocol says, or without the ids that its events will need.
    """
    task = _tasks.decode(data)
    run_id, step_id = task.run_id, task.step_id
    # The cheap question answers for nearly every id, the exact one for the rest.
    if not (run_id.isalnum() and len(run_id) <= RUN_ID_CHARS_MAX):
        _check_run_id(run_id)
    if not (step_id.isidentifier() and len(step_id) <= STEP_ID_CHARS_MAX):
        _check_step_id(step_id)
    if not task.task_id:
        task.task_id = f"{run_id}.{step_id}"
    return task


def _check_run_id(run_id: str) -> None:
    if not run_id:
        raise DecodeError("task message: run_id is missing or empty")
    if len(run_id) > RUN_ID_CHARS_MAX or not is_subject_token(run_id):
        raise DecodeError(
            f"task message: run_id {run_id[:RUN_ID_CHARS_MAX]!r} is not one subject token "
            f"of at most {RUN_ID_CHARS_MAX} characters"
        )


def _check_step_id(step_id: str) -> None:
    if not step_id:
        raise DecodeError("task message: step_id is missing or empty")
    if len(step_id) > STEP_ID_CHARS_MAX or not is_one_line(step_id):
        raise DecodeError(
            f"task message: step_id {step_id[:RUN_ID_CHARS_MAX]!r} is not one line "
            f"of at most {STEP_ID_CHARS_MAX} characters"
        )


def encode_task(task: TaskPayload) -> bytes:
    """Write a task message."""
    if not task.input and task.input is not ABSENT:
        task = msgspec.structs.replace(task, input=ABSENT)
    return _encode(task)


def decode_event(data: bytes) -> Event:
    """Read an event, whoever wrote it.

    Raises:
        DecodeError: Not what the protocol says.
    """
    return _events.decode(data)


def encode_event(event: Event) -> bytes:
    """Write an event."""
    if not event.payload and event.payload is not ABSENT:
        event = msgspec.structs.replace(event, payload=ABSENT)
    return _encode(event)


def nak_frame(delay: timedelta | None) -> bytes:
    """Give a message back, to be delivered again after ``delay`` or, without one, at once."""
    if delay is None or delay <= timedelta(0):
        return NAK
    delay_us = min(delay, NAK_DELAY_MAX) // timedelta(microseconds=1)
    return b'-NAK {"delay": %d}' % (delay_us * 1000)


def term_frame(reason: str) -> bytes:
    """Give a message up for good.

    Args:
        reason: Shown in the server's advisory, from server 2.10 on.
    """
    return f"+TERM {one_line(reason, HEADER_ERROR_BYTES_MAX)}".rstrip().encode()
