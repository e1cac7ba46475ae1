"""What the plugin does around a task, without ever hurting it."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractAsyncContextManager
from contextvars import Token
from types import TracebackType

from opentelemetry.context import Context, attach, detach

from dagnats_worker import TaskContext
from dagnats_worker_telemetry._logs import enter_task, leave_task, log_carrier
from dagnats_worker_telemetry._metrics import Metrics
from dagnats_worker_telemetry._propagation import NO_CONTEXT, extracted
from dagnats_worker_telemetry._spans import Spans, TaskSpan

logger = logging.getLogger("dagnats_worker_telemetry")

TELL_EVERY_S = 60.0


class Parts:
    """What serves the tasks of one worker.

    Attributes:
        in_process: The task types whose handlers run in processes of their own.
        task_scope: What is done around a task.
    """

    __slots__ = ("in_process", "metrics", "spans", "task_scope")

    def __init__(
        self, spans: Spans, metrics: Metrics, in_process: frozenset[str], *, quiet: bool
    ) -> None:
        self.spans = spans
        self.metrics = metrics
        self.in_process = in_process
        self.task_scope = QuietScope if quiet else TaskScope

    def fill_carrier(self, ctx: TaskContext) -> None:
        """Tell the process of a handler, where it has one, which task it is."""
        if ctx.task_type in self.in_process:
            ctx.carrier.update(self.spans.headers_of(ctx), **log_carrier(ctx))


class QuietScope(AbstractAsyncContextManager[None]):
    """What is left to be done where nobody would get a span or a measurement."""

    __slots__ = ("_ctx", "_parts", "_token")

    def __init__(self, parts: Parts, ctx: TaskContext) -> None:
        self._parts = parts
        self._ctx = ctx
        self._token: Token[Context] | None = None

    async def __aenter__(self) -> None:
        ctx = self._ctx
        enter_task(ctx)
        try:
            self._parts.fill_carrier(ctx)
            context = extracted(ctx.headers)
            if context is not NO_CONTEXT:  # what the handler sends is part of the trace too
                self._token = attach(context)
        except Exception as error:  # noqa: BLE001 - a propagator is the application's code
            tell(error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            detach(self._token)
        leave_task()


class TaskScope(AbstractAsyncContextManager[None]):
    """All that is done around a task. Errors stay in here: an SDK runs the application's code."""

    __slots__ = ("_ctx", "_parts", "_span")

    def __init__(self, parts: Parts, ctx: TaskContext) -> None:
        self._parts = parts
        self._ctx = ctx
        self._span: TaskSpan | None = None

    async def __aenter__(self) -> None:
        parts, ctx = self._parts, self._ctx
        enter_task(ctx)
        try:
            parts.metrics.begun(ctx)  # outside of the span, where a task waits no longer
        except Exception as error:  # noqa: BLE001 - telemetry never hurts a task
            tell(error)
        try:
            self._span = parts.spans.begin(ctx)
            parts.fill_carrier(ctx)
        except Exception as error:  # noqa: BLE001 - likewise
            tell(error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        leave_task()


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
