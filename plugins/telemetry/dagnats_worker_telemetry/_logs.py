"""The task of a log record: a filter that says which one it is, and JSON for machines."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from dagnats_worker import BaseContext, TaskContext
from dagnats_worker.hookspecs import current_context
from dagnats_worker_telemetry._propagation import context_of
from dagnats_worker_telemetry._settings import TelemetrySettings

TASK_FIELDS = ("run_id", "step_id", "task_type", "attempt")
TRACE_FIELDS = ("trace_id", "span_id")
WORKER_LOGGER = "dagnats_worker"
TASK_LOGGER = "dagnats_worker.task"
CARRIER_PREFIX = "dagnats-log-"

Source = BaseContext | Mapping[str, str]

_in_child: ContextVar[Mapping[str, str] | None] = ContextVar(
    "dagnats_worker_telemetry_task", default=None
)


class TaskFilter(logging.Filter):
    """Puts the task onto each record that is logged inside of one: its run, step, type, attempt.

    And the ids of the current trace and span. Outside of tasks and spans the fields are empty
    texts, so that a format may always name them. What a record has already stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        fields = record.__dict__
        source = _in_child.get() or current_context()
        for name in TASK_FIELDS:
            if name not in fields:
                fields[name] = _field(source, name)
        if "trace_id" not in fields:
            span = _span_of(source)
            known = span.is_valid
            fields["trace_id"] = trace.format_trace_id(span.trace_id) if known else ""
            fields["span_id"] = trace.format_span_id(span.span_id) if known else ""
        return True


def _span_of(source: Source | None) -> SpanContext:
    """The current span; where nobody makes any, the one that the task came with."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid and isinstance(source, BaseContext):
        with suppress(Exception):  # a propagator is the application's code, and so is a log call
            return trace.get_current_span(context_of(source)).get_span_context()
    return span


def _field(source: Source | None, name: str) -> Any:
    if source is None:
        return ""
    return source.get(name, "") if isinstance(source, Mapping) else getattr(source, name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: what a record is about, and all fields that were put onto it."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {
            name: value
            for name, value in record.__dict__.items()
            if name not in STANDARD_FIELDS and value not in (None, "")
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

FILTER = TaskFilter()
JSON = JsonFormatter()


def install_log_filter(target: logging.Logger | logging.Handler) -> None:
    """Put the fields of tasks onto what a logger's handlers write, or onto what a handler writes.

    A logger's own records have them for every handler, those of its children for its own handlers.
    To install it again changes nothing.
    """
    for one in _with_handlers(target):
        one.addFilter(FILTER)


def uninstall_log_filter(target: logging.Logger | logging.Handler) -> None:
    """Undo ``install_log_filter``."""
    for one in _with_handlers(target):
        one.removeFilter(FILTER)


def _with_handlers(
    target: logging.Logger | logging.Handler,
) -> Iterator[logging.Logger | logging.Handler]:
    yield target
    if isinstance(target, logging.Logger):
        yield from target.handlers


# --------------------------------------------------------------------------- in a worker


@contextmanager
def log_fields(settings: TelemetrySettings) -> Iterator[None]:
    """Install the filter where the settings say, for as long as it is open."""
    handlers = handlers_of(settings)
    as_json = settings.log_format == "json"
    _uses.begin(handlers, as_json=as_json)
    try:
        yield
    finally:
        _uses.end(handlers, as_json=as_json)


def log_fields_of_child(settings: TelemetrySettings) -> None:
    """The same in the process of a handler, for good."""
    for target in handlers_of(settings):
        target.addFilter(FILTER)
        if settings.log_format == "json" and isinstance(target, logging.Handler):
            target.setFormatter(JSON)


def enter_task(fields: Mapping[str, str]) -> None:
    """From here on records belong to a task of another process."""
    _in_child.set(fields)


def leave_task() -> None:
    """And from here on to none."""
    _in_child.set(None)


def log_carrier(ctx: TaskContext) -> dict[str, str]:
    """What the process of a handler is told, for its log."""
    return {CARRIER_PREFIX + name: str(getattr(ctx, name)) for name in TASK_FIELDS}


def fields_of_carrier(carrier: Mapping[str, str]) -> dict[str, str]:
    """The same there."""
    return {name: carrier.get(CARRIER_PREFIX + name, "") for name in TASK_FIELDS}


def handlers_of(settings: TelemetrySettings) -> list[logging.Handler | logging.Logger]:
    """What gets the filter, by the settings."""
    if settings.logs == "off":
        return []
    found: list[logging.Handler | logging.Logger] = [
        logging.getLogger(TASK_LOGGER),
        *logging.getLogger(WORKER_LOGGER).handlers,
    ]
    if settings.logs == "root" or settings.log_format == "json":
        found += logging.getLogger().handlers
    return found


class _Uses:
    """Several workers of a process may want the same; the last one that ends undoes it.

    A filter that the application has installed itself is left to it.
    """

    def __init__(self) -> None:
        self._filtered: Counter[logging.Handler | logging.Logger] = Counter()
        self._json: dict[logging.Handler, tuple[int, logging.Formatter | None]] = {}

    def begin(self, targets: list[logging.Handler | logging.Logger], *, as_json: bool) -> None:
        for target in targets:
            if target in self._filtered or FILTER not in target.filters:  # else it stays
                target.addFilter(FILTER)
                self._filtered[target] += 1
            if as_json and isinstance(target, logging.Handler):
                uses, before = self._json.get(target, (0, target.formatter))
                self._json[target] = (uses + 1, before)
                target.setFormatter(JSON)

    def end(self, targets: list[logging.Handler | logging.Logger], *, as_json: bool) -> None:
        for target in targets:
            if target in self._filtered:
                self._filtered[target] -= 1
                if not self._filtered[target]:
                    del self._filtered[target]
                    target.removeFilter(FILTER)
            if as_json and isinstance(target, logging.Handler):
                uses, before = self._json.pop(target)
                if uses > 1:
                    self._json[target] = (uses - 1, before)
                else:
                    target.setFormatter(before)


_uses = _Uses()
