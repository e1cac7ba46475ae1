"""Which meter provider the metrics go to, and who reads it by setting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_telemetry._instruments import Instruments
from dagnats_worker_telemetry._providers import SCOPE
from dagnats_worker_telemetry._settings import TelemetrySettings

_instruments: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


@asynccontextmanager
async def opened_meter(
    settings: TelemetrySettings, worker: WorkerFacade, given: MeterProvider | None
) -> AsyncIterator[Instruments]:
    """The instruments of the provider that is in force, read by what the settings ask for.

    Args:
        given: What somebody has chosen for the plugin; None for the global provider.

    Raises:
        UsageError: What a setting asks for is not installed.
    """
    async with AsyncExitStack() as stack:
        if settings.exporter != "none" or settings.stream or settings.prometheus:
            try:
                from dagnats_worker_telemetry import _readers  # noqa: PLC0415 - needs the SDK
            except ImportError as error:
                raise UsageError(
                    f"telemetry: its settings ask for metrics, and there is no SDK ({error}); "
                    "pip install 'dagnats-worker-telemetry[sdk]'"
                ) from error
            given = _readers.provider_of(given, settings, worker.worker_id)
            await stack.enter_async_context(_readers.read(given, settings, worker))
        yield instruments_of(given or metrics.get_meter_provider())


def instruments_of(provider: MeterProvider) -> Instruments:
    """The instruments of a provider, made once: it ignores a second callback under one name."""
    if provider not in _instruments:
        _instruments[provider] = Instruments(provider.get_meter(SCOPE))
    return _instruments[provider]
