"""What a task costs the metrics: one histogram, seldom a second one, and a few additions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dagnats_worker import (
    Completed,
    Continued,
    Failed,
    Outcome,
    Paused,
    Released,
    TaskContext,
    WorkerFacade,
)
from dagnats_worker_telemetry._instruments import TASK_TYPE, Instruments, Tally

NANOSECONDS = 1e9
WAITS_PER_S = 100
"""So many waits of a task type are recorded in a second; to record one costs as much as a tenth of
an idle task, and the distribution is the same."""


class Metrics:
    """Measures the tasks of one worker, and its drain."""

    def __init__(self, instruments: Instruments, worker: WorkerFacade) -> None:
        self._instruments = instruments
        self._tally = Tally()
        self._queues = {task.name: _Queue(task.name) for task in worker.task_types}
        self._drain_began: float | None = None

    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        async def watch() -> None:
            await worker.wait_for("draining")
            self._drain_began = time.monotonic()

        self._instruments.add(worker, self._tally)
        worker.spawn(watch, "telemetry drain")
        try:
            yield
        finally:
            if worker.state == "draining":
                now = time.monotonic()
                self._instruments.drain_s.record(now - (self._drain_began or now))
            self._instruments.remove(worker)

    def on_error(self, ctx: TaskContext, error: BaseException, outcome: Outcome) -> None:
        del ctx, error
        if isinstance(outcome, Failed) and outcome.failure_type == "retriable":
            self._tally.failures += 1

    def begun(self, ctx: TaskContext) -> None:
        """Measure how long a task has waited; what is delivered again waits for other reasons."""
        delivery = ctx.delivery
        if delivery.deliveries > 1:
            return
        now = time.time()
        waited_s = now - delivery.timestamp_ns / NANOSECONDS
        if waited_s < 0:  # the server's clock is not ours
            waited_s = 0.0
        task_type = ctx.task_type
        self._tally.waited(task_type, waited_s)
        queue = self._queues[task_type]
        if queue.may_record(int(now)):
            self._instruments.queue_wait_s.record(waited_s, queue.attributes)

    def ended(self, ctx: TaskContext, error: BaseException | None) -> None:
        """Measure how long the handler took, and count the outcome unless it was not stored.

        Args:
            error: What has ended the walk of the task instead.
        """
        took_s = 0.0
        if (took := ctx.handler_duration) is not None:
            took_s = took.total_seconds()
            self._instruments.duration_ms.record(float(int(took_s * 1000)))
        if error is None and (outcome := ctx.outcome) is not None:
            self._tally.add(ctx.task_type, outcome_name(outcome), took_s)


class _Queue:
    """The waits of one task type.

    Attributes:
        attributes: Of what is recorded.
    """

    __slots__ = ("_left", "_second", "attributes")

    def __init__(self, task_type: str) -> None:
        self.attributes = {TASK_TYPE: task_type}
        self._second = 0
        self._left = 0

    def may_record(self, second: int) -> bool:
        """Whether one more is recorded in this second."""
        if second != self._second:
            self._second, self._left = second, WAITS_PER_S
        self._left -= 1
        return self._left >= 0


def outcome_name(outcome: Outcome) -> str:
    """One of six words; what a plugin calls its reasons is no part of it."""
    match outcome:
        case Completed():
            return "completed"
        case Continued():
            return "continued"
        case Failed():
            return "failed"
        case Paused():
            return "paused"
        case Released("retry"):
            return "retried"
        case Released():
            return "released"
