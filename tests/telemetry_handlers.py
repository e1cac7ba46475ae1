"""Handlers for tests of telemetry in processes: a child imports this module by its name."""

from __future__ import annotations

import logging

from dagnats_worker_telemetry import TaskFilter


def look(text: str) -> dict[str, str]:
    """A process handler: which task it is, as a log record says."""
    record = logging.LogRecord("app", logging.INFO, __file__, 1, text, None, None)
    TaskFilter().filter(record)
    names = ("run_id", "step_id", "task_type", "attempt", "trace_id", "span_id")
    return {name: str(getattr(record, name)) for name in names}


def log_twice(path: str) -> None:
    """A process handler that logs to a file; the second task of the child finds it set up."""
    logger = logging.getLogger("dagnats_worker")
    if not logger.handlers:
        logger.addHandler(logging.FileHandler(path))
    logger.error("hello")
