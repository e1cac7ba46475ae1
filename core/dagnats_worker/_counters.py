"""What the worker counts; the only mutable statistics."""

from __future__ import annotations

from dataclasses import dataclass

from dagnats_worker._outcome import Completed, Continued, Failed, Outcome, Released


@dataclass(slots=True)
class Counters:
    """Every number only grows. See ``Stats`` for what each means."""

    delivered: int = 0
    redelivered: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    released: int = 0
    skipped: int = 0
    skipped_cancelled: int = 0
    rejected: int = 0
    publish_retries: int = 0

    def ended(self, outcome: Outcome) -> None:
        """Count a task by what was published of it."""
        match outcome:
            case Completed() | Continued():
                self.completed += 1
            case Failed():
                self.failed += 1
            case Released("retry"):
                self.retried += 1
            case _:
                self.released += 1
