"""The plugin: hands what core tells it on to its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from dagnats_worker import Outcome, Plugin, TaskContext, hookimpl
from dagnats_worker.hookspecs import Message, WorkerFacade
from dagnats_worker_telemetry._child import child_scope
from dagnats_worker_telemetry._logs import log_fields, log_fields_of_child
from dagnats_worker_telemetry._meters import opened_meter
from dagnats_worker_telemetry._metrics import Metrics
from dagnats_worker_telemetry._parts import Parts, TaskScope, tell
from dagnats_worker_telemetry._providers import (
    Given,
    has_metrics,
    has_traces,
    opened_tracing,
    tracing_of_child,
)
from dagnats_worker_telemetry._settings import TelemetrySettings
from dagnats_worker_telemetry._spans import Spans


class TelemetryPlugin(Plugin[TelemetrySettings]):
    """Spans, metrics and the task of a log record, with OpenTelemetry.

    Args:
        settings: Without it, those of the configuration.
        tracer_provider: Where spans go; without it, to the application's global provider.
        meter_provider: Likewise for metrics.

    Attributes:
        enabled: Where it is false, all of it stands still.
    """

    name = "telemetry"
    settings_type = TelemetrySettings
    before = ("*",)

    def __init__(
        self,
        settings: TelemetrySettings | None = None,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        super().__init__(settings)
        self.enabled = True
        self._given = Given(tracer_provider, meter_provider)
        self._spans = Spans(self._given)
        self._parts: dict[str, Parts] = {}  # of each worker, should several share the plugin

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        settings = self.settings
        async with AsyncExitStack() as stack:
            stack.enter_context(log_fields(settings))
            await stack.enter_async_context(opened_tracing(settings, worker, self._given))
            given = self._given.now()
            instruments = await stack.enter_async_context(
                opened_meter(settings, worker, given.meter_provider)
            )
            metrics = Metrics(instruments, worker)
            await stack.enter_async_context(metrics.worker_scope(worker))
            in_process = {one.name for one in worker.task_types if one.executor == "process"}
            parts = self._parts[worker.worker_id] = Parts(
                self._spans,
                metrics,
                frozenset(in_process),
                has_traces=has_traces(given),
                has_metrics=has_metrics(given),
            )
            worker.skip_hooks(*parts.idle_hooks())
            try:
                yield
            finally:
                del self._parts[worker.worker_id]

    @hookimpl
    def task_scope(self, ctx: TaskContext) -> AbstractAsyncContextManager[None]:
        parts = self._parts.get(ctx.worker_id)
        return TaskScope(parts, ctx) if parts and self.enabled else nullcontext()

    @hookimpl
    def on_error(self, ctx: TaskContext, error: BaseException, outcome: Outcome) -> None:
        """Look at a failure, and let it be."""
        parts = self._parts.get(ctx.worker_id)
        if parts is not None and self.enabled:
            parts.spans.failed(ctx, error, outcome)
            parts.metrics.on_error(ctx, error, outcome)

    @hookimpl
    async def pre_publish(self, ctx: TaskContext | None, message: Message) -> None:
        """Let the message carry the trace; of a client it may be one that no worker knows."""
        if not self.enabled:
            return
        try:
            if ctx is None:
                self._spans.of_client(message, with_span=self.settings.client_spans)
            else:
                self._spans.of_task(ctx, message)
        except Exception as error:  # noqa: BLE001 - telemetry never hurts a task
            tell(error)

    @hookimpl
    def child_scope(self, carrier: dict[str, str]) -> AbstractContextManager[None]:
        if not self.enabled:
            return nullcontext()
        try:
            log_fields_of_child(self.settings)
            tracing_of_child(self.settings, self._given)
        except Exception as error:  # noqa: BLE001 - telemetry never hurts a task
            tell(error)
        return child_scope(carrier)
