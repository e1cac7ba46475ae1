"""What is known of the demo's tasks while they run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Literal

from dagnats_worker import _json
from dagnats_worker._protocol import STEP_COMPLETED, STEP_FAILED, STEP_RELEASED, STEP_STARTED
from dagnats_worker._run import RunEvent
from dagnats_worker.cli._demo_tasks import KINDS, Kind

State = Literal["queued", "running", "retrying", "completed", "failed"]


@dataclass(slots=True)
class Row:
    """One task.

    Attributes:
        label: A short name, such as ``greet-3``.
        duration: Of the handler, in its last attempt.
        retry_at: On the monotonic clock, while it waits for its next attempt.
        last: What was seen of it last: a chunk, an output, an error.
    """

    kind: Kind
    label: str
    task_input: Any
    run_id: str
    state: State = "queued"
    attempt: int = 0
    started: datetime | None = None
    started_at: float = 0.0
    duration: timedelta = timedelta(0)
    retry_at: float = 0.0
    last: str = ""
    words: list[str] = field(default_factory=list)

    def take_event(self, event: RunEvent) -> None:
        """Move on with an event of the run."""
        payload: dict[str, Any] = event.payload if isinstance(event.payload, dict) else {}
        match event.type:
            case kind if kind == STEP_STARTED:
                self.state, self.attempt = "running", event.attempt
                self.started, self.started_at = event.timestamp, time.monotonic()
            case kind if kind == STEP_RELEASED:
                self.state = "retrying"
                self.retry_at = time.monotonic() + payload.get("delay_ms", 0) / 1000
                self.last = f"attempt {self.attempt} failed: {payload.get('error', '')}"
            case kind if kind == STEP_COMPLETED:
                self._end("completed", event, _json.encode(event.payload).decode())
            case kind if kind == STEP_FAILED:
                self._end("failed", event, str(payload.get("error", "")))

    def _end(self, state: State, event: RunEvent, last: str) -> None:
        self.state, self.last = state, last
        if event.timestamp is not None and self.started is not None:
            self.duration = event.timestamp - self.started

    def take_chunk(self, chunk: bytes) -> None:
        """Show what the handler has streamed so far."""
        self.words.append(chunk.decode(errors="replace"))
        self.last = " ".join(self.words)

    @property
    def ended(self) -> bool:
        return self.state in ("completed", "failed")

    @property
    def problem(self) -> str:
        """What is wrong with how the task ended; empty for nothing."""
        if not self.ended:
            return f"{self.label} has not ended; it is {self.state}"
        if self.state != self.kind.ends:
            return f"{self.label} {self.state}, and should not have: {self.last}"
        if self.attempt != self.kind.attempts:
            return f"{self.label} took {self.attempt} attempts, not {self.kind.attempts}"
        return ""


class Board:
    """All tasks of one demo."""

    def __init__(self, suffix: str) -> None:
        self.rows = [
            Row(kind, f"{kind.name}-{number}", task_input, f"{kind.name}-{number}-{suffix}")
            for kind in KINDS
            for number, task_input in enumerate(kind.inputs, 1)
        ]
        self.began_at = time.monotonic()
        self.dead_letters: dict[str, bool] = {}

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self.began_at)

    def of(self, kind: Kind) -> list[Row]:
        """The tasks of one type."""
        return [row for row in self.rows if row.kind is kind]

    def interleaved(self) -> Iterator[Row]:
        """In the order in which they are submitted: one of each kind, and again."""
        by_number = sorted(self.rows, key=lambda row: int(row.label.rpartition("-")[2]))
        return iter(by_number)

    def count(self, state: State) -> int:
        """How many tasks are in a state."""
        return sum(row.state == state for row in self.rows)

    def problems(self) -> list[str]:
        """What did not go as it should have."""
        found = [row.problem for row in self.rows if row.problem]
        found += [
            f"{row.label} has left no dead letter"
            for row in self.rows
            if row.state == "failed" and not self.dead_letters.get(row.run_id)
        ]
        return found

    def durations(self, kind: Kind) -> tuple[timedelta, timedelta]:
        """The median and the longest of a kind."""
        all_of_them = [row.duration for row in self.of(kind)]
        return timedelta(seconds=median(d.total_seconds() for d in all_of_them)), max(all_of_them)
