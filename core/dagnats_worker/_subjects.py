"""Subjects and message ids, and what the subject of an ack says."""

from __future__ import annotations

import re
from typing import NamedTuple

from dagnats_worker.errors import DecodeError

SUBJECT_PART_CHARS_MAX = 256
"""A server closes the connection that sends it a protocol line of more than 4 KiB."""

_ACK_TOKENS = 9
_ACK_TOKENS_WITH_DOMAIN = 11
_UNFIT = re.compile(r"[\s*>\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_START_ID = re.compile(r"\.step\.started\.(\d+)(\.i\d+)?(?:\.d(\d+))?(?:\.x\d+)?$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class AckInfo(NamedTuple):
    """What the server says about a delivery in the subject where it wants the ack."""

    stream: str
    consumer: str
    deliveries: int
    stream_sequence: int
    timestamp_ns: int
    pending: int


def parse_ack_subject(subject: str) -> AckInfo:
    """Read the reply subject of a delivered message, with or without domain and account.

    Raises:
        DecodeError: Another subject.

    Source: nats-server, ADR-15; 9 tokens, or 11 and more where a server adds domain and account.
    """
    tokens = subject.split(".")
    if len(tokens) == _ACK_TOKENS:
        start = 2
    elif len(tokens) >= _ACK_TOKENS_WITH_DOMAIN:
        start = 4
    else:
        raise DecodeError(f"{subject!r} is not the ack subject of a JetStream message")
    stream, consumer, deliveries, sequence, _, timestamp, pending = tokens[start : start + 7]
    numbers = deliveries + sequence + timestamp + pending
    if not (subject.startswith("$JS.ACK.") and numbers.isascii() and numbers.isdecimal()):
        raise DecodeError(f"{subject!r} is not the ack subject of a JetStream message")
    try:
        return AckInfo(
            stream, consumer, int(deliveries), int(sequence), int(timestamp), int(pending)
        )
    except ValueError as error:
        raise DecodeError(f"{subject!r} is an ack subject with a number missing") from error


def is_subject_token(text: str) -> bool:
    """Whether a text is exactly one token of a subject, as a run id has to be."""
    return bool(text) and "." not in text and not _UNFIT.search(text)


def is_one_line(text: str) -> bool:
    """Whether a text can stand in a header, as a step id has to."""
    return not _CONTROL.search(text)


def history_subject(run_id: str) -> str:
    """Where the events of a run go."""
    return f"history.{run_id}"


def task_subject(task_type: str, run_id: str, group: str | None = None) -> str:
    """Where a task is published."""
    if group is None:
        return f"task.{task_type}.{run_id}"
    return f"task.{task_type}.{group}.{run_id}"


def sticky_subject_filter(task_type: str, worker_id: str) -> str:
    """Where the tasks of sticky runs that are bound to one worker arrive."""
    return f"sticky.{task_type}.{worker_id}.>"


def stream_subject(run_id: str, step_id: str) -> str:
    """Where the chunks of a step go; publishable whatever the step is called."""
    return f"stream.{run_id}.{_subject_part(step_id)}"


def dead_subject(task_type: str, run_id: str, step_id: str) -> str:
    """Where the copy of a dead task goes; publishable whatever its message said."""
    run = _subject_part(run_id).replace(".", "_")
    return f"dead.{_subject_part(task_type)}.{run}.{_subject_part(step_id)}"


def _subject_part(name: str) -> str:
    if name.isidentifier() and len(name) <= SUBJECT_PART_CHARS_MAX:
        return name
    if not name:
        return "unknown"
    tokens = name[:SUBJECT_PART_CHARS_MAX].split(".")
    return ".".join(_UNFIT.sub("_", token) or "_" for token in tokens)


def event_id(  # noqa: PLR0917 - called for each event; keywords cost a tenth of it
    run_id: str,
    step_id: str,
    event_type: str,
    attempt: int = 0,
    iteration: int = 0,
    deliveries: int = 1,
) -> str:
    """The message id of an event, different for each iteration and each delivery.

    Go's ids leave both out, so that within the dedup window one event can pass for another.
    """
    message_id = go_event_id(run_id, step_id, event_type, attempt)
    if iteration > 0:
        message_id = f"{message_id}.i{iteration}"
    return f"{message_id}.d{deliveries}" if deliveries > 1 else message_id


def deliveries_of(start_id: str) -> int:
    """How often a task had been delivered when it was started, from the id of that start.

    Returns:
        0 where the id does not say, as many of a Go worker's do not.
    """
    match = _START_ID.search(start_id)
    if match is None:
        return 0
    attempt, iteration, deliveries = match.groups()
    if deliveries:
        return int(deliveries)
    return 1 if attempt == "1" or iteration else 0


def go_event_id(run_id: str, step_id: str, event_type: str, attempt: int = 0) -> str:
    """The message id that a Go worker gives an event; without a step, one of the run itself."""
    message_id = f"{run_id}.{step_id}.{event_type}" if step_id else f"{run_id}.{event_type}"
    return f"{message_id}.{attempt}" if attempt > 0 else message_id


def continue_id(run_id: str, step_id: str, iteration: int, nonce_ns: int) -> str:
    """The message id of ``step.continue``, different each time it is built."""
    return f"{run_id}.{step_id}.continue.{iteration}.{nonce_ns}"


def queued_id(run_id: str, step_id: str) -> str:
    """The message id of a task's first dispatch."""
    return f"{run_id}.{step_id}.queued"


def next_iteration_id(run_id: str, step_id: str, iteration: int) -> str:
    """The message id of the task that runs iteration ``iteration`` of a loop."""
    return f"{run_id}.{step_id}.continue.{iteration}"
