"""Who reads the metrics, by setting. Needs the SDK, so it is imported only then."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricReader,
    PeriodicExportingMetricReader,
)

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_telemetry._outlets import resource_of
from dagnats_worker_telemetry._providers import flushed
from dagnats_worker_telemetry._records import Record, metric_record, service_of
from dagnats_worker_telemetry._settings import TelemetrySettings
from dagnats_worker_telemetry._stream_exporter import TelemetryStream, stream_of

STREAM_EVERY_S = 10.0
"""As often as Go's exporter."""
STAND_IN = "opentelemetry.metrics."
"""Where the API's own providers are, of which one is in force until somebody sets a real one."""


def provider_of(given: Any, settings: TelemetrySettings, instance: str) -> MeterProvider:
    """A provider that takes readers; made, and made the global one, where there is none at all.

    Args:
        given: What somebody has chosen for the plugin; None for the global provider.
        instance: What the resource calls this process.

    Raises:
        UsageError: The application's provider takes no readers.
    """
    found = given or metrics.get_meter_provider()
    if given is None and type(found).__module__.startswith(STAND_IN):
        found = MeterProvider(resource=resource_of(settings, instance), shutdown_on_exit=False)
        metrics.set_meter_provider(found)
    if not isinstance(found, MeterProvider) or not hasattr(found, "add_metric_reader"):
        raise UsageError(
            f"telemetry: its settings ask for metrics, but {type(found).__name__} takes no "
            "readers; use opentelemetry-sdk 1.43 or newer, or turn them off"
        )
    return found


@asynccontextmanager
async def read(
    provider: MeterProvider, settings: TelemetrySettings, worker: WorkerFacade
) -> AsyncIterator[None]:
    """Add the readers that the settings ask for, for as long as the worker is there."""
    async with AsyncExitStack() as stack:
        if settings.exporter == "otlp":
            await stack.enter_async_context(_otlp(provider, settings, worker))
        if settings.stream:
            await stack.enter_async_context(_streamed(provider, settings, worker))
        if settings.prometheus:
            await stack.enter_async_context(_page(provider, worker))
        yield


# ------------------------------------------------------------------------------- Prometheus


@asynccontextmanager
async def _page(provider: MeterProvider, worker: WorkerFacade) -> AsyncIterator[None]:
    try:
        from dagnats_worker_telemetry._prometheus import (  # noqa: PLC0415 - an optional dependency
            PrometheusEndpoint,
        )
    except ImportError as error:
        raise UsageError(
            f"telemetry: the setting prometheus needs its exporter ({error}); "
            "pip install 'dagnats-worker-telemetry[prometheus]'"
        ) from error
    endpoint = PrometheusEndpoint(worker)
    provider.add_metric_reader(endpoint.reader)
    try:
        yield
    finally:
        provider.remove_metric_reader(endpoint.reader)
        endpoint.close()


# --------------------------------------------------------------------- the engine's console


class StreamedMetrics:
    """Writes the metrics of a provider to the engine's stream.

    Attributes:
        reader: To be added to the provider.
    """

    def __init__(self, stream: TelemetryStream) -> None:
        self.reader = InMemoryMetricReader()  # it reads when it is asked to, which is all we need
        self._stream = stream
        self._sequences = itertools.count(1)

    async def run(self) -> None:
        """Write them now and then."""
        while True:
            await asyncio.sleep(STREAM_EVERY_S)
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Collect, and offer the records; blocks."""
        self._stream.offer(self._records())

    def write_last(self, within_s: float) -> None:
        """Write what was counted since, and wait until it is published."""
        self.write()
        self._stream.flush(within_s)

    def _records(self) -> list[Record]:
        data = self.reader.get_metrics_data()
        at_ns = time.time_ns()
        found = []
        for resource_metrics in data.resource_metrics if data else ():
            service = service_of(resource_metrics.resource)
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    sequence = next(self._sequences)
                    record = metric_record(metric, service, at_ns, sequence)
                    if record is not None:
                        found.append(record)
        return found


@asynccontextmanager
async def _streamed(
    provider: MeterProvider, settings: TelemetrySettings, worker: WorkerFacade
) -> AsyncIterator[None]:
    streamed = StreamedMetrics(stream_of(worker))
    provider.add_metric_reader(streamed.reader)
    worker.spawn(streamed.run, "telemetry metrics")
    within_s = settings.flush_timeout.total_seconds()
    try:
        yield
    finally:
        await flushed(lambda: streamed.write_last(within_s), settings, worker)
        provider.remove_metric_reader(streamed.reader)


# ------------------------------------------------------------------------------------- OTLP


class _PeriodicReader(PeriodicExportingMetricReader):
    """Can be shut down while its provider has it still, and once more by its provider."""

    _over = False

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if not self._over:
            self._over = True
            super().shutdown(timeout_millis, **kwargs)


class _Shared:
    """A reader, and how many workers of this process want it."""

    def __init__(self, reader: MetricReader) -> None:
        self.reader = reader
        self.uses = 0


_shared: WeakKeyDictionary[MeterProvider, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def _otlp(
    provider: MeterProvider, settings: TelemetrySettings, worker: WorkerFacade
) -> AsyncIterator[None]:
    """One exporter for all workers of the process that send to the same place."""
    readers = _shared.setdefault(provider, {})
    shared = readers.get(settings.endpoint)
    if shared is None:
        shared = readers[settings.endpoint] = _Shared(_otlp_reader(settings))
        provider.add_metric_reader(shared.reader)
    shared.uses += 1
    try:
        yield
    finally:
        shared.uses -= 1
        if not shared.uses:
            del readers[settings.endpoint]
            await flushed(shared.reader.shutdown, settings, worker)
            provider.remove_metric_reader(shared.reader)


def _otlp_reader(settings: TelemetrySettings) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - only then
        OTLPMetricExporter,
    )

    endpoint = f"{settings.endpoint.rstrip('/')}/v1/metrics" if settings.endpoint else None
    return _PeriodicReader(OTLPMetricExporter(endpoint=endpoint))
