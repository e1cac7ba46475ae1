"""What the plugin does around a task, without ever hurting it."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from dagnats_worker import TaskContext
from dagnats_worker_telemetry._logs import log_carrier
from dagnats_worker_telemetry._metrics import Metrics
from dagnats_worker_telemetry._spans import Spans, TaskSpan

logger = logging.getLogger("dagnats_worker_telemetry")

TELL_EVERY_S = 60.0


class Parts:
    """What serves the tasks of one worker.

    Attributes:
        in_process: The task types whose handlers run in processes of their own.
        has_traces: Spans go somewhere.
        has_metrics: Measurements do.
    """

    __slots__ = ("has_metrics", "has_traces", "in_process", "metrics", "spans")

    def __init__(
        self,
        spans: Spans,
        metrics: Metrics,
        in_process: frozenset[str],
        *,
        has_traces: bool,
        has_metrics: bool,
    ) -> None:
        self.spans = spans
        self.metrics = metrics
        self.in_process = in_process
        self.has_traces = has_traces
        self.has_metrics = has_metrics

    def idle_hooks(self) -> list[str]:
        """The hooks that have nothing to do; the core hands a trace on that a task came with."""
        idle = []
        if not self.has_traces:
            idle.append("pre_publish")
            if not self.has_metrics:
                idle.append("on_error")
                if not self.in_process:
                    idle.append("task_scope")
        return idle

    def fill_carrier(self, ctx: TaskContext) -> None:
        """Tell the process of a handler which task it is."""
        ctx.carrier.update(self.spans.headers_of(ctx), **log_carrier(ctx))


class TaskScope(AbstractAsyncContextManager[None]):
    """All that is done around a task. Errors stay in here: an SDK runs the application's code."""

    __slots__ = ("_ctx", "_parts", "_span")

    def __init__(self, parts: Parts, ctx: TaskContext) -> None:
        self._parts = parts
        self._ctx = ctx
        self._span: TaskSpan | None = None

    async def __aenter__(self) -> None:
        parts, ctx = self._parts, self._ctx
        if parts.has_metrics:
            try:
                parts.metrics.begun(ctx)  # outside of the span, where a task waits no longer
            except Exception as error:  # noqa: BLE001 - telemetry never hurts a task
                tell(error)
        try:
            if parts.has_traces:
                self._span = parts.spans.begin(ctx)
            if parts.in_process and ctx.task_type in parts.in_process:
                parts.fill_carrier(ctx)
        except Exception as error:  # noqa: BLE001 - likewise
            tell(error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._parts.has_metrics:
            try:
                # Inside of the span, which is what a measurement's exemplar is to name.
                self._parts.metrics.ended(self._ctx, error)
            except Exception as failed:  # noqa: BLE001 - telemetry never hurts a task
                tell(failed)
        if self._span is not None:
            try:
                self._span.end(error)
            except Exception as failed:  # noqa: BLE001 - likewise
                tell(failed)


_told_at_s = float("-inf")


def tell(error: BaseException) -> None:
    """Log an error of telemetry now and then; it may come with every task."""
    global _told_at_s  # noqa: PLW0603 - one clock for the whole process
    now_s = time.monotonic()
    if now_s - _told_at_s >= TELL_EVERY_S:
        _told_at_s = now_s
        logger.error(
            "telemetry failed, and the task goes on; the next minute is not told of",
            exc_info=error,
        )
