"""Which providers spans and metrics go to: the application's, unless a setting says otherwise."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Tracer, TracerProvider

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_telemetry._settings import TelemetrySettings

SCOPE = "dagnats/worker"
"""The instrumentation scope of the Go worker."""

STANDS_IN = ("opentelemetry.trace", "opentelemetry.metrics")
"""Where the API has its own providers, which do nothing, or nothing yet."""

logger = logging.getLogger("dagnats_worker_telemetry")


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers that somebody has chosen; None for the global ones."""

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None


def has_traces(chosen: Providers) -> bool:
    """Whether spans go anywhere; they do not where there is no SDK, or it was not set up."""
    return _is_real(chosen.tracer_provider or trace.get_tracer_provider())


def has_metrics(chosen: Providers) -> bool:
    """Likewise for metrics."""
    return _is_real(chosen.meter_provider or metrics.get_meter_provider())


def _is_real(provider: TracerProvider | MeterProvider) -> bool:
    return not type(provider).__module__.startswith(STANDS_IN)


class Instrumented:
    """What an instrumentor of this process has been given; nothing where there is none."""

    providers = Providers()


class Given:
    """The providers of a plugin: its own, else those of the instrumentor, else the global ones.

    Args:
        tracer_provider: Its own; None for none.
        meter_provider: Likewise.
    """

    __slots__ = ("_own", "_tracer", "_tracer_of")

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._own = Providers(tracer_provider, meter_provider)
        self._tracer: Tracer | None = None
        self._tracer_of: TracerProvider | None = None

    def now(self) -> Providers:
        """What is in force."""
        others = Instrumented.providers
        return replace(
            self._own,
            tracer_provider=self._own.tracer_provider or others.tracer_provider,
            meter_provider=self._own.meter_provider or others.meter_provider,
        )

    @property
    def tracer(self) -> Tracer:
        """Makes all spans of the plugin."""
        provider = self._own.tracer_provider or Instrumented.providers.tracer_provider
        if self._tracer is None or self._tracer_of is not provider:
            self._tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
            self._tracer_of = provider
        return self._tracer


@asynccontextmanager
async def opened_tracing(
    settings: TelemetrySettings, worker: WorkerFacade, given: Given
) -> AsyncIterator[None]:
    """Send spans where the settings say, for as long as the worker is there.

    Raises:
        UsageError: What a setting asks for is not installed.
    """
    if not _exports_spans(settings):
        yield
        return
    _check_sdk()
    from dagnats_worker_telemetry import _outlets  # noqa: PLC0415 - needs the SDK

    fanout = _outlets.fanout_of(given.now().tracer_provider, settings, worker.worker_id)
    opened: list[tuple[str, ...]] = []
    try:
        _outlets.open_processors(fanout, settings, worker, opened)
        yield
    finally:
        for processor in fanout.released(opened):
            give_up = getattr(processor, "give_up", None)
            await flushed(processor.shutdown, settings, worker, give_up)


def tracing_of_child(settings: TelemetrySettings, given: Given) -> None:
    """The same in the process of a handler, until it ends."""
    if settings.exporter == "none":
        return
    _check_sdk()
    from dagnats_worker_telemetry import _outlets  # noqa: PLC0415 - needs the SDK

    _outlets.open_in_child(given.now().tracer_provider, settings)


def _exports_spans(settings: TelemetrySettings) -> bool:
    return settings.exporter != "none" or settings.stream


def _check_sdk() -> None:
    try:
        importlib.import_module("opentelemetry.sdk.trace.export")
    except ImportError as error:
        raise UsageError(
            f"telemetry: its settings ask for an exporter, and there is no SDK ({error}); "
            "pip install 'dagnats-worker-telemetry[sdk]'"
        ) from error


async def flushed(
    end: Callable[[], object],
    settings: TelemetrySettings,
    worker: WorkerFacade,
    give_up: Callable[[], object] | None = None,
) -> None:
    """Call what blocks until all is exported, for as long as the drain may still take.

    It is called in a thread that nobody waits for any longer than that, at the end of the process
    either.

    Args:
        give_up: Called where it takes longer, so that the thread comes to an end too.
    """
    left = worker.drain_left()
    within = settings.flush_timeout if left is None else min(left, settings.flush_timeout)
    done = _in_a_thread(end)
    await asyncio.wait([done], timeout=within.total_seconds())
    if not done.done():
        logger.warning(
            "telemetry is not exported within %g s; the rest is lost", within.total_seconds()
        )
        if give_up is not None:
            give_up()
    elif (error := done.result()) is not None:
        logger.warning("telemetry cannot be exported: %s", error)


def _in_a_thread(blocking: Callable[[], object]) -> asyncio.Future[Exception | None]:
    """Call something; the result is what it has raised."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Exception | None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if not done.done():
            done.set_result(error)

    def run() -> None:
        failed: Exception | None = None
        try:
            blocking()
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises
            failed = error
        with suppress(RuntimeError):  # the loop is closed, and so nobody waits
            loop.call_soon_threadsafe(tell, failed)

    threading.Thread(target=run, name="dagnats-worker-telemetry", daemon=True).start()
    return done
