"""The task of a process handler, in the handler's process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context as context_api

from dagnats_worker_telemetry._logs import enter_task, fields_of_carrier, leave_task
from dagnats_worker_telemetry._propagation import extracted


@contextmanager
def child_scope(carrier: Mapping[str, str]) -> Iterator[None]:
    """The span of the task is current, and log records say which task it is."""
    token = context_api.attach(extracted(carrier))
    enter_task(fields_of_carrier(carrier))
    try:
        yield
    finally:
        leave_task()
        context_api.detach(token)
