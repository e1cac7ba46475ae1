"""What the worker counts; the only mutable statistics."""

from __future__ import annotations

from dataclasses import dataclass


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
