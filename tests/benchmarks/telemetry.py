"""What the plugin telemetry costs, set up in several ways, in one run.

    python tests/benchmarks/telemetry.py --tasks 5000 --concurrency 128 --repeat 5

Loops:
    plain: The worker without the plugin.
    api: With it, and with no SDK behind the API.
    sampled: Every task is sampled, and measured; the exporters throw away what they get.
    hundredth: Likewise, with a sampler that keeps one trace in a hundred.
    metrics: Likewise, with no spans at all.
    stream: Every task is sampled, and goes to the engine's stream.

Every task comes with a trace, as an engine sends it; so the plain worker hands one on as well.

Needs the plugin and the OpenTelemetry SDK. See ``drain.py`` for what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loops
from drain import TRIES_MAX, compare
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import NoOpTracerProvider
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

GOALS = {"sampled": 0.40, "hundredth": 0.75, "api": 0.95}
"""The parts of the throughput without the plugin; ``api`` is to be within the noise."""

EXPORT_EVERY_MS = 1000
KEPT = 0.01


class NoSpans(SpanExporter):
    """Costs what every exporter does at least."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


class NoMetrics(MetricExporter):
    """Likewise for metrics."""

    def export(self, *_: Any, **__: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        del timeout_millis
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        pass


def tracing(sampler: Sampler) -> AnyTracerProvider:
    """The SDK, as an application sets it up."""
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(BatchSpanProcessor(NoSpans()))
    return provider


def measuring() -> AnyMeterProvider:
    """Likewise for metrics."""
    return MeterProvider([PeriodicExportingMetricReader(NoMetrics(), EXPORT_EVERY_MS)])


def with_telemetry(
    tracer_provider: AnyTracerProvider | None = None,
    meter_provider: AnyMeterProvider | None = None,
    settings: TelemetrySettings | None = None,
) -> TelemetryPlugin:
    return TelemetryPlugin(
        settings or TelemetrySettings(),
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )


async def plain(url: str, tasks: int, concurrency: int) -> float:
    """The worker without the plugin."""
    return await loops.worker(url, tasks, concurrency)


async def api(url: str, tasks: int, concurrency: int) -> float:
    """No SDK behind the API."""
    return await loops.worker(url, tasks, concurrency, (with_telemetry(),))


async def sampled(url: str, tasks: int, concurrency: int) -> float:
    """Everything of every task."""
    plugin = with_telemetry(tracing(ALWAYS_ON), measuring())
    return await loops.worker(url, tasks, concurrency, (plugin,))


async def hundredth(url: str, tasks: int, concurrency: int) -> float:
    """The spans of one task in a hundred, and all metrics."""
    plugin = with_telemetry(tracing(TraceIdRatioBased(KEPT)), measuring())
    return await loops.worker(url, tasks, concurrency, (plugin,))


async def metrics(url: str, tasks: int, concurrency: int) -> float:
    """No spans, and all metrics."""
    plugin = with_telemetry(NoOpTracerProvider(), measuring())
    return await loops.worker(url, tasks, concurrency, (plugin,))


async def stream(url: str, tasks: int, concurrency: int) -> float:
    """Every span goes to the engine's stream."""
    settings = TelemetrySettings(stream=True)
    plugin = with_telemetry(TracerProvider(), MeterProvider(), settings)
    return await loops.worker(url, tasks, concurrency, (plugin,))


LOOPS: dict[str, loops.Loop] = {
    "plain": plain,
    "api": api,
    "sampled": sampled,
    "hundredth": hundredth,
    "metrics": metrics,
    "stream": stream,
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in LOOPS:
        loops.main(LOOPS)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument(
        "--goals", action="store_true", help=f"fail when {GOALS} are missed {TRIES_MAX} times"
    )
    options = parser.parse_args()
    arguments = (options.loops, options.tasks, options.concurrency, options.repeat)
    for _ in range(TRIES_MAX if options.goals else 1):
        ratios = asyncio.run(compare(*arguments, script=Path(__file__), traced=True))
        missed = [loop for loop in GOALS if ratios.get(loop, 1.0) < GOALS[loop]]
        if not missed:
            return
    if options.goals:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
