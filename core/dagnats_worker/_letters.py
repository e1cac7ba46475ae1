"""Dead letters as people read them: what failed, where, and how often it was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dagnats_worker._protocol import DLQ_HEADER_PREFIX, decode_task
from dagnats_worker.errors import DecodeError

LetterKind = Literal["task", "event", "unreadable"]

EVENT_SUBJECT = "dead.orchestrator."
TASK_PARTS_MIN = 4
HEADER_SUBJECT = f"{DLQ_HEADER_PREFIX}Task-Subject"
HEADER_ATTEMPTS = f"{DLQ_HEADER_PREFIX}Attempts"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message of the stream ``DEAD_LETTERS``.

    Attributes:
        sequence: Its place in the stream, by which commands name it.
        stored_at: When the task was given up.
        subject: Where the letter lies; ``task_subject`` is where its task came from.
        kind: ``task`` can be replayed; ``event`` is one that the engine could not apply;
            ``unreadable`` is a task message that nobody could decode.
        attempts: How often the task was tried; 0 where nobody knows.
        data: The body, None where only the headers were asked for.
    """

    sequence: int
    stored_at: datetime
    subject: str
    kind: LetterKind
    task_type: str
    run_id: str
    step_id: str
    error: str
    attempts: int
    deliveries: int
    task_subject: str
    headers: Mapping[str, str]
    data: bytes | None = None

    @property
    def replay_headers(self) -> dict[str, str]:
        """What a task carries that comes from a dead letter. Source: wire protocol, 2.3."""
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in ("traceparent", "tracestate", "baggage")
        }
        return {
            **kept,
            HEADER_SUBJECT: self.task_subject,
            HEADER_ATTEMPTS: str(self.attempts),
        }


def read_letter(
    sequence: int,
    stored_at: datetime,
    subject: str,
    headers: Mapping[str, str],
    data: bytes | None,
) -> DeadLetter:
    """Read a message of the stream; what its headers lack, its subject and its body may tell."""
    run_id, step_id = _field(headers, "Run-Id"), _field(headers, "Step-Id")
    task_type, kind = _field(headers, "Task"), _kind(subject, headers, data)
    if kind == "event":
        task_type = task_type or _field(headers, "Event-Type")
    parts = subject.split(".")
    if kind != "event" and len(parts) >= TASK_PARTS_MIN:
        # A task type and a step id may have dots; without headers, the simplest reading is taken.
        task_type, run_id = task_type or parts[1], run_id or parts[2]
        step_id = step_id or ".".join(parts[3:])
    return DeadLetter(
        sequence=sequence,
        stored_at=stored_at,
        subject=subject,
        kind=kind,
        task_type=task_type,
        run_id=run_id or parts[-1],
        step_id=step_id,
        error=_field(headers, "Error"),
        attempts=_number(headers, "Attempts"),
        deliveries=_number(headers, "Delivery-Count"),
        task_subject=_field(headers, "Task-Subject"),
        headers=headers,
        data=data,
    )


def _kind(subject: str, headers: Mapping[str, str], data: bytes | None) -> LetterKind:
    if subject.startswith(EVENT_SUBJECT) or f"{DLQ_HEADER_PREFIX}Event-Type" in headers:
        return "event"
    if data is None:
        return "task" if _number(headers, "Attempts") else "unreadable"
    try:
        decode_task(data)
    except DecodeError:
        return "unreadable"
    return "task"


def _field(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(DLQ_HEADER_PREFIX + name, "")
    return "" if value == "unknown" else value


def _number(headers: Mapping[str, str], name: str) -> int:
    text = _field(headers, name)
    return int(text) if text.isascii() and text.isdecimal() else 0
